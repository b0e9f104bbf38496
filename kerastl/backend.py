"""The few lines that differ between Keras's backends: TensorFlow, JAX and PyTorch."""

import contextlib
import ctypes
import itertools
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

import keras
import numpy as np

from kerastl.errors import BackendError

# glibc maps a block above its threshold again at every allocation, and each page of it costs a fault: half of the time of a
# training step on feature maps, where every tensor is one. By itself the threshold grows to 32 MB at most, and not in every
# process; see mallopt(3).
LARGEST_KEPT_BLOCK = 32 * 2**20
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1


# Among a batch's features, an array `(devices, rows)` that says by its shape how many rows are left without those that fill
# the batch up for the devices; the name comes last where JAX sorts them
ALL_ROWS = "~rows"


def keep_freed_memory() -> None:
    """Let the process keep what tensors leave, up to 1 GB, for the next ones; for good, as glibc doesn't tell what was set."""
    if library := _glibc():
        library.mallopt(_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, 2**30)


def give_memory_back() -> None:
    """Give the system what glibc keeps of the memory that was freed, on its own or by `keep_freed_memory`."""
    if library := _glibc():
        library.malloc_trim(0)


def _glibc():
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if all(hasattr(library, name) for name in ("mallopt", "malloc_trim")) else None


def compiled_forward(model: keras.Model, step: int | None = None) -> Callable[[np.ndarray], list]:
    """Return a compiled function from a batch of images to the model's outputs in inference mode, a list of tensors.

    On TensorFlow (where XLA is never forced) it runs `step` images at once. The weights are read at every call; on JAX each
    new size of a batch may compile again. Raise `BackendError` on another backend.
    """
    name = keras.backend.backend()
    makers = {"tensorflow": _tensorflow_forward, "jax": _jax_forward, "torch": _torch_forward}
    if name not in makers:
        raise BackendError(
            f"Expected Keras on TensorFlow, JAX or PyTorch. Received: backend={name!r}. Set KERAS_BACKEND."
        )
    return makers[name](model, step)


def has_accelerator() -> bool:
    """Tell whether the backend sees a GPU or another accelerator."""
    name = keras.backend.backend()
    if name == "tensorflow":
        import tensorflow as tf

        return any(device.device_type != "CPU" for device in tf.config.list_physical_devices())
    if name == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import torch

    return torch.cuda.is_available()


def free_device_memory() -> int:
    """Return the bytes that are free on the accelerator; 0 where there is none, or nobody tells."""
    if not has_accelerator():
        return 0
    name = keras.backend.backend()
    if name == "jax":
        import jax

        facts = jax.local_devices()[0].memory_stats() or {}
        return facts.get("bytes_limit", 0) - facts.get("bytes_in_use", 0)
    if name == "torch":
        import torch

        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    import tensorflow as tf

    with contextlib.suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
        return int(_ask_nvidia("memory.total")) * 2**20 - tf.config.experimental.get_memory_info("GPU:0")["current"]
    return 0


def _ask_nvidia(what: str) -> str:
    asked = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that the device's memory is full."""
    return type(error).__name__ in ("ResourceExhaustedError", "OutOfMemoryError") or "RESOURCE_EXHAUSTED" in str(error)


def half_type() -> str | None:
    """Return the 16-bit type that the accelerator multiplies fastest, or `None` on a CPU, which gains nothing by one."""
    if not has_accelerator():
        return None
    with contextlib.suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
        return "bfloat16" if float(_ask_nvidia("compute_cap")) >= 8 else "float16"
    return "bfloat16"  # not NVIDIA's, such as a TPU


def on_every_device(values):
    """Return values as a tensor: on the device, or, where Keras distributes over several, a copy on each of them.

    Every process must give the same values.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return keras.ops.convert_to_tensor(values)
    layout = keras.distribution.TensorLayout([None] * len(values.shape), distribution.device_mesh)
    if processes()[1] == 1:
        return keras.distribution.distribute_tensor(values, layout)
    import jax

    sharding = layout.backend_layout  # JAX's own way to it would send the values around, to compare them
    copies = [jax.device_put(values, one) for one in sharding.addressable_devices]
    return jax.make_array_from_single_device_arrays(values.shape, sharding, copies)


def processes() -> tuple[int, int]:
    """Return this process's number, from 0, and how many train one model together: on JAX Keras distributes over them."""
    if keras.backend.backend() != "jax" or keras.distribution.distribution() is None:
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def devices_of_a_batch() -> int:
    """Return how many devices, of all processes together, share each batch."""
    distribution = keras.distribution.distribution()
    if keras.backend.backend() != "jax" or distribution is None:
        return 1
    mesh = distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]


def of_each_process(number: int) -> list[int]:
    """Return what each process gives, below 2**32, in their order; all of them must call this, and wait for each other."""
    if processes()[1] == 1:
        return [number]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.array([number], "uint32")).reshape(-1).tolist()


@contextlib.contextmanager
def batches_of_our_own():
    """Let `fit` take the batches of each process as they are, for the length of a `with`; Keras shares datasets out itself."""
    distribution, shared = keras.distribution.distribution(), processes()[1] > 1
    before = shared and distribution.auto_shard_dataset
    if before:
        distribution.auto_shard_dataset = False
    try:
        yield
    finally:
        if before:
            distribution.auto_shard_dataset = True


def in_this_process(variables) -> list:
    """Return the variables' values; where processes share them, the copies of this one, with which it can work alone."""
    values = [variable.value for variable in variables]
    if processes()[1] == 1:
        return values
    import jax

    return [jax.device_put(value.addressable_data(0), _sharding_here()) for value in values]


def _sharding_here(*axes):
    """Return JAX's layout of an array over the devices of this process alone; an axis "batch" is split among them."""
    from jax import sharding

    devices = keras.distribution.distribution().device_mesh.backend_mesh.local_devices
    return sharding.NamedSharding(sharding.Mesh(np.array(devices), "batch"), sharding.PartitionSpec(*axes))


_quiet, _quiet_users, _quiet_lock = contextlib.ExitStack(), [], threading.Lock()


@contextlib.contextmanager
def quiet_output():
    """Keep what native code and loggers write to the terminal out of it; of an error the exception is enough.

    Of several threads the first one in silences the process, and the last one out gives its voice back.
    """
    with _quiet_lock:
        if not _quiet_users:
            _silence(_quiet)
        _quiet_users.append(threading.get_ident())
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users.pop()
            if not _quiet_users:
                _quiet.close()


def _silence(stack: contextlib.ExitStack) -> None:
    """Redirect the terminal's streams and disable the loggers, until the stack is closed."""
    sink = tempfile.TemporaryFile()  # noqa: SIM115 (the stack closes it)
    stack.callback(sink.close)
    for stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, AttributeError, ValueError):
            stream.flush()
            number = stream.fileno()
            copy = os.dup(number)
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, number)
            os.dup2(sink.fileno(), number)
    # TensorFlow's own handler holds on to the stream of a notebook, which no file descriptor leads to
    stack.callback(logging.disable, logging.root.manager.disable)
    logging.disable(logging.CRITICAL)


def _tensorflow_forward(model, step):
    import tensorflow as tf

    @tf.function(reduce_retracing=True, jit_compile=False)
    def forward(images):
        return model(tf.cast(images, "float32"), training=False)

    shape = (None, *model.inputs[0].shape[1:])
    functions = {}

    def run(images):
        kind = "uint8" if images.dtype == np.uint8 else "float32"
        if kind not in functions:
            functions[kind] = forward.get_concrete_function(tf.TensorSpec(shape, kind))
        size = step or max(len(images), 1)
        parts = [images[start : start + size] for start in range(0, max(len(images), 1), size)]
        outputs = [keras.tree.flatten(functions[kind](tf.constant(part, kind))) for part in parts]
        return outputs[0] if len(outputs) == 1 else [tf.concat(one, 0) for one in zip(*outputs, strict=True)]

    return run


def _jax_forward(model, _):
    import jax

    distribution = keras.distribution.distribution()  # which Keras keeps for this thread alone

    @jax.jit
    def forward(trainable, non_trainable, images):
        return model.stateless_call(trainable, non_trainable, images.astype("float32"), training=False)[0]

    def run(images):
        if distribution is None:
            return in_scope(images)
        with distribution.scope():
            layout = distribution.get_data_layout(images.shape).backend_layout
            layout = layout if processes()[1] == 1 else _sharding_here("batch")
            return in_scope(jax.device_put(images, layout))  # a part of the images for each device

    def in_scope(images):
        weights = map(in_this_process, (model.trainable_variables, model.non_trainable_variables))
        return keras.tree.flatten(forward(*weights, images))

    return run


def _torch_forward(model, _):
    import torch

    def run(images):
        with torch.no_grad():
            pixels = keras.ops.cast(keras.ops.convert_to_tensor(images), "float32")  # bytes travel, not floats
            return keras.tree.flatten(model(pixels, training=False))

    return run


def batches_for_fit(batches: keras.utils.PyDataset):
    """Return what `fit` and `evaluate` run over these batches soonest: on TensorFlow a dataset of its own, else the batches.

    Keras reads a `PyDataset` through tf.data with autotuning. In TensorFlow 2.21 the thread that tunes often holds up the end
    of a pass until it wakes, after 10 ms, then 20, 40 and so on: an epoch of 2.9 s takes 5.1. `on_epoch_end` is called.
    """
    if keras.backend.backend() != "tensorflow" or not len(batches):
        return batches
    import tensorflow as tf

    whole = getattr(batches, "on_device", False)

    def one_pass():
        if whole:  # rows alone, so all of an epoch at once
            yield batches.epoch()
        else:
            for index in range(len(batches)):
                yield batches[index]
        batches.on_epoch_end()

    def spec(array):
        return tf.TensorSpec((None, *array.shape[1:]), array.dtype)

    dataset = tf.data.Dataset.from_generator(one_pass, output_signature=tf.nest.map_structure(spec, batches[0]))
    if whole:
        dataset = dataset.flat_map(lambda *epoch: tf.data.Dataset.from_tensor_slices(epoch).batch(batches.batch_size))
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches))).prefetch(2)
    return without_autotuning(dataset)


def steps_given(model, features: dict, count: int) -> None:
    """Let the model's training and test steps run on features that stay on the device, `count` of them in one call.

    `features` is what the model's `call` reads while it is traced: `{part: {name: tensor}}`. On TensorFlow and PyTorch a
    step may read tensors from outside. On JAX these would become constants of the program, and Keras runs several steps as
    several calls: there the steps are compiled here, with `lax.scan`, and Keras takes them as its own.
    """
    model.train_function = model.test_function = None
    model.steps_per_execution = count
    if keras.backend.backend() == "jax" and model.jit_compile and not model.run_eagerly:
        model.train_function = _jax_steps(model.train_step, features, count)
        model.test_function = _jax_steps(model.test_step, features, count)


def _jax_steps(step, features, count):
    import jax

    def one(state, data, given):
        if isinstance(data[0], dict) and ALL_ROWS in data[0]:
            *_, count = data[0].pop(ALL_ROWS).shape
            data = jax.tree.map(lambda values: values[:count], data)
        outside = dict(features)
        features.update(given)
        try:
            return step(state, data)
        finally:
            features.update(outside)

    def several(state, batches, given):
        data = jax.tree.map(lambda *arrays: jax.numpy.stack(arrays), *batches)
        state, logs = jax.lax.scan(lambda before, batch: one(before, batch, given)[::-1], state, data)
        return jax.tree.map(lambda values: values[-1], logs), state

    compiled = {}

    def run(state, iterator):
        batches = list(itertools.islice(iterator, count))
        if not batches:
            raise StopIteration
        if not compiled:
            options = {"donate_argnums": 0}
            if keras.distribution.distribution() is not None:  # the state stays as it is, the same on each device
                options["out_shardings"] = (None, jax.tree.map(lambda value: value.sharding, state))
            compiled["one"], compiled["several"] = (jax.jit(function, **options) for function in (one, several))
        shapes = [jax.tree.map(np.shape, batch) for batch in batches]
        on_device = isinstance(batches[0][0], dict)  # not images, of which a callback may be evaluating the model
        if on_device and len(batches) == count > 1 and all(shape == shapes[0] for shape in shapes):
            return compiled["several"](state, batches, dict(features))
        for batch in batches:
            logs, state = compiled["one"](state, batch, dict(features))
        return logs, state

    return run


def without_autotuning(dataset):
    """Return a `tf.data.Dataset` that takes its numbers of threads and buffers as they are; see `batches_for_fit`."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def gradients_of(loss_function: Callable, variables) -> tuple[float, list[np.ndarray]]:
    """Return the loss and its gradient with respect to each variable, and leave every variable as it is.

    The function takes nothing and returns a scalar tensor computed by Keras. What it assigns (BatchNorm's statistics, random
    seeds, metrics) is dropped. A variable that the loss doesn't depend on gets zeros. See `check_gradients` for backends.
    """
    check_gradients()
    makers = {"tensorflow": _tensorflow_gradients, "jax": _jax_gradients}
    loss, gradients = makers[keras.backend.backend()](loss_function, list(variables))
    return float(loss), [np.asarray(gradient) for gradient in gradients]


def check_gradients() -> None:
    """Raise `BackendError` unless `gradients_of` works on this backend."""
    name = keras.backend.backend()
    if name not in ("tensorflow", "jax"):
        raise BackendError(
            f"Gradients need Keras on TensorFlow or JAX. Received: backend={name!r}. Set KERAS_BACKEND before Keras is "
            "imported."
        )


def _tensorflow_gradients(loss_function, variables):
    import tensorflow as tf

    values = [variable.value for variable in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape, keras.StatelessScope():
        tape.watch(values)
        loss = loss_function()
    gradients = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]


def _jax_gradients(loss_function, variables):
    import jax

    def loss_at(values):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return loss_function()

    return jax.value_and_grad(loss_at)([variable.value for variable in variables])
