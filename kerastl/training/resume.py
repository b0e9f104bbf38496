"""Going on after a kill: what the run folder of `transfer_learn` keeps, one file for every epoch that is over.

`run.json` says what was asked for, `features` is the store of the frozen part, `head-0003.npz` the state at the end of the
head's third epoch. A file is written under another name and renamed, and never takes the place of another: a run goes on
from the newest that reads whole.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import random
import zipfile
from pathlib import Path

import keras
import numpy as np

from kerastl import backend, keras_internals
from kerastl.checks import received
from kerastl.errors import ArgumentError, OutputError
from kerastl.features.store import lock
from kerastl.files import check_output_folder, write_whole
from kerastl.models import graph
from kerastl.training.callbacks import BestWeights, changeable_weights, copies


def check_run_folder(folder) -> None:
    """Raise `OutputError` for what can't be a run's folder, whatever it holds."""
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise OutputError(
            f"`run_folder` must be a folder, new or of an earlier run. {received(run_folder=str(folder))}"
        )


@contextlib.contextmanager
def opened(folder, phases, asked: dict):
    """Hold a run's folder, new or found, for the length of a `with`, in which its phases (the second may be `None`) run.

    Their features go there where they have no folder of their own. Raises `OutputError` where it holds something else
    or is damaged, `ArgumentError` where its run asked for something else, or was of another model or other data, and in
    several processes.
    """
    folder, settings = Path(folder).expanduser(), phases[0].settings
    if backend.processes()[1] > 1:
        raise ArgumentError(
            f"Several processes can't go on together after a kill: leave out `run_folder`. {received(run_folder=folder)}"
        )
    with lock(folder / "run", on_wait=lambda: print(f"Another process is working on {folder}; waiting for it.")):
        seed = _check_run(folder, {**asked, **_facts(settings, asked["backbone"])})
        for left_behind in folder.glob(".*.npz.*"):
            left_behind.unlink(missing_ok=True)
        if settings.options is not None and settings.options.folder is None:
            settings.options = dataclasses.replace(settings.options, folder=folder / "features")
        for number, phase in enumerate(filter(None, phases)):
            phase.keeper = Keeper(folder / ("head", "fine_tune")[number], seed + number)
        yield


def _check_run(folder: Path, asked: dict) -> int:
    """Note what was asked for, or compare it with what was; return the number that seeds the phases."""
    path = folder / "run.json"
    asked = {name: str(one.get_config() if hasattr(one, "get_config") else one) for name, one in asked.items()}
    if not path.exists():
        ours = ["run.lock", *(one.name for one in folder.glob(".run.json.*"))]
        check_output_folder(folder, overwrite=True, files=ours, what="run")
        write_whole(path, json.dumps({**asked, "random": random.getrandbits(30)}, indent=1).encode(), durable=True)
    try:
        found = json.loads(path.read_text("utf-8"))
        seed = int(found["random"])
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"The run can't go on: {path} is damaged. Delete the folder to begin again, or name another one. "
            f"{received(run_folder=str(folder))}"
        ) from error
    different = [f"{name} was {found.get(name)}, not {one}" for name, one in asked.items() if found.get(name) != one]
    if different:
        raise ArgumentError(
            f"The run folder holds another run: {'; '.join(different)}. Ask for the same again, or name another folder. "
            f"{received(run_folder=str(folder))}"
        )
    return seed


def _facts(settings, backbone) -> dict:
    """Return digests of the data and of the model: its layers' settings, the backbone's weights; heads may be drawn anew."""
    parts = {"train": settings.train_rows, "validation": settings.validation_rows}
    digest = hashlib.blake2b(digest_size=8)
    for layer in keras_internals.flatten_layers(settings.model):
        with contextlib.suppress(NotImplementedError):  # a layer that can't be saved
            config = {} if keras_internals.child_layers(layer) else layer.get_config()
            config = {name: one for name, one in config.items() if name not in ("name", "trainable", "seed")}
            digest.update(f"{type(layer).__name__} {config}".encode())
    for layer in graph.find_backbone(settings.model, backbone).layers:
        for _, value in copies(layer.weights):
            digest.update(np.ascontiguousarray(value))
    identities = {name: rows and (rows.identity or f"{rows.batch_count} batches") for name, rows in parts.items()}
    return {**identities, "model": digest.hexdigest()}


class Keeper(keras.callbacks.Callback):
    """Keeps a phase's state at the end of every epoch, in files whose names begin with `place`, and puts the last one back.

    `epoch` is how many epochs were over when it was made, `finished` whether none is left.
    """

    def __init__(self, place: Path, seed: int):
        super().__init__()
        self._place, self._seed = place, seed
        self._state = next(filter(None, map(_read, self._files()[::-1])), {"epoch": 0, "finished": False})
        self.epoch, self.finished = self._state["epoch"], self._state["finished"]

    def begin(self, model, callbacks: list) -> list:
        """Seed the phase; return the callbacks of its `fit`, this one behind those that it keeps."""
        keras.utils.set_random_seed(self._seed)
        self.set_model(model)
        self._callbacks = [*callbacks, keras.callbacks.History()]
        self._best = next(one for one in callbacks if isinstance(one, BestWeights))
        self._before = [self._texts()]
        return [*self._callbacks, self]

    def finish(self) -> keras.callbacks.History:
        """Put back the end of a finished phase without `fit`, and return its `History`."""
        for callback in self._callbacks:
            callback.set_model(self.model)
        self._best.on_train_begin()
        self.on_train_begin()
        return self._callbacks[-1]

    def on_train_begin(self, logs=None):
        self._before.append(self._texts())
        state, self._state = self._state, None  # which may be large
        if not self.epoch:
            return
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        variables = self._variables()
        for kind, many in variables.items():
            for index, variable in enumerate(many):
                variable.assign(state[f"{kind}-{index}"])
        weights = list(enumerate(variables["weight"]))
        self._best.best_weights = [(one, state[f"best-{index}"]) for index, one in weights]
        self._best.sums = [(one, state[f"sum-{index}"]) for index, one in weights if "sum-0" in state]
        not_worse = [(one, state[f"not-worse-{index}"]) for index, one in weights if "not-worse-0" in state]
        self._best.not_worse = not_worse or self._best.best_weights
        if len(state["callbacks"]) != len(self._callbacks):
            raise ArgumentError(
                "The run goes on with as many callbacks as it was begun with, in their order. "
                f"{received(callbacks=len(self._callbacks), begun_with=len(state['callbacks']))}"
            )
        for callback, attributes in zip(self._callbacks, state["callbacks"], strict=True):
            vars(callback).update(attributes)

    def on_epoch_end(self, epoch, logs=None):
        kept = {kind: copies(many) for kind, many in self._variables().items()}
        kept |= {"best": self._best.best_weights, "sum": self._best.sums}
        if self._best.not_worse is not self._best.best_weights:
            kept["not-worse"] = self._best.not_worse
        arrays = {f"{kind}-{index}": value for kind in kept for index, (_, value) in enumerate(kept[kind])}
        # NumPy can't write bfloat16, whose every value is a float32
        arrays = {name: one.astype("float32") if one.dtype.kind == "V" else one for name, one in arrays.items()}
        facts = {"epoch": epoch + 1, "finished": self.model.stop_training or epoch + 1 == self.params["epochs"]}
        facts["callbacks"] = [  # without what they were given, a file's name, say
            {
                name: one
                for name, one in _plain_attributes(callback).items()
                if {repr(one)} != {old.get(name) for old in before}
            }
            for callback, *before in zip(self._callbacks, *self._before, strict=True)
        ]
        content, path = io.BytesIO(), self._place.with_name(f"{self._place.name}-{epoch + 1:04d}.npz")
        np.savez(content, facts=np.frombuffer(json.dumps(facts).encode(), "uint8"), **arrays)
        write_whole(path, content.getbuffer(), durable=True)
        for earlier in self._files()[:-2]:  # the last but one is for a disk that loses the last
            earlier.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self._place.parent.glob(f"{self._place.name}-*.npz"))

    def _texts(self) -> list[dict]:
        return [{name: repr(one) for name, one in _plain_attributes(each).items()} for each in self._callbacks]

    def _variables(self) -> dict:
        layers = keras_internals.flatten_layers(self.model)
        seeds = [generator.state for layer in layers for generator in keras_internals.seed_generators(layer)]
        optimizer = self.model.optimizer.variables
        return {"weight": changeable_weights(self.model), "optimizer": optimizer, "seed": seeds}


def _plain_attributes(callback) -> dict:
    """Return the attributes that JSON gives back as they are: what `EarlyStopping` and `ReduceLROnPlateau` count, say.

    Not `min_delta`, whose sign Keras turns once, in the first epoch of each callback.
    """
    kept = {}
    for name, value in vars(callback).items():
        with contextlib.suppress(TypeError, ValueError):
            if name not in ("params", "min_delta") and repr(json.loads(json.dumps(value))) == repr(value):
                kept[name] = value
    return kept


def _read(path: Path) -> dict | None:
    """Return a state, or `None` where it is not whole."""
    try:
        state = dict(np.load(io.BytesIO(path.read_bytes()), allow_pickle=False))
        return state | json.loads(state.pop("facts").tobytes())
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
