"""Read the tensors out of a PyTorch state dict of the old (pre-zip) file format, and run nothing that is in it.

Such a file is a few pickle streams and then the numbers. A pickle stream is a program; Python's own unpickler would
call whatever it names. This reader goes through the opcodes by `pickletools.genops`, which only splits them, and
knows the few that a dictionary of tensors needs. The names in the stream are compared with a list and never imported;
every other opcode or name ends the reading with an error. PyTorch is not needed.
"""

import dataclasses
import io
import math
import pickletools
import warnings

import numpy as np

from kerastl.checks import received
from kerastl.errors import WeightsUnavailableError

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001

_STORAGE_TYPES = {"torch FloatStorage": "<f4", "torch LongStorage": "<i8"}
_ADMITTED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *_STORAGE_TYPES}


class _Refused(Exception):
    """The file holds something else than a plain dictionary of tensors. Never leaves this module."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A block of `count` numbers."""

    key: str
    dtype: str
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view into a storage; offset, shape and strides in numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


def read_torch_state(data: bytes, *, name: str = "the file") -> dict[str, np.ndarray]:
    """Return the tensors of a PyTorch state dict by name.

    Args:
        data: the whole file, as `torch.save(model.state_dict(), path)` wrote it before PyTorch 1.6.
        name: what to call the file in messages.

    Returns:
        Arrays of float32 and int64, of their own memory, in the file's order.

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
    """Read five pickle streams (magic number, version, byte order, tensors, keys of the storages), then the numbers."""
    if _interpret(stream) != _MAGIC_NUMBER:
        raise _Refused("it does not begin with PyTorch's magic number")
    if _interpret(stream) != _PROTOCOL_VERSION:
        raise _Refused(f"its protocol version is not {_PROTOCOL_VERSION}")
    if _interpret(stream).get("little_endian") is not True:
        raise _Refused("its numbers are not little-endian")
    state, keys = _interpret(stream), _interpret(stream)
    if not isinstance(state, dict) or not isinstance(keys, list):
        raise _Refused("it is not a dictionary of tensors")
    for key, value in state.items():
        if not isinstance(value, _Tensor):
            raise _Refused(f"its entry {key!r} is no tensor")
    storages = {tensor.storage.key: tensor.storage for tensor in state.values()}
    if any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
        raise _Refused("its list of storages is not that of its tensors")
    if any(storages[tensor.storage.key] != tensor.storage for tensor in state.values()):
        raise _Refused("a storage is described in two ways")
    numbers = {key: _read_numbers(stream, storages[key]) for key in keys}
    if stream.read(1):
        raise _Refused("something follows its last tensor")
    return {key: _as_array(tensor, numbers[tensor.storage.key]) for key, tensor in state.items()}


def _read_numbers(stream, storage: _Storage) -> np.ndarray:
    """Read one storage: a count of 8 bytes, then its numbers."""
    count = int.from_bytes(stream.read(8), "little", signed=True)
    expected_bytes = storage.count * np.dtype(storage.dtype).itemsize
    raw = stream.read(expected_bytes) if count == storage.count else b""
    if count != storage.count or len(raw) != expected_bytes:
        raise _Refused(f"it ends too early, or storage {storage.key!r} has another size than described")
    return np.frombuffer(raw, storage.dtype)


def _as_array(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """Copy a tensor out of its storage; every number that it refers to is checked to lie inside."""
    sizes = (tensor.offset, *tensor.shape, *tensor.strides)
    is_whole = all(type(size) is int and size >= 0 for size in sizes) and 0 not in tensor.shape
    if not is_whole or len(tensor.shape) != len(tensor.strides):
        raise _Refused("a tensor has an impossible shape")
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if last >= len(numbers) or math.prod(tensor.shape) > len(numbers):
        raise _Refused("a tensor reaches beyond its storage")
    strides = tuple(stride * numbers.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
    return view.astype(numbers.dtype.newbyteorder("="))


def _interpret(stream):
    """Run one pickle stream of tensors, dictionaries, lists, tuples, texts and whole numbers; refuse all others."""
    stack, marks, memo = [], [], {}
    for opcode, argument, _ in pickletools.genops(stream):  # raises ValueError where the stream has no end
        match opcode.name:
            case "PROTO" if argument == 2:
                pass
            case "STOP":
                break
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "GLOBAL":
                stack.append(_admit(argument))
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode.name]())
            case "TUPLE1" | "TUPLE2":
                stack.append(_take(stack, len(stack) - int(opcode.name[-1])))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(_take(stack, marks.pop()))
            case "SETITEM" | "SETITEMS":
                items = _take(stack, marks.pop() if opcode.name == "SETITEMS" else len(stack) - 2)
                if len(items) % 2 or not all(type(key) is str for key in items[::2]):
                    raise _Refused("its dictionaries have keys that are no text")
                dict.update(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "APPENDS":
                items = _take(stack, marks.pop())
                list.extend(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "BUILD":  # the attributes of an `OrderedDict`, where PyTorch keeps versions, are left out
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise _Refused("its pickle stream sets attributes")
            case "BINPERSID":
                stack.append(_as_storage(stack.pop()))
            case name:
                raise _Refused(f"its pickle stream holds {name}, which no dictionary of tensors needs")
    return stack.pop()


def _admit(name: str) -> str:
    """Return a name out of the stream, as text: nothing is imported."""
    if name not in _ADMITTED:
        raise _Refused(
            f"its pickle stream names {name.replace(' ', '.')!r}, which is foreign to a dictionary of tensors"
        )
    return name


def _take(stack, start) -> tuple:
    """Take everything from a position on off the stack."""
    if not 0 <= start <= len(stack):
        raise _Refused("its pickle stream takes more than there is")
    items = tuple(stack[start:])
    del stack[start:]
    return items


def _call(function, arguments):
    """Return what one of the two admitted functions would return; neither is called."""
    match function, arguments:
        case "collections OrderedDict", ():
            return {}
        case "torch._utils _rebuild_tensor_v2", (
            _Storage() as storage,
            offset,
            tuple() as shape,
            tuple() as strides,
            *_,
        ):
            return _Tensor(storage, offset, shape, strides)
    raise _Refused("its pickle stream calls something in an unknown way")


def _as_storage(description) -> _Storage:
    match description:
        case "storage", str() as kind, str() as key, _, int() as count, None if kind in _STORAGE_TYPES and count >= 0:
            return _Storage(key, _STORAGE_TYPES[kind], count)
    raise _Refused("a storage is described in an unknown way")
