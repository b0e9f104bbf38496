"""Read the tensors out of a PyTorch state dict of the old (pre-zip) file format, and run nothing that is in it.

Such a file is a few pickle streams and then the numbers. A pickle stream is a program; Python's own unpickler would
call whatever it names. This reader goes through the opcodes by `pickletools.genops`, which only splits them, and
knows the few that a dictionary of tensors needs. The names in the stream are compared with a list and never imported;
every other opcode or name ends the reading with an error. PyTorch is not needed.
"""

import io
import math
import pickletools
import warnings

import numpy as np

from kerastl.checks import received
from kerastl.errors import WeightsUnavailableError

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001

_STORAGE_TYPES = {
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "i1",
    "torch ByteStorage": "u1",
    "torch BoolStorage": "?",
}
_ORDERED_DICT = "collections OrderedDict"
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
_GLOBALS = {_ORDERED_DICT, _REBUILD_TENSOR, _REBUILD_PARAMETER, *_STORAGE_TYPES}


class _Refused(Exception):
    """The file holds something else than a plain dictionary of tensors. Never leaves this module."""


class _Global(str):
    """A name out of the stream, as text: nothing is imported."""


class _Storage:
    """A block of numbers: its key, its NumPy type and how many numbers it holds."""

    def __init__(self, key: str, dtype: str, count: int):
        self.key, self.dtype, self.count = key, dtype, count


class _Tensor:
    """A view into a storage, in numbers (not bytes): offset, shape and strides."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


def read_torch_state(data: bytes, *, name: str = "the file") -> dict[str, np.ndarray]:
    """Return the tensors of a PyTorch state dict by name.

    Args:
        data: the whole file, as `torch.save(model.state_dict(), path)` wrote it before PyTorch 1.6, or later with
            `_use_new_zipfile_serialization=False`.
        name: what to call the file in messages.

    Returns:
        Arrays of their own memory, in the file's order.

    Raises:
        WeightsUnavailableError: the file is damaged, has another format, or holds anything else than tensors: a foreign
            name in its pickle stream, for one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `genops` decodes even the texts of opcodes that are refused next
            return _read(io.BytesIO(data))
    except _Refused as error:
        reason = str(error)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        reason = f"it is damaged ({type(error).__name__}: {error})"
    raise WeightsUnavailableError(
        f"{name} is no PyTorch state dict in the old file format that can be read without running something in it: "
        f"{reason}. Nothing of it was used. {received(bytes=len(data))}"
    )


def _read(stream) -> dict[str, np.ndarray]:
    start = stream.getvalue()[:4]
    if start.startswith(b"PK"):
        raise _Refused("it has the newer zip format; save it with `_use_new_zipfile_serialization=False`")
    if _interpret(stream) != _MAGIC_NUMBER:
        raise _Refused("it does not begin with PyTorch's magic number")
    if _interpret(stream) != _PROTOCOL_VERSION:
        raise _Refused(f"its protocol version is not {_PROTOCOL_VERSION}")
    if _interpret(stream).get("little_endian") is not True:
        raise _Refused("its numbers are not little-endian")
    state, keys = _interpret(stream), _interpret(stream)
    if not isinstance(state, dict) or not isinstance(keys, list):
        raise _Refused("it is not a dictionary of tensors")
    if any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise _Refused("its list of storages is not that of its tensors")
    foreign = [key for key, value in state.items() if not isinstance(value, _Tensor)]
    if foreign:
        raise _Refused(f"its entry {foreign[0]!r} is no tensor")
    numbers = _read_numbers(stream, keys, state.values())
    return {key: _as_array(tensor, numbers[tensor.storage.key]) for key, tensor in state.items()}


def _read_numbers(stream, keys, tensors) -> dict[str, np.ndarray]:
    """Read the storages that follow the streams: for each a count of 8 bytes, then its numbers."""
    storages = {}
    for tensor in tensors:
        known = storages.setdefault(tensor.storage.key, tensor.storage)
        if (known.dtype, known.count) != (tensor.storage.dtype, tensor.storage.count):
            raise _Refused(f"storage {known.key!r} is told in two ways")
    if set(storages) != set(keys):
        raise _Refused("its list of storages is not that of its tensors")
    numbers = {}
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(stream.read(8), "little", signed=True)
        raw = stream.read(count * np.dtype(storage.dtype).itemsize) if count == storage.count else b""
        if count != storage.count or len(raw) != count * np.dtype(storage.dtype).itemsize:
            raise _Refused(f"it ends too early, or storage {key!r} has another size than told")
        numbers[key] = np.frombuffer(raw, storage.dtype)
    if stream.read(1):
        raise _Refused("something follows its last tensor")
    return numbers


def _as_array(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """Copy a tensor out of its storage; every number that it refers to is checked to lie inside."""
    sizes = (tensor.offset, *tensor.shape, *tensor.strides)
    if any(type(size) is not int or size < 0 for size in sizes) or len(tensor.shape) != len(tensor.strides):
        raise _Refused("a tensor has an impossible shape")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, numbers.dtype)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if last >= len(numbers) or math.prod(tensor.shape) > len(numbers):
        raise _Refused("a tensor reaches beyond its storage")
    strides = tuple(stride * numbers.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
    return view.astype(numbers.dtype.newbyteorder("="))


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"}
_FRESH = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_FIXED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _interpret(stream):
    """Run one pickle stream of tensors, dictionaries, lists, tuples, texts and whole numbers; refuse all others."""
    stack, marks, memo = [], [], {}
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name in _FIXED_TUPLES:
            stack.append(_take(stack, len(stack) - _FIXED_TUPLES[name]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "GLOBAL":
            stack.append(_admitted(argument))
        elif name in _ACTIONS:
            _ACTIONS[name](stack, marks)
        elif name != "PROTO" or argument != 2:
            raise _Refused(f"its pickle stream holds {name}, which no dictionary of tensors needs")
    raise _Refused("a pickle stream has no end")


def _admitted(name: str) -> _Global:
    if name in _GLOBALS:
        return _Global(name)
    raise _Refused(f"its pickle stream names {name.replace(' ', '.')!r}, which is foreign to a dictionary of tensors")


def _take(stack, start) -> tuple:
    """Take everything from a position on off the stack."""
    if not 0 <= start <= len(stack):
        raise _Refused("its pickle stream takes more than there is")
    items = tuple(stack[start:])
    del stack[start:]
    return items


def _set_items(target, items) -> None:
    if not isinstance(target, dict) or len(items) % 2 or not all(type(key) is str for key in items[::2]):
        raise _Refused("its dictionaries have keys that are no text")
    target.update(zip(items[::2], items[1::2], strict=True))


def _append_items(target, items) -> None:
    if not isinstance(target, list):
        raise _Refused("its pickle stream appends to what is no list")
    target.extend(items)


def _call(stack, marks) -> None:
    """Do what one of the three admitted functions would do; none of them is called."""
    arguments, function = stack.pop(), stack.pop()
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise _Refused("its pickle stream calls something")
    if function == _ORDERED_DICT and arguments == ():
        stack.append({})
    elif function == _REBUILD_TENSOR and len(arguments) >= 4 and isinstance(arguments[0], _Storage):
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise _Refused("a tensor has no shape")
        stack.append(_Tensor(storage, offset, shape, strides))
    elif function == _REBUILD_PARAMETER and arguments and isinstance(arguments[0], _Tensor):
        stack.append(arguments[0])
    else:
        raise _Refused(f"its pickle stream calls {function.replace(' ', '.')!r} in an unknown way")


def _build(stack, marks) -> None:
    """Leave out the attributes of an `OrderedDict`: PyTorch hangs its versions there."""
    stack.pop()
    if not isinstance(stack[-1], dict):
        raise _Refused("its pickle stream sets attributes")


def _persistent(stack, marks) -> None:
    parts = stack.pop()
    if not isinstance(parts, tuple) or len(parts) != 6:
        raise _Refused("a storage is told in an unknown way")
    kind, dtype, key, _, count, view = parts
    if kind != "storage" or not isinstance(dtype, _Global) or dtype not in _STORAGE_TYPES or view is not None:
        raise _Refused("a storage is told in an unknown way")
    if type(key) is not str or type(count) is not int or count < 0:
        raise _Refused("a storage has an impossible size")
    stack.append(_Storage(key, _STORAGE_TYPES[dtype], count))


_ACTIONS = {
    "TUPLE": lambda stack, marks: stack.append(_take(stack, marks.pop())),
    "SETITEMS": lambda stack, marks: _on_top(stack, _set_items, _take(stack, marks.pop())),
    "SETITEM": lambda stack, marks: _on_top(stack, _set_items, _take(stack, len(stack) - 2)),
    "APPENDS": lambda stack, marks: _on_top(stack, _append_items, _take(stack, marks.pop())),
    "APPEND": lambda stack, marks: _on_top(stack, _append_items, _take(stack, len(stack) - 1)),
    "REDUCE": _call,
    "BUILD": _build,
    "BINPERSID": _persistent,
}


def _on_top(stack, change, items) -> None:
    change(stack[-1], items)
