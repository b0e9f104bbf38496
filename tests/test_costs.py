import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerastl import costs
from kerastl.costs import conv_cost, layer_costs, model_cost
from kerastl.errors import ArgumentError, KerastlError, KerastlWarning, ModelError
from tests.models import slowly, small_model

layers = keras.layers
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="measures with TensorFlow")


class Scaled(layers.Layer):
    """A user's layer whose products can be seen from outside: Keras operations alone."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 5))

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.kernel)


class Opaque(layers.Layer):
    """A user's layer that can't be looked into: it asks for something that only a real tensor has."""

    def call(self, inputs):
        if isinstance(inputs, keras.KerasTensor):
            raise TypeError("real tensors only")
        return inputs * 2

    def compute_output_shape(self, input_shape):
        return input_shape


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.conv = layers.Conv2D(4, 3, padding="same", name="conv")
        self.pool = layers.GlobalAveragePooling2D(name="pool")
        self.dense = layers.Dense(2, name="dense")

    def call(self, inputs):
        return self.dense(self.pool(keras.ops.relu(self.conv(inputs))))


# ---------------------------------------------------------------------------------------------- one convolution


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("standard", lambda bias: layers.Conv2D(12, (3, 5), padding="same", use_bias=bias)),
        ("pointwise", lambda bias: layers.Conv2D(12, 1, use_bias=bias)),
        ("depthwise", lambda bias: layers.DepthwiseConv2D((3, 5), padding="same", use_bias=bias)),
        ("separable", lambda bias: layers.SeparableConv2D(12, (3, 5), padding="same", use_bias=bias)),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_conv_cost_is_what_the_real_layer_costs(kind, layer, bias):
    inputs = keras.Input((10, 14, 6))
    model = keras.Model(inputs, layer(bias)(inputs))
    formula = conv_cost((3, 5), 6, 12, 10, 14, kind=kind, bias=bias)
    assert formula.parameters == model.count_params()
    assert formula.macs == model_cost(model).macs


def test_conv_cost_of_the_notes_by_hand():
    assert conv_cost(3, 64, 128, 56, 56).macs == 3 * 3 * 64 * 128 * 56 * 56
    assert conv_cost(3, 64, 128, 56, 56, "depthwise").macs == 3 * 3 * 64 * 56 * 56
    assert conv_cost(3, 64, 128, 56, 56, "pointwise").macs == 64 * 128 * 56 * 56
    assert conv_cost(3, 64, 128, 56, 56, "separable").macs == (3 * 3 * 64 + 64 * 128) * 56 * 56


@given(kernel=st.integers(1, 7), inside=st.integers(1, 300), outside=st.integers(1, 300), size=st.integers(1, 60))
def test_separable_to_standard_is_one_over_channels_plus_one_over_window(kernel, inside, outside, size):
    separable = conv_cost(kernel, inside, outside, size, size, "separable")
    standard = conv_cost(kernel, inside, outside, size, size)
    assert math.isclose(separable.macs / standard.macs, 1 / outside + 1 / kernel**2)


@pytest.mark.parametrize(
    "arguments",
    [(0, 3, 4, 8, 8), (3, 3, 4, 8, 0), (3, 3.5, 4, 8, 8), ((3, 3, 3), 3, 4, 8, 8), (3, 3, 4, 8, 8, "standart")],
)
def test_conv_cost_refuses_sizes_that_are_none(arguments):
    with pytest.raises(ArgumentError, match="Received"):
        conv_cost(*arguments)


# ------------------------------------------------------------------------------------------------ rows and totals


def test_rows_of_a_small_model_by_hand():
    rows = layer_costs(small_model())
    assert [row.name for row in rows][1:] == ["first", "norm", "relu", "second", "pool", "head"]
    assert rows["first"].macs == 8 * 8 * 4 * 3 * 3 * 3
    assert rows["first"].parameters == rows["first"].trainable_parameters == 3 * 3 * 3 * 4
    assert rows["first"].output_shape == (8, 8, 4)
    assert rows["first"].activation_bytes == 8 * 8 * 4 * 4
    assert (rows["norm"].parameters, rows["norm"].trainable_parameters, rows["norm"].macs) == (16, 8, 0)
    assert (rows["second"].macs, rows["second"].parameters) == (4 * 4 * 4 * 9, 4 * 9 + 4)
    assert (rows["head"].macs, rows["head"].parameters) == (8, 10)


def test_totals_are_the_sums_of_the_rows_and_follow_freezing():
    model = small_model()
    total, rows = model_cost(model), layer_costs(model)
    assert total.parameters == model.count_params() == sum(row.parameters for row in rows)
    assert total.macs == sum(row.macs for row in rows)
    assert total.size_bytes == 4 * total.parameters
    model.get_layer("first").trainable = False
    assert model_cost(model).trainable_parameters == total.trainable_parameters - 108


def test_a_layer_used_twice_costs_its_macs_twice_and_its_parameters_once():
    inputs = keras.Input((8, 8, 4))
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    model = keras.Model(inputs, shared(shared(inputs)))
    row = layer_costs(model)["shared"]
    assert row.runs == 2
    assert row.macs == 2 * 8 * 8 * 4 * 4 * 9
    assert row.parameters == 4 * 4 * 9 + 4
    assert row.activation_bytes == 2 * 8 * 8 * 4 * 4
    assert "runs 2 times" in str(layer_costs(model))


def test_shared_nested_model_at_two_sizes_counts_each_run_at_its_own_size():
    inner_input = keras.Input((None, None, 3))
    inner = keras.Model(inner_input, layers.Conv2D(2, 3, padding="same", name="conv")(inner_input), name="inner")
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((4, 4, 3), name="right")
    pooled = [layers.GlobalMaxPooling2D()(inner(x)) for x in (left, right)]
    model = keras.Model([left, right], layers.Concatenate()(pooled))
    row = layer_costs(model)["inner/conv"]
    assert row.macs == (8 * 8 + 4 * 4) * 2 * 3 * 9
    assert row.parameters == 3 * 9 * 2 + 2


def test_nested_costs_what_flat_costs():
    backbone = small_model()
    inputs = keras.Input((8, 8, 3))
    nested, twice = keras.Model(inputs, backbone(inputs)), keras.Sequential([keras.Input((8, 8, 3)), backbone])
    flat = model_cost(backbone)
    for model in (nested, twice, keras.Model(inputs, twice(inputs))):
        total = model_cost(model)
        assert (total.macs, total.parameters) == (flat.macs, flat.parameters)
        assert total.peak_activation_bytes == flat.peak_activation_bytes
        assert total.training_activation_bytes == flat.training_activation_bytes


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_input_shape_fills_in_what_several_inputs_leave_open(as_dictionary):
    left, right = keras.Input((None, None, 3), name="left"), keras.Input((5,), name="right")
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1, name="conv")(left))
    model = keras.Model([left, right], layers.Concatenate()([pooled, right]))
    shapes = {"left": (6, 7, 3), "right": (5,)} if as_dictionary else [(6, 7, 3), (5,)]
    assert layer_costs(model, shapes)["conv"].macs == 6 * 7 * 3 * 4
    with pytest.raises(ArgumentError, match="'left' has no fixed size"):
        layer_costs(model)
    with pytest.raises(ArgumentError, match="2 shapes"):
        layer_costs(model, (6, 7, 3))


@pytest.mark.parametrize("shape", [(6, 7, 4), (6, 7), (None, 7, 3), (0, 7, 3, 1)])
def test_an_input_shape_that_does_not_fit_is_refused(shape):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 1)(inputs))
    with pytest.raises(ArgumentError, match="Received: input_shape"):
        layer_costs(model, shape)


def test_macs_grow_with_the_area_of_the_input():
    model = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(None, None, 3), alpha=0.35)
    small, large = model_cost(model, (96, 96, 3)), model_cost(model, (192, 192, 3))
    assert large.macs == 4 * small.macs
    assert large.parameters == small.parameters == model.count_params()


def test_subclassed_model_is_followed_into_and_left_as_it_was():
    model = Subclassed()
    model(np.zeros((1, 8, 8, 3), "float32"))
    rows = layer_costs(model, (8, 8, 3))
    assert rows["conv"].macs == 8 * 8 * 4 * 27
    assert rows["dense"].macs == 8
    assert sum(row.parameters for row in rows) == model.count_params()
    assert model.conv._inbound_nodes == []
    total = model_cost(model, (8, 8, 3))
    assert total.peak_activation_bytes == 2 * 8 * 8 * 4 * 4  # the convolution's output and ReLU's
    assert total.training_activation_bytes == 4 * (8 * 8 * 3 + 8 * 8 * 4 + 4)
    with pytest.raises(ArgumentError, match="pass `input_shape="):
        layer_costs(model)


def test_models_without_a_graph_are_refused():
    with pytest.raises(ModelError, match="no weights yet"):
        layer_costs(Subclassed(), (8, 8, 3))
    with pytest.raises(ModelError, match="no input shape yet"):
        layer_costs(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(KerastlError):
        layer_costs("resnet50")


def test_size_and_activations_go_by_dtype():
    inputs = keras.Input((8, 8, 3))
    mixed = keras.Model(inputs, layers.Conv2D(4, 1, dtype="mixed_float16", name="half")(inputs))
    half = keras.Model(inputs, layers.Conv2D(4, 1, dtype="float16", name="half")(inputs))
    assert layer_costs(mixed)["half"].activation_bytes == layer_costs(half)["half"].activation_bytes == 8 * 8 * 4 * 2
    assert layer_costs(mixed)["half"].dtype == "float16"
    assert model_cost(mixed).size_bytes == 4 * 16
    assert model_cost(half).size_bytes == 2 * 16
    dense = keras.Sequential([keras.Input((8,)), layers.Dense(4, name="dense")])
    dense.get_layer("dense").quantize("int8")
    assert layer_costs(dense)["dense"].size_bytes == 8 * 4 + 4 * (4 + 4)


def test_a_layer_outside_the_graph_is_in_the_totals():
    model = small_model()
    model.spare = layers.Dense(3)
    model.spare.build((None, 7))
    rows = layer_costs(model)
    spare = model.count_params() - small_model().count_params()
    assert spare in (0, 24)  # Keras 3.13 leaves it out of the model
    assert not spare or rows[-1].parameters == 24
    assert sum(row.parameters for row in rows) == model.count_params()


# ---------------------------------------------------------------------------------------------- layers of all kinds


@pytest.mark.parametrize(
    ("shape", "layer", "macs"),
    [
        ((9, 4), layers.Conv1D(6, 3), 7 * 6 * 3 * 4),
        ((8, 8, 4), layers.Conv2D(6, 3, groups=2, padding="same"), 64 * 6 * 9 * 2),
        ((8, 8, 4), layers.Conv2D(6, 3, dilation_rate=2, padding="same"), 64 * 6 * 9 * 4),
        ((6, 6, 6, 2), layers.Conv3D(3, 2), 125 * 3 * 8 * 2),
        ((4, 4, 3), layers.Conv2DTranspose(5, 2, strides=2), 16 * 3 * 4 * 5),
        ((8, 8, 4), layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), 64 * 8 * 9),
        ((8, 8, 4), layers.SeparableConv2D(6, 3, depth_multiplier=2, padding="same"), 64 * 8 * (9 + 6)),
        ((5, 7), layers.Dense(3), 5 * 7 * 3),
        ((5, 7), layers.EinsumDense("abc,cd->abd", output_shape=(None, 3)), 5 * 7 * 3),
        ((5, 7), layers.EinsumDense("...c,cd->...d", output_shape=3), 5 * 7 * 3),
        ((8, 8, 4), layers.UpSampling2D(), 0),
        ((8, 8, 4), layers.RandomFlip(), 0),
        ((8, 8, 4), layers.Lambda(keras.ops.relu, output_shape=(8, 8, 4)), None),
    ],
)
def test_macs_of_single_layers(shape, layer, macs):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    if macs is None:
        with pytest.warns(KerastlWarning, match=layer.name):
            assert model_cost(model).macs == 0
        return
    assert model_cost(model).macs == macs


def test_attention_is_its_projections_and_two_products():
    query, value = keras.Input((5, 12)), keras.Input((7, 10))
    layer = layers.MultiHeadAttention(num_heads=2, key_dim=3, value_dim=4)
    model = keras.Model([query, value], layer(query, value))
    projections = 2 * (5 * 12 * 3 + 7 * 10 * 3 + 7 * 10 * 4 + 5 * 4 * 12)
    assert model_cost(model).macs == projections + 2 * 5 * 7 * (3 + 4)


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda a, b: keras.ops.matmul(a, keras.ops.transpose(b, (0, 2, 1))), 5 * 7 * 6),
        (lambda a, b: keras.ops.einsum("bij,bkj->bik", a, b), 5 * 7 * 6),
        (lambda a, b: layers.Dot(axes=(2, 2))([a, b]), 5 * 7 * 6),
        (lambda a, b: layers.Dense(3, use_bias=False)(a * 2 + 1)[:, 0] + b[:, 0, :3], 5 * 6 * 3),
    ],
)
def test_operations_in_the_graph_are_counted(function, macs):
    left, right = keras.Input((5, 6)), keras.Input((7, 6))
    model = keras.Model([left, right], function(left, right))
    assert model_cost(model).macs == macs


def test_preprocessing_in_the_graph_costs_nothing_and_has_rows():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.applications.resnet50.preprocess_input(inputs))
    assert model_cost(model).macs == 0
    assert {"GetItem", "Stack", "Add"} <= {row.kind for row in layer_costs(model)}


def test_an_unknown_layer_is_named_and_its_products_are_found():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, Scaled(name="mystery")(inputs))
    with pytest.warns(KerastlWarning, match=r"'mystery' \(Scaled\): 40 MACs were counted.*register_layer_cost"):
        rows = layer_costs(model)
    assert rows["mystery"].macs == 40
    assert rows["mystery"].parameters == 40


def test_a_layer_that_cannot_be_looked_into_is_named():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2, name="known")(Opaque(name="riddle")(inputs)))
    with pytest.warns(KerastlWarning, match=r"'riddle' \(Opaque\): its MACs are not in the figures") as caught:
        assert layer_costs(model)["known"].macs == 16
    assert "'known'" not in str(caught[0].message)
    assert caught[0].filename == __file__


def test_a_registered_layer_is_counted_without_a_warning(monkeypatch):
    monkeypatch.setattr("kerastl.costs.macs._FORMULAS", dict(costs.macs._FORMULAS))
    inputs = keras.Input((8,))
    model = keras.Model(inputs, Opaque(name="riddle")(Scaled()(inputs)))
    costs.register_layer_cost(Scaled, lambda layer, inputs, outputs: inputs[0][-1] * outputs[0][-1])
    costs.register_layer_cost(Opaque, 0)
    assert model_cost(model).macs == 40


def test_register_refuses_what_is_no_layer_or_no_count(monkeypatch):
    monkeypatch.setattr("kerastl.costs.macs._FORMULAS", dict(costs.macs._FORMULAS))
    with pytest.raises(ArgumentError, match="layer class"):
        costs.register_layer_cost("Scaled", 0)
    with pytest.raises(ArgumentError, match="macs"):
        costs.register_layer_cost(Scaled, -1)
    costs.register_layer_cost(Scaled, lambda layer, inputs, outputs: 1.5)
    inputs = keras.Input((8,))
    with pytest.raises(ArgumentError, match=r"MACs of .*1\.5"):
        layer_costs(keras.Model(inputs, Scaled()(inputs)))


def test_a_subclass_with_a_call_of_its_own_is_counted_as_its_parent_and_named():
    class Gated(layers.Dense):
        def call(self, inputs):
            return super().call(inputs) * 0.5

    inputs = keras.Input((8,))
    with pytest.warns(KerastlWarning, match=r"'gated' \(Gated\): it was counted as Dense"):
        assert model_cost(keras.Model(inputs, Gated(3, name="gated")(inputs))).macs == 24


@pytest.mark.skipif(not hasattr(layers, "TernaryDense"), reason="Keras has it from 3.16 on")
def test_a_dense_layer_of_three_values_costs_what_a_dense_layer_does():
    inputs = keras.Input((4,))
    assert model_cost(keras.Model(inputs, layers.TernaryDense(3)(inputs))).macs == 12


def test_every_layer_of_keras_is_counted_or_deliberately_not():
    """A layer that a newer Keras adds shows up here, so that nobody forgets it."""
    known = {kind.__name__ for kind in costs.macs._FORMULAS}
    exported = {
        name
        for name in dir(layers)
        if isinstance(getattr(layers, name), type)
        and issubclass(getattr(layers, name), layers.Layer)
        and getattr(layers, name).__name__ == name
    }
    warned_about = """
        Layer Wrapper Lambda TFSMLayer JaxLayer FlaxLayer TorchModuleWrapper Pipeline SpectralNormalization
        ConvLSTM1D ConvLSTM2D ConvLSTM3D RNN SimpleRNN GRU LSTM
        Bidirectional TimeDistributed GRUCell LSTMCell SimpleRNNCell StackedRNNCells
        CategoryEncoding Discretization HashedCrossing Hashing IntegerLookup StringLookup TextVectorization
        MaxNumBoundingBoxes MelSpectrogram STFTSpectrogram ContrastLimitedAdaptiveHistogramEqualization
        GroupedQueryAttention ReversibleEmbedding
    """
    assert exported - known <= set(warned_about.split())


# --------------------------------------------------------------------------------- published figures, the profiler

# Parameters in millions and multiply-adds in millions, as published, of the networks with their 1000-class top.
PUBLISHED = {
    # Parameters: keras.io/api/applications. He et al. 2015 (arXiv 1512.03385), table 1: 3.8e9 "FLOPs (multiply-adds)"
    "ResNet50": (25.6, 3800),
    # Sandler et al. 2018 (arXiv 1801.04381), table 4: 300M MAdds; parameters: keras.io/api/applications, 3.5M
    "MobileNetV2": (3.5, 300),
    # Howard et al. 2017 (arXiv 1704.04861), table 8: 4.2 M parameters, 569 M multiply-adds
    "MobileNet": (4.2, 569),
    # Tan and Le 2019 (arXiv 1905.11946), table 2: 5.3M parameters, 0.39B FLOPs (multiply-adds)
    "EfficientNetB0": (5.3, 390),
    # Simonyan and Zisserman 2014 (arXiv 1409.1556), table 2: 138 M; torchvision's model card: 15.47 GFLOPS, one for
    # each multiply-add
    "VGG16": (138, 15500),
    # Parameters: keras.io/api/applications. ptflops on torchvision: 2.90 GMac, BatchNorm included; Open
    # Model Zoo: 5.724 GFLOPs, two for each multiply-add
    "DenseNet121": (8.0, 2900),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    million_parameters, million_macs = PUBLISHED[name]
    model = getattr(keras.applications, name)(weights=None)
    total = model_cost(model)
    assert total.parameters == model.count_params()
    assert total.parameters / 1e6 == pytest.approx(million_parameters, rel=0.03)
    assert total.macs / 1e6 == pytest.approx(million_macs, rel=0.03)


def macs_by_tensorflow(model, shape) -> float:
    """Half of the operations that TensorFlow's profiler counts in convolutions and matrix products.

    What it counts beside them are no multiply-accumulates: BiasAdd, AddV2, Mul, Sub and Rsqrt (bias, BatchNorm, sums of
    branches), Mean, MaxPool, AvgPool, Softmax and the activations.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    run = tf.function(lambda images: model(images, training=False))
    frozen = convert_variables_to_constants_v2(run.get_concrete_function(tf.TensorSpec((1, *shape), tf.float32)))
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    profile = tf.compat.v1.profiler.profile(frozen.graph, cmd="op", options=options)
    counted, level = {}, [profile]
    while level:
        counted.update({node.name: node.float_ops for node in level})
        level = [child for node in level for child in node.children]
    return sum(counted.get(kind, 0) for kind in ("Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2")) / 2


@on_tensorflow
@pytest.mark.parametrize(
    "name",
    [
        *("MobileNet", "MobileNetV2"),
        *slowly("MobileNetV3Small", "NASNetMobile", "EfficientNetB0", "EfficientNetV2B0", "DenseNet121", "ResNet50"),
        *slowly("InceptionV3", "Xception", "VGG16"),
    ],
)
def test_tensorflow_counts_the_same(name):
    size = 299 if name in ("InceptionV3", "Xception") else 224
    model = getattr(keras.applications, name)(weights=None)
    ours = model_cost(model, (size, size, 3)).macs
    assert ours == macs_by_tensorflow(model, (size, size, 3))


@on_tensorflow
@pytest.mark.slow
def test_tensorflow_counts_the_same_but_for_grouped_convolutions():
    """ConvNeXt's depthwise layers are grouped `Conv2D`, compiled apart on a CPU: the profiler can't see them."""
    model = keras.applications.ConvNeXtTiny(weights=None)
    grouped = [row.macs for row in layer_costs(model) if row.name.endswith("depthwise_conv")]
    ours = model_cost(model).macs
    assert ours - sum(grouped) == macs_by_tensorflow(model, (224, 224, 3))
    assert sum(grouped) < 0.03 * ours


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in dir(keras.applications) if name[0].isupper()])
def test_every_network_of_keras_is_covered_without_a_warning(name):
    """Warnings are errors here: a layer type without a formula fails this test."""
    constructor = getattr(keras.applications, name)
    size = 331 if name == "NASNetLarge" else 224
    model = constructor(weights=None, include_top=False, input_shape=(size, size, 3))
    total = model_cost(model)
    assert total.parameters == model.count_params()
    assert 0 < total.peak_activation_bytes < total.training_activation_bytes


# ------------------------------------------------------------------------------------------------------- tables


def test_tables_for_terminal_notebook_and_pandas():
    costs_of_layers, total = layer_costs(small_model()), model_cost(small_model())
    text = str(costs_of_layers)
    assert len({len(line) for line in text.splitlines()[1:2]}) == 1
    assert text.splitlines()[-1].startswith("total")
    assert f"{total.macs:,}" in text.splitlines()[-1]
    assert f"{total.macs:,}" in str(total)
    assert costs_of_layers._repr_html_().startswith("<table>")
    assert total._repr_html_().count("<tr>") == 7
    rows = costs_of_layers.to_rows()
    assert rows[1]["name"] == "first"
    assert rows[1]["macs"] == costs_of_layers["first"].macs
    assert total.to_rows()[0]["parameters"] == total.parameters
    assert isinstance(costs_of_layers[:3], costs.LayerCosts)


def test_an_unknown_row_offers_near_names():
    with pytest.raises(KeyError, match="Did you mean 'second'"):
        layer_costs(small_model())["secnd"]
