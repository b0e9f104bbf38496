"""The notes' recipe on one GPU: plain Keras, kerastl, and a native PyTorch script; and what extraction makes of the GPU.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --cpu --count 64 --size 64 --network mobilenet_v2     # tries it on a CPU

Needs JAX or PyTorch that sees a GPU, no TensorFlow, no downloads: ResNet50 with random weights on drawn images (uint8,
224×224, in the host's memory), 10 epochs of the head and 5 with the last 10 layers, a quarter as many images again for
validation. Keras runs on JAX where that is installed, else on PyTorch (`--backends`), in float32, batch 32. The script is
native_torch.py: bfloat16, channels_last, images on the card, nothing stored, batch 32 and 256; its upload counts. Above
10,000 images only kerastl and the script at batch 256 run. Each is a process of its own, for the memory of the device.
What can't run, or isn't begun before `--minutes` are over, stands in the table with the reason.

"compile s" is part of "seconds". On JAX: what JAX itself reports for tracing, lowering and compiling, whatever overlaps
counted once. On PyTorch, which compiles nothing: of the script the first epoch of each phase less the median of its later
ones; of Keras nothing. "times kerastl" is the time through that of the first kerastl with as many images, "warm" the same
without "compile s". "images/s" is extraction's, without compiling; "of bare" is that through the bare forward of the same
network on the same backend: bfloat16, a batch of 256 on the card again and again.
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import time

MANY = 10_000  # images from which on only the two fastest run
BATCH = 256  # of the bare forward
SCRIPT, BARE = "PyTorch script", "bare forward"


def contestants(arguments) -> list[dict]:
    """Return what to run, in order. The bare forward comes first, as the others are compared with it."""
    batch = min(BATCH, *arguments.count)
    found = [{"what": BARE, "backend": backend, "images": None, "batch": batch} for backend in ("jax", "torch")]
    for count in arguments.count:
        few = count <= MANY
        for backend in arguments.backends:
            names = ["kerastl", "plain Keras"] if few else ["kerastl"]
            found += [{"what": name, "backend": backend, "images": count, "batch": 32} for name in names]
        batches = [32, 256] if few else [256]
        found += [{"what": SCRIPT, "backend": "torch", "images": count, "batch": batch} for batch in batches]
    return found


def obstacle(one, arguments) -> str | None:
    """Return why one can't run, or `None`."""
    if importlib.util.find_spec(one["backend"]) is None:
        return f"{one['backend']} is not installed"
    native = one["what"] == SCRIPT or (one["what"], one["backend"]) == (BARE, "torch")
    return "the script knows resnet50 only" if native and arguments.network != "resnet50" else None


def run_apart(one, arguments, seconds_left) -> dict:
    """Run one in a process of its own; return what it measured, or `{"note": why not}`."""
    if reason := obstacle(one, arguments):
        return {"note": reason}
    if seconds_left < 5:
        return {"note": f"no time left of {arguments.minutes:g} minutes"}
    environment = {**os.environ, "KERAS_BACKEND": one["backend"], "TF_CPP_MIN_LOG_LEVEL": "3"}
    if arguments.cpu:
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, *sys.argv[1:], "--one", json.dumps(one)]
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=seconds_left
        )
    except subprocess.TimeoutExpired:
        return {"note": f"stopped after {seconds_left:.0f} s: no time left"}
    if result.returncode:
        print(result.stderr[-2000:], file=sys.stderr)
        return {"note": (result.stderr.strip().splitlines() or [f"ended with {result.returncode}"])[-1][:100]}
    return json.loads(result.stdout.splitlines()[-1])


def run_here(one, arguments) -> dict:
    """Measure one in this process."""
    name, _ = device(one["backend"])
    if name == "cpu" and not arguments.cpu:
        sys.exit(f"{one['backend']} sees no GPU (--cpu tries it without)")
    if one["what"] == BARE:
        measured = bare_forward(one, arguments)
    else:
        count = one["images"]
        images, labels = drawn(count + count // 4, arguments.size)
        parts = (images[:count], labels[:count]), (images[count:], labels[count:])
        epochs = (arguments.head_epochs, arguments.fine_tune_epochs)
        if one["what"] == SCRIPT:
            import native_torch

            measured = native_torch.recipe(*parts, epochs, one["batch"])
        else:
            measured = keras_recipe(one, *parts, epochs, arguments)
    peak = device(one["backend"])[1]
    return {**measured, "peak GB": peak and peak / 1e9, "device": name}


def device(backend) -> tuple[str, int | None]:
    """Return the device's name ("cpu" where there is no other), and the most bytes that were in use on it."""
    if backend == "jax":
        import jax

        first = jax.devices()[0]
        return first.device_kind, (first.memory_stats() or {}).get("peak_bytes_in_use")
    import torch

    if not torch.cuda.is_available():
        return "cpu", None
    return torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()


def drawn(count, size):
    """Return images of stripes across or along in noise, and which; common.py's take ten times as long and as much memory."""
    import numpy as np

    random = np.random.default_rng(0)
    labels = random.integers(0, 2, count)
    images = np.empty((count, size, size, 3), "uint8")
    wave = (100 + 90 * np.sin(np.arange(size) * 0.4)).astype("uint8")
    stripes = [np.broadcast_to(one, images.shape[1:]).copy() for one in (wave[None, :, None], wave[:, None, None])]
    for image, label in zip(images, labels, strict=True):
        noise = np.frombuffer(random.bytes(image.size), "uint8").reshape(image.shape)
        np.add(noise >> 2, stripes[label], out=image)
    return images, labels


def keras_recipe(one, train, validation, epochs, arguments) -> dict:
    """Run recipe.py's plain Keras, or its kerastl."""
    from recipe import plain_keras, with_kerastl

    run = with_kerastl if one["what"] == "kerastl" else plain_keras
    model = build(arguments)
    compiling, start = Compiling(one["backend"]), time.perf_counter()
    result = run(model, train, validation, epochs)
    seconds = time.perf_counter() - start
    history = getattr(result, "fine_tune", result).history
    measured = {"seconds": seconds, "compile s": compiling.seconds(), "val. acc.": history["val_accuracy"][-1]}
    if one["what"] == "kerastl":
        measured |= {f"{name} s": value for name, value in result.seconds.items()}
    if extraction := measured.get("extraction s"):
        # it comes first, so what was compiled until its end was for it
        running = extraction - compiling.seconds(until=start + extraction)
        measured["images/s"] = (len(train[1]) + len(validation[1])) / running
    return measured


def build(arguments):
    import keras

    import kerastl

    keras.utils.set_random_seed(0)
    return kerastl.build_classifier(arguments.network, 2, input_shape=arguments.size, weights=None, dropout=0.0)


class Compiling:
    """Seconds of what JAX reports as tracing, lowering and compiling from now on, on any thread."""

    def __init__(self, backend):
        self._spans = []
        if backend == "jax":
            import jax

            jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event, seconds, **_):
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._spans.append((now - seconds, now))

    def seconds(self, until=math.inf) -> float:
        """Return the time covered: tracing nests, and threads overlap."""
        covered, end = 0.0, -math.inf
        for start, stop in sorted(self._spans):
            stop = min(stop, until)
            covered += max(stop - max(start, end), 0.0)
            end = max(end, stop)
        return covered


def bare_forward(one, arguments) -> dict:
    """Return the images per second of the network alone: bfloat16, a batch on the device, the first call apart."""
    images, _ = drawn(one["batch"], arguments.size)
    if one["backend"] == "torch":
        import native_torch

        run, wait = native_torch.forward(images)
    else:
        run, wait = jax_forward(images, arguments)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        wait(run())
        seconds.append(time.perf_counter() - start)
    repeats = max(1, min(200, int(3 / seconds[-1])))
    start = time.perf_counter()
    for _ in range(repeats):
        output = run()
    wait(output)
    rate = repeats * len(images) / (time.perf_counter() - start)
    return {"images/s": rate, "compile s": seconds[0] - seconds[-1]}


def jax_forward(images, arguments):
    import jax
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    model, batch = build(arguments), jax.device_put(images)
    weights = [[one.value for one in kind] for kind in (model.trainable_variables, model.non_trainable_variables)]
    forward = jax.jit(
        lambda trained, frozen, x: model.stateless_call(trained, frozen, x.astype("float32"), training=False)[0]
    )
    return lambda: forward(*weights, batch), jax.block_until_ready


def compared(rows) -> None:
    """Add the ratios to rows that were measured."""
    bare = {row["backend"]: row["images/s"] for row in rows if row["what"] == BARE and row.get("images/s")}
    for row in rows:
        others = [one for one in rows if one["what"] == "kerastl" and one["images"] == row["images"]]
        ours = next((one for one in others if one.get("seconds")), None)
        if ours and row.get("seconds"):
            row["times kerastl"] = row["seconds"] / ours["seconds"]
            row["warm"] = (row["seconds"] - row["compile s"]) / (ours["seconds"] - ours["compile s"])
        if row["what"] == "kerastl" and row.get("images/s") and row["backend"] in bare:
            row["of bare"] = row["images/s"] / bare[row["backend"]]


def print_and_write(rows, arguments) -> None:
    """Print the table; Keras, which it needs for the machine's facts, is kept off the GPU."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": arguments.backends[0]}
    from common import report

    columns = ["what", "backend", "images", "batch", "seconds", "compile s", "times kerastl", "warm", "images/s"]
    columns += ["of bare", "peak GB", "val. acc.", "note"]
    rows = [{**dict.fromkeys(columns), **row} for row in rows]
    rows.sort(key=lambda row: row["what"] == BARE)
    devices = sorted({row.pop("device") for row in rows if row.get("device")})
    options = {name: value for name, value in vars(arguments).items() if name not in ("json", "one")}
    name = f"{arguments.network} {arguments.size}² on {', '.join(devices) or 'nothing'}"
    report(name, rows, arguments.json, devices=devices, arguments=options)


def main():
    installed = [name for name in ("jax", "torch") if importlib.util.find_spec(name)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--count", type=int, nargs="+", default=[1024, 8192, 50_000])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--head-epochs", type=int, default=10)
    parser.add_argument("--fine-tune-epochs", type=int, default=5)
    parser.add_argument("--backends", nargs="+", choices=["jax", "torch"], default=installed[:1], help="of Keras")
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing is begun or goes on after so many")
    parser.add_argument("--cpu", action="store_true", help="hide the GPU")
    parser.add_argument("--json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not installed:
        parser.error("needs JAX or PyTorch; neither is installed")
    if arguments.one:
        print(json.dumps(run_here(json.loads(arguments.one), arguments)))
        return
    end = time.monotonic() + 60 * arguments.minutes
    rows = []
    for one in contestants(arguments):
        rows.append({**one, **run_apart(one, arguments, end - time.monotonic())})
        print(rows[-1], flush=True)
    compared(rows)
    print_and_write(rows, arguments)


if __name__ == "__main__":
    main()
