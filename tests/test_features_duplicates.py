"""Near-duplicates: found whatever was done to the copy, and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from kerastl.errors import DataError
from kerastl.features import duplicates
from kerastl.features.duplicates import find_duplicates, groups_of, nearest_neighbours

SIDE = 160


def scene(seed: int) -> Image.Image:
    """Return a picture with many corners, of its own shapes and shades."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (SIDE, SIDE), tuple(generator.integers(60, 190, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        corners = generator.uniform(-0.15, 0.15, (4, 2)) + generator.uniform(0, 1, 2)
        draw.polygon([tuple(one) for one in corners * SIDE], fill=tuple(generator.integers(0, 256, 3).tolist()))
    return image


def saved_as_jpeg(image):
    content = io.BytesIO()
    image.save(content, "JPEG", quality=40)
    return Image.open(content).convert("RGB")


def cropped(image):
    return image.crop((8, 20, 136, 150)).resize((SIDE, SIDE))


CHANGES = {
    "saved": saved_as_jpeg,
    "smaller": lambda image: image.resize((90, 90)).resize((SIDE, SIDE)),
    "cropped": cropped,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "cropped and mirrored": lambda image: cropped(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def found(images, features):
    pixels = [np.asarray(image) for image in images]
    return find_duplicates(features, pixels.__getitem__)


@pytest.fixture(scope="module")
def scenes():
    return [scene(seed) for seed in range(8)]


@pytest.fixture(scope="module")
def features():
    """Of eight scenes and a copy: all much alike, as a network's are, the copy nearest to scene 2."""
    generator = np.random.default_rng(0)
    rows = 1 + 0.5 * generator.normal(size=(8, 32))
    return np.concatenate([rows, rows[2:3] + 0.05 * generator.normal(size=(1, 32))])


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_whatever_was_done_to_it(scenes, features, change):
    pairs = found([*scenes, CHANGES[change](scenes[2])], features)
    assert [(pair.first, pair.second, pair.mirrored) for pair in pairs] == [(2, 8, "mirrored" in change)]
    assert pairs[0].places >= 10
    assert pairs[0].similarity > 0.9


def test_light_from_the_other_side_does_not_make_it_the_mirror_image(scenes, features):
    ramp = np.linspace(0.3, 1, SIDE)[:, None]
    left, right = (Image.fromarray((np.asarray(scenes[2]) * light).astype("uint8")) for light in (ramp, ramp[::-1]))
    pairs = found([*scenes[:2], left, *scenes[3:], right], features)
    assert [(pair.first, pair.second, pair.mirrored) for pair in pairs] == [(2, 8, False)]


def test_what_only_looks_alike_to_the_network_is_no_duplicate(scenes, features):
    assert found([*scenes, scene(99)], features) == []


def test_copies_without_corners_are_found_by_their_pixels(scenes, features):
    ramp = Image.fromarray(np.repeat(np.arange(SIDE, dtype="uint8")[None, :, None], SIDE, axis=0).repeat(3, axis=2))
    images = [*scenes, ramp]
    images[2] = saved_as_jpeg(ramp)
    assert [(pair.first, pair.second, pair.places) for pair in found(images, features)] == [(2, 8, 0)]
    images[2] = ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert [(pair.first, pair.second, pair.mirrored) for pair in found(images, features)] == [(2, 8, True)]


def test_where_features_are_far_apart_more_places_are_asked_for(scenes, features, monkeypatch):
    asked = []
    monkeypatch.setattr(duplicates, "_agreeing", lambda one, other, needed: asked.append(needed) or 0)
    found([*scenes, scenes[2]], features)
    assert set(asked) == {10, 16}
    assert asked.count(10) == 2  # the copy's pair alone, plain and mirrored


def test_pairs_make_groups_directly_and_through_others():
    pairs = [duplicates.Pair(one, other, 1.0, 20, False) for one, other in ((0, 1), (3, 4), (1, 4))]
    groups = groups_of(6, pairs)
    assert len({*groups[[0, 1, 3, 4]]}) == 1
    assert len({*groups}) == 3


@pytest.mark.parametrize("rows", [2, 5, 1203])
def test_the_nearest_are_those_of_the_whole_table(rows):
    features = np.random.default_rng(1).normal(size=(rows, 6))
    indices, cosines = nearest_neighbours(features, 3)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    table = unit @ unit.T
    np.fill_diagonal(table, -np.inf)
    assert indices.shape == cosines.shape == (rows, min(3, rows - 1))
    np.testing.assert_allclose(cosines, -np.sort(-table, axis=1)[:, :3][:, : rows - 1], atol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(table, indices, axis=1), cosines, atol=1e-12)


def test_one_image_or_none_has_no_duplicates(scenes):
    assert found(scenes[:1], np.ones((1, 4))) == []
    assert found([], np.ones((0, 4))) == []


@pytest.mark.parametrize("features", [np.ones(3), np.full((3, 2), np.nan)])
def test_features_of_another_kind_are_refused(scenes, features):
    with pytest.raises(DataError, match="finite features"):
        found(scenes[:3], features)


def test_a_single_image_has_no_neighbours():
    indices, cosines = nearest_neighbours(np.ones((1, 4), "float32"), 5)
    assert indices.shape == cosines.shape == (1, 0)
