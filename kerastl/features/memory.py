"""The arrays of a store in memory."""

import dataclasses

import numpy as np

from kerastl.errors import StoreError
from kerastl.features.records import ArraySpec, Record, bytes_per_row
from kerastl.tables import readable_bytes


class MemoryArrays:
    """Plain arrays that grow by an eighth where the number of rows isn't known; see `StoreWriter`."""

    folder = None

    def __init__(self, specs: dict[str, ArraySpec], count: int | None):
        self.record = Record("memory", specs, count)
        try:
            self._arrays = {name: np.empty((count or 0, *spec.row_shape), spec.dtype) for name, spec in specs.items()}
        except (MemoryError, ValueError) as error:  # ValueError: more than an address can name
            raise self._explain(count or 0) from error

    def check_room(self, needed: int) -> None:
        """Memory tells when it is full, not before."""

    def write(self, chunk: dict[str, np.ndarray], rows: int) -> None:
        """Append one chunk."""
        start, stop = self.record.rows, self.record.rows + rows
        try:
            for array in self._arrays.values():
                if len(array) < stop:
                    _resize(array, stop + stop // 8)
        except MemoryError as error:
            raise self._explain(stop) from error
        for name, values in chunk.items():
            self._arrays[name][start:stop] = values
        self.record = dataclasses.replace(self.record, rows=stop, chunks=self.record.chunks + 1)

    def finish(self, details: dict) -> Record:
        """Give back what the arrays grew too far, and return what a manifest would say."""
        for array in self._arrays.values():
            if len(array) > self.record.rows:
                _resize(array, self.record.rows)
        return dataclasses.replace(self.record, count=self.record.rows, details=details)

    def read(self, spec: ArraySpec, selection: slice | np.ndarray) -> np.ndarray:
        """Return a copy of some rows."""
        array = self._arrays[spec.name]
        return array[selection].copy() if isinstance(selection, slice) else array.take(selection, axis=0)

    def close(self) -> None:
        """Nothing to close."""

    def _explain(self, rows: int) -> StoreError:
        return StoreError(
            f"{rows} rows of features ({readable_bytes(rows * bytes_per_row(self.record.specs))}) don't fit into memory. "
            "Keep them on disk."
        )


def _resize(array: np.ndarray, rows: int) -> None:
    """Resize in place: a copy would need twice the memory. Nobody else sees the array."""
    array.resize((rows, *array.shape[1:]), refcheck=False)
