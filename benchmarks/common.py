"""What all benchmarks share: the machine in words, peak memory of one part of a run, tables, JSON."""

import contextlib
import json
import os
import pathlib
import platform
import sys
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np

from kerastl.features.litert import usable_cores
from kerastl.tables import Table


def machine() -> dict:
    """Return what the figures depend on."""
    facts = {
        "processor": _processor(),
        "cores": usable_cores(),
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "numpy": np.__version__,
    }
    if facts["backend"] == "tensorflow":
        import tensorflow as tf

        facts["tensorflow"] = tf.__version__
    return facts


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class Measured:
    """Seconds, and the highest resident memory, of what runs inside the `with`."""

    def __enter__(self):
        self._stop, self.peak_bytes = threading.Event(), resident_bytes()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception):
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.wait(0.1):
            self.peak_bytes = max(self.peak_bytes, resident_bytes())


def resident_bytes() -> int:
    """Return the memory that this process holds now; 0 where the system doesn't tell."""
    with contextlib.suppress(OSError, IndexError, ValueError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def report(name: str, rows: list[dict], path: str | None, **facts) -> None:
    """Print rows as a table and, where a path is given, write them as JSON with the machine."""
    header = list(rows[0])
    cells = [[_text(row.get(column)) for column in header] for row in rows]
    right = [i for i, column in enumerate(header) if isinstance(rows[0][column], (int, float))]
    print(Table(header, cells, right, name), flush=True)
    if path:
        content = {"name": name, "machine": machine(), **facts, "rows": rows}
        pathlib.Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _text(value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return "" if value is None else str(value)


def photographs(count: int, size: int, seed: int = 0):
    """Return `(images uint8, labels)`: solar cells where TensorFlow and the data are there, else drawn textures."""
    try:
        import elpv_dataset  # noqa: F401
        import tensorflow  # noqa: F401
    except ImportError:
        return textures(count, size, seed)
    import kerastl

    splits = kerastl.load_images("elpv", image_size=size, seed=seed, validation=0, test=0, verbose=0)
    from kerastl.data.batches import find_source

    source = find_source(splits.train)
    if count > len(source):
        return textures(count, size, seed)
    return np.stack([source.read(index) for index in range(count)]), source.labels[:count].astype("int64")


def textures(count: int, size: int, seed: int = 0):
    """Return drawn images of two classes, stripes across and stripes along, in noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    images = 128 + 40 * random.standard_normal((count, size, size, 3), dtype="float32")
    wave = 40 * np.sin(np.arange(size, dtype="float32") * 0.4)
    for index, label in enumerate(labels):
        images[index] += wave[:, None, None] if label else wave[None, :, None]
    return images.clip(0, 255, out=images).astype("uint8"), labels
