"""Put rows into the number type of a store, and notice values that it can't hold."""

import numpy as np

from kerastl.checks import received
from kerastl.errors import ArgumentError, FeatureOverflowError
from kerastl.features.records import ArraySpec

_BLOCK = 1 << 16
_FLOAT16_END = 65520.0
"""The first number that is rounded to infinity: halfway between float16's largest, 65504, and the next power of two."""


def cast_rows(spec: ArraySpec, values: np.ndarray) -> np.ndarray:
    """Return the values as they will be stored: contiguous, in the spec's type.

    Floats are rounded to the nearest; infinities and NaN stay what they are. Integers must be kept exactly.

    Args:
        spec: of the array.
        values: `(rows, *spec.row_shape)`.

    Raises:
        FeatureOverflowError: a finite value has no place in the type.
        ArgumentError: the values are of another shape, or no real numbers.
    """
    values = np.asarray(values)
    if values.dtype.name == "bfloat16":  # a type of another package; every value is a float32
        values = values.astype("float32")
    if values.dtype.kind not in "fiub":
        raise ArgumentError(f"{spec.name!r} must be real numbers. {received(dtype=str(values.dtype))}")
    if values.ndim == 0 or values.shape[1:] != spec.row_shape:
        raise ArgumentError(
            f"{spec.name!r} must have the shape (rows, {', '.join(map(str, spec.row_shape))}). "
            f"{received(shape=values.shape)}"
        )
    target = spec.stored_dtype
    if values.dtype == target:
        return np.ascontiguousarray(values)
    if values.dtype == np.float32 and target == np.float16:
        cast = to_float16(np.ascontiguousarray(values))
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            cast = values.astype(target, order="C")
    if target.kind == "f":
        lost = np.isinf(cast) & np.isfinite(values) if _may_overflow(values, target) else None
    else:
        lost = cast != values
    if lost is None or not lost.any():
        return cast
    raise FeatureOverflowError(
        f"{spec.name!r} holds values that {spec.dtype} can't: {values[lost][0].item()!r}, for one. Store them as "
        f"{_wider(spec.dtype)}. {received(count=int(lost.sum()), dtype=str(values.dtype))}"
    )


def to_float16(values: np.ndarray) -> np.ndarray:
    """Return contiguous float32 values as float16, bit for bit as `astype` does, and 1.3 to 30 times faster.

    NumPy goes value by value, slowly at the many zeros that ReLU leaves and very slowly below 6e-5. Here the adder
    rounds: to `x` in 2^e … 2^(e+1) it adds 2^(e+13), whose float32 neighbours lie as far apart as those of `x` in
    float16, so that the sum's lowest bits are the rounded mantissa. Below 2^-14 float16's neighbours stay equally far
    apart, and the number added stays the same.
    """
    flat = values.reshape(-1)
    result = np.empty(flat.shape, "uint16")
    exponents = np.empty(min(_BLOCK, flat.size), "uint32")
    added = np.empty_like(exponents)
    sums = np.empty_like(exponents)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        target = result[start : start + _BLOCK]
        exponent, addend, total = exponents[: len(block)], added[: len(block)], sums[: len(block)]
        magnitude = np.abs(block, out=total.view("float32"))
        if not magnitude.max() < _FLOAT16_END:  # an infinity or NaN, or one to be
            with np.errstate(over="ignore"):
                target[:] = block.astype("float16").view("uint16")
            continue
        np.bitwise_and(total, 0x7F800000, out=exponent)
        np.maximum(exponent, (127 - 14) << 23, out=exponent)
        np.add(exponent, 13 << 23, out=addend)
        np.add(magnitude, addend.view("float32"), out=magnitude)
        np.subtract(total, addend, out=total)
        # The mantissa's leading bit counts as one up in the exponent, which therefore starts one lower
        np.right_shift(exponent, 13, out=exponent)
        np.add(total, exponent, out=total)
        np.subtract(total, (127 - 14) << 10, out=total)
        np.right_shift(block.view("uint32"), 16, out=addend)
        np.bitwise_and(addend, 0x8000, out=addend)
        np.bitwise_or(total, addend, out=total)
        target[:] = total
    return result.view("float16").reshape(values.shape)


def _may_overflow(values: np.ndarray, target: np.dtype) -> bool:
    """Tell whether a closer look is worth its time: whether anything is as large as the type's largest number."""
    if values.size == 0 or values.dtype.kind == "b":
        return False
    if values.dtype.kind == "f" and values.dtype.itemsize <= target.itemsize:
        return False
    limit = float(np.finfo(target).max)
    return not (values.max() < limit and values.min() > -limit)


def _wider(dtype: str) -> str:
    return {"float16": "float32", "float32": "float64"}.get(dtype, "a type with a wider range")
