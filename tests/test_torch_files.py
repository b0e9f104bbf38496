"""The reader of PyTorch's old file format: it reads tensors, and refuses everything else without running it."""

import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerastl.errors import WeightsUnavailableError
from kerastl.models.weights.torch_files import read_torch_state

STORAGES = {"float32": "Float", "int64": "Long"}

# What may not happen while a file is read. An audit hook can't be taken away again, so it looks at a switch
_WATCHED = ("exec", "compile", "import", "open", "os.system", "subprocess.Popen", "pickle.find_class", "os.exec")
_seen = None


def _watch(event, arguments):
    if _seen is not None and event in _WATCHED:
        _seen.append((event, arguments))


sys.addaudithook(_watch)


def read_watched(data):
    """Read a file and return `(state or None, what it ran)`."""
    global _seen
    _seen = []
    try:
        return read_torch_state(data), _seen
    except WeightsUnavailableError:
        return None, _seen
    finally:
        _seen = None


def number(value):
    return b"J" + value.to_bytes(4, "little", signed=True)


def text(value):
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def whole(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def stream(body):
    return b"\x80\x02" + body + b"."


def storage(key, array, kind=None):
    kind = kind or STORAGES[str(array.dtype)]
    return (
        b"("
        + text("storage")
        + f"ctorch\n{kind}Storage\n".encode()
        + text(key)
        + text("cpu")
        + number(array.size)
        + b"NtQ"
    )


def tensor(key, array, *, offset=0, shape=None, strides=None, **options):
    strides = [step // array.itemsize for step in array.strides] if strides is None else strides
    layout = number(offset) + whole(*(array.shape if shape is None else shape)) + whole(*strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(key, array, **options) + layout + b"\x89)tR"


def torch_file(arrays, *, entries=None, keys=None, tail=b"", numbers=None):
    """Write a state dict as `torch.save` did before version 1.6, opcode by opcode."""
    if entries is None:
        entries = b"".join(text(name) + tensor(str(i), array) for i, (name, array) in enumerate(arrays.items()))
    keys = [str(i) for i in range(len(arrays))] if keys is None else keys
    if numbers is None:
        numbers = b"".join(array.size.to_bytes(8, "little") + array.tobytes() for array in arrays.values())
    return (
        stream(b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little"))
        + stream(b"M\xe9\x03")
        + stream(b"}(" + text("little_endian") + b"\x88u")
        + stream(b"ccollections\nOrderedDict\n)R(" + entries + b"u")
        + stream(b"](" + b"".join(map(text, keys)) + b"e")
        + numbers
        + tail
    )


def some_arrays():
    generator = np.random.default_rng(0)
    return {
        "conv.weight": generator.normal(size=(4, 3, 2, 2)).astype("float32"),
        "bn.num_batches_tracked": np.array(7, "int64"),
        "bn.running_mean": generator.normal(size=5).astype("float32"),
    }


def test_tensors_come_back_as_they_were():
    arrays = some_arrays()
    state, ran = read_watched(torch_file(arrays))
    assert list(state) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[name], array)
        assert state[name].dtype == array.dtype
    assert ran == []
    state["bn.running_mean"][:] = 0  # arrays of their own memory


def test_the_watch_would_see_what_pickle_does():
    global _seen
    _seen = []
    pickle.loads(pickle.dumps(np.float32))
    ran, _seen = _seen, None
    assert "pickle.find_class" in [event for event, _ in ran]


def test_views_into_one_storage():
    base = np.arange(12, dtype="float32")
    transposed = text("transposed") + tensor("0", base, shape=(3, 4), strides=(1, 3))
    end = text("end") + tensor("0", base, offset=8, shape=(2, 2), strides=(2, 1))
    state = read_torch_state(torch_file({"x": base}, entries=transposed + end))
    np.testing.assert_array_equal(state["transposed"], base.reshape(4, 3).T)
    np.testing.assert_array_equal(state["end"], base[8:].reshape(2, 2))


class Hostile:
    """Pickled, it asks the unpickler to call something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_streams(folder):
    import os
    import subprocess

    target = folder / "ran"
    command = f"{sys.executable} -c \"open(r'{target}', 'w')\""
    calls = [(os.system, command), (eval, f"open({str(target)!r}, 'w')"), (subprocess.getoutput, command)]
    for function, argument in calls:
        for protocol in (0, 1, 2, 3, 4):
            yield pickle.dumps({"weight": Hostile(function, argument)}, protocol=protocol)
    path = text(str(target))
    yield stream(b"(" + path + b"ibuiltins\nopen\n")  # INST
    yield stream(b"(cbuiltins\nopen\n" + path + b"o")  # OBJ
    yield stream(b"cbuiltins\nopen\n" + path + b"\x85\x81")  # NEWOBJ
    yield stream(b"\x8c\x08builtins\x8c\x04open\x93" + path + b"\x85R")  # STACK_GLOBAL
    yield stream(b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("x") + path + b"sb")  # BUILD on a function
    yield stream(b"P0\n")  # text persistent id
    yield stream(b"\x82\x01")  # EXT1


def test_a_file_with_a_foreign_global_is_refused_and_runs_nothing(tmp_path):
    arrays = some_arrays()
    good = torch_file(arrays)
    pieces = [stream(b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")), stream(b"M\xe9\x03")]
    for hostile in hostile_streams(tmp_path):
        for data in (hostile, pieces[0] + hostile, pieces[0] + pieces[1] + hostile):
            assert read_watched(data) == (None, [])
        state_at = good.index(b"\x80\x02ccollections")
        assert read_watched(good[:state_at] + hostile + good[state_at:]) == (None, [])
    assert not (tmp_path / "ran").exists()


def test_the_refusal_says_what_is_foreign():
    foreign = text("weight") + b"cos\nsystem\n" + text("echo") + b"\x85R"
    with pytest.raises(WeightsUnavailableError, match=r"'os\.system', which is foreign.*Nothing of it was used"):
        read_torch_state(torch_file({}, entries=foreign))


BASE = np.arange(12, dtype="float32")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged"),
        (b"PK\x03\x04rest", "no dictionary of tensors needs|damaged"),
        (stream(b"K\x01"), "magic number"),
        (torch_file(some_arrays(), tail=b"\0"), "something follows"),
        (torch_file(some_arrays())[:-1], "ends too early"),
        (torch_file({"x": BASE}, entries=text("x") + number(3)), "'x' is no tensor"),
        (torch_file({"x": BASE}, entries=text("x") + tensor("0", BASE, shape=(13,))), "beyond its storage"),
        (torch_file({"x": BASE}, entries=text("x") + tensor("0", BASE, offset=1)), "beyond its storage"),
        (torch_file({"x": BASE}, entries=text("x") + tensor("0", BASE, offset=-1)), "impossible shape"),
        (torch_file({"x": BASE}, entries=text("x") + tensor("0", BASE, strides=(-1,))), "impossible shape"),
        (torch_file({"x": BASE}, entries=text("x") + tensor("0", BASE, shape=(10**6, 12), strides=(0, 1))), "beyond"),
        (torch_file({"x": BASE}, entries=text("x") + tensor("0", BASE, shape=(3, 4), strides=(1,))), "impossible"),
        (torch_file({"x": BASE}, entries=text("x") + tensor("0", BASE, kind="Quantum")), "torch.QuantumStorage"),
        (torch_file({"x": BASE}, keys=["1"]), "list of storages"),
        (torch_file({"x": BASE}, keys=["0", "0"]), "list of storages"),
        (torch_file({"x": BASE}, numbers=(-1).to_bytes(8, "little", signed=True)), "another size"),
        (torch_file({"x": BASE}, entries=number(1) + tensor("0", BASE)), "keys that are no text"),
        (torch_file({"x": BASE}, entries=text("x") + b")" * 3 + b"R"), "calls something"),
    ],
)
def test_files_that_are_something_else_are_refused(data, reason):
    with pytest.raises(WeightsUnavailableError, match=reason):
        read_torch_state(data)


def test_deep_nesting_is_refused_and_overflows_nothing():
    deep = b")" + b"\x85" * 60_000
    good = torch_file({"x": BASE})
    keys_at = good.index(b"\x80\x02](")
    for data in (
        torch_file({"x": BASE}, entries=text("x") + deep),
        good[:keys_at] + stream(b"](" + deep + b"e") + good[keys_at:],
        good[:keys_at] + stream(b"](" + deep + deep + b"e"),
    ):
        assert read_watched(data) == (None, [])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_damage_runs_nothing_and_gives_arrays_or_our_error(data):
    changed = bytearray(torch_file(some_arrays()))
    for _ in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from(["change", "cut", "insert", "remove"]))
        place = data.draw(st.integers(0, max(0, len(changed) - 1)))
        if kind == "change" and changed:
            changed[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del changed[place:]
        elif kind == "insert":
            changed[place:place] = data.draw(st.binary(max_size=12))
        else:
            del changed[place : place + data.draw(st.integers(1, 12))]
    state, ran = read_watched(bytes(changed))
    assert ran == []
    assert state is None or all(isinstance(value, np.ndarray) for value in state.values())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("entry", [rb"S'\o'" + b"\n", rb"S'\400'" + b"\n"])
def test_odd_escapes_in_a_refused_text_are_refused_without_a_warning(entry):
    state, ran = read_watched(torch_file({"x": BASE}, entries=entry))
    assert state is None
    assert ran == []


PIECES = [
    *(b"(", b")", b"}", b"]", b"N", b"\x88", b"t", b"\x85", b"\x86", b"R", b"b", b"Q", b"s", b"u", b"a", b"e", b"q\0"),
    *(b"h\0", b"0", b"1", b"2", b".", b"\x81", b"\x93", b"ccollections\nOrderedDict\n", b"cos\nsystem\n"),
    *(
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        text("storage"),
        text("a"),
        number(3),
        number(-1),
    ),
    *(storage("0", BASE), tensor("0", BASE), whole(3, 4), b"I1\n", b"S'x'\n", b"F1.5\n", b"L9L\n", b"\x95"),
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_any_program_of_opcodes_is_refused_or_gives_arrays(pieces):
    state, ran = read_watched(torch_file({"x": BASE}, entries=b"".join(pieces)))
    assert ran == []
    assert state is None or all(isinstance(value, np.ndarray) for value in state.values())
