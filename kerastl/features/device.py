"""The store on the device that trains: features as tensors, which the tail's steps gather by the numbers of their rows."""

import keras
import numpy as np

from kerastl import backend
from kerastl.errors import FeatureOverflowError
from kerastl.features.store import Store, StoreWriter


class DeviceWriter(StoreWriter):
    """A store on the device; labels and sample weights stay in memory. `next_writer` makes the one for a full device."""

    def __init__(self, specs, count, next_writer):
        super().__init__(specs, count)
        self._chunks = {name: [] for name in self.specs}
        self._next_writer, self._next, self._unchecked = next_writer, None, False

    def _cast(self, spec, values):
        if not keras.ops.is_tensor(values):
            return super()._cast(spec, values)
        self._unchecked = True  # what the type can't hold is found at the end: to look now would wait for the device
        return keras.ops.cast(values, spec.dtype)

    def _write(self, chunk, count):
        if self._next is not None:
            self._next.append({name: _numpy(values) for name, values in chunk.items()})
            return
        try:
            ready = {name: _tensor(values) if _stays(name) else values for name, values in chunk.items()}
        except Exception as error:
            self._move(error)
            self._write(chunk, count)
            return
        for name, values in ready.items():
            self._chunks[name].append(values)

    def _move(self, error):
        """Hand over what is there to the next store, where the error says that the device is full."""
        if not backend.is_out_of_memory(error):
            raise error
        print("The device's memory is full: the features go to memory or to disk.")
        self._next = self._next_writer()
        for index in range(len(self._chunks["labels"])):
            self._next.append({name: _numpy(chunks[index]) for name, chunks in self._chunks.items()})
        self._chunks.clear()

    def _complete(self, details):
        if self._next is None:
            try:
                return self._on_device(details)
            except Exception as error:
                self._move(error)
        return self._next.finish(details)

    def _on_device(self, details):
        arrays = {}
        for name, spec in self.specs.items():
            chunks = self._chunks[name]
            if not _stays(name):
                arrays[name] = np.concatenate(chunks)
                continue
            joined = backend.on_every_device(keras.ops.concatenate(chunks) if len(chunks) > 1 else chunks[0])
            if self._unchecked and spec.dtype == "float16" and not bool(keras.ops.all(keras.ops.isfinite(joined))):
                raise FeatureOverflowError(f"{name!r} holds values that float16 can't, or NaN. Store them as float32.")
            arrays[name] = joined
        self._chunks.clear()

        def read(spec, rows):
            values = arrays[spec.name]
            return values[rows] if isinstance(values, np.ndarray) else _numpy(keras.ops.take(values, rows, axis=0))

        store = Store(self.specs, self.rows_done, details, read, arrays.clear)
        store.tensors = {name: values for name, values in arrays.items() if _stays(name)}
        return store

    def close(self):
        self._chunks.clear()
        if self._next is not None:
            self._next.close()
        super().close()


def _stays(name: str) -> bool:
    """Tell whether an array of the store belongs on the device."""
    return name.startswith("features")


def _tensor(values):
    return keras.ops.convert_to_tensor(values)


def _numpy(values):
    return np.asarray(keras.ops.convert_to_numpy(values))
