"""Values in the number type of a store: rounded as NumPy does, never lost silently."""

import numpy as np
import pytest

from kerastl.errors import FeatureOverflowError
from kerastl.features.store import ArraySpec, MemoryWriter, begin, temporary_store
from tests.stores import CHUNK, COUNT, SPECS, append_rest, everything, rows_from


@pytest.mark.parametrize("make", [MemoryWriter, temporary_store])
def test_values_that_float16_cannot_hold_are_refused_before_anything_is_written(make):
    with make(SPECS, COUNT) as writer:
        writer.append(rows_from(0))
        chunk = rows_from(8)
        chunk["features_0"][3, 1, 2] = 70000.0
        with pytest.raises(FeatureOverflowError, match=r"70000\.0.*float32"):
            writer.append(chunk)
        assert writer.rows_done == CHUNK
        append_rest(writer)
        with writer.finish() as store:
            np.testing.assert_array_equal(store.read("features_0", slice(None)), everything()[0])


@pytest.mark.parametrize("source", ["float32", "float64", "int64"])
def test_the_largest_float16_fits_and_the_next_does_not(source):
    spec = ArraySpec("a", (), "float16")
    assert spec.cast(np.array([65504, -65504, 65519], source)).tolist() == [65504, -65504, 65504]
    for value in (65520, -65520, 2**40):
        with pytest.raises(FeatureOverflowError):
            spec.cast(np.array([1, value], source))


def test_infinity_and_nan_stay_what_they_are():
    values = np.array([np.inf, -np.inf, np.nan, 1], "float32")
    with MemoryWriter([ArraySpec("a", (), "float16")], 4) as writer:
        writer.append({"a": values})
        np.testing.assert_array_equal(writer.finish().read("a", slice(None)), values)


def test_float32_is_exact(tmp_path):
    values = np.random.default_rng(0).standard_normal((9, 4)).astype("float32") * 1e30
    with begin(tmp_path, key="k", specs=[ArraySpec("a", (4,), "float32")], count=9) as writer:
        writer.append({"a": values})
        with writer.finish() as store:
            assert store.read("a", slice(None)).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("uint8", [-1]),
        ("int32", [2**40]),
        ("int32", [0.5]),
        ("int64", [np.nan]),
        ("bool", [2]),
        ("float32", [1e300]),
    ],
)
def test_values_that_no_cast_keeps_are_refused(dtype, values):
    with MemoryWriter([ArraySpec("a", (), dtype)], 1) as writer, pytest.raises(FeatureOverflowError):
        writer.append({"a": np.array(values)})


def test_bfloat16_is_understood():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    with MemoryWriter([ArraySpec("a", (), "float16")], 3) as writer:
        writer.append({"a": np.array([1, -2.5, 0], bfloat16)})
        assert writer.finish().read("a", [0, 1, 2]).tolist() == [1, -2.5, 0]


def test_arrays_that_do_not_lie_in_one_piece_are_stored_in_order():
    values = np.arange(24, dtype="float32").reshape(4, 6)
    for one in (values.T[:4], values[::-1], np.asfortranarray(values)):
        with MemoryWriter([ArraySpec("a", one.shape[1:], "float16")], 4) as writer:
            writer.append({"a": one})
            np.testing.assert_array_equal(writer.finish().read("a", slice(None)), one)


def test_float16_is_numpys_own_rounding():
    halves = np.arange(2**16, dtype="uint16").view("float16").astype("float32")
    halves = np.sort(halves[np.isfinite(halves)])
    middles = ((halves[1:].astype("float64") + halves[:-1]) / 2).astype("float32")
    above, below = np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf))
    some_of_all = np.arange(0, 2**32, 4999, dtype="uint64").astype("uint32").view("float32")
    some_of_all = some_of_all[np.abs(some_of_all) <= 65504]
    for values in (halves, middles, above, below, some_of_all, some_of_all[:0], halves.reshape(-1, 4)):
        cast = ArraySpec("a", values.shape[1:], "float16").cast(values)
        assert cast.view("uint16").tolist() == values.astype("float16").view("uint16").tolist()
