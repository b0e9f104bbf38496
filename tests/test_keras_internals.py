"""One test for each private name of Keras that the package uses: after an upgrade, the failing one says which name broke."""

import inspect
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

from kerastl import keras_internals as internals
from tests import models


def test_flatten_layers_lists_what_is_below_at_any_depth():
    model = models.nested()
    everything = internals.flatten_layers(model)
    assert everything[0] is model
    assert model.get_layer("tiny").layers[1] in everything


def test_child_layers_lists_one_level():
    model = models.nested()
    children = internals.child_layers(model)
    assert model.get_layer("tiny") in children
    assert model.get_layer("tiny").layers[1] not in children
    assert model not in children


def test_functional_inside_finds_the_graph():
    model = models.flat()
    assert internals.functional_inside(model) is model
    sequential = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    assert len(internals.functional_inside(sequential).inputs) == 1
    assert internals.functional_inside(keras.Sequential([layers.Dense(2)])) is None
    assert internals.functional_inside(layers.Dense(2)) is None


def test_nodes_in_order_runs_inputs_first_and_outputs_last():
    inputs = keras.Input((4,))
    first, second = layers.Dense(3), layers.Dense(2)
    nodes = internals.nodes_in_order(keras.Model(inputs, second(first(inputs))))
    assert [node.operation for node in nodes[1:]] == [first, second]
    assert nodes[0].is_input


def test_history_leads_to_the_node_that_made_a_tensor():
    inputs, layer = keras.Input((4,)), layers.Dense(2)
    first, second = layer(inputs), layer(keras.Input((4,)))
    assert internals.has_history(first)
    assert not internals.has_history(np.zeros(3))
    assert internals.node_of(first).outputs[0] is first
    assert internals.node_of(second).outputs[0] is second
    halves = keras.ops.split(inputs, 2, axis=1)
    assert [internals.tensor_index(half) for half in halves] == [0, 1]


def test_calls_of_lists_every_call_and_forget_calls_takes_new_ones_back():
    layer = layers.Dense(2)
    layer(keras.Input((4,)))
    assert len(internals.calls_of(layer)) == 1
    put_back = internals.forget_calls([layer])
    layer(keras.Input((4,)))
    assert len(internals.calls_of(layer)) == 2
    put_back()
    assert len(internals.calls_of(layer)) == 1
    assert tuple(layer.output.shape) == (None, 2)


def test_functional_class_is_that_of_every_functional_model():
    assert type(models.flat()) is internals.functional_class()
    assert not issubclass(keras.Sequential, internals.functional_class())


@pytest.mark.parametrize("build", [models.flat, models.sequential])
def test_methods_of_its_own_are_those_that_keras_does_not_have(build):
    class Own(type(build())):
        def train_step(self, data):
            return super().train_step(data)

        @property
        def metrics(self):
            return super().metrics

    model = build()
    assert internals.methods_of_its_own(models.compiled(model)) == []
    own = Own(model.inputs, model.outputs) if build is models.flat else Own(model.layers)
    assert internals.methods_of_its_own(own) == ["train_step", "metrics"]
    model.compute_loss = lambda **arguments: 0.0
    assert internals.methods_of_its_own(model) == ["compute_loss"]


@pytest.mark.parametrize("build", [models.flat, models.sequential])
def test_calls_can_be_replaced_and_are_as_before_afterwards(build, pixels):
    model = build()
    expected, before, spec = model.predict(pixels[0], verbose=0), set(vars(model)), repr(model.input_spec)

    def call(original, inputs, **options):
        return inputs["twice"] * 2 if isinstance(inputs, dict) else original(inputs, **options)

    with internals.calls_replaced(model, call):
        np.testing.assert_array_equal(model.predict({"twice": np.ones((2, 3))}, verbose=0), np.full((2, 3), 2))
        np.testing.assert_array_equal(model.predict(pixels[0], verbose=0), expected)
    assert set(vars(model)) == before
    assert repr(model.input_spec) == spec
    np.testing.assert_array_equal(model.predict(pixels[0], verbose=0), expected)


def test_compile_arguments_are_the_live_ones_also_when_the_model_is_un_compiled():
    model, loss = models.flat(), keras.losses.SparseCategoricalCrossentropy()
    assert internals.compile_arguments(model) is None
    model.compile("sgd", loss, metrics=["accuracy"])
    model.compiled = False
    arguments = internals.compile_arguments(model)
    assert arguments["loss"] is loss
    assert {"loss_weights", "metrics", "weighted_metrics", "run_eagerly", "steps_per_execution", "jit_compile"} <= {
        *arguments
    }


def test_rate_setting_gives_a_schedule_itself():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    assert internals.rate_setting(keras.optimizers.SGD(schedule)) is schedule


def test_optimized_variables_are_what_the_optimizer_was_built_with():
    model, optimizer = models.flat(), keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    assert list(map(id, internals.optimized_variables(optimizer))) == list(map(id, model.trainable_variables))


def test_weight_decay_exclusions_are_carried_over():
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    fresh = keras.optimizers.AdamW(weight_decay=0.1)
    internals.copy_weight_decay_exclusions(optimizer, fresh)
    model = models.flat()
    fresh.build(model.trainable_variables)
    bias, kernel = model.get_layer("predictions").bias, model.get_layer("predictions").kernel
    assert [fresh._use_weight_decay(one) for one in (kernel, bias)] == [True, False]


def test_rates_scaled_multiplies_the_rate_of_a_variable_for_a_while():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    before = models.snapshot(model)
    factors = {id(model.layers[0].kernel): 0.5, id(model.layers[0].bias): 0.0}
    with internals.rates_scaled(model.optimizer, factors):
        model.fit(np.ones((4, 2)), np.full((4, 1), 9.0), epochs=1, verbose=0)
    moved = [
        np.abs(after - old).max() for after, old in zip(models.snapshot(model).values(), before.values(), strict=True)
    ]
    assert moved == pytest.approx([0.05, 0.0, 0.1, 0.1], rel=1e-3)
    assert "_backend_update_step" not in vars(model.optimizer)


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Nadam(0.01),
        keras.optimizers.AdamW(0.01, weight_decay=0.5),
        keras.optimizers.RMSprop(0.01, momentum=0.9),
        keras.optimizers.Lion(0.01, weight_decay=0.1),
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    ],
    ids=lambda one: type(one).__name__,
)
def test_rates_scaled_scales_each_step_whatever_an_optimizer_keeps_for_all_variables(optimizer):
    def moved(factors):
        fresh = type(optimizer).from_config(optimizer.get_config())
        variables = [keras.Variable(np.ones(3, "float32"), name=f"v{place}") for place in range(3)]
        fresh.build(variables)
        gradients = [keras.ops.convert_to_tensor(np.array([0.1, -0.2, 0.3], "float32"))] * 3
        scales = {id(one): factor for one, factor in zip(variables, factors, strict=True)}
        with internals.rates_scaled(fresh, scales):
            for _ in range(5):
                fresh.apply(gradients, variables)
        return [keras.ops.convert_to_numpy(one) for one in variables]

    def plain(rate):
        fresh = type(optimizer).from_config({**optimizer.get_config(), "learning_rate": rate})
        variable = keras.Variable(np.ones(3, "float32"))
        fresh.build([variable])
        for _ in range(5):
            fresh.apply([keras.ops.convert_to_tensor(np.array([0.1, -0.2, 0.3], "float32"))], [variable])
        return keras.ops.convert_to_numpy(variable)

    for found, factor in zip(moved([1.0, 0.5, 0.25]), (1.0, 0.5, 0.25), strict=True):
        np.testing.assert_allclose(found, plain(0.01 * factor), rtol=1e-6)


def test_seed_generators_are_those_of_random_layers():
    (generator,) = internals.seed_generators(layers.RandomFlip(seed=3))
    assert isinstance(generator, keras.random.SeedGenerator)
    assert internals.seed_generators(layers.Dense(2)) == []


def test_distribution_strategy_is_none_outside_of_one():
    assert internals.distribution_strategy(models.flat()) is None


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute is TensorFlow's")
def test_distribution_strategy_finds_that_of_tensorflow():
    import tensorflow as tf

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        assert internals.distribution_strategy(models.flat()) is strategy


def test_every_function_is_tried_here():
    functions = {
        name for name, one in inspect.getmembers(internals, inspect.isfunction) if one.__module__ == internals.__name__
    }
    functions |= {"functional_class"}
    text = pathlib.Path(__file__).read_text()
    assert {name for name in functions if f"internals.{name}" not in text} == set()


def test_dataset_steps_tell_which_of_them_draw_random_numbers():
    tf = pytest.importorskip("tensorflow")
    images = tf.data.Dataset.from_tensor_slices(np.zeros((4, 8, 8, 3), "float32")).shuffle(4).batch(2)
    layer = layers.RandomFlip(seed=0)
    for draw in (tf.image.random_flip_left_right, lambda batch: layer(batch, training=True)):
        steps = internals.dataset_steps(images.map(lambda batch: batch / 255).map(draw).cache())
        maps = [step for step in steps if "Map" in type(step).__name__]
        assert list(map(internals.draws_random_numbers, maps)) == [True, False]


def test_the_step_that_caches_is_known():
    tf = pytest.importorskip("tensorflow")
    images = tf.data.Dataset.from_tensor_slices(np.zeros((4, 8), "float32")).cache().batch(2)
    assert list(map(internals.keeps_what_it_reads, internals.dataset_steps(images))) == [False, True, False]
