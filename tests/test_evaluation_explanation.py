import keras
import numpy as np
import pytest
from keras import layers

import kerastl
from kerastl import backend
from kerastl.errors import ArgumentError, BackendError, DataError, ModelError
from kerastl.evaluation.explanation import grad_cam
from kerastl.lab.feature_maps import feature_maps, layer_filters
from tests import models

pytestmark = pytest.mark.skipif(keras.backend.backend() == "torch", reason="needs gradients")

LAST = "conv2_block3_out"


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3)).astype("float32")


def seeded(maker, **options):
    keras.utils.set_random_seed(3)
    return maker(**options)


def enlarged(coarse, size=(32, 32)):
    """Return maps at the images' size, divided by their largest value."""
    coarse = np.maximum(coarse, 0)[..., None].astype("float32")
    grown = keras.ops.convert_to_numpy(keras.ops.image.resize(coarse, size, interpolation="bilinear"))[..., 0]
    return grown / np.maximum(grown.max(axis=(1, 2), keepdims=True), 1e-30)


def by_hand(model, images, classes, head="predictions", layer=LAST):
    """Return Grad-CAM of a model that ends in global average pooling and a Dense layer: there it is plain CAM."""
    weights = model.get_layer(head).get_weights()[0][:, classes].T
    return enlarged((feature_maps(model, images, layer) * weights[:, None, None, :]).sum(axis=-1))


# ---------------------------------------------------------------- Grad-CAM: what it must be


@pytest.mark.parametrize("maker", [models.flat, models.nested])
@pytest.mark.parametrize("augmentation", [False, True])
def test_with_average_pooling_it_is_the_class_activation_map(maker, augmentation, images):
    # nested backbones and preprocessing in the graph are where other tools fail
    model = seeded(maker, augmentation=augmentation)
    heat = grad_cam(model, images)
    assert (heat.shape, heat.dtype) == ((5, 32, 32), "float32")
    assert heat.min() >= 0
    np.testing.assert_array_equal(heat.max(axis=(1, 2)), 1)
    classes = model.predict(images, verbose=0).argmax(axis=1)
    np.testing.assert_allclose(heat, by_hand(model, images, classes), atol=1e-5)
    chosen = [0, 1, 2, 2, 1]
    expected = by_hand(model, images, chosen)
    np.testing.assert_allclose(grad_cam(model, images, class_index=chosen, batch_size=2), expected, atol=1e-5)
    np.testing.assert_allclose(grad_cam(model, images[3], class_index=2), expected[3:4], atol=1e-5)


def test_flat_and_nested_and_deeply_nested_models_agree(images):
    flat, nested = models.flat(augmentation=True), models.nested(augmentation=True)
    nested.set_weights(flat.get_weights())
    inputs = keras.Input((32, 32, 3))
    wrapped = keras.Model(inputs, keras.Sequential([keras.Input((32, 32, 3)), nested])(inputs * 1.0))
    for model in (nested, wrapped):
        for layer in (None, LAST, "conv2_block2_add"):
            heat = grad_cam(model, images, class_index=1, layer=layer)
            np.testing.assert_allclose(heat, grad_cam(flat, images, class_index=1, layer=layer), atol=1e-5)


def test_a_sequential_model_with_an_application_and_its_preprocessing(images):
    base = keras.applications.MobileNetV2(input_shape=(32, 32, 3), include_top=False, weights=None, alpha=0.35)
    pixels = keras.Input((32, 32, 3))
    features = base(keras.applications.mobilenet_v2.preprocess_input(layers.RandomFlip()(pixels)), training=False)
    heads = [layers.GlobalAveragePooling2D(), layers.Dropout(0.5), layers.Dense(3, name="predictions")]
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.Model(pixels, features), *heads])
    # at 32 pixels the last map is 1×1, where nothing can be told: the default is the last one that has places
    heat = grad_cam(model, images, class_index=0)
    np.testing.assert_array_equal(heat, grad_cam(model, images, class_index=0))
    assert np.isfinite(heat).all()
    assert heat.shape == (5, 32, 32)


def head_on(maker_of_head, size=16):
    """Return a small convolutional model with a head: the head is given the feature map, 6 channels."""
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="conv")(inputs / 127.5 - 1)
    return keras.Model(inputs, maker_of_head(x))


def pooled(*after):
    def head(x):
        x = layers.GlobalAveragePooling2D()(x)
        for layer in after:
            x = layer(x)
        return x

    return head


def dense(units, activation=None):
    return layers.Dense(units, activation=activation, name="predictions")


@pytest.mark.parametrize(
    "head",
    [
        pooled(dense(4, "softmax")),
        pooled(dense(4, "sigmoid")),
        pooled(dense(4), layers.Activation("softmax")),
        pooled(dense(4), layers.Softmax()),
        pooled(dense(4), keras.ops.softmax),
        pooled(dense(4), keras.ops.sigmoid),
        pooled(dense(4, "softmax"), layers.Reshape((2, 2)), layers.Flatten(), layers.Dropout(0.5)),
        pooled(dense(4), layers.Activation("linear", dtype="float32")),
    ],
)
def test_the_score_is_the_one_before_softmax_or_sigmoid(head):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3))
    logits, model = seeded(lambda: head_on(pooled(dense(4)))), head_on(head)
    model.set_weights(logits.get_weights())
    for class_index in (None, 2):
        expected = grad_cam(logits, images, class_index=class_index)
        np.testing.assert_allclose(grad_cam(model, images, class_index=class_index), expected, atol=1e-5)
    assert expected.max() == 1


def test_one_unit_speaks_for_class_1_and_its_negative_for_class_0():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3))
    two = seeded(lambda: head_on(pooled(dense(2, "softmax"))))
    kernel, bias, weights, _ = two.get_weights()
    weights[:, 0] = -weights[:, 1]
    two.set_weights([kernel, bias, weights, np.zeros(2)])
    for activation in ("sigmoid", None):
        one = head_on(pooled(dense(1, activation)))
        one.set_weights([kernel, bias, weights[:, 1:], np.zeros(1)])
        for class_index in (0, 1, None):
            expected = grad_cam(two, images, class_index=class_index)
            np.testing.assert_allclose(grad_cam(one, images, class_index=class_index), expected, atol=1e-5)


def test_a_model_that_is_sure_has_a_map_all_the_same():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3))
    model = seeded(lambda: head_on(pooled(dense(3, "softmax"))))
    before = grad_cam(model, images)
    *others, weights, bias = model.get_weights()
    model.set_weights([*others, weights * 1e4, bias * 1e4])
    assert model.predict(images, verbose=0).max(axis=1).min() == 1  # the probability's gradient is zero
    np.testing.assert_allclose(grad_cam(model, images), before, atol=1e-5)


def test_a_hidden_layer_counts_by_the_units_that_are_on():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3))
    model = seeded(lambda: head_on(pooled(layers.Dense(5, activation="relu", name="hidden"), dense(3, "softmax"))))
    first, second = model.get_layer("hidden").get_weights()[0], model.get_layer("predictions").get_weights()[0]
    on = feature_maps(model, images, "hidden") > 0
    weights = (on * second[:, 1]) @ first.T
    expected = enlarged((feature_maps(model, images, "conv") * weights[:, None, None, :]).sum(axis=-1), (16, 16))
    np.testing.assert_allclose(grad_cam(model, images, class_index=1), expected, atol=1e-5)


def test_a_layer_that_others_go_around_counts_by_its_own_paths(images):
    model = seeded(models.nested)
    heat = grad_cam(model, images, class_index=1, layer="conv2_block3_2_bn")
    passes = feature_maps(model, images, "conv2_block3_add") > 0
    weights = (passes * model.get_layer("predictions").get_weights()[0][:, 1]).mean(axis=(1, 2), keepdims=True)
    expected = enlarged((feature_maps(model, images, "conv2_block3_2_bn") * weights).sum(axis=-1))
    np.testing.assert_allclose(heat, expected, atol=1e-5)


def test_a_head_of_convolutions_is_read_before_its_softmax():
    def head(last):
        def build(x):
            x = layers.GlobalAveragePooling2D(keepdims=True)(x)
            return layers.Flatten()(last(x))

        return build

    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3))
    plain = seeded(lambda: head_on(head(layers.Conv2D(3, 1, name="predictions"))))
    model = head_on(head(layers.Conv2D(3, 1, activation="softmax", name="predictions")))
    model.set_weights(plain.get_weights())
    np.testing.assert_allclose(grad_cam(model, images), grad_cam(plain, images), atol=1e-5)
    np.testing.assert_allclose(grad_cam(model, images), grad_cam(model, images, layer="conv"), atol=1e-5)


@pytest.mark.parametrize("pooling", [layers.MaxPooling2D(2), layers.AveragePooling2D(8)])
def test_pooling_that_ends_a_backbone_is_not_the_default_layer(pooling):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3))
    model = seeded(lambda: head_on(lambda x: dense(3, "softmax")(layers.Flatten()(pooling(x)))))
    np.testing.assert_array_equal(grad_cam(model, images), grad_cam(model, images, layer="conv"))


@pytest.mark.parametrize("form", ["list", "dictionary"])
def test_of_several_outputs_the_main_one_counts(form, images):
    plain = seeded(models.nested, augmentation=True)
    early = layers.GlobalMaxPooling2D()(plain.get_layer("predictions").output[:, None, None, :])
    early = layers.Dense(7, name="a_first_by_name")(early)
    outputs = {"list": [plain.output, early], "dictionary": {"z": plain.output, "a": early}}[form]
    model = keras.Model(plain.input, outputs)
    np.testing.assert_allclose(grad_cam(model, images), grad_cam(plain, images), atol=1e-6)
    with pytest.raises(ArgumentError, match="0 to 2"):
        grad_cam(model, images, class_index=6)


def test_auxiliary_branches_lead_nowhere(images):
    inputs = keras.Input((32, 32, 3))
    early = layers.Conv2D(4, 3, name="early")(inputs)
    main = dense(2, "softmax")(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="late")(early)))
    aside = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="aside")(early))
    model = keras.Model(inputs, [main, layers.Dense(2)(aside)])
    assert grad_cam(model, images, layer="early").shape == (5, 32, 32)
    with pytest.raises(ModelError, match="leads to the main output"):
        grad_cam(model, images, layer="aside")


def test_the_model_runs_in_inference_mode_and_stays_as_it_is(images):
    model = models.compiled(seeded(models.flat, augmentation=True))
    before = models.snapshot(model)
    first = grad_cam(model, images)
    np.testing.assert_array_equal(first, grad_cam(model, images))
    np.testing.assert_array_equal(feature_maps(model, images, "flip"), images)
    assert models.changed(before, model) == set()
    assert model.compiled


def test_nothing_that_speaks_for_a_class_is_a_map_of_zeros():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
    model = head_on(pooled(dense(2)))
    kernel, bias, *_ = model.get_weights()
    model.set_weights([kernel, bias, np.stack([np.ones(6), -np.ones(6)], axis=1), np.zeros(2)])
    assert grad_cam(model, images, class_index=1).max() == 0
    assert grad_cam(model, images, class_index=0).max() == 1


def test_any_image_size_uint8_and_mixed_precision():
    inputs = keras.Input((None, None, 3))
    with_policy = {"dtype": "mixed_bfloat16"}
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv", **with_policy)(inputs)
    x = layers.GlobalAveragePooling2D(**with_policy)(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", dtype="float32")(x))
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 31, 3), dtype="uint8")
    heat = grad_cam(model, images)
    assert (heat.shape, heat.dtype) == ((2, 20, 31), "float32")
    np.testing.assert_allclose(heat.max(axis=(1, 2)), 1)
    assert feature_maps(model, images, "conv").dtype == "float32"


# ---------------------------------------------------------------- Grad-CAM: what it must do


def patches(count, seed=0, size=32, side=8):
    """Return noise with a bright patch at a random place: red or green, which is the class; and the patches' corners."""
    random = np.random.default_rng(seed)
    images = random.normal(90, 35, (count, size, size, 3))
    labels, corners = random.integers(0, 2, count), random.integers(0, size - side, (count, 2))
    for image, label, (row, column) in zip(images, labels, corners, strict=True):
        image[row : row + side, column : column + side, label] += 120
    return images.clip(0, 255).astype("float32"), labels, corners


def trained_on_patches():
    keras.utils.set_random_seed(0)
    pixels = keras.Input((32, 32, 3))
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu")(pixels)
    backbone = keras.Model(pixels, layers.Conv2D(16, 3, padding="same", activation="relu")(x), name="backbone")
    inputs = keras.Input((32, 32, 3))
    x = keras.Sequential([layers.RandomFlip("horizontal_and_vertical")])(inputs)
    x = layers.GlobalAveragePooling2D()(backbone((x - 127.5) / 127.5))
    model = keras.Model(inputs, dense(2, "softmax")(x))
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"])
    images, labels, _ = patches(512)
    model.fit(images, labels, epochs=8, verbose=0)
    return model


def test_hiding_the_hottest_tenth_changes_the_score_more_than_hiding_a_random_tenth():
    model = trained_on_patches()
    images, labels, corners = patches(50, seed=1)
    classes = model.predict(images, verbose=0).argmax(axis=1)
    assert (classes == labels).mean() > 0.95
    heat = grad_cam(model, images)
    hottest = heat >= np.quantile(heat, 0.9, axis=(1, 2), keepdims=True)

    def change(masks):
        """Return by how much the logit of each image's class changes when the image's mean colour hides the mask."""
        hidden = np.where(masks[..., None], images.mean(axis=(1, 2), keepdims=True), images)
        before, after = (feature_maps(model, x, "predictions", before_activation=True) for x in (images, hidden))
        return np.abs(after - before)[np.arange(len(images)), classes]

    random = np.random.default_rng(2)
    elsewhere = [np.roll(hottest, random.integers(0, 32, 2), axis=(1, 2)) for _ in range(6)]
    pixels = [random.random(heat.shape) < 0.1 for _ in range(6)]
    for masks in (elsewhere, pixels):
        drawn = np.mean([change(mask) for mask in masks], axis=0)
        assert change(hottest).mean() > 3 * drawn.mean()
    places = np.stack(np.unravel_index(heat.reshape(50, -1).argmax(axis=1), (32, 32)), axis=1)
    inside = ((places >= corners - 2) & (places < corners + 10)).all(axis=1)
    assert inside.mean() > 0.9


# ---------------------------------------------------------------- feature maps


@pytest.mark.parametrize("maker", [models.flat, models.nested, models.sequential])
def test_feature_maps_are_what_the_layer_gives(maker, images):
    model = seeded(maker)
    owner = model if maker is models.flat else model.get_layer("tiny")
    pixels = (images - 127.5) / 127.5
    inside = keras.Model(owner.inputs[0], owner.get_layer("conv2_block2_add").output)
    expected = keras.ops.convert_to_numpy(inside(images if maker is models.flat else pixels, training=False))
    found = feature_maps(model, images, "conv2_block2_add", batch_size=2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    after, before = (feature_maps(model, images, LAST, before_activation=one) for one in (False, True))
    assert before.min() < 0
    np.testing.assert_array_equal(after, np.maximum(before, 0))
    np.testing.assert_array_equal(before, feature_maps(model, images, "conv2_block3_add"))


def test_an_activation_inside_a_layer_is_taken_off_and_stays_on():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = layers.SeparableConv2D(4, 3, activation=layers.LeakyReLU(), name="separable")(x)
    x = keras.ops.relu(layers.BatchNormalization(name="norm")(x))
    x = layers.PReLU(name="prelu")(layers.Conv2D(4, 1, name="plain")(x))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax", name="dense")(layers.Flatten()(x)))
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    expected = model.predict(images, verbose=0)

    def both(name):
        return feature_maps(model, images, name), feature_maps(model, images, name, before_activation=True)

    after, before = both("conv")
    assert before.min() < 0
    np.testing.assert_array_equal(after, np.maximum(before, 0))
    after, before = both("separable")
    np.testing.assert_allclose(after, np.where(before > 0, before, before * 0.3), rtol=1e-6)
    operation = next(one.name for one in model.operations if type(one).__name__ == "Relu")
    np.testing.assert_array_equal(both(operation)[1], both("norm")[0])
    np.testing.assert_array_equal(both("prelu")[1], both("plain")[0])
    np.testing.assert_array_equal(*both("plain"))  # no activation: no difference
    after, before = both("dense")
    assert after.shape == (3, 2)
    np.testing.assert_allclose(after, np.exp(before) / np.exp(before).sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    assert model.get_layer("conv").activation is keras.activations.relu
    np.testing.assert_array_equal(model.predict(images, verbose=0), expected)


def test_layers_are_told_by_name_path_or_the_nested_model_that_they_end(images):
    inputs = keras.Input((32, 32, 3))
    first, second = models.tiny_backbone(), models.tiny_backbone()
    second.name = "other"
    both = layers.Concatenate()([first(inputs), second(inputs)])
    model = keras.Model(inputs, dense(2)(layers.GlobalAveragePooling2D()(both)))
    found = feature_maps(model, images, f"other/{LAST}")
    np.testing.assert_allclose(found, keras.ops.convert_to_numpy(second(images, training=False)), atol=1e-4)
    np.testing.assert_array_equal(found, feature_maps(model, images, "other"))
    with pytest.raises(ModelError, match=f"'tiny/{LAST}', 'other/{LAST}'"):
        feature_maps(model, images, LAST)
    with pytest.raises(ModelError, match="Did you mean 'predictions'"):
        feature_maps(model, images, "prediction")
    assert grad_cam(model, images, layer="tiny").shape == (5, 32, 32)


def test_of_a_shared_layer_the_last_run_counts(images):
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, dense(2)(layers.GlobalAveragePooling2D()(shared(shared(inputs)))))
    twice = keras.ops.convert_to_numpy(shared(shared(images)))
    np.testing.assert_allclose(feature_maps(model, images, "shared"), twice, rtol=1e-4, atol=1e-3)
    assert grad_cam(model, images, layer="shared").shape == (5, 32, 32)


# ---------------------------------------------------------------- filters


def test_filters_of_every_kind_of_convolution():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="plain")(inputs)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.SeparableConv2D(5, 3, padding="same", name="separable")(x)
    x = layers.Conv2DTranspose(7, (2, 3), name="transposed")(x)
    model = keras.Model(inputs, layers.Dense(2, name="dense")(layers.Flatten()(x)))
    outer = keras.Sequential([inputs, model])
    shapes = {name: layer_filters(outer, name).shape for name in ("plain", "depthwise", "separable", "transposed")}
    assert shapes == {
        "plain": (3, 3, 3, 4),
        "depthwise": (3, 3, 4, 2),
        "separable": (3, 3, 8, 1),
        "transposed": (2, 3, 5, 7),
    }
    kernel = model.get_layer("plain").get_weights()[0]
    np.testing.assert_array_equal(layer_filters(outer, "plain"), kernel)
    np.testing.assert_array_equal(layer_filters(outer, f"{model.name}/plain"), kernel)
    with pytest.raises(ModelError, match=r"two-dimensional convolution.*kind='Dense'"):
        layer_filters(outer, "dense")
    with pytest.raises(ModelError, match="Did you mean 'depthwise'"):
        layer_filters(outer, "depthwize")


# ---------------------------------------------------------------- what is refused


class Closed(keras.Model):
    """A subclassed model, whose layers nobody can see."""

    def __init__(self):
        super().__init__(name="closed")
        self.conv = layers.Conv2D(4, 3, name="hidden_conv")

    def call(self, x):
        return keras.ops.relu(self.conv(x))


def test_a_subclassed_backbone_can_be_looked_at_as_a_whole(images):
    inputs, closed = keras.Input((32, 32, 3)), Closed()
    model = keras.Model(inputs, dense(2)(layers.GlobalAveragePooling2D()(closed(inputs))))
    np.testing.assert_array_equal(grad_cam(model, images), grad_cam(model, images, layer="closed"))
    with pytest.raises(ModelError, match="subclassed model"):
        feature_maps(model, images, "hidden_conv")
    assert layer_filters(model, "hidden_conv").shape == (3, 3, 3, 4)
    with pytest.raises(ModelError, match="graph can be walked"):
        grad_cam(closed, images)


def test_models_without_what_is_needed_are_refused(images):
    inputs = keras.Input((32, 32, 3))
    flat = keras.Model(inputs, dense(2)(layers.Flatten()(inputs)))
    with pytest.raises(ModelError, match="Name one with `layer=`"):
        grad_cam(flat, images)
    other = keras.Input((32, 32, 3))
    two = keras.Model([inputs, other], dense(2)(layers.GlobalAveragePooling2D()(inputs + other)))
    with pytest.raises(ModelError, match="one input"):
        grad_cam(two, images)
    with pytest.raises(ModelError, match="classifier"):
        grad_cam(models.tiny_backbone(), images)
    model = models.nested()
    with pytest.raises(ModelError, match=f"Did you mean '{LAST}'"):
        grad_cam(model, images, layer="conv2_block3_ou")
    with pytest.raises(ModelError, match=r"height and width.*'predictions'"):
        grad_cam(model, images, layer="predictions")
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    with pytest.raises(ModelError, match="NaN"):
        grad_cam(model, images, class_index=0)


@pytest.mark.parametrize("class_index", [-1, 3, 1.0, True, [0, 1], "a", [[0], [1], [2], [1], [1]]])
def test_a_class_that_there_is_not_is_refused(class_index, images):
    with pytest.raises(ArgumentError, match="whole number from 0 to 2, or an array with one for each of the 5"):
        grad_cam(models.flat(), images, class_index=class_index)


@pytest.mark.parametrize(
    "wrong", [np.zeros((5, 30, 32, 3)), np.zeros((0, 32, 32, 3)), np.zeros((32, 32)), [[1], [1, 2]], "a.png"]
)
def test_images_that_do_not_fit_are_refused(wrong):
    model = models.nested()
    for call in (lambda: grad_cam(model, wrong), lambda: feature_maps(model, wrong, LAST)):
        with pytest.raises(DataError, match=r"images|takes"):
            call()


def test_other_backends_are_refused_by_name(monkeypatch, images):
    monkeypatch.setattr(backend.keras.backend, "backend", lambda: "torch")
    with pytest.raises(BackendError, match="backend='torch'"):
        grad_cam(None, images)


def test_the_names_are_public():
    assert (kerastl.grad_cam, kerastl.feature_maps, kerastl.layer_filters) == (grad_cam, feature_maps, layer_filters)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet18", "conv5_block2_out"),
        ("vgg16", "block5_conv3"),
        ("efficientnet_b0", "top_activation"),
        ("densenet121", "relu"),
        ("squeezenet", "fire9_concat"),
        ("shufflenet", "stage4_block4_out"),
        ("xception", "block14_sepconv2_act"),
        ("convnext_tiny", "layer_normalization"),
        ("nasnet_mobile", None),  # its layers have automatic names
    ],
)
def test_families_of_backbones_under_augmentation_and_preprocessing(name, last):
    keras.utils.clear_session()
    model = kerastl.build_classifier(name, 3, input_shape=96, weights=None, augmentation="light")
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3))
    heat = grad_cam(model, images, class_index=[0, 2])
    assert heat.shape == (2, 96, 96)
    assert heat.min() >= 0
    assert heat.max() == 1
    if last is not None:
        np.testing.assert_array_equal(heat, grad_cam(model, images, class_index=[0, 2], layer=last))
