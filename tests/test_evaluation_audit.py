"""Audit: each kind of fault is found where it was put, and nothing elsewhere; the page says what was found."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import kerastl
from kerastl.errors import ArgumentError, DataError, KerastlWarning, OutputError
from kerastl.evaluation import audit as module
from kerastl.evaluation.audit import KINDS, label_errors
from kerastl.features.duplicates import Pair
from tests.pages import Page
from tests.test_features_duplicates import cropped, scene

CLASSES = ("<b>rose</b>", "tulip & co")


def features_of(labels, seed=0, spread=0.3):
    """Return features in which classes lie apart."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(int(labels.max()) + 1, 16))
    return centers[labels] + spread * generator.normal(size=(len(labels), 16))


def noise(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype("uint8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty scenes in two classes and three splits, with a leak, a copy, a blank, a tiny and a broken file."""
    root = tmp_path_factory.mktemp("audit") / "data"
    for split, start in (("train", 0), ("validation", 100), ("test", 200)):
        for number, name in enumerate(CLASSES):
            # a name with a slash can't be a folder's
            place = root / split / name.replace("/", "")
            place.mkdir(parents=True)
            for index in range(12 if split == "train" else 4):
                scene(start + 50 * number + index).save(place / f'{index:02} "<i>.png')
    rose, tulip = (root / "train" / name.replace("/", "") for name in CLASSES)
    cropped(scene(3)).save(root / "test" / rose.name / "leak.png")
    scene(55).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tulip / "copy.png")
    Image.new("RGB", (160, 160), "teal").save(rose / "blank.png")
    scene(900).resize((20, 30)).save(tulip / "tiny.png")
    (rose / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    return root


@pytest.fixture(scope="module")
def splits(folder):
    with pytest.warns(KerastlWarning, match="can't be read"):
        return kerastl.load_images(folder, image_size=160, skip_unreadable=True, verbose=0)


@pytest.fixture(scope="module")
def result(splits):
    names = [name for split in splits.split_sizes for name in splits.files[split]]
    labels = np.array([int("tulip" in name) for name in names])
    features = features_of(labels)
    where = {"/".join(name.split("/")[-3:]): index for index, name in enumerate(names)}
    rose, tulip = (name.replace("/", "") for name in CLASSES)

    def at(split, name, file):
        return where[f"{split}/{name}/{file}"]

    features[at("test", rose, "leak.png")] = features[at("train", rose, '03 "<i>.png')] + 0.01
    features[at("train", tulip, "copy.png")] = features[at("train", tulip, '05 "<i>.png')] + 0.01
    features[at("train", tulip, '07 "<i>.png')] = features[at("train", rose, '06 "<i>.png')] + 0.1  # looks like a rose
    features[at("train", rose, '09 "<i>.png')] = -4  # far from all
    return kerastl.audit(splits, features, verbose=0)


def files(finding):
    return tuple(name.split("/")[-1] for name in finding.names)


def test_a_kind_that_there_is_not_is_refused(result):
    with pytest.raises(ArgumentError, match=r"'leak'.*Received: kind='near-duplicates'"):
        result.of_kind("near-duplicates")


def test_a_copy_in_another_split_is_a_leak_and_comes_first(result):
    (leak,) = result.of_kind("leak")
    assert result.findings[0] is leak
    assert sorted(zip(files(leak), leak.splits, strict=True)) == [('03 "<i>.png', "train"), ("leak.png", "test")]
    assert "places agree" in leak.why


def test_a_copy_in_its_own_split_is_a_duplicate(result):
    (copy,) = result.of_kind("duplicate")
    assert set(files(copy)) == {'05 "<i>.png', "copy.png"}
    assert copy.why.endswith("places agree, mirrored")


def test_an_image_among_those_of_another_class_is_a_probable_label_error(result):
    first = result.of_kind("label")[0]
    assert (files(first), first.labels, first.suggestion) == (('07 "<i>.png',), ("tulip & co",), "<b>rose<b>")
    assert first.indices[0] == result.label_quality.argmin()
    assert result.accuracy > 0.9
    assert result.wrong_labels >= 1


def test_an_image_far_from_all_is_an_outlier(result):
    assert ('09 "<i>.png',) in map(files, result.of_kind("outlier"))
    assert result.of_kind("outlier")[0].score > 3.5


def test_bad_files_are_found(result):
    found = {files(one)[0]: one.why for one in result.of_kind("file")}
    assert found.keys() == {"broken.jpg", "blank.png", "tiny.png"}
    assert "30×20" in found["tiny.png"]


def test_it_prints_a_table_with_every_kind(result):
    text = str(result)
    assert [heading for heading in KINDS.values() if heading not in text] == []
    assert f"{result.count} images" in text
    assert "labels are wrong" in text


def test_the_page_needs_nothing_beside_it_and_escapes_every_name(result, tmp_path):
    result.write(tmp_path / "out")
    page = Page((tmp_path / "out" / "audit.html").read_text("utf-8"))
    assert "i" not in page.tags  # of the file names
    assert page.tags.count("b") == len(result.of_kind("label")) + len(result.of_kind("classes"))
    assert any("tulip & co" in text for text in page.text)
    assert {source.partition(",")[0] for source in page.sources if source[0] != "#"} == {"data:image/jpeg;base64"}
    assert page.tags.count("img") == sum(len(one.indices) for one in result.findings)


def test_tables_hold_every_finding(result, tmp_path):
    folder = result.write(tmp_path / "out")
    with open(folder / "findings.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((folder / "findings.json").read_text("utf-8"))
    assert len(rows) == len(content["findings"]) == len(result.findings)
    assert rows[0]["kind"] == content["findings"][0]["kind"] == "leak"
    assert {rows[0]["split"], rows[0]["split_2"]} == {"train", "test"}
    assert content["accuracy"] == pytest.approx(result.accuracy)
    with pytest.raises(OutputError, match="not empty"):
        result.write(folder)
    assert result.write(folder, overwrite=True) == folder


def test_label_errors_are_those_of_confident_learning():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9], [0.55, 0.45]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    quality, wrong = label_errors(probabilities, labels)
    np.testing.assert_allclose(quality, [0.8, 0.4, -0.6, 0.2, 0.8, -0.1], atol=1e-6)
    # thresholds are 0.6 and 0.65: row 2 is surely of class 1; row 5 not surely of class 0
    assert wrong == 1
    assert label_errors(np.full((30, 3), 1 / 3), np.arange(30) % 3)[1] == 0  # knows nothing of any label


def test_flipped_labels_come_first():
    labels = np.arange(200) % 4
    features, flipped = features_of(labels, spread=0.6), np.random.default_rng(3).choice(200, 10, replace=False)
    given = labels.copy()
    given[flipped] = (given[flipped] + 1) % 4
    result = kerastl.audit((noise(200), given), features, class_names=list("abcd"), verbose=0)
    first = [one.indices[0] for one in result.of_kind("label")][:15]
    assert len({*first} & {*flipped.tolist()}) >= 9
    assert result.findings[0].splits == ("",) * len(result.findings[0].names)


def test_copies_never_lie_in_two_folds(monkeypatch, splits, result):
    seen = []
    fit = module.fit_softmax
    monkeypatch.setattr(module, "fit_softmax", lambda *a, **more: seen.append(more["groups"]) or fit(*a, **more))
    pairs = [Pair(0, 5, 0.9, 20, False), Pair(5, 9, 0.9, 20, False)]
    monkeypatch.setattr(module, "find_duplicates", lambda *a, **more: pairs)
    kerastl.audit(splits, features_of(np.arange(result.count) % 2), verbose=0)
    assert len({*seen[0][[0, 5, 9]]}) == 1


def test_classes_that_look_alike_are_named():
    labels = np.arange(120) % 3
    features = features_of(np.minimum(labels, 1))  # the last two are one
    result = kerastl.audit((noise(120), labels), features, class_names=["a", "b", "c"], verbose=0)
    (found,) = result.of_kind("classes")
    assert found.suggestion == "b / c"
    assert found.score > 0.25


def scenes(start, count=12):
    return np.stack([np.asarray(scene(start + index)) for index in range(count)])


def exposures(start, count=12):
    picture = np.asarray(scene(start)).astype(int)
    return np.stack([np.clip(picture + 2 * index, 0, 255).astype("uint8") for index in range(count)])


def test_a_class_of_near_duplicates_of_one_image_is_not_judged():
    labels = np.repeat(np.arange(3), 12)
    images = np.concatenate([scenes(0), scenes(100), exposures(200)])
    features = features_of(labels, spread=0.1)
    result = kerastl.audit((images, labels), features, class_names=["a", "b", "video"], verbose=0)
    assert (result.accuracy, result.wrong_labels) == (1, 0)
    assert np.isnan(result.label_quality).tolist() == [False] * 24 + [True] * 12
    assert not result.of_kind("label") + result.of_kind("classes")
    assert result.of_kind("duplicate")
    (left_out,) = result.not_checked
    assert left_out.startswith("labels of video (12 images)")
    flipped = labels.copy()
    flipped[3] = 2  # another image of that class: now it can be learned, and is wrong
    found = kerastl.audit((images, flipped), features, class_names=["a", "b", "video"], verbose=0)
    assert not found.not_checked
    assert 3 in [one.indices[0] for one in found.of_kind("label")]


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5]])
def test_images_that_are_all_near_duplicates_are_reported_and_their_labels_left_unchecked(labels):
    result = kerastl.audit((exposures(0, 6), np.array(labels)), np.eye(6) + 9, verbose=0)
    assert result.of_kind("duplicate")
    assert result.accuracy is result.label_quality is result.wrong_labels is None
    assert "labels and classes" in result.not_checked[0]
    apart = kerastl.audit((scenes(0, 6), np.arange(6)), np.eye(6), verbose=0)  # one image of each class
    assert apart.accuracy is None
    assert apart.not_checked == result.not_checked


def test_several_labels_an_image_leave_the_labels_unchecked_and_say_so(tmp_path):
    for index in range(12):
        scene(index).save(tmp_path / f"{index}.png")
    scene(4).save(tmp_path / "again.png")
    lines = [f"{index}.png,{'a|b' if index % 2 else 'a'}" for index in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["filename,labels", *lines, "again.png,a|b", ""]))
    with pytest.warns(KerastlWarning):  # so few
        splits = kerastl.load_images(tmp_path, labels="labels.csv", image_size=160, verbose=0)
    result = kerastl.audit(splits, np.eye(13) + 1, verbose=0)
    assert result.accuracy is result.label_quality is None
    assert "labels" in result.not_checked[0]
    assert [one.kind for one in result.findings if one.kind in ("label", "classes")] == []
    assert "Not checked" in str(result)
    assert "Not checked" in (result.write(tmp_path / "out") / "audit.html").read_text("utf-8")


def test_features_come_from_the_backbone(splits, monkeypatch):
    seen = []
    find = module.find_duplicates
    monkeypatch.setattr(
        module, "find_duplicates", lambda found, *a, **more: seen.append(found) or find(found, *a, **more)
    )
    result = kerastl.audit(splits, backbone="mobilenet_v3_small", weights=None, verbose=0)
    assert seen[0].shape == (result.count, 576)
    assert np.ptp(seen[0], axis=0).max() > 0


def test_grey_arrays_are_audited_as_their_three_equal_channels():
    labels, grey = np.arange(12) % 2, noise(12)[..., 0]
    seen = []
    for images in (grey, grey[..., None], np.repeat(grey[..., None], 3, axis=3), grey.astype("float64")):
        result = kerastl.audit((images, labels), features_of(labels), class_names=np.array(["a", "b"]), verbose=0)
        assert result.class_names == ("a", "b")
        seen.append(result.read(3))
    column = kerastl.audit((grey, labels[:, None]), features_of(labels), verbose=0)
    assert (column.class_names, column.accuracy) == (("0", "1"), result.accuracy)
    with pytest.raises(ArgumentError, match=r"list of names.*class_names='ab'"):
        kerastl.audit((grey, labels), features_of(labels), class_names="ab", verbose=0)
    assert all(np.array_equal(one, seen[0]) and one.shape == (8, 8, 3) for one in seen)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda pixels: pixels / 255.0,
            r"Expected pixels 0–255.*`images \* 255`.*dtype='float64', smallest=.*largest=",
        ),
        (lambda pixels: pixels.astype("uint16") * 257, "Expected pixels 0–255.*16 bits.*dtype='uint16'"),
        (lambda pixels: np.where(pixels > 250, np.nan, pixels), "without NaN"),
        (lambda pixels: pixels - 100.0, "Expected pixels 0–255"),
        (lambda pixels: pixels.astype(str), "Expected pixels 0–255"),
        (lambda pixels: pixels[:0], r"at least one.*shape=\(0, 8, 8, 3\)"),
        (lambda pixels: np.concatenate([pixels, pixels[..., :1]], axis=3), r"images\[..., :3\].*shape=\(12, 8, 8, 4\)"),
        (lambda pixels: pixels[:, 0, 0], "Expected images"),
    ],
    ids=["scaled", "16 bits", "NaN", "negative", "text", "none", "alpha", "no images"],
)
def test_arrays_of_other_pixels_are_refused(change, words):
    images = change(noise(12))
    labels = (np.arange(12) % 2)[: len(images)]
    with pytest.raises(DataError, match=words):
        kerastl.audit((images, labels), np.eye(12)[: len(images)], verbose=0)
    sharp = kerastl.audit((noise(12) * 1.3 - 30.0, np.arange(12) % 2), np.eye(12), verbose=0)  # as bicubic resizing
    assert sharp.read(0).dtype == np.uint8
    black = np.zeros((12, 8, 8, 3), "float32")
    assert kerastl.audit((black, np.arange(12) % 2), np.eye(12), verbose=0).of_kind("file")


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        (np.where(np.arange(12) == 3, np.nan, 1), None, "a whole number from 0 on.*dtype='float64'"),
        (np.array(["a", "b"] * 6), None, r"numpy\.unique"),
        (np.arange(12) % 3, ["a", "b"], r"from 0 to 1 .*name in `class_names` for each.*class_names=\['a', 'b'\]"),
        (np.arange(12) % 3 - 1, None, "Expected one class"),
        (np.ones((12, 3), int), None, r"load_images\(folder, labels=...\)"),
        (np.arange(12) * 0.7, None, "numbers to predict"),
        (np.ones((12, 3, 2)), None, r"shape=\(12, 3, 2\)"),
    ],
    ids=["NaN", "text", "few names", "negative", "several", "numbers", "three axes"],
)
def test_labels_that_are_no_classes_are_refused_without_talk_of_heads(labels, names, words):
    with pytest.raises(DataError, match=words) as raised:
        kerastl.audit((noise(12), labels), np.eye(12), class_names=names, verbose=0)
    assert "build_classifier" not in str(raised.value)


@pytest.mark.parametrize("features", ["x", [[1.0], [2.0, 3.0]], None, {}], ids=str)
def test_features_that_are_no_numbers_are_refused(features):
    with pytest.raises(DataError, match="Expected finite `features`"):
        module._checked_features(features, 12)


def test_wrong_arguments_say_what_was_expected(splits, result):
    with pytest.raises(DataError, match=rf"\({result.count}, features\)"):
        kerastl.audit(splits, np.zeros((3, 4)), verbose=0)
    with pytest.raises(DataError, match="finite"):
        kerastl.audit(splits, np.full((result.count, 4), np.nan), verbose=0)
    with pytest.raises(ArgumentError, match="pair of arrays"):
        kerastl.audit(iter(()), np.zeros((3, 4)), verbose=0)
    with pytest.raises(ArgumentError, match="no such backbone"):
        kerastl.audit(splits, backbone="resnet51", verbose=0)
    with pytest.raises(DataError, match="no folder"):
        kerastl.audit("nowhere", verbose=0)
