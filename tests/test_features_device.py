"""Features on the device that trains: the same training as from memory; in 16 bits on a GPU; what a full one does."""

import keras
import numpy as np
import pytest
from keras import layers

import kerastl
from kerastl import backend
from kerastl.errors import ArgumentError, FeatureOverflowError
from kerastl.features import device, litert
from kerastl.features.plan import CacheOptions
from kerastl.training.session import fit
from tests import models

QUIET = {"epochs": 3, "batch_size": 16, "verbose": 0}
FULL = RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4 bytes.")


def trained(place, data, choice=(), options=(), **arguments):
    """Return the history and the weights of a twin trained on features in a place."""
    model = models.twins(**dict(choice))[0]
    options = CacheOptions(place=place, dtype="float32", **dict(options))
    history = fit(model, *data, cache=options, **{**QUIET, **arguments})
    return history.history, [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def same(one, other):
    assert one[0].keys() == other[0].keys()
    for name, values in one[0].items():
        np.testing.assert_allclose(values, other[0][name], atol=1e-6)
    for first, second in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU in name: what is on one, and how much fits."""
    monkeypatch.setattr(backend, "has_accelerator", lambda: True)
    monkeypatch.setattr(backend, "free_device_memory", lambda: 10**9)
    monkeypatch.setattr(backend, "half_type", lambda: "bfloat16")


@pytest.mark.parametrize("choice", [{}, {"last_blocks": 1}])
@pytest.mark.parametrize("arguments", [{}, {"class_weight": {0: 2.0, 2: 0.5}}, {"shuffle": False}])
def test_training_from_the_device_is_training_from_memory(choice, arguments, data):
    held = (data[0][:20], data[1][:20])
    same(*(trained(place, data, choice, validation_data=held, **arguments) for place in ("memory", "device")))


def test_sample_weights_and_datasets_come_along(data):
    weighted = (*data, np.linspace(0, 1, len(data[1])).astype("float32"))
    arguments = {"sample_weight": weighted[2], "validation_data": weighted}
    same(*(trained(place, data, **arguments) for place in ("memory", "device")))


def test_views_are_drawn_in_each_epoch(data):
    def run(place):
        keras.utils.set_random_seed(0)
        model = models.compiled(kerastl.freeze(models.nested(augmentation=True)), 0.01)
        history = fit(model, *data, cache=CacheOptions(place=place), views=2, **QUIET)
        return history.history, [keras.ops.convert_to_numpy(weight) for weight in model.weights]

    same(run("memory"), run("device"))


def test_the_model_is_as_before_when_training_is_over(data):
    model = models.twins()[0]
    fit(model, *data, cache="device", **QUIET)
    assert model.steps_per_execution == 1
    first = model.predict(data[0], verbose=0)
    model.fit(*data, epochs=1, verbose=0)
    assert not np.allclose(first, model.predict(data[0], verbose=0))


@pytest.mark.parametrize("moment", ["_tensor", "concatenate"])
def test_a_full_device_hands_its_features_to_the_memory(moment, data, monkeypatch, capsys):
    expected, calls = trained("memory", data), []
    where, name = (device, "_tensor") if moment == "_tensor" else (device.keras.ops, "concatenate")
    original = getattr(where, name)

    def full(*given, **options):
        calls.append(given)
        if len(calls) == (2 if moment == "_tensor" else 1):
            raise FULL
        return original(*given, **options)

    monkeypatch.setattr(where, name, full)
    same(expected, trained("device", data))
    assert capsys.readouterr().out.splitlines() == [
        "The device's memory is full: the features go to memory or to disk."
    ]


def test_another_error_of_the_device_is_not_taken_for_a_full_one(data, monkeypatch):
    monkeypatch.setattr(device, "_tensor", lambda values: [][0])
    with pytest.raises(IndexError):
        trained("device", data)


def test_the_plan_says_where_features_go(gpu, data):
    model = models.twins(last_blocks=1)[0]
    assert "on the device" in str(kerastl.plan_cache(model, *data, cache="device"))
    assert kerastl.plan_cache(model, *data, cache=CacheOptions(place="disk")).place == "disk"
    with pytest.raises(ArgumentError, match=r"would take 164 kB, but 1 kB of the device's memory may be used"):
        kerastl.plan_cache(model, *data, cache=CacheOptions(place="device", budget=1000))


def test_too_little_room_on_the_device_leaves_the_memory(gpu, data, monkeypatch):
    monkeypatch.setattr(backend, "free_device_memory", lambda: 1000)
    assert kerastl.plan_cache(models.twins(last_blocks=1)[0], *data, cache=True).place == "memory"


def test_a_gpu_runs_the_frozen_part_in_16_bits_unless_it_is_to_be_exact(gpu):
    trunk = models.tiny_backbone()
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype("uint8")
    exact, half = litert.KerasEngine(trunk), litert.choose_engine(trunk, 10, exact=False)
    with litert.computing_in(trunk, half.half):
        (given,) = half(images)
    (expected,) = exact(images)
    worst = np.abs(given - expected).max() / np.abs(expected).max()
    assert 0 < worst < 0.02
    assert {layer.compute_dtype for layer in trunk.layers} == {"float32"}
    assert (exact.name, half.name) == ("keras", "keras bfloat16")


def test_a_run_on_a_gpu_gives_what_one_on_a_cpu_does(gpu, data, monkeypatch):
    held = (data[0][:20], data[1][:20])
    cached = fit(models.twins()[0], *data, cache=True, validation_data=held, **QUIET)
    monkeypatch.undo()
    plain = fit(models.twins()[0], *data, cache=True, validation_data=held, **QUIET)
    np.testing.assert_allclose(cached.history["val_loss"], plain.history["val_loss"], rtol=0.05)


def large(scale):
    """Return a model whose frozen part computes numbers that float16 doesn't hold; at its end they are `scale` times those."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, name="large", kernel_initializer="ones")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1000.0)(x))
    small = keras.initializers.RandomNormal(stddev=1e-6 / scale, seed=0)
    x = layers.Dense(3, activation="softmax", kernel_initializer=small)(layers.Rescaling(scale)(x))
    model = keras.Model(inputs, x)
    model.get_layer("large").trainable = False
    return models.compiled(model)


@pytest.mark.parametrize("place", ["device", "memory", "folder"])
@pytest.mark.parametrize(
    ("half", "scale", "dtype"),
    [
        ("bfloat16", 1.0, "auto"),  # too large for the store alone
        ("float16", 1.0, "auto"),  # and for the computing
        ("float16", 1e-6, "auto"),  # for the computing alone
        ("float16", 1e-6, "float16"),
    ],
)
def test_what_16_bits_do_not_hold_is_computed_again_in_32(half, scale, dtype, place, gpu, data, monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "half_type", lambda: half)
    options = (
        CacheOptions(folder=tmp_path, dtype=dtype) if place == "folder" else CacheOptions(place=place, dtype=dtype)
    )
    history = fit(large(scale), *data, cache=options, **QUIET).history
    monkeypatch.undo()
    plain = fit(large(scale), *data, cache=CacheOptions(dtype="float32"), **QUIET).history
    np.testing.assert_allclose(history["loss"], plain["loss"], rtol=1e-3)


def test_features_too_large_for_a_wanted_float16_are_refused(gpu, data):
    with pytest.raises(FeatureOverflowError, match="float16"):
        fit(large(1.0), *data, cache=CacheOptions(dtype="float16"), **QUIET)


def test_a_folder_for_features_is_their_place(tmp_path):
    with pytest.raises(ArgumentError, match=r"leave out `place`, or leave out `folder`.*Received: folder="):
        CacheOptions(folder=tmp_path, place="device")


def test_a_batch_that_does_not_fit_is_halved(gpu, monkeypatch):
    sizes, original = [], backend.compiled_forward

    def small(model, step=None):
        forward = original(model, step)

        def run(images):
            sizes.append(len(images))
            if len(images) > 60:
                raise FULL
            return forward(images)

        return run

    monkeypatch.setattr(backend, "compiled_forward", small)
    trunk = models.tiny_backbone()
    images = np.random.default_rng(0).integers(0, 256, (130, 32, 32, 3)).astype("uint8")
    (given,) = litert.KerasEngine(trunk)(images)
    assert sizes == [130, 128, 64, 32, 32, 32, 32, 2]
    expected = keras.ops.convert_to_numpy(trunk(images.astype("float32"), training=False))
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)
