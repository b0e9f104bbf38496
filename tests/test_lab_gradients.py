import keras
import numpy as np
import pytest

from kerastl.errors import ArgumentError, BackendError, DataError, ModelError
from kerastl.lab import diagnosis as verdicts
from kerastl.lab.diagnosis import diagnose_depth
from kerastl.lab.gradients import dead_relu_fraction, gradient_norms

layers = keras.layers

CLASSES, INPUTS = 4, 16


def small_model(nested=False):
    """Convolution, BatchNorm, ReLU, a dense head; flat, or with the convolutional part nested."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    if nested:
        base = keras.Model(inputs, x, name="base")
        inputs = keras.Input((8, 8, 3))
        x = base(inputs)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="head")(x))


def batch(count=12, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 8, 8, 3)).astype("float32"), np.arange(count) % CLASSES


# ------------------------------------------------------------------------------------------------ gradient norms


def test_gradient_of_a_linear_model_by_hand():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="only")(inputs))
    model.compile("sgd", "mse")
    x, y = np.array([[1.0, 2, 3], [0, 1, 0]], "float32"), np.array([[1.0, 0], [0, 1]], "float32")
    kernel = np.asarray(model.get_layer("only").kernel)
    by_hand = x.T @ (2 * (x @ kernel - y)) / y.size
    row = gradient_norms(model, x, y)["only"]
    assert row.gradient_norm == pytest.approx(np.linalg.norm(by_hand), rel=1e-5)
    assert row.weight_norm == pytest.approx(np.linalg.norm(kernel), rel=1e-6)
    assert row.ratio == pytest.approx(row.gradient_norm / row.weight_norm)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_rows_in_the_order_of_depth_and_the_model_as_it_was(nested, compiled):
    model = small_model(nested)
    if compiled:
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    before = [weight.copy() for weight in model.get_weights()]
    norms = gradient_norms(model, *batch())
    prefix = "base/" if nested else ""
    assert [row.layer for row in norms] == [f"{prefix}conv", f"{prefix}norm", "head"]
    assert [row.depth for row in norms] == [1, 2, 3]
    assert all(row.gradient_norm > 0 for row in norms)
    assert norms.loss == pytest.approx(np.log(CLASSES), rel=0.5)
    for left, right in zip(before, model.get_weights(), strict=True):  # BatchNorm's statistics among them
        np.testing.assert_array_equal(left, right)


def test_frozen_layers_have_no_row_and_nothing_trainable_is_an_error():
    model = small_model()
    model.get_layer("conv").trainable = False
    assert [row.layer for row in gradient_norms(model, *batch())] == ["norm", "head"]
    model.trainable = False
    with pytest.raises(ModelError, match="Nothing is trainable"):
        gradient_norms(model, *batch())


def test_the_loss_of_an_uncompiled_model_is_told_by_its_last_activation():
    x, y = batch()
    features = keras.Input((8, 8, 3))
    pooled = layers.GlobalAveragePooling2D()(features)
    losses = {}
    for activation in ("softmax", None):
        model = keras.Model(features, layers.Dense(CLASSES, activation=activation, kernel_initializer="ones")(pooled))
        losses[activation] = [gradient_norms(model, x, labels).loss for labels in (y, np.eye(CLASSES)[y])]
    for loss in [*losses["softmax"], *losses[None]]:
        assert loss == pytest.approx(np.log(CLASSES), rel=1e-5)
    binary = keras.Model(features, layers.Dense(1, activation="sigmoid", kernel_initializer="zeros")(pooled))
    assert gradient_norms(binary, x, y % 2).loss == pytest.approx(np.log(2), rel=1e-5)
    unknown = keras.Model(features, layers.Dense(2, activation="tanh")(pooled))
    with pytest.raises(ModelError, match="Compile the model"):
        gradient_norms(unknown, x, y % 2)


def test_a_model_with_auxiliary_outputs_uses_its_compiled_losses():
    model = small_model()
    auxiliary = layers.Dense(CLASSES, activation="softmax", name="auxiliary")(model.get_layer("pool").output)
    both = keras.Model(model.input, {"head": model.output, "auxiliary": auxiliary})
    both.compile("adam", dict.fromkeys(("head", "auxiliary"), "sparse_categorical_crossentropy"))
    x, y = batch()
    norms = gradient_norms(both, x, {"head": y, "auxiliary": y})
    assert {"head", "auxiliary"} <= {row.layer for row in norms}
    assert norms["auxiliary"].gradient_norm > 0
    main = gradient_norms(both, x, y)  # one array of labels: the main output's
    assert main["auxiliary"].gradient_norm == 0
    assert 0 < main.loss < norms.loss
    assert diagnose_depth(both, x, y).loss == pytest.approx(np.log(CLASSES), rel=0.5)


def test_other_backends_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(BackendError, match=r"TensorFlow or JAX.*'torch'"):
        gradient_norms(small_model(), *batch())


def test_tables():
    norms = gradient_norms(small_model(), *batch())
    lines = str(norms).splitlines()
    assert lines[0].split() == ["layer", "kind", "depth", "gradient", "norm", "weight", "norm", "ratio"]
    assert len(lines) == 2 + len(norms)
    assert "<table>" in norms._repr_html_()
    assert norms.to_rows()[0]["layer"] == "conv"
    with pytest.raises(KeyError, match="Did you mean 'conv'"):
        norms["cnv"]


# ---------------------------------------------------------------------------------------------------- dead ReLUs


@pytest.mark.parametrize("nested", [False, True])
def test_dead_channels_are_counted(nested):
    model = small_model(nested)
    norm = (model.get_layer("base") if nested else model).get_layer("norm")
    gamma, beta, mean, variance = norm.get_weights()
    beta[:3] = -1000  # three of four channels never come above zero
    norm.set_weights([gamma, beta, mean, variance])
    (row,) = dead_relu_fraction(model, batch()[0], batch_size=5)
    assert row.layer == ("base/relu" if nested else "relu")
    assert (row.units, row.dead_units, row.dead_fraction) == (4, 3, 0.75)
    assert 0.75 < row.zero_fraction < 1


def test_relu_is_found_as_layer_activation_and_operation():
    inputs = keras.Input((5,))
    x = layers.Dense(6, activation="relu", name="fused")(inputs)
    x = layers.Activation("relu6", name="activation")(layers.Dense(4)(x))
    x = layers.ReLU(negative_slope=0.1, name="leaky")(layers.Dense(4, activation="tanh")(x))
    model = keras.Model(inputs, keras.ops.relu(layers.Dense(3)(x)))
    rows = dead_relu_fraction(model, np.random.default_rng(0).normal(size=(40, 5)).astype("float32"))
    assert [row.units for row in rows] == [6, 4, 3]
    assert [row.layer for row in rows][:2] == ["fused", "activation"]
    with pytest.raises(ArgumentError, match="batch_size"):
        dead_relu_fraction(model, np.zeros((1, 5)), batch_size=0)


def test_augmentation_in_front_is_inactive():
    inputs = keras.Input((8, 8, 3))
    darker = keras.layers.RandomBrightness((-1.0, -0.9))(inputs)
    outputs = keras.layers.ReLU()(darker - 128.0)  # after darkening there is nothing left
    (row,) = dead_relu_fraction(keras.Model(inputs, outputs), np.full((4, 8, 8, 3), 200.0))
    assert row.zero_fraction == 0


def test_a_unit_is_dead_only_over_all_images():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.ReLU(name="relu")(inputs))
    images = np.array([[1.0, -1], [-1, -1], [-1, 2]], "float32")
    assert dead_relu_fraction(model, images, batch_size=1)["relu"].dead_units == 0
    assert dead_relu_fraction(model, images[:2], batch_size=1)["relu"].dead_units == 1
    assert dead_relu_fraction(model, images)["relu"].zero_fraction == pytest.approx(4 / 6)


# --------------------------------------------------------------------------------------------------- the diagnosis


def deep_network(activation, *, shortcuts, depth=60, width=32):
    inputs = keras.Input((INPUTS,))
    x = layers.Dense(width, activation=activation)(inputs)
    for _ in range(depth - 2):
        after = layers.Dense(width, activation=activation)(x)
        x = layers.Add()([x, after]) if shortcuts else after
    return keras.Model(inputs, layers.Dense(CLASSES)(x))  # logits: Keras on JAX clips the loss of a saturated softmax


def oversized_network():
    """400,000 weights for a few hundred samples of 16 numbers."""
    inputs = keras.Input((INPUTS,))
    x = inputs
    for _ in range(7):
        x = layers.Dense(256, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


def samples(seed, *, noise, count=300):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, INPUTS)).astype("float32")
    rule = generator.normal(size=(INPUTS, CLASSES))
    return x, generator.integers(0, CLASSES, count) if noise else (x @ rule).argmax(axis=1)


FAULTS = {
    "sigmoid": (lambda: deep_network("sigmoid", shortcuts=False), False, verdicts.VANISHING),
    "shortcuts and ReLU": (lambda: deep_network("relu", shortcuts=True), False, verdicts.HEALTHY),
    "noise": (oversized_network, True, verdicts.NOTHING_TO_LEARN),
    "learnable": (oversized_network, False, verdicts.HEALTHY),
}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
@pytest.mark.parametrize("fault", FAULTS)
def test_networks_built_to_have_each_fault_get_the_right_verdict(fault, seed):
    keras.utils.set_random_seed(seed)
    build, noise, verdict = FAULTS[fault]
    diagnosis = diagnose_depth(build(), *samples(seed, noise=noise))
    assert diagnosis.verdict == verdict, str(diagnosis)


def test_a_sigmoid_network_fails_whatever_the_labels_and_the_evidence_says_how():
    diagnosis = diagnose_depth(deep_network("sigmoid", shortcuts=False), *samples(0, noise=True))
    assert diagnosis.verdict == verdicts.VANISHING
    assert diagnosis.change_per_layer < 0.5
    assert diagnosis.total_change < 1e-20
    assert diagnosis.straightness > 0.9
    assert "falls geometrically" in diagnosis.reason


def test_an_exploding_gradient_is_told():
    inputs = keras.Input((INPUTS,))
    x = inputs
    for _ in range(20):
        x = layers.Dense(32, activation="tanh", kernel_initializer=keras.initializers.RandomNormal(stddev=2.0))(x)
    model = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", kernel_initializer="zeros")(x))
    model.layers[-1].set_weights([np.full((32, CLASSES), 1e-3) * np.arange(CLASSES), np.zeros(CLASSES)])
    assert diagnose_depth(model, *samples(0, noise=False)).verdict == verdicts.EXPLODING


def test_no_gradient_at_all_is_told():
    inputs = keras.Input((INPUTS,))
    dead = layers.Dense(8, activation="relu", bias_initializer=keras.initializers.Constant(-1000))(inputs)
    x = layers.Dense(8, activation="relu", use_bias=False)(dead)
    model = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", use_bias=False)(x))
    diagnosis = diagnose_depth(model, *samples(0, noise=False))
    assert diagnosis.verdict == verdicts.NO_GRADIENT
    assert dead_relu_fraction(model, samples(0, noise=False)[0])[0].dead_fraction == 1


def test_noise_learned_by_heart_is_nothing_on_new_data_and_a_rule_is_something():
    model = oversized_network()
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", jit_compile=False)
    start = model.get_weights()
    for noise, verdict in ((True, verdicts.NOTHING_TO_LEARN), (False, verdicts.HEALTHY)):
        model.set_weights(start)
        x, y = samples(0, noise=noise, count=600)
        model.fit(x[:300], y[:300], epochs=10, batch_size=32, verbose=0)
        diagnosis = diagnose_depth(model, x[300:], y[300:])
        assert diagnosis.verdict == verdict, str(diagnosis)
        assert (diagnosis.loss < diagnosis.label_entropy) is (not noise)
        assert diagnose_depth(model, x[:300], y[:300]).verdict == verdicts.HEALTHY  # on what it has learned by heart


@pytest.mark.parametrize("pattern", ["stripes", "none"])
def test_a_convolutional_network_and_one_hot_labels(pattern):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(120, 8, 8, 3)).astype("float32"), np.arange(120) % CLASSES
    if pattern == "stripes":
        x[np.arange(120), 2 * y] += 0.7
    diagnosis = diagnose_depth(small_model(nested=True), x, np.eye(CLASSES)[y])
    assert diagnosis.verdict == (verdicts.HEALTHY if pattern == "stripes" else verdicts.NOTHING_TO_LEARN)
    assert diagnosis.label_entropy == pytest.approx(np.log(CLASSES))


def test_a_pattern_that_is_not_linear_is_seen():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 2)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype(int)  # exclusive or: no single feature tells anything
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(layers.Dense(16, activation="relu")(inputs)))
    assert diagnose_depth(model, x, y).verdict == verdicts.HEALTHY


def test_rare_classes_alone_are_no_signal():
    x, _ = samples(0, noise=True)
    y = (np.random.default_rng(1).uniform(size=300) < 0.1).astype(int)
    inputs = keras.Input((INPUTS,))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(32, activation="relu")(inputs)))
    diagnosis = diagnose_depth(model, x, y)
    assert diagnosis.verdict == verdicts.NOTHING_TO_LEARN
    assert diagnosis.label_entropy < np.log(2) / 1.5


def test_the_diagnosis_prints_and_repeats():
    x, y = samples(3, noise=True)
    model = oversized_network()
    first, second = diagnose_depth(model, x, y), diagnose_depth(model, x, y)
    assert str(first) == str(second)
    assert str(first).startswith("nothing to learn: The gradient's norm is")
    assert "entropy of the labels" in first._repr_html_()
    assert first.to_rows()[0]["signal_p_value"] == first.signal_p_value
    assert len(first.norms) == 8


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(10, int), "one label for each of the 300"),
        (np.zeros(300, int), "All labels are the same"),
        (np.arange(300) % 5, "from 0 to 3"),
        (np.arange(300) % 4 - 1, "from 0 to 3"),
        (np.full(300, 0.5), "from 0 to 3"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        diagnose_depth(oversized_network(), samples(0, noise=True)[0], labels)
