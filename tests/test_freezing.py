import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import kerastl.models.compiling as compiling
from kerastl.errors import ArgumentError
from kerastl.models import freezing, graph
from tests import models

BUILDERS = [models.flat, models.nested, models.sequential]
COMPILE = {"optimizer": "sgd", "loss": "sparse_categorical_crossentropy"}


def trainable_names(model) -> set[str]:
    """Names of the layers whose weights `fit` would change."""
    wanted = {id(variable) for variable in model.trainable_variables}
    leaves = graph.leaf_layers(model)
    return {leaf.name for leaf in leaves if any(id(weight) in wanted for weight in leaf.weights)}


@pytest.mark.parametrize("build", BUILDERS)
def test_freeze_leaves_only_the_head(build):
    model = build()
    assert freezing.freeze(model) is model
    head = {layer.name for layer in model.layers if isinstance(layer, layers.Dense)}
    assert trainable_names(model) == head


@pytest.mark.parametrize("build", BUILDERS)
def test_unfreeze_sets_the_exact_state_whatever_was_before(build):
    model = build()
    head = {layer.name for layer in model.layers if isinstance(layer, layers.Dense)}
    freezing.unfreeze(model, last_blocks=3)
    freezing.unfreeze(model, last_blocks=1)
    assert trainable_names(model) == head | {"conv2_block3_1_conv", "conv2_block3_2_conv"}


def test_the_four_ways_to_choose_agree():
    chosen = []
    for choice in (
        {"last_blocks": 1},
        {"last_layers": 7},
        {"from_layer": "conv2_block3_1_conv"},
        {"from_layer": "conv2_block3"},
        {"fraction": 7 / 24},
        {"fraction": 6.1 / 24},  # rounded up to whole layers
    ):
        model = models.nested()
        assert len(graph.find_backbone(model).layers) == 24
        chosen.append(trainable_names(freezing.unfreeze(model, **choice)))
    assert all(names == chosen[0] for names in chosen)


def test_batch_norm_stays_frozen_unless_asked_for():
    model = models.nested()
    freezing.unfreeze(model, fraction=1.0)
    assert not any(layer.trainable for layer in graph.batch_norm_layers(model))
    freezing.unfreeze(model, last_blocks=1, batch_norm=True)
    running = [layer.name for layer in graph.batch_norm_layers(model) if layer.trainable]
    assert sorted(running) == ["conv2_block3_1_bn", "conv2_block3_2_bn"]


def test_batch_norm_hidden_in_a_composite_layer_stays_frozen_too():
    inner = keras.Sequential([keras.Input((2, 2, 3)), layers.Conv2D(4, 1), layers.BatchNormalization(name="hidden")])
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(3, 7, name="first")(inputs)
    x = layers.TimeDistributed(layers.BatchNormalization(name="wrapped"))(inner(x))
    model = keras.Model(inputs, models.head_layers(layers.Conv2D(4, 1, name="last")(x)))
    freezing.unfreeze(model, fraction=1.0)
    assert not any(layer.trainable for layer in graph.batch_norm_layers(model))
    assert {"first", "last", "predictions"} <= trainable_names(model)


def test_the_heads_own_batch_norm_and_frozen_parts_are_left_alone():
    inputs = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(models.tiny_backbone()(inputs))
    x = layers.BatchNormalization(name="head_bn")(layers.Dense(4, name="kept", trainable=False)(x))
    model = keras.Model(inputs, layers.Dense(3, name="predictions")(x))
    freezing.unfreeze(freezing.freeze(model), last_blocks=1)
    assert "head_bn" in trainable_names(model)
    assert "kept" not in trainable_names(model)


def test_a_wholly_frozen_model_can_be_unfrozen_again():
    model = models.nested()
    model.trainable = False
    freezing.unfreeze(model, last_blocks=1)
    assert "conv2_block3_1_conv" in trainable_names(model)
    assert "predictions" not in trainable_names(model), "the head was frozen by the user and stays so"


def test_weights_in_front_of_a_nested_backbone_are_frozen_with_it():
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(3, 1, name="adapter")(inputs)
    model = keras.Model(inputs, models.head_layers(models.tiny_backbone()(x)))
    assert trainable_names(freezing.freeze(model)) == {"predictions"}


@pytest.mark.parametrize("build", BUILDERS)
def test_freezing_un_compiles_so_that_fit_raises(build, pixels):
    model = models.compiled(freezing.freeze(build()))
    model.fit(*pixels, verbose=0)
    freezing.unfreeze(model, last_blocks=1)
    with pytest.raises(ValueError, match="compile"):
        model.fit(*pixels, verbose=0)
    compiling.recompile(model, 1e-4)
    before = models.snapshot(model)
    model.fit(*pixels, verbose=0)
    assert models.changed(before, model)


@pytest.mark.parametrize("build", [models.flat, models.nested])
def test_training_moves_nothing_before_the_boundary_and_no_moving_statistic(build, pixels):
    # `training=False` on a nested backbone doesn't keep BatchNorm's statistics from moving in `fit`
    model = freezing.unfreeze(build(), last_blocks=1)
    before = models.snapshot(model)
    models.compiled(model, 1e-2).fit(*pixels, verbose=0, epochs=2)
    moved = models.changed(before, model)
    assert any("conv2_block3_1_conv" in path for path in moved)
    assert not any("conv1" in path or "block1" in path or "block2_" in path for path in moved)
    assert not any("moving" in path or "_bn" in path for path in moved)


def test_the_trap_itself_training_false_does_not_protect_batch_norm(pixels):
    # the reason for the rule; Keras 3.16 keeps `training=False` inside a functional model (keras-team/keras#23364)
    mended = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 16)
    model = models.nested()
    model.trainable = True
    before = models.snapshot(model)
    models.compiled(model, 1e-9).fit(*pixels, verbose=0)
    assert any("moving_mean" in path for path in models.changed(before, model)) != mended


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"last_blocks": 1, "last_layers": 2},
        {"last_blocks": 0},
        {"last_blocks": 5},
        {"last_layers": 0},
        {"last_layers": -1},
        {"last_layers": 25},
        {"last_layers": 1.5},
        {"last_layers": True},
        {"fraction": 0},
        {"fraction": 1.01},
        {"fraction": "half"},
        {"from_layer": "conv2_blok3_1_conv"},
        {"from_layer": "predictions"},
    ],
)
def test_choices_that_can_not_be_used_raise_and_change_nothing(choice):
    model = freezing.freeze(models.nested())
    with pytest.raises(ArgumentError, match="Received"):
        freezing.unfreeze(model, **choice)
    assert trainable_names(model) == {"predictions"}


def test_unknown_layers_offer_the_nearest_names():
    with pytest.raises(ArgumentError, match="Did you mean 'conv2_block3"):
        freezing.unfreeze(models.flat(), from_layer="conv2_blok3")


def test_nothing_became_trainable_is_an_error():
    with pytest.raises(ArgumentError, match="Nothing would become trainable"):
        freezing.unfreeze(models.flat(), last_layers=3)  # BatchNorm, Add, ReLU


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 24), batch_norm=st.booleans())
def test_any_count_unfreezes_exactly_the_weighted_layers_at_the_end(count, batch_norm):
    model = models.nested()
    end = graph.find_backbone(model).layers[-count:]
    expected = {layer.name for layer in end if layer.weights}
    if not batch_norm:
        expected -= {layer.name for layer in graph.batch_norm_layers(model)}
    if not expected:
        with pytest.raises(ArgumentError):
            freezing.unfreeze(model, last_layers=count, batch_norm=batch_norm)
        return
    freezing.unfreeze(model, last_layers=count, batch_norm=batch_norm)
    assert trainable_names(model) == expected | {"predictions"}


def test_the_source_notes_slice_assignment_does_not_run():
    # slicing a list of layers sets nothing; and the reason for `unfreeze(last_layers=10)`
    with pytest.raises(AttributeError):
        models.flat().layers[:-10].trainable = False


def test_the_familiar_switch_of_a_nested_backbone_works_after_freeze():
    # on TensorFlow, setting a container's `trainable` to the value that it has already doesn't reach its layers
    model = freezing.freeze(models.nested())
    model.get_layer("tiny").trainable = True
    assert len(trainable_names(model)) > 10


def test_list_blocks_names_the_blocks_in_order():
    blocks = freezing.list_blocks(models.flat())
    assert [block.name for block in blocks] == ["stem", "conv2_block1", "conv2_block2", "conv2_block3"]
    assert blocks[0].layer_names == ("conv1_conv", "conv1_bn", "conv1_relu")
    assert blocks[0].parameters == 3 * 3 * 3 * 8 + 8 + 4 * 8


@pytest.mark.parametrize("build", BUILDERS)
def test_the_summary_adds_up_and_prints_the_state(build):
    model = freezing.unfreeze(build(), last_blocks=1)
    summary = freezing.trainable_summary(model)
    assert summary.parameters == model.count_params()
    assert summary.parameters == sum(row.parameters for row in summary.rows)
    assert summary.trainable_parameters == sum(row.trainable_parameters for row in summary.rows)
    states = {row.name: row.state for row in summary.rows}
    assert states == {
        "stem": "frozen",
        "conv2_block1": "frozen",
        "conv2_block2": "frozen",
        "conv2_block3": "partly trainable",
        "head": "trainable",
    }
    text = str(summary)
    assert f"{summary.trainable_parameters:,}" in text
    assert len({len(line) for line in text.splitlines() if set(line) == {"-"}}) == 1
    assert "<table>" in summary._repr_html_()
    assert summary.to_rows()[-1]["name"] == "head"
