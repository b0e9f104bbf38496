"""`fit`: what `model.fit` does, with the frozen part run once and the tail trained on its stored outputs."""

import contextlib
import inspect
import zlib

import keras
import numpy as np

from kerastl import backend, keras_internals
from kerastl.checks import received
from kerastl.data.batches import Rows, adapt, check_batch, is_tf_dataset, only_array, rows_of, split_validation
from kerastl.errors import ArgumentError, ChangingDataError
from kerastl.features.cut import tensors_of
from kerastl.features.extraction import Trunk, extract
from kerastl.features.plan import CacheOptions, CachePlan, make_plan, options_of
from kerastl.models import compiling, outputs
from kerastl.training.pointwise import convolutions_as_products
from kerastl.training.steps import steps_in_one_call

# Arguments of `fit` that say what the data is: batches of features say it themselves
_DATA_ARGUMENTS = {"x", "y", "validation_data", "validation_split", "sample_weight", "batch_size", "shuffle"}
_DATA_ARGUMENTS |= {"validation_batch_size", "steps_per_epoch", "validation_steps"}


def fit(
    model: keras.Model, x=None, y=None, *positional, cache="auto", views: int = 1, **fit_arguments
) -> keras.callbacks.History:
    """Train as `model.fit` does, with the frozen part run once instead of in every epoch; return its `History`.

    On any compiled Functional or Sequential model. What is frozen before the first layer that trains runs over the images
    once; its outputs are kept, and `model.fit` runs over them through the rest of the model: with its own losses, metrics,
    class and sample weights, callbacks and `History`. A model with several outputs is handed to `model.fit` as it is.

    Args:
        model: a compiled model.
        x, y, positional: what `model.fit` takes, in its order.
        cache: "auto" does so where it is worth it and safe, and prints in one line what it does; `True` insists, "device"
            also on keeping the features where training runs; `False` is `model.fit` itself; a folder keeps them for the next
            run; `CacheOptions` say more. Not safe are random layers in front of the backbone, which would be drawn only once,
            and datasets that give other images at a second pass; a dataset that gives them in another order is shuffled anew
            in every epoch.
        views: augmented versions kept of each training image, the first one plain; one is drawn per image and epoch. They
            are made by the random layers in front of the backbone.
        fit_arguments: all other arguments of `model.fit`.

    Raises:
        CompileError: the model is not compiled, or its optimizer doesn't hold exactly the trainable variables.
        ArgumentError: nothing is trainable; `cache=True` or a folder where something stands in the way (it says what).
        DataError: images of another size than the model takes.
        StoreError: the folder holds something else, or there is no room.
        TypeError: arguments that `model.fit` doesn't take.

    Example:
        >>> history = kerastl.fit(model, *train, validation_data=validation, epochs=2, verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'loss', 'val_accuracy', 'val_loss']
    """
    arguments = inspect.signature(keras.Model.fit).bind(model, x, y, *positional, **fit_arguments).arguments
    del arguments["self"]
    if len(getattr(model, "inputs", None) or [None]) == 1:
        x = arguments["x"] = only_array(x)
        if isinstance(arguments.get("validation_data"), tuple):
            held, *rest = arguments["validation_data"]
            arguments["validation_data"] = (only_array(held), *rest)
    if not hasattr(x, "shape") and not isinstance(x, (list, tuple, dict)) and _needs_arrays(arguments):
        return model.fit(**arguments)  # which says why not: a dataset brings its labels and weights along
    rows = adapt(x, y)
    if isinstance(model, keras.Sequential) and not model.built and rows.first is not None:
        model.build((None, *rows.first[0].shape[1:]))  # as `model.fit` does, but later
    compiling.check_ready(model)
    options, obstacle = options_of(cache), _obstacle(model, arguments)
    if len(getattr(model, "outputs", None) or [None]) == 1:
        check_first_batch(model, rows)
    if is_tf_dataset(x):
        arguments.setdefault("shuffle", False)  # it shuffles itself, or not; Keras warns about its own default
    if options is None and views == 1:
        return model.fit(**arguments)
    train, validation = (None, None) if obstacle else _rows_for_fit(arguments)
    epochs = max(arguments.get("epochs", 1) - arguments.get("initial_epoch", 0), 1)
    verbose = arguments.get("verbose", "auto") != 0
    planned = {"epochs": [epochs], "views": views, "obstacle": obstacle}
    with frozen_part_once(model, train, validation, options, verbose, **planned) as session:
        if session is None:
            return model.fit(**arguments)
        rest = {name: value for name, value in arguments.items() if name not in _DATA_ARGUMENTS}
        return session.fit(**rest)


def _needs_arrays(arguments) -> bool:
    arrays = [arguments.get(name) for name in ("y", "sample_weight")]
    return bool(arguments.get("validation_split")) or any(one is not None for one in arrays)


def _obstacle(model, arguments) -> str | None:
    """Return what keeps `fit` from running on features that only it can see, as the end of a sentence, or `None`."""
    if len(getattr(model, "outputs", None) or []) > 1:
        return f"the model has {len(model.outputs)} outputs, and only models with one can be cut"
    for name in ("steps_per_epoch", "validation_steps"):
        if arguments.get(name) is not None:
            return f"`{name}` uses a part of the data, which caching can't follow"
    return None


def _rows_for_fit(arguments):
    """Return the rows to train and to validate on, as `fit` would read its arguments; `None` for what can't be re-read."""
    x, y, weights, batch_size = (arguments.get(name) for name in ("x", "y", "sample_weight", "batch_size"))
    validation, split = arguments.get("validation_data"), arguments.get("validation_split", 0.0)
    data = x if y is None else (x, y, weights)
    if y is not None and split and validation is None:
        data, validation = split_validation(data, split)
    train = rows_of(data, batch_size=batch_size, shuffle=arguments.get("shuffle"))
    if validation is None:
        return train, None
    held = rows_of(validation, batch_size=arguments.get("validation_batch_size") or batch_size, shuffle=False)
    return (None if held is None else train), held


def check_first_batch(model, rows: Rows) -> None:
    """Check a first batch against the model, where looking uses nothing up; raise `DataError` for images of another size."""
    if rows.first is not None and not rows.skips:
        check_batch(rows.first)
    if rows.first is not None and rows.first[0].ndim == 4:
        outputs.check_images(model, rows.first[0])


@contextlib.contextmanager
def frozen_part_once(
    model, train, validation, options: CacheOptions | None, verbose: bool, *, views_if_possible: bool = False, **planned
):
    """Run the frozen part over the images where the plan says so; yield the session, or `None` for plain Keras.

    `planned` is what else `make_plan` takes; with `views_if_possible` its views are left out where they stand in the way.
    That data changes from pass to pass, only a pass can tell: an `ArgumentError` then where the options insist or views are
    wanted.
    """
    plan = make_plan(model, train, validation, options=options, views_if_possible=views_if_possible, **planned)
    if verbose and options is not None:
        print(plan)
    sizes = [(rows.count, rows.batch_size, rows.shuffles) for rows in (train, validation) if rows is not None]
    _check_agreement([plan.chosen, plan.place, plan.dtype, [cut.layer_names for cut in plan.cuts], sizes])
    if not plan.chosen:
        yield None
        return
    try:
        session = Session(model, plan, train, validation, options, verbose)
    except ChangingDataError as error:
        if options.insist or (plan.views > 1 and not views_if_possible):
            raise ArgumentError(f"The frozen part can't be run once: {error}. Or pass `cache=False`.") from error
        if verbose:
            print(CachePlan(False, str(error)))
        session = contextlib.nullcontext()
    with session as found:
        yield found


def _check_agreement(facts) -> None:
    """Raise `ArgumentError` unless all processes that train one model have the same facts: else they wait forever."""
    text = repr(facts)
    if len(set(backend.of_each_process(zlib.crc32(text.encode())))) > 1:
        raise ArgumentError(
            "The processes that train together must have the same data, and the same plan for its features. Give each the "
            "same images, and `CacheOptions` with a `place` and a `dtype` that suit the machine with the least memory. "
            f"{received(process=backend.processes()[0], facts=text)}"
        )


def _facts_of(store) -> list:
    """Return what the order of training on a store's features follows from."""
    labels = zlib.crc32(np.ascontiguousarray(store.read("labels", slice(None))))
    shards = (list(store.shard_ends), store.shards_at_once)
    return [list(store.specs.values()), store.count, bool(store.tensors), shards, labels]


class FeatureBatches(keras.utils.PyDataset):
    """Batches of a store's features `names` with their labels; of the `views` rows of an image one is drawn in each epoch.

    Of features on the device only the numbers of their rows, as `{part: rows}`, which the model gathers itself. What is drawn
    follows from `seed` and the number of the epoch alone, of which `epoch` is the first: a run that is gone on with sees what
    it would have seen.
    """

    def __init__(self, store, names, *, part: str, batch_size: int, shuffle: bool, views=1, seed=0, epoch: int = 0):
        super().__init__(workers=0 if store.tensors else 1)  # rows alone need no thread of their own
        self._store, self._names, self.batch_size = store, list(names), batch_size
        self._part, self.on_device = part, bool(store.tensors)
        self._shuffle, self._views = shuffle, views
        self._sharing = (*backend.processes(), backend.devices_of_a_batch())  # in other threads nobody knows
        self._seed, self._epoch = seed, epoch
        self.count = store.count // views
        self._labels, self.weights = store.read("labels", slice(None))[::views], None
        if "sample_weights" in store.specs:
            self.weights = store.read("sample_weights", slice(None))[::views]
        self._order, self._view = np.arange(self.count), np.zeros(self.count, "int64")
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __getitem__(self, index):
        return self._batch(self._order[index * self.batch_size : (index + 1) * self.batch_size])

    def epoch(self):
        """Return all batches of an epoch as one."""
        return self._batch(self._order)

    def _batch(self, images):
        images, whole = self._share(images)
        rows = images * self._views + self._view[images]
        if self.on_device:
            features = {self._part: rows.astype("int32")}
        else:
            features = {name: self._store.read(name, rows) for name in self._names}  # the tail casts them, much faster
        features |= whole
        batch = (features, self._labels[images])
        return batch if self.weights is None else (*batch, self.weights[images])

    def _share(self, images) -> tuple[np.ndarray, dict]:
        """Return this process's part of a batch, filled up so that all devices have as many rows, and what says so."""
        number, count, devices = self._sharing
        if devices == 1:
            return images, {}
        filled = np.resize(images, -(-len(images) // devices) * devices)
        return np.split(filled, count)[number], {backend.ALL_ROWS: np.zeros((devices // count, len(images)), "bool")}

    def weigh(self, class_weight: dict) -> None:
        """Weigh each image by its class; a class that is left out weighs 1, which Keras would refuse from a dataset."""
        labels = self._labels
        classes = labels.argmax(axis=1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)
        self.weights = np.array([class_weight.get(int(one), 1.0) for one in classes], "float32")

    def on_epoch_end(self):
        """Draw a new order, and a view of each image."""
        generator = np.random.default_rng([self._seed, self._epoch])
        self._epoch += 1
        if self._shuffle:
            self._order = self._store.shuffled(generator, self._views)
        if self._views > 1:
            self._view = generator.integers(0, self._views, self.count)


class Session(contextlib.ExitStack):
    """Features of training and validation images, and training on those of a cut, told by its index in the plan."""

    def __init__(self, model, plan: CachePlan, train: Rows, validation: Rows | None, options: CacheOptions, verbose=0):
        super().__init__()
        self._cuts, self.model, self._tails = plan.cuts, model, [cut.tail() for cut in plan.cuts]
        given = {"train": train, "validation": validation}
        self._steps_per_execution, self._on_device, self._arranged = model.steps_per_execution, {}, None
        self._as_in_keras = options.engine == "keras"
        self.stores, self._rows = {}, {part: rows for part, rows in given.items() if rows is not None}
        self._views = {"train": plan.views, "validation": 1}
        backend.keep_freed_memory()
        self.callback(backend.give_memory_back)
        self.callback(self._on_device.clear)
        self.callback(self._forget_steps)
        trunk = Trunk(plan, options, verbose)
        counts = {part: rows.count or (rows.batch_count or 0) * rows.batch_size for part, rows in self._rows.items()}
        total = sum(count * self._views[part] for part, count in counts.items()) or None  # nearly, where nobody knows
        try:
            for part, rows in self._rows.items():
                store = extract(trunk, rows, views=self._views[part], part=part, count_all=total)
                self.stores[part] = self.enter_context(store)
                if store.tensors:
                    self._on_device[part] = store.tensors
            if backend.processes()[1] > 1:
                _check_agreement([_facts_of(store) for store in self.stores.values()])
        except BaseException:
            self.close()
            raise

    def fit(self, cut: int = 0, *, class_weight=None, **arguments):
        """Call `model.fit` on the features of a cut, with arguments that don't say what the data is; return its `History`."""
        train = self._batches(cut, "train", arguments.get("initial_epoch", 0))
        self._arrange_steps(cut, arguments.get("callbacks"))
        if class_weight is not None and train.weights is None:
            train.weigh(class_weight)
            class_weight = None  # Keras itself refuses it beside sample weights
        backend.keep_freed_memory()  # again: what LiteRT did in between undoes it
        held = backend.batches_for_fit(self._batches(cut, "validation")) if "validation" in self.stores else None
        with self._taking_features(cut), backend.batches_of_our_own():
            return self.model.fit(
                backend.batches_for_fit(train),
                validation_data=held,
                class_weight=class_weight,
                shuffle=False,  # the batches shuffle themselves
                **arguments,
            )

    def evaluate(self, cut: int = 0, part: str = "validation") -> dict:
        """Return the logs of the model on the validation images, or on "train"."""
        self._arrange_steps(cut)
        with self._taking_features(cut), backend.batches_of_our_own():
            data = backend.batches_for_fit(self._batches(cut, part))
            return self.model.evaluate(data, verbose=0, return_dict=True)

    def predictions(self, cut: int = 0):
        """Yield what the model says of the validation images, batch by batch, with their labels and weights or `None`."""
        store, tail, size = self.stores["validation"], self._tails[cut], self._rows["validation"].batch_size
        for begin in range(0, store.count, size):
            rows = np.arange(begin, min(begin + size, store.count))
            filled = np.resize(rows, size)  # for another number of rows JAX would compile all anew
            features = [store.read(name, filled) for name in self._names(cut)]
            values = tail(features[0] if len(features) == 1 else features, training=False)
            weights = store.read("sample_weights", rows) if "sample_weights" in store.specs else None
            yield outputs.main_output(values)[: len(rows)], store.read("labels", rows), weights

    def tail(self, cut: int) -> keras.Model:
        """Return what trains behind a cut."""
        return self._tails[cut]

    def training_rows(self, cut: int, class_weight: dict | None) -> tuple:
        """Return a cut's features of the plain training images, their labels, and their weights or `None`."""
        batches, plain = self._batches(cut, "train"), slice(None, None, self._views["train"])
        if class_weight is not None and batches.weights is None:
            batches.weigh(class_weight)
        labels = self.stores["train"].read("labels", plain)
        return self.stores["train"].read(self._names(cut)[0], plain), labels, batches.weights

    @contextlib.contextmanager
    def _taking_features(self, cut):
        """Let the model take dictionaries of features besides images: Keras trains the model itself, less its trunk."""
        tail, names = self._tails[cut], self._names(cut)

        def call(original, inputs, training=None, **options):
            if not isinstance(inputs, dict):
                return original(inputs, training=training, **options)
            part = next(iter(inputs))
            if part in self._on_device:
                features = [keras.ops.take(self._on_device[part][name], inputs[part], axis=0) for name in names]
            else:
                features = [inputs[name] for name in names]
            return tail(features[0] if len(features) == 1 else features, training=training)

        sooner = contextlib.nullcontext() if self._as_in_keras else convolutions_as_products(tail)
        with sooner, keras_internals.calls_replaced(self.model, call):
            yield

    def _arrange_steps(self, cut, callbacks=()) -> None:
        """Let the steps take features from the device, many in one call where that pays and nobody asks for each batch."""
        shared = backend.devices_of_a_batch() > 1
        if not self._on_device and not shared:
            return
        if shared and (self.model.run_eagerly or not self.model.jit_compile):
            raise ArgumentError(
                "Several devices share batches in compiled steps alone: `compile` without `run_eagerly` and `jit_compile`. "
                f"{received(run_eagerly=self.model.run_eagerly, jit_compile=self.model.jit_compile)}"
            )
        size, images = self._rows["train"].batch_size, self.stores["train"].count // self._views["train"]
        count = self._steps_per_execution
        if self._on_device and not self.model.run_eagerly:
            count = max(count, steps_in_one_call(self._cuts[cut], -(-images // size), size, callbacks))
        count = min(backend.of_each_process(count))  # a callback may be given to one of them alone
        if self._arranged != (cut, count) or self.model.test_function is None:  # else it was compiled, by `evaluate`
            backend.steps_given(self.model, self._on_device, count)
            self._arranged = (cut, count)

    def _forget_steps(self) -> None:
        """Let Keras compile the model's steps anew: those that were compiled hold the tail."""
        self.model.train_function = self.model.test_function = self.model.predict_function = None
        self.model.steps_per_execution = self._steps_per_execution

    def _batches(self, cut, part, epoch=0) -> FeatureBatches:
        rows, is_train = self._rows[part], part == "train"
        return FeatureBatches(
            self.stores[part],
            self._names(cut),
            part=part,
            batch_size=rows.batch_size,
            shuffle=is_train and (rows.shuffles or self.stores[part].details.get("reshuffles", False)),
            views=self._views[part],
            seed=int(keras.random.SeedGenerator().next()[0]) if is_train else 0,
            epoch=epoch,
        )

    def _names(self, cut) -> list[str]:
        """Return the arrays that hold a cut's tensors: the trunk hands over those of all cuts, each once."""
        places = {id(tensor): index for index, tensor in enumerate(tensors_of(self._cuts))}
        return [f"features_{places[id(tensor)]}" for tensor in self._cuts[cut].tensors]
