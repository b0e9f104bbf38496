import keras
import numpy as np
import pytest
from keras import layers

from kerastl.errors import ArgumentError
from kerastl.models import freezing, graph
from kerastl.models.compiling import task_of
from kerastl.models.heads import augmentation_layer, build_classifier
from kerastl.training import recipe as training
from tests import models

SMALL = {"input_shape": (32, 32, 3), "weights": None, "alpha": 0.35}


def assert_close(found, wanted, atol=1e-5):
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (found, wanted)), rtol=1e-6, atol=atol)


def test_pixels_in_probabilities_out(pixels):
    model = build_classifier("mobilenet_v2", 3, **SMALL)
    for images in (pixels[0], pixels[0].astype("uint8")):
        probabilities = keras.ops.convert_to_numpy(model(images))
        assert probabilities.shape == (16, 3)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert not model.get_layer("mobilenetv2_0.35_32").trainable_variables
    assert [layer.name for layer in model.layers if layer.trainable_variables] == ["predictions"]


def test_the_preprocessing_in_the_graph_is_the_familys_own(pixels):
    model = build_classifier("mobilenet_v2", 3, **SMALL)
    backbone = model.get_layer("mobilenetv2_0.35_32")
    by_hand = backbone(keras.applications.mobilenet_v2.preprocess_input(pixels[0].copy()))
    head = keras.Model(model.get_layer("avg_pool").input, model.output)
    assert_close(head(by_hand), model(pixels[0]))


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten"])
def test_poolings_and_hidden_units(pooling, pixels):
    model = build_classifier(models.tiny_backbone(), 4, pooling=pooling, hidden_units=5, dropout=0, preprocessing=None)
    assert model(pixels[0]).shape == (16, 4)
    assert model.get_layer("hidden").units == 5
    assert model.get_layer("hidden").kernel.shape[0] == (8 * 16 * 16 if pooling == "flatten" else 8)


@pytest.mark.parametrize(
    ("task", "units", "activation"),
    [("multi-label", 3, "sigmoid"), ("regression", 1, "linear"), ("regression", 2, "linear")],
)
def test_heads_for_several_labels_and_for_numbers(task, units, activation, pixels, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_classifier(models.tiny_backbone(), units, task=task, preprocessing=None)
    finally:
        keras.config.set_dtype_policy("float32")
    layer = model.get_layer("predictions")
    assert (layer.units, layer.activation.__name__, layer.compute_dtype) == (units, activation, "float32")
    outputs = keras.ops.convert_to_numpy(model(pixels[0]))
    assert outputs.shape == (16, units)
    assert (outputs == outputs.clip(0, 1)).all() == (task == "multi-label")
    model.save(tmp_path / "model.keras")
    assert task_of(keras.models.load_model(tmp_path / "model.keras")) == (task if units != 2 else "classification")


@pytest.mark.parametrize(
    "augmentation", ["flips", "light", "photo", "strong", layers.RandomContrast(0.2, value_range=(0, 255))]
)
def test_augmentation_is_random_in_training_and_absent_in_inference(augmentation, pixels):
    model = build_classifier(models.tiny_backbone(), 3, augmentation=augmentation, dropout=0, preprocessing=None)
    plain = [keras.ops.convert_to_numpy(model(pixels[0], training=False)) for _ in range(2)]
    np.testing.assert_array_equal(*plain)
    layer = augmentation_layer(augmentation)
    seen = [keras.ops.convert_to_numpy(layer(pixels[0], training=True)) for _ in range(2)]
    assert (seen[0] != seen[1]).any()
    assert len(graph.find_backbone(model).layers) == len(graph.find_backbone(models.tiny_backbone()).layers)


def test_a_model_of_keras_applications_brings_its_preprocessing(pixels):
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    model = build_classifier(base, 2)
    outputs = keras.ops.convert_to_numpy(base(keras.applications.resnet.preprocess_input(pixels[0].copy())))
    head = keras.Model(model.get_layer("avg_pool").input, model.output)
    assert_close(head(outputs), model(pixels[0]))
    assert not base.trainable_variables


def test_a_mixed_policy_keeps_the_last_activation_in_float32(pixels):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_classifier("mobilenet_v2", 3, **SMALL)
        assert keras.backend.standardize_dtype(model(pixels[0]).dtype) == "float32"
        assert keras.backend.standardize_dtype(model.get_layer("avg_pool").output.dtype) == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_it_saves_and_loads_as_plain_keras(tmp_path, pixels):
    model = build_classifier("mobilenet_v2", 3, augmentation="light", **SMALL)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert_close(model(pixels[0]), loaded(pixels[0]), atol=0)


def test_a_built_classifier_goes_through_the_recipe(pixels):
    model = build_classifier("mobilenet_v2", 3, augmentation="flips", **SMALL)
    training.train_head(model, pixels, pixels, epochs=1, verbose=0)
    freezing.unfreeze(model, last_blocks=1)
    assert "block_16" in str(freezing.trainable_summary(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "two-way softmax"),
        ({"num_classes": 2.5}, "num_classes"),
        (
            {"num_classes": 1, "task": "multi-label"},
            "one label, there or not, makes two classes: task='classification'",
        ),
        ({"num_classes": 0, "task": "regression"}, "at least 1"),
        ({"task": "regresion"}, "Did you mean 'regression'"),
        ({"pooling": "mean"}, "pooling"),
        ({"dropout": 1.0}, "dropout"),
        ({"hidden_units": 0}, "hidden_units"),
        ({"augmentation": "heavy"}, "augmentation"),
        ({"backbone": "mobilenetv2x"}, "mobilenet_v2"),
        ({"backbone": 3}, "backbone"),
        ({"input_shape": (16, 16, 3)}, "32"),
        ({"input_shape": (64, 64, 1)}, "RGB"),
        ({"preprocessing": "caffe"}, "preprocessing"),
    ],
)
def test_arguments_that_can_not_be_used_raise(arguments, message):
    arguments = {"backbone": "mobilenet_v2", "num_classes": 3, **SMALL, **arguments}
    with pytest.raises(ArgumentError, match=message):
        build_classifier(**arguments)


def test_models_that_are_no_backbone_are_refused():
    with pytest.raises(ArgumentError, match="include_top=False"):
        build_classifier(models.flat(), 3)
    with pytest.raises(ArgumentError, match="preprocessing"):
        build_classifier(models.tiny_backbone(), 3)
    with pytest.raises(ArgumentError, match="Constructor options"):
        build_classifier(models.tiny_backbone(), 3, alpha=0.5, preprocessing=None)
    with pytest.raises(ArgumentError, match="input_shape"):
        build_classifier(models.tiny_backbone(), 3, input_shape=(48, 48, 3), preprocessing=None)
