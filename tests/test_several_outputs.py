"""One label for every output: all kinds of data, class weights, and the names in the logs."""

import keras
import numpy as np
import pytest
from keras import layers

import kerastl
from kerastl.data import batches as inputs
from kerastl.errors import ArgumentError, DataError
from kerastl.evaluation import plots
from kerastl.evaluation.report import writing
from kerastl.models import several_outputs
from kerastl.training import callbacks
from kerastl.training import recipe as training
from kerastl.training.recipe import TransferResult
from tests import models

QUIET = {"verbose": 0}
CLASS_WEIGHT = {0: 2.0, 2: 0.5}


def two_heads(units=(3, 3), names=("main", "auxiliary_early"), classes: bool = False) -> keras.Model:
    """Two dense layers on the same pixels; the outputs are a dictionary where `classes` says so."""
    inputs = keras.Input((4, 4, 3))
    x = layers.Flatten()(inputs / 255)
    outputs = [layers.Dense(one, activation="softmax", name=name) for one, name in zip(units, names, strict=True)]
    outputs = [layer(x) for layer in outputs]
    model = keras.Model(inputs, dict(zip(("z", "a"), outputs, strict=True)) if classes else outputs)
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", run_eagerly=True)
    return model


def twins(**options):
    pair = [two_heads(**options), two_heads(**options)]
    pair[1].set_weights(pair[0].get_weights())
    return pair


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    return generator.uniform(0, 255, (12, 4, 4, 3)).astype("float32"), np.arange(12) % 3


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays):
        super().__init__()
        self.arrays, self.ended = arrays, 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return tuple(array[4 * index : 4 * index + 4] for array in self.arrays)

    def on_epoch_end(self):
        self.ended += 1


def as_dataset(*arrays):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(arrays).batch(4)


def as_generator(*arrays):
    batches = Batches(*arrays)
    return (batches[index] for index in range(3))


KINDS = {
    "arrays": lambda *arrays: dict(zip(("x", "y", "sample_weight"), arrays, strict=False)),
    "dataset": lambda *arrays: {"x": as_dataset(*arrays)},
    "PyDataset": lambda *arrays: {"x": Batches(*arrays)},
    "generator": lambda *arrays: {"x": as_generator(*arrays), "steps_per_epoch": 3},
}


def weights_of(labels, given=1.0):
    return np.array([CLASS_WEIGHT.get(label, 1.0) for label in labels], "float32") * given


def assert_same(ours, theirs):
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("weighted", "one_hot"), [(False, False), (True, True)])
def test_one_y_and_class_weights_do_what_labels_and_weights_per_output_do(kind, weighted, one_hot, data):
    ours, theirs = twins()
    images, labels = data
    y = np.eye(3, dtype="float32")[labels] if one_hot else labels
    given = np.linspace(0.5, 2, 12).astype("float32") if weighted else None
    if one_hot:
        for model in (ours, theirs):
            model.compile(keras.optimizers.SGD(0.5), "categorical_crossentropy", run_eagerly=True)
    common = {"batch_size": 4, **QUIET} if kind == "arrays" else QUIET
    arguments = KINDS[kind](*[one for one in (images, y, given) if one is not None])
    held = (images[:5], y[:5])
    first = kerastl.fit(
        ours, cache=False, class_weight=CLASS_WEIGHT, validation_data=held, shuffle=False, **arguments, **common
    )
    second = theirs.fit(
        images,
        [y, y],
        sample_weight=weights_of(labels, 1.0 if given is None else given),
        validation_data=(images[:5], [y[:5]] * 2),
        batch_size=4,
        shuffle=False,
        **QUIET,
    )
    assert_same(ours, theirs)
    assert first.history.keys() == second.history.keys()
    for name, values in second.history.items():
        np.testing.assert_allclose(first.history[name], values, rtol=1e-5, err_msg=name)


def test_a_validation_split_is_not_weighted_by_class(data):
    ours, theirs = twins()
    first = kerastl.fit(
        ours, *data, cache=False, validation_split=0.25, class_weight=CLASS_WEIGHT, shuffle=False, **QUIET
    )
    second = theirs.fit(
        data[0][:9],
        [data[1][:9]] * 2,
        sample_weight=weights_of(data[1][:9]),
        validation_data=(data[0][9:], [data[1][9:]] * 2),
        shuffle=False,
        **QUIET,
    )
    assert first.history["val_loss"] == pytest.approx(second.history["val_loss"])
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("count", "batch_size", "even"), [(33, 32, 17), (32, 32, 32), (5, 32, 5), (97, 32, 25), (21, 20, 11), (1, 1, 1)]
)
def test_even_batches_are_as_many_as_the_others(count, batch_size, even):
    assert several_outputs.even_batch_size(count, batch_size) == even
    assert -(-count // even) == -(-count // batch_size)


def test_a_last_small_batch_does_not_decide_the_validation_loss(data):
    # In a graph on TensorFlow, Keras averages an output's loss over batches: here the odd image would count as 16 do.
    model = two_heads()
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    images = np.concatenate([np.zeros((16, 4, 4, 3)), data[0][:1]]).astype("float32")
    layer = model.layers[-2]
    layer.set_weights([np.full((48, 3), [3.0, 0, 0]), np.zeros(3)])
    labels = np.array([0] * 16 + [1])
    true = keras.losses.sparse_categorical_crossentropy(labels, model(images)[0])
    true = float(keras.ops.convert_to_numpy(true).mean())
    common = {"batch_size": 16, "cache": False, "validation_data": (images, labels), **QUIET}
    assert kerastl.fit(model, images, labels, **common).history["val_main_loss"][0] == pytest.approx(true, rel=0.1)
    arguments = several_outputs.evaluate_arguments(model, (images, labels), 16)
    assert model.evaluate(**arguments, return_dict=True, **QUIET)["main_loss"] == pytest.approx(true, rel=0.1)


def test_validation_images_of_load_images_come_in_even_batches(data):
    dataset = as_dataset(*data).unbatch().batch(11)
    source = inputs.ImageSource(data[1], (4, 4), "0", False, lambda index: data[0][index], 11)
    arguments = several_outputs.evaluate_arguments(two_heads(), inputs.attach_source(dataset, source), None)
    assert [len(images) for images, _ in arguments["x"]] == [6, 6]


def test_a_pydataset_hears_of_the_end_of_its_epochs(data):
    ours, theirs = Batches(*data), Batches(data[0], data[1])
    kerastl.fit(two_heads(), ours, epochs=2, cache=False, **QUIET)
    two_heads().fit(several_outputs.labelled_for_all(two_heads(), theirs), epochs=2, **QUIET)
    assert ours.ended == theirs.ended >= 2


def test_outputs_in_a_dictionary_are_known_by_their_keys(data):
    ours, theirs = twins(classes=True)
    assert several_outputs.output_names(ours) == ["a", "z"]
    assert several_outputs.main_name(ours) == "z"
    history = kerastl.fit(ours, *data, cache=False, shuffle=False, **QUIET)
    theirs.fit(data[0], {"a": data[1], "z": data[1]}, shuffle=False, **QUIET)
    assert_same(ours, theirs)
    assert several_outputs.main_log_name(ours, "loss") in history.history


@pytest.mark.parametrize("form", [list, dict])
def test_labels_for_each_output_are_left_alone(form, data, capsys):
    ours, theirs = twins()
    labels = [data[1], (data[1] + 1) % 3]
    y = labels if form is list else dict(zip(("main", "auxiliary_early"), labels, strict=True))
    ours.layers[1].trainable = False
    kerastl.fit(ours, data[0], y, validation_data=(data[0], y), shuffle=False, verbose=2)
    assert "isn't a pair of one image array and one label array" in capsys.readouterr().out
    theirs.fit(data[0], labels, shuffle=False, **QUIET)
    assert_same(ours, theirs)
    with pytest.raises(ArgumentError, match="one label array"):
        kerastl.fit(ours, data[0], y, cache=True, **QUIET)
    with pytest.raises(ValueError, match="single output"):
        kerastl.fit(ours, data[0], y, cache=False, class_weight={0: 1.0}, **QUIET)


def test_the_recipe_takes_labels_for_each_output_as_well(data):
    model = models.compiled(models.nested())
    model = kerastl.add_auxiliary_heads(model, "conv2_block1")
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    images = np.repeat(np.repeat(data[0], 8, axis=1), 8, axis=2)
    pair = (images, [data[1], data[1]])
    history = training.train_head(model, pair, pair, epochs=1, **QUIET)
    assert history.monitor == "val_predictions_loss"


def test_outputs_of_different_shapes_are_the_users_matter(data):
    model = two_heads(units=(3, 2), names=("kind", "side"))
    assert not several_outputs.takes_one_label(model)
    arguments = {"x": data[0], "y": data[1]}
    assert several_outputs.fit_arguments(model, arguments) is arguments


def test_a_model_with_one_output_is_none_of_this_modules_business(data):
    model = models.flat()
    arguments = {"x": data[0], "y": data[1]}
    assert several_outputs.fit_arguments(model, arguments) is arguments
    assert several_outputs.main_log_name(model, "val_loss") == "val_loss"
    assert len(several_outputs.output_names(models.sequential())) == 1
    assert several_outputs.loss_weights(model) == {"predictions": 1.0}


def test_data_that_no_label_can_be_repeated_in_is_refused(data):
    class Loader:
        def __iter__(self):
            return iter([data])

    with pytest.raises(DataError, match="2 outputs"):
        several_outputs.fit_arguments(two_heads(), {"x": Loader()})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_loss", "val_main_loss"),
        ("loss", "main_loss"),
        ("val_accuracy", "val_main_accuracy"),
        ("val_main_loss", "val_main_loss"),
        ("val_auxiliary_early_loss", "val_auxiliary_early_loss"),
    ],
)
def test_what_is_monitored_is_the_main_output(name, expected):
    assert several_outputs.main_log_name(two_heads(), name) == expected


def test_the_total_is_the_main_loss_where_only_the_main_output_has_one(data):
    model = two_heads()
    model.compile("sgd", ["sparse_categorical_crossentropy", None], run_eagerly=True)
    assert several_outputs.main_log_name(model, "val_loss") == "val_loss"
    assert several_outputs.main_log_name(model, "val_accuracy") == "val_main_accuracy"


def test_early_stopping_watches_the_main_output_in_plain_fit(data):
    class Disagree(keras.callbacks.Callback):
        """The total falls from epoch to epoch, the main loss rises."""

        def on_epoch_end(self, epoch, logs=None):
            logs.update(val_loss=9.0 - epoch, val_main_loss=1.0 + epoch)

    model, stopping, labels = two_heads(), callbacks.early_stopping(patience=1), [data[1], data[1]]
    held = {"validation_data": (data[0], labels)}
    history = model.fit(data[0], labels, epochs=9, callbacks=[Disagree(), stopping], **held, **QUIET)
    assert len(history.history["loss"]) == 2
    model = models.flat()
    stopping.set_model(model)
    stopping.on_train_begin()
    assert stopping.monitor == "val_loss"


def test_the_best_weights_are_those_of_the_main_output():
    # total and main loss disagree on which epoch is the best
    model = kerastl.add_auxiliary_heads(models.flat(), "conv2_block1")
    best = callbacks.BestWeights(several_outputs.main_log_name(model, "val_loss"))
    best.set_model(model)
    best.on_train_begin()
    for epoch, (total, main) in enumerate([(3.0, 1.0), (2.0, 1.5)]):
        best.on_epoch_end(epoch, {"val_loss": total, "val_predictions_loss": main})
    assert best.best_epoch == 1


def history(**values):
    made = keras.callbacks.History()
    made.history = {name: [value, value / 2] for name, value in values.items()}
    made.best_epoch, made.epoch_seconds, made.diverged = 2, [1.0, 1.0], None
    return made


LOGS = {
    "auxiliary_a_accuracy": 0.4,
    "auxiliary_a_loss": 3.0,
    "loss": 9.0,
    "predictions_accuracy": 0.8,
    "predictions_loss": 1.0,
    "val_auxiliary_a_accuracy": 0.5,
    "val_predictions_accuracy": 0.9,
    "val_predictions_loss": 1.1,
}


def test_curves_are_those_of_the_main_output():
    figure = plots.plot_history(history(**LOGS))
    assert [axes.get_ylabel() for axes in figure.axes[:2]] == ["predictions loss", "predictions accuracy"]
    assert [line.get_ydata()[0] for line in figure.axes[0].lines[:2]] == [1.0, 1.1]


def test_the_report_names_the_heads_accuracies():
    result = TransferResult(history(**LOGS), None, "head", 2, 0.55, "val_predictions_loss", {"head": 2.0})
    described = writing._describe_training(result)
    assert described["auxiliary_accuracies"] == {"a": 0.25}
    plain = TransferResult(history(loss=1.0, accuracy=0.5), None, "head", 2, 0.5, "loss", {"head": 2.0})
    assert "auxiliary_accuracies" not in writing._describe_training(plain)


def test_gradients_are_measured_with_the_one_label(data):
    ours, theirs = (kerastl.gradient_norms(two_heads(), data[0], y) for y in (data[1], [data[1], data[1]]))
    assert [row.layer for row in ours] == [row.layer for row in theirs] == ["main", "auxiliary_early"]
