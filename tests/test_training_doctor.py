"""`check`: broken scripts with what it must find in them and a line that mends them; right ones that it must leave alone."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kerastl
from kerastl.errors import ArgumentError, KerastlWarning, ModelError
from kerastl.training.doctor import warn_of_findings
from kerastl.training.phases import Settings
from kerastl.training.recipe import transfer_learn
from tests import models

pytestmark = models.EAGERLY


def pixels(count=48, classes=3, size=32, dtype="float32", seed=1):
    """Images whose class is their brightness, and labels, in turn."""
    labels = np.arange(count) % classes
    noise = np.random.default_rng(seed).normal(labels[:, None, None, None] * 60.0 + 60, 25, (count, size, size, 3))
    return noise.clip(0, 255).astype(dtype), labels


def held(**options):
    return pixels(18, seed=2, **options)


def dataset(images, labels, batch=8):
    return tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(64, seed=0).batch(batch)


def trained(model):
    """Give all that is pretrained in a backbone statistics and biases that no initialiser gives."""
    generator = np.random.default_rng(0)
    for layer in models_layers(model):
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(generator.normal(0, 0.1, layer.moving_mean.shape))
    return model


def models_layers(model):
    return [leaf for layer in model.layers for leaf in (models_layers(layer) if hasattr(layer, "layers") else [layer])]


def on(base, *front, units=3, activation="softmax", size=32):
    """A backbone as the Keras guide uses it: layers in front of it, pooling and one dense layer after it."""
    x = inputs = keras.Input((size, size, 3))
    for one in front:
        x = one(x)
    x = layers.GlobalAveragePooling2D()(base(x, training=False))
    return keras.Model(inputs, layers.Dense(units, activation=activation)(x))


def tiny(name="tiny", inside=None, frozen=True):
    x = inputs = keras.Input((32, 32, 3))
    base = keras.Model(inputs, models.backbone_layers(x if inside is None else inside(x), blocks=1), name=name)
    trained(base).trainable = not frozen
    return base


def scaling():
    return layers.Rescaling(1 / 127.5, -1, name="scaling")


def mobilenet():
    base = keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.35, input_shape=(32, 32, 3))
    trained(base).trainable = False
    return base


def guide(**options):
    return on(tiny(), scaling(), **options)


def compiled(model, loss="sparse_categorical_crossentropy", rate=1e-3, optimizer=keras.optimizers.Adam):
    model.compile(optimizer(rate), loss, metrics=["accuracy"])
    return model


def fitted(model):
    model.fit(*pixels(8), epochs=1, verbose=0)
    return model


# Scripts that are broken: each returns the model, the training and the validation data


def divided_by_255_and_scaled_inside():
    (images, labels), (others, answers) = pixels(), held()
    return guide(), (images / 255, labels), (others / 255, answers)


def preprocessed_in_the_pipeline_and_inside():
    scaled = [dataset(*part).map(lambda images, labels: (images / 127.5 - 1, labels)) for part in (pixels(), held())]
    return guide(), *scaled


def preprocess_input_of_resnet_before_a_model_that_scales():
    (images, labels), _ = pixels(), None
    return guide(), (keras.applications.resnet50.preprocess_input(images), labels), None


def mobilenet_without_preprocessing():
    return on(mobilenet()), dataset(*pixels(dtype="uint8")), dataset(*held(dtype="uint8"))


def flat_mobilenet_without_preprocessing():
    inputs = keras.Input((32, 32, 3))
    base = keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.35, input_tensor=inputs)
    pooled = layers.GlobalAveragePooling2D()(base.output)
    model = trained(keras.Model(inputs, layers.Dense(3, activation="softmax")(pooled)))
    return kerastl.freeze(model), pixels(), held()


def resnet_given_0_to_1():
    images, labels = pixels()
    return on(tiny("resnet50")), (images / 255, labels), None


def validation_without_preprocessing():
    images, labels = pixels()
    return on(tiny("mobilenetv2_1.00_32")), (images / 127.5 - 1, labels), held()


def rescaling_before_a_backbone_that_scales():
    return (
        on(tiny("efficientnetb0", inside=layers.Rescaling(1 / 255)), layers.Rescaling(1 / 255, name="mine")),
        pixels(),
        held(),
    )


def batch_norm_of_scaled_pixels_given_0_to_255():
    norm = layers.BatchNormalization(name="norm")
    model = on(tiny("own", inside=norm))
    norm.moving_mean.assign([0.5, 0.4, 0.4])
    norm.moving_variance.assign([0.05, 0.05, 0.05])
    return model, pixels(), held()


def images_of_another_size():
    return guide(), pixels(size=24), held(size=24)


def grey():
    inputs = keras.Input((32, 32, 1))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(inputs)))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def colours_for_a_grey_model():
    images, labels = pixels()
    return grey(), (images, labels), dataset(*held(dtype="uint8"))


def opaque_images_for_a_model_of_colours():
    images, labels = pixels()
    return guide(), (np.concatenate([images, np.full_like(images[..., :1], 255)], axis=-1), labels), held()


def grey_images_for_a_model_of_colours():
    (images, labels), (others, answers) = pixels(), held()
    return guide(), (images[..., :1], labels), dataset(others[..., :1], answers)


def channels_first():
    (images, labels), (others, answers) = pixels(), held()
    return guide(), (np.moveaxis(images, -1, 1), labels), dataset(np.moveaxis(others, -1, 1), answers)


def channels_last_for_a_model_of_channels_first():
    inputs = keras.Input((3, 32, 32))
    images, labels = pixels()
    return keras.Model(inputs, guide()(layers.Permute((2, 3, 1))(inputs))), (images, labels), None


def not_a_number():
    images, labels = pixels()
    images[3, 4:6] = np.nan
    return guide(), (images, labels), held()


def not_a_number_among_the_last():
    images, labels = pixels()
    images[20], images[30, 0, 0] = np.nan, [np.inf, -np.inf, 9]
    return guide(), (images, labels), None


def divided_by_255_after_black_ones():
    (images, labels), (others, answers) = pixels(), held()
    scaled = images / 255
    scaled[:8] = 0
    return guide(), (scaled, labels), tf.data.Dataset.from_tensor_slices((others / 255, answers)).batch(2)


def images_without_channels():
    (images, labels), (others, answers) = pixels(), held()
    return guide(), (images[..., 0], labels), dataset(others[..., 0], answers)


def images_as_rows():
    (images, labels), (others, answers) = pixels(), held()
    return guide(), (images.reshape(48, -1), labels), dataset(others.reshape(18, -1), answers)


def images_without_batches():
    (images, labels), (others, answers) = pixels(), held()
    return guide(), *map(
        tf.data.Dataset.from_tensor_slices, [(images, np.eye(3)[labels]), (others, np.eye(3)[answers])]
    )


def labels_from_one():
    (images, labels), (others, answers) = pixels(), held()
    return compiled(guide()), (images, labels + 1), (others, answers + 1)


def validation_labels_from_one():
    images, labels = held()
    return guide(), pixels(), dataset(images, labels + 1)


def labels_from_one_of_which_some_are_rare():
    (images, labels), (others, answers) = pixels(), held()
    return guide(), (images, labels + 1), (others, np.maximum(answers, 1) + 1)


def labels_below_zero_and_from_one():
    (images, labels), (others, answers) = pixels(), held()
    return guide(), (images, labels - 1), (others, answers + 1)


def labels_with_gaps():
    (images, labels), (others, answers) = pixels(), held()
    return guide(), dataset(images, labels * 40), dataset(others, answers * 40)


def labels_minus_one_and_one():
    images, labels = pixels(classes=2)
    return guide(units=1, activation="sigmoid"), (images, labels * 2 - 1), None


def gaps_in_one_part():
    images, labels = pixels()
    return guide(), (images, labels * 40), held()


def gaps_that_differ():
    (images, labels), (others, answers) = pixels(), held()
    return guide(), (images, labels * 40), (others, np.maximum(answers, 1) * 40)


def more_classes_below_zero():
    images, labels = pixels(classes=5)
    return guide(), (images, labels - 2), None


def more_classes_than_units():
    return guide(), pixels(classes=5), held(classes=5)


def numbers_for_a_softmax():
    images, labels = pixels()
    return guide(), (images, labels + 0.5), None


def several_labels_for_a_softmax():
    images, labels = pixels()
    return guide(), (images, (np.arange(3) >= labels[:, None]).astype("float32")), None


def integers_for_several_sigmoid_units():
    return guide(activation="sigmoid"), pixels(), held()


def one_hot_for_the_sparse_loss():
    (images, labels), (others, answers) = pixels(), held()
    return compiled(guide()), (images, np.eye(3)[labels]), (others, np.eye(3)[answers])


def logits_for_a_loss_of_probabilities():
    return compiled(guide(activation=None)), pixels(), held()


def probabilities_for_a_loss_of_logits():
    return compiled(guide(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)), pixels(), held()


def sparse_loss_for_one_sigmoid_unit():
    return compiled(guide(units=1, activation="sigmoid")), pixels(classes=2), held(classes=2)


def categorical_loss_for_several_labels():
    images, labels = pixels()
    rows = (np.arange(3) >= labels[:, None]).astype("float32")
    return compiled(guide(activation="sigmoid"), "categorical_crossentropy"), (images, rows), None


def softmax_of_one_unit():
    return compiled(guide(units=1), "binary_crossentropy"), pixels(classes=2), held(classes=2)


def softmax_after_the_softmax():
    model = guide()
    return compiled(keras.Model(model.inputs, layers.Softmax()(model.output))), pixels(), held()


def softmax_after_sigmoids():
    model = guide(activation="sigmoid")
    return keras.Model(model.inputs, layers.Activation("softmax")(model.output)), pixels(), held()


def relu_before_a_cross_entropy():
    return compiled(guide(activation="relu")), pixels(), held()


def leaky_relu_before_a_cross_entropy_of_logits():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return compiled(guide(activation="leaky_relu"), loss), pixels(), held()


def hard_tanh_before_a_cross_entropy():
    return compiled(guide(activation="hard_tanh")), pixels(), held()


def tanh_before_a_binary_cross_entropy():
    return compiled(guide(units=1, activation="tanh"), "binary_crossentropy"), pixels(classes=2), held(classes=2)


def validated_on_the_last_of_sorted_images():
    images, labels = pixels(60)
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, [40])
    return guide(), *((images[part], labels[part]) for part in parts)


def a_thousand_units():
    return guide(units=6), pixels(120), held()


def head_frozen_too():
    model = compiled(guide())
    model.trainable = False
    return compiled(model), pixels(), held()


def backbone_left_trainable():
    return compiled(on(tiny(frozen=False), scaling())), pixels(), held()


def everything_unfrozen_after_the_head():
    model = fitted(compiled(guide()))
    model.get_layer("tiny").trainable = True
    return compiled(model, rate=1e-5), pixels(), held()


def unfrozen_without_compiling_again():
    model = fitted(compiled(guide()))
    model.get_layer("tiny").get_layer("conv2_block1_2_conv").trainable = True
    model.get_layer("tiny").trainable = True
    for layer in model.get_layer("tiny").layers:
        layer.trainable = layer.name == "conv2_block1_2_conv"
    return model, pixels(), held()


def fine_tuned_at_the_default_rate():
    model = fitted(compiled(guide()))
    return compiled(kerastl.unfreeze(model, last_blocks=1)), pixels(), held()


def fine_tuned_along_a_schedule_of_sgd():
    model = kerastl.unfreeze(fitted(compiled(guide())), last_blocks=1)
    schedule = keras.optimizers.schedules.CosineDecay(5.0, 100)
    return compiled(model, rate=schedule, optimizer=keras.optimizers.SGD), pixels(), held()


def fresh_head_at_the_rate_of_fine_tuning():
    return compiled(guide(), rate=1e-5), pixels(), held()


def validation_images_among_the_training_images():
    images, labels = pixels()
    return (
        guide(),
        (images, labels),
        (np.concatenate([images[5:8], held()[0]]), np.concatenate([labels[5:8], held()[1]])),
    )


def validation_images_of_training_as_whole_numbers():
    images, labels = pixels(dtype="uint8")
    return guide(), (images.astype("float32"), labels), (images[:6], labels[:6])


def validated_on_the_training_data():
    return guide(), pixels(), pixels()


def leaking_parts_with_none_for_weights():
    (images, labels), (others, answers) = pixels(), held()
    return guide(), (images, labels, None), (np.concatenate([images[5:8], others]), np.append(labels[5:8], answers))


def the_same_parts_with_none_for_weights():
    return guide(), (*pixels(), None), (*pixels(), None)


def shuffled_anew_before_the_split():
    images = tf.data.Dataset.from_tensor_slices(pixels()).shuffle(48, seed=0, reshuffle_each_iteration=True)
    return guide(), images.skip(12).batch(8), images.take(12).batch(8)


def cached_after_augmenting():
    augment = layers.RandomFlip("horizontal", seed=0)
    train = dataset(*pixels()).map(lambda images, labels: (augment(images, training=True), labels))
    return guide(), train.cache().prefetch(1), dataset(*held())


def class_after_class():
    images, labels = pixels(96)
    order = np.argsort(labels, kind="stable")
    return guide(), tf.data.Dataset.from_tensor_slices((images[order], labels[order])).batch(8), held()


BROKEN = {
    divided_by_255_and_scaled_inside: "preprocessing doubled",
    preprocessed_in_the_pipeline_and_inside: "preprocessing doubled",
    preprocess_input_of_resnet_before_a_model_that_scales: "preprocessing doubled",
    mobilenet_without_preprocessing: "preprocessing missing",
    flat_mobilenet_without_preprocessing: "preprocessing missing",
    resnet_given_0_to_1: "preprocessing missing",
    validation_without_preprocessing: "preprocessing missing",
    batch_norm_of_scaled_pixels_given_0_to_255: "preprocessing missing",
    rescaling_before_a_backbone_that_scales: "scaled twice in the model",
    images_of_another_size: "image size",
    colours_for_a_grey_model: "image size",
    opaque_images_for_a_model_of_colours: "image size",
    grey_images_for_a_model_of_colours: "image size",
    channels_first: "image size",
    channels_last_for_a_model_of_channels_first: "image size",
    not_a_number: "broken pixels",
    not_a_number_among_the_last: "broken pixels",
    divided_by_255_after_black_ones: "preprocessing doubled",
    images_without_channels: "data",
    images_as_rows: "data",
    images_without_batches: "data",
    labels_from_one: "labels",
    validation_labels_from_one: "labels",
    labels_from_one_of_which_some_are_rare: "labels",
    labels_with_gaps: "labels",
    gaps_in_one_part: "labels",
    gaps_that_differ: "labels",
    labels_minus_one_and_one: "labels",
    more_classes_than_units: "labels",
    numbers_for_a_softmax: "labels",
    several_labels_for_a_softmax: "labels",
    integers_for_several_sigmoid_units: "labels",
    one_hot_for_the_sparse_loss: "loss",
    logits_for_a_loss_of_probabilities: "loss",
    probabilities_for_a_loss_of_logits: "loss",
    sparse_loss_for_one_sigmoid_unit: "loss",
    categorical_loss_for_several_labels: "loss",
    softmax_of_one_unit: "activation",
    softmax_after_the_softmax: "activation",
    softmax_after_sigmoids: "activation",
    relu_before_a_cross_entropy: "activation",
    leaky_relu_before_a_cross_entropy_of_logits: "activation",
    hard_tanh_before_a_cross_entropy: "activation",
    tanh_before_a_binary_cross_entropy: "activation",
    validated_on_the_last_of_sorted_images: "classes not trained",
    a_thousand_units: "output width",
    head_frozen_too: "nothing trainable",
    backbone_left_trainable: "all trainable under a fresh head",
    everything_unfrozen_after_the_head: "BatchNorm about to move",
    unfrozen_without_compiling_again: "optimizer holds other weights",
    fine_tuned_at_the_default_rate: "learning rate far off",
    fine_tuned_along_a_schedule_of_sgd: "learning rate far off",
    fresh_head_at_the_rate_of_fine_tuning: "learning rate far off",
    validation_images_among_the_training_images: "split leaks",
    validation_images_of_training_as_whole_numbers: "split leaks",
    validated_on_the_training_data: "split leaks",
    leaking_parts_with_none_for_weights: "split leaks",
    the_same_parts_with_none_for_weights: "split leaks",
    shuffled_anew_before_the_split: "split leaks",
    cached_after_augmenting: "augmentation frozen by a cache",
    class_after_class: "class order",
}


@pytest.mark.parametrize("script", BROKEN, ids=lambda script: script.__name__)
def test_a_broken_script_is_told_by_one_finding_and_mended_by_its_line(script):
    model, train, validation = script()
    result = kerastl.check(model, train, validation)
    assert {one.name for one in result.findings} == {BROKEN[script]}
    names = {"model": model, "train": train, "validation": validation}
    for one in result.findings:
        carry_out(one, names)
    mended = kerastl.check(names["model"], names["train"], names["validation"])
    assert mended.findings == ()


def carry_out(finding, names):
    """Execute the line of a finding, having looked for its number in its evidence."""
    told = [
        float(text) for text in re.findall(r"-?\d[\d.]*(?:e[+-]\d+)?", finding.evidence.replace(",", "").rstrip("."))
    ]
    assert any(np.isclose(value, [finding.number, 100 * finding.number], rtol=0.01).any() for value in told)
    exec(finding.mend, {"keras": keras, "kerastl": kerastl, "np": np, "tf": tf}, names)


def mended_in_turn(model, train, validation=None):
    """Return the names of what was found, the first finding mended each time, and the data when there is nothing left."""
    names, found = {"model": model, "train": train, "validation": validation}, []
    while findings := kerastl.check(*names.values()).findings:
        found.append(findings[0].name)
        assert len(found) < 5
        carry_out(findings[0], names)
    parts = [names["train"], names["validation"]]
    return found, *(part if part is None or isinstance(part, tuple) else everything_of(part) for part in parts)


def everything_of(dataset):
    return tuple(np.concatenate(parts) for parts in zip(*dataset, strict=True))


def test_lines_for_labels_change_only_the_parts_that_need_it():
    (_, right), (_, held_right) = pixels(), held()
    for script in (validation_labels_from_one, labels_below_zero_and_from_one, gaps_in_one_part):
        found, train, validation = mended_in_turn(*script())
        assert set(found) == {"labels"}
        np.testing.assert_array_equal(train[1], right)
        np.testing.assert_array_equal(np.sort(validation[1]), np.sort(held_right))
    _, train, validation = mended_in_turn(*labels_from_one_of_which_some_are_rare())
    np.testing.assert_array_equal(train[1], right)
    np.testing.assert_array_equal(validation[1], np.maximum(held_right, 1))
    found, train, _ = mended_in_turn(*more_classes_below_zero())
    assert found == ["labels", "labels"]
    np.testing.assert_array_equal(train[1], pixels(classes=5)[1])


def test_classes_that_training_lacks_are_told_of_when_the_labels_are_mended():
    (images, right), (others, answers) = pixels(), held()
    names = {"model": guide(), "train": (images, np.maximum(right, 1) + 1), "validation": (others, answers + 1)}
    [finding] = kerastl.check(*names.values()).findings
    carry_out(finding, names)
    np.testing.assert_array_equal(names["train"][1], np.maximum(right, 1))
    np.testing.assert_array_equal(names["validation"][1], answers)
    [finding] = kerastl.check(*names.values()).findings
    assert finding.name == "classes not trained"
    assert finding.number == (answers == 0).sum()
    carry_out(finding, names)
    assert kerastl.check(names["model"], names["train"], names["validation"]).findings == ()
    labels = np.concatenate([names[part][1] for part in ("train", "validation")])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(np.append(np.maximum(right, 1), answers)))


# Scripts that are right


def flat_as_in_the_notes():
    inputs = keras.Input((32, 32, 3))
    x = layers.Flatten()(trained(keras.Model(inputs, models.backbone_layers(scaling()(inputs), blocks=1))).output)
    x = layers.Dropout(0.5)(layers.Dense(8, activation="relu")(x))
    model = kerastl.freeze(keras.Model(inputs, layers.Dense(3, activation="softmax")(x)))
    return compiled(model, optimizer=keras.optimizers.RMSprop), pixels(), held()


def nested_as_in_the_guide():
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return (
        compiled(on(tiny(), layers.RandomFlip(), scaling(), activation=None), logits),
        dataset(*pixels()),
        dataset(*held()),
    )


def preprocess_input_inside():
    preprocess = layers.Lambda(keras.applications.mobilenet_v2.preprocess_input)
    return compiled(on(mobilenet(), preprocess)), pixels(), held()


def binary_sigmoid():
    return compiled(guide(units=1, activation="sigmoid"), "binary_crossentropy"), pixels(classes=2), held(classes=2)


def several_labels():
    images, labels = pixels()
    rows = (np.arange(3) >= labels[:, None]).astype("float32")
    return compiled(guide(activation="sigmoid"), "binary_crossentropy"), (images, rows), None


def numbers():
    (images, labels), (others, answers) = pixels(), held()
    return compiled(guide(units=1, activation=None), "mse"), (images, labels * 0.5), (others, answers * 0.5)


def mobilenet_given_minus_one_to_one():
    parts = [
        (keras.applications.mobilenet_v2.preprocess_input(images.copy()), labels)
        for images, labels in (pixels(), held())
    ]
    return on(mobilenet()), *parts


def efficientnet_given_0_to_255():
    base = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    trained(base).trainable = False
    return compiled(on(base)), pixels(), held()


def bytes_in_a_dataset():
    return guide(), dataset(*pixels(dtype="uint8")).cache(), dataset(*held(dtype="uint8"))


def one_hot_with_smoothing():
    (images, labels), (others, answers) = pixels(), held()
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    return compiled(guide(), loss), (images, np.eye(3)[labels]), (others, np.eye(3)[answers])


def a_softmax_layer_of_its_own():
    model = guide(activation=None)
    return compiled(keras.Model(model.inputs, layers.Softmax()(model.output))), pixels(), held()


def rows_of_features_in_the_order_of_their_classes():
    generator, inputs = np.random.default_rng(0), keras.Input((8,))
    x = layers.Dense(3, activation="softmax")(layers.Dense(4, activation="relu")(inputs))
    train, validation = (
        tf.data.Dataset.from_tensor_slices((generator.normal(size=(count, 8)), np.sort(np.arange(count) % 3))).batch(8)
        for count in (48, 18)
    )
    return keras.Model(inputs, x), train, validation.unbatch().batch(18)


def probabilities_of_another_kind():
    return compiled(guide(activation="sparsemax")), pixels(), held()


def tanh_with_its_hinge():
    images, labels = pixels(classes=2)
    return compiled(guide(units=1, activation="tanh"), "hinge"), (images, labels), None


def from_nothing():
    return compiled(models.flat()), pixels(), held()


def mobilenet_from_nothing_given_0_to_1():
    base = keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.35, input_shape=(32, 32, 3))
    return compiled(on(base)), *((images / 255, labels) for images, labels in (pixels(), held()))


def fine_tuning_with_frozen_batch_norm():
    model = kerastl.unfreeze(fitted(compiled(guide())), last_blocks=1)
    return kerastl.recompile(model, learning_rate=1e-5), pixels(), held()


def noisy_pixels_beyond_0_and_255():
    images, labels = pixels()
    return guide(), (images + np.random.default_rng(0).normal(0, 5, images.shape), labels), None


def standardized_with_one_nearly_blank_image():
    base = keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.35, input_shape=(32, 32, 3))
    images, labels = pixels()
    images[20], images[20, 5, 5] = 9, 10
    images = (images - images.mean(axis=(1, 2, 3), keepdims=True)) / images.std(axis=(1, 2, 3), keepdims=True)
    return compiled(on(base)), (images, labels), None


def without_an_end():
    return guide(), dataset(*pixels()).repeat(), dataset(*held())


def grey_without_the_axis_that_keras_adds():
    images, labels = pixels()
    return grey(), (images[..., 0], labels), None


def augmented_after_the_cache():
    train = dataset(*pixels()).cache().map(lambda images, labels: (tf.image.random_flip_up_down(images), labels))
    return guide(), train, None


def in_batches_of_its_own():
    images, labels = pixels()
    return guide(), [(images[:24], labels[:24]), (images[24:], labels[24:])], None


def a_generator():
    return guide(), (part for part in [pixels()]), None


RIGHT = [
    *(
        flat_as_in_the_notes,
        nested_as_in_the_guide,
        models.nested,
        preprocess_input_inside,
        binary_sigmoid,
        several_labels,
    ),
    *(
        numbers,
        mobilenet_given_minus_one_to_one,
        efficientnet_given_0_to_255,
        bytes_in_a_dataset,
        one_hot_with_smoothing,
    ),
    *(
        a_softmax_layer_of_its_own,
        rows_of_features_in_the_order_of_their_classes,
        probabilities_of_another_kind,
        tanh_with_its_hinge,
        from_nothing,
        mobilenet_from_nothing_given_0_to_1,
        fine_tuning_with_frozen_batch_norm,
        noisy_pixels_beyond_0_and_255,
        standardized_with_one_nearly_blank_image,
        without_an_end,
        grey_without_the_axis_that_keras_adds,
        augmented_after_the_cache,
        in_batches_of_its_own,
        a_generator,
    ),
]


@pytest.mark.parametrize("script", RIGHT, ids=lambda script: script.__name__)
def test_a_right_script_stays_quiet(script):
    model, train, validation = script() if script is not models.nested else (models.nested(), pixels(), held())
    before, state = models.snapshot(model), [layer.trainable for layer in models_layers(model)]
    result = kerastl.check(model, train, validation)
    assert result.findings == ()
    assert str(result).startswith("Nothing wrong was found in the model and ")
    assert models.changed(before, model) == set()
    assert [layer.trainable for layer in models_layers(model)] == state


def test_the_line_for_the_loss_of_several_labels_counts_each_label():
    model, (images, rows), _ = categorical_loss_for_several_labels()
    (found,) = kerastl.check(model, (images, rows)).findings
    carry_out(found, {"model": model})
    expected = ((model.predict(images, verbose=0) > 0.5) == rows).mean()
    assert model.evaluate(images, rows, verbose=0, return_dict=True)["accuracy"] == pytest.approx(expected)


def test_a_leak_out_of_a_dataset_without_an_end_is_mended_by_hand():
    (found,) = kerastl.check(guide(), dataset(*pixels()).repeat(), pixels()).findings
    assert (found.name, found.number) == ("split leaks", 48)
    assert found.mend.startswith("# split")


def test_a_result_prints_as_a_table_with_the_lines_that_mend():
    result = kerastl.check(*labels_from_one())
    assert ">>> train = (train[0], train[1] - 1, *train[2:]); validation = (" in str(result)
    assert "48 images of train and 18 images of validation" in str(result)
    assert result.to_rows()[0]["name"] == "labels"
    assert "<table>" in result._repr_html_()


def test_lines_that_take_more_than_one_are_comments():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            images, labels = pixels(16, seed=index)
            return images / 255, labels

    (found,) = kerastl.check(guide(), Batches()).findings
    assert found.mend == "# in the batches of train: images, labels = images * 255, labels"


def test_lines_for_images_keep_what_they_show():
    (images, labels), (others, _) = pixels(), held()
    found, train, validation = mended_in_turn(*channels_first())
    assert found == ["image size"] * 2
    np.testing.assert_array_equal(train[0], images)
    assert validation[0].shape == others.shape
    _, train, _ = mended_in_turn(*colours_for_a_grey_model())
    np.testing.assert_allclose(train[0], images.mean(axis=-1, keepdims=True), rtol=1e-5)
    _, train, _ = mended_in_turn(*opaque_images_for_a_model_of_colours())
    np.testing.assert_array_equal(train[0], images)
    small = pixels(size=24)[0]
    found, train, _ = mended_in_turn(guide(), (np.moveaxis(np.concatenate([small, small[..., :1]], -1), -1, 1), labels))
    assert found == ["image size"] * 3
    np.testing.assert_allclose(train[0], keras.ops.image.resize(small, (32, 32)), rtol=1e-5)


def test_channels_that_no_line_can_make_are_a_comment():
    model = keras.Sequential([keras.Input((32, 32, 8)), layers.Flatten(), layers.Dense(3, activation="softmax")])
    (found,) = kerastl.check(model, pixels()).findings
    assert (found.name, found.mend) == ("image size", "# train must hold images of (32, 32, 8)")


def test_data_without_images_or_labels_is_told_and_nothing_else():
    images, labels = pixels()
    slices = tf.data.Dataset.from_tensor_slices
    none = [(images[:0], labels[:0]), slices((images, labels)).take(0).batch(8), [], ()]
    unlabelled = [images, (images, None), slices(images).batch(8), [(images,)]]
    for train in none + unlabelled:
        what = "0 images" if any(train is one for one in none) else "0 labels"
        for parts in ((train, None), ((images, labels), train)):
            result = kerastl.check(guide(), *parts)
            (found,) = result.findings
            assert (found.name, found.number, result.notes) == ("data", 0, ())
            assert what in found.evidence
            assert found.mend.startswith("# ")


@pytest.mark.parametrize("shape", [(2, 32, 32, 3, 3), (8, 1000)])
def test_arrays_that_are_no_images_are_told_with_what_the_model_takes(shape):
    (found,) = kerastl.check(guide(), (np.ones(shape, "float32"), np.zeros(shape[0]))).findings
    assert (found.name, found.mend) == ("data", "# train must hold arrays of (None, 32, 32, 3)")


def test_what_was_not_looked_at_is_said():
    one, other = keras.Input((32, 32, 3)), keras.Input((4,))
    x = layers.concatenate([layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(one)), other])
    model = keras.Model([one, other], layers.Dense(3, activation="softmax")(x))
    images, labels = pixels()
    features = np.zeros((48, 4))
    batches = tf.data.Dataset.from_tensor_slices(((images, features), labels)).batch(8)
    for train in (([images, features], labels), batches):
        result = kerastl.check(model, train)
        assert (result.findings, result.looked_at) == ((), {})
        assert result.notes == ("The images of train were not looked at: the model has 2 inputs.",)
        assert str(result).splitlines()[0] == "Nothing wrong was found in the model and its weights."
        assert str(result).splitlines()[-1] == result.notes[0]
    assert "not looked at: they can be read only once." in str(kerastl.check(*a_generator()))
    endless = kerastl.check(*without_an_end(), images=100)
    assert endless.looked_at == {"train": 104, "validation": 18}
    assert endless.notes == ("The dataset of train never ends: `fit` needs a number of steps for it.",)


def test_what_is_read_of_a_dataset_is_limited():
    read = []
    train = tf.data.Dataset.from_generator(
        lambda: ((read.append(1), batch)[1] for batch in [pixels(8, seed=seed) for seed in range(20)]),
        output_signature=(tf.TensorSpec((None, 32, 32, 3)), tf.TensorSpec((None,), "int64")),
    )
    kerastl.check(guide(), train, images=16)
    assert len(read) < 8
    with pytest.raises(ArgumentError, match="`images` must be"):
        kerastl.check(guide(), train, images=0)


def test_arrays_on_a_disk_are_read_as_datasets_are(tmp_path):
    images, labels = pixels()
    kept = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", images.dtype, images.shape)
    kept[:] = images
    result = kerastl.check(guide(), (kept, labels), (images[40:], labels[40:]), images=32)
    assert result.looked_at == {"train": 32, "validation": 8}
    (found,) = kerastl.check(guide(), (kept, labels), (images[40:], labels[40:])).findings
    assert found.number == 8


def test_what_has_no_backbone_is_checked_for_the_rest():
    dense = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])
    features = np.random.default_rng(0).normal(size=(12, 4))
    assert kerastl.check(dense, (features, np.arange(12) % 3)).findings == ()
    (found,) = kerastl.check(dense, (features, np.arange(12) % 4)).findings
    assert found.name == "labels"
    with pytest.raises(ModelError):
        kerastl.check(dense, (features, np.arange(12) % 3), backbone="nothing")


OPTIONS = {"head_epochs": 1, "fine_tune_epochs": 1, "last_blocks": 1, "verbose": 0, "cache": False}


def test_transfer_learn_is_quiet_when_all_is_well():
    transfer_learn(guide(), pixels(), held(), class_weight="balanced", **OPTIONS)
    transfer_learn(models.flat(), dataset(*pixels()), dataset(*held()), **OPTIONS)


@pytest.mark.parametrize("script", [validated_on_the_training_data, cached_after_augmenting, resnet_given_0_to_1])
def test_transfer_learn_warns_and_trains_on(script):
    with pytest.warns(KerastlWarning, match=f"`kerastl.check` found:\n{BROKEN[script]}: ") as caught:
        result = transfer_learn(*script(), **OPTIONS)
    assert len(result.head.epoch) == 1
    assert len([one for one in caught if "kerastl.check" in str(one.message)]) == 1


def test_pixels_scaled_after_a_black_first_batch_are_warned_of():
    model, train, _ = divided_by_255_after_black_ones()
    with pytest.warns(KerastlWarning, match="`kerastl.check` found:\npreprocessing doubled: "):
        warn_of_findings(Settings(model, train, None, None, None, "loss", 0, False, None))


def test_transfer_learn_says_once_that_pixels_are_scaled_and_reads_no_dataset_for_it():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        transfer_learn(*preprocessed_in_the_pipeline_and_inside(), **OPTIONS)
    assert not [one for one in caught if "kerastl.check" in str(one.message)]
    assert [one for one in caught if "look scaled already" in str(one.message)]
