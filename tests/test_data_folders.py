"""Folders of images as splits: what is read, how it is divided, what is refused, and what the datasets yield."""

import concurrent.futures
import shutil
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from kerastl.data import images as image_files
from kerastl.data.batches import find_source
from kerastl.data.folders import load_images
from kerastl.errors import ArgumentError, DataError, KerastlError, KerastlWarning

# Most folders here hold few images, about which `load_images` rightly warns.
pytestmark = pytest.mark.filterwarnings("ignore:Classes with fewer than 10 images")
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _seeded():
    """Stands in for the shared fixture, whose clearing of Keras's state the tests here don't need."""
    keras.utils.set_random_seed(0)


def write_image(path, seed, size=(14, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_classes(folder, counts, first_seed=0):
    seed = first_seed
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            write_image(folder / name / f"{number:03d}.png", seed)
            seed += 1
    return folder


@pytest.fixture
def flowers(tmp_path):
    return write_classes(tmp_path / "my flowers", {"tulipán": 12, "daisy": 20, "old rose": 16})


def load(source, **options):
    return load_images(source, **{"image_size": 8, "batch_size": 4, "verbose": 0, **options})


def labels_of(dataset):
    return np.concatenate([labels.numpy() for _, labels in dataset])


def images_of(dataset):
    return np.concatenate([images.numpy() for images, _ in dataset])


def test_a_folder_of_class_folders(flowers):
    data = load(flowers)
    assert data.class_names == ("daisy", "old rose", "tulipán")
    assert data.class_counts == {"daisy": 20, "old rose": 16, "tulipán": 12}
    assert data.split_sizes == {"train": 34, "validation": 7, "test": 7}
    assert (data.image_size, data.resize, data.seed, data.name) == ((8, 8), "squash", 0, "my flowers")
    files = [file for split in SPLITS for file in data.files[split]]
    assert sorted(files) == sorted(str(path) for path in flowers.rglob("*.png"))
    for split in SPLITS:
        labels = find_source(getattr(data, split)).labels
        for file, label in zip(data.files[split], labels, strict=True):
            assert Path(file).parent.name == data.class_names[label]


def test_what_a_dataset_yields(flowers):
    data = load(flowers, image_size=(6, 9))
    assert find_source(data.train).batch_size == 4
    images, labels = data.train.element_spec
    assert (images.shape.as_list(), images.dtype.name) == ([None, 6, 9, 3], "uint8")
    assert (labels.shape.as_list(), labels.dtype.name) == ([None], "int32")
    assert int(data.train.cardinality()) == 9
    assert sum(len(labels) for _, labels in data.train) == 34


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_source_and_dataset_hold_the_same_images(flowers, resize):
    data = load(flowers, resize=resize)
    for split in ("validation", "test"):
        dataset = getattr(data, split)
        source = find_source(dataset)
        assert source.image_size == (8, 8)
        assert not source.shuffles
        np.testing.assert_array_equal(labels_of(dataset), source.labels)
        np.testing.assert_array_equal(images_of(dataset), [source.read(index) for index in range(len(source))])


def test_training_images_are_shuffled_anew_each_epoch_and_repeatably(flowers):
    first, second = load(flowers), load(flowers)
    epochs = [images_of(first.train) for _ in range(2)]
    keras.utils.set_random_seed(0)
    again = [images_of(second.train) for _ in range(2)]
    np.testing.assert_array_equal(epochs, again)
    assert (epochs[0] != epochs[1]).any()
    source = find_source(first.train)
    assert source.shuffles
    everything = sorted(source.read(index).tobytes() for index in range(len(source)))
    assert sorted(image.tobytes() for image in epochs[1]) == everything


def test_without_shuffling_the_order_is_fixed_and_mixed(flowers):
    data = load(flowers, shuffle=False)
    source = find_source(data.train)
    assert not source.shuffles
    np.testing.assert_array_equal(labels_of(data.train), source.labels)
    np.testing.assert_array_equal(labels_of(data.train), labels_of(data.train))
    assert (np.diff(source.labels) < 0).any()


def test_the_seed_decides_the_split(flowers):
    first, again, other = load(flowers, seed=1), load(flowers, seed=1), load(flowers, seed=2)
    assert first.files == again.files
    assert set(first.files["test"]) != set(other.files["test"])


def test_shares_can_be_set_and_left_out(flowers):
    data = load(flowers, validation=0.25, test=0)
    assert data.split_sizes == {"train": 36, "validation": 12}
    assert data.test is None
    data = load(flowers, validation=0, test=0)
    assert (data.validation, data.test, data.split_sizes) == (None, None, {"train": 48})


def identities(data):
    return [find_source(getattr(data, split)).identity for split in SPLITS]


def test_identity_follows_contents_and_settings(flowers, tmp_path):
    before = identities(load(flowers))
    assert identities(load(flowers)) == before
    assert len(set(before)) == 3
    moved = shutil.copytree(flowers, tmp_path / "moved")
    assert identities(load(moved)) == before
    for other in ({"image_size": 9}, {"image_size": (8, 9)}, {"resize": "crop"}, {"seed": 5}):
        assert not set(identities(load(flowers, **other))) & set(before)
    write_image(flowers / "daisy" / "000.png", 999)
    assert sum(old != new for old, new in zip(before, identities(load(flowers)), strict=True)) == 1


def test_identity_follows_labels(tmp_path):
    one = write_classes(tmp_path / "one", {"a": 5, "b": 5})
    other = tmp_path / "other"
    shutil.copytree(one / "a", other / "b")
    shutil.copytree(one / "b", other / "a")
    assert identities(load(one)) != identities(load(other))


def test_sources_can_be_read_by_several_threads(flowers):
    source = find_source(load(flowers).train)
    alone = [source.read(index) for index in range(len(source))]
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        together = list(executor.map(source.read, [*range(len(source))] * 5))
    np.testing.assert_array_equal(together, alone * 5)


def test_keras_trains_on_it(flowers):
    data = load(flowers)
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling2D()(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(data.train, validation_data=data.validation, epochs=2, shuffle=False, verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()
    assert model.predict(data.test, verbose=0).shape == (7, 3)


def test_copies_never_land_in_different_splits(flowers):
    for number in range(6):
        shutil.copy(flowers / "daisy" / "003.png", flowers / "daisy" / f"copy {number}.png")
    for seed in range(8):
        data = load(flowers, seed=seed)
        holding = [
            split
            for split in SPLITS
            if any("copy" in file or Path(file).parts[-2:] == ("daisy", "003.png") for file in data.files[split])
        ]
        assert len(holding) == 1


def test_one_image_under_two_classes_is_named(flowers):
    shutil.copy(flowers / "daisy" / "003.png", flowers / "old rose" / "again.png")
    with pytest.warns(KerastlWarning, match=r"different classes \(1\): .*003\.png = .*again\.png") as caught:
        data = load(flowers)
    assert caught[0].filename == __file__
    same = (str(flowers / "daisy" / "003.png"), str(flowers / "old rose" / "again.png"))
    holding = {split for split in SPLITS for file in data.files[split] if file in same}
    assert len(holding) == 1


@pytest.mark.filterwarnings("error")
def test_few_images_are_warned_of(tmp_path):
    folder = write_classes(tmp_path / "few", {"many": 10, "some": 9, "rare": 3})
    with pytest.warns(KerastlWarning, match=r"fewer than 10 images: rare \(3\), some \(9\)\. "):
        load(folder)


def test_hidden_and_other_files_are_left_out(flowers):
    for name in (".DS_Store", "Thumbs.db", "daisy/.DS_Store", "daisy/Thumbs.db", "daisy/._000.png"):
        (flowers / name).write_bytes(b"left by the system")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (flowers / name).mkdir()
        (flowers / name / "x.png").write_bytes(b"no image")
    (flowers / "daisy" / "notes.txt").write_text("a note")
    (flowers / "tulipán" / "LICENSE").write_text("a licence")
    data = load(flowers)
    assert data.class_counts == {"daisy": 20, "old rose": 16, "tulipán": 12}
    left = {".DS_Store": 2, ".ipynb_checkpoints": 1, "Thumbs.db": 2, "__MACOSX": 1, "dot files": 1}
    assert data.ignored == {".txt": 1, "without ending": 1, **left}
    said = "1 .ipynb_checkpoints, 1 .txt, 2 Thumbs.db, 1 __MACOSX, 1 dot files, 1 without ending"
    assert f"Other files, ignored: 2 .DS_Store, {said}" in data.summary()


def test_hidden_folders_beside_splits_are_counted_once(come_split):
    for name in (".ipynb_checkpoints", "train/.ipynb_checkpoints", "train/cat/.ipynb_checkpoints", "val/@eaDir"):
        (come_split / name).mkdir()
    data = load(come_split)
    assert data.ignored == {".ipynb_checkpoints": 3, "@eaDir": 1}
    assert data.split_sizes == {"train": 20, "validation": 5, "test": 6}


def test_photographs_in_formats_that_cannot_be_read_are_warned_of(flowers):
    (flowers / "daisy" / "IMG_1.NEF").write_bytes(b"II*\0")
    with pytest.warns(KerastlWarning, match=r"can't be read: 1 \.nef\. Convert them to JPEG or PNG") as caught:
        data = load(flowers)
    assert len(caught) == 1
    assert data.ignored == {".nef": 1}
    labels = flowers / "labels.csv"
    rows = [f"{path.relative_to(flowers)},{path.parent.name}\n" for path in sorted(flowers.rglob("*.png"))]
    labels.write_text("file,label\n" + "".join(rows), encoding="utf-8")
    with pytest.warns(KerastlWarning, match=r"can't be read: 1 \.nef\."):
        assert load(flowers, labels=labels).ignored == {".nef": 1, ".csv": 1}


def test_files_without_a_known_ending_are_taken_by_their_content(flowers):
    first = flowers / "daisy" / "000.png"
    first.rename(flowers / "daisy" / "000")
    (flowers / "daisy" / "001.png").rename(flowers / "daisy" / "001.JPG_large")
    assert load(flowers).class_counts == {"daisy": 20, "old rose": 16, "tulipán": 12}
    shutil.copy(flowers / "daisy" / "000", flowers / "stray")
    with pytest.warns(KerastlWarning, match=r"in no class folder, are left out \(1\): .*stray"):
        load(flowers)


def write_twelve_bits(folder, top=4000):
    """Two classes of images of one shade each, 100, 200, … and once `top`, in files of 16 bits and one of 8."""
    for number, value in enumerate([*range(100, 1300, 100), top]):
        path = folder / f"class {number % 2}" / f"{number:02d}.{('png', 'tif')[number % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(path)
    Image.new("L", (8, 8), 100).save(folder / "class 0" / "eight bits.png")
    return folder


@pytest.mark.parametrize(("top", "white"), [(4000, 4095), (60000, 65535)])
def test_one_white_is_decided_for_all_images_and_told(tmp_path, top, white):
    folder = write_twelve_bits(tmp_path / "cells", top)
    with pytest.warns(KerastlWarning) as caught:
        data = load(folder)
    told = f"Images of more than 8 bits a channel (13) use 0–{white}: their largest value is {top}, in {folder}"
    assert sum(str(one.message).startswith(told) for one in caught) == 1
    assert data.white == white
    assert f"Of more than 8 bits a channel, 0–{white} became 0–255" in data.summary()
    for split in SPLITS:
        source, pixels = find_source(getattr(data, split)), images_of(getattr(data, split))
        shades = {}
        for index, file in enumerate(data.files[split]):
            value = np.asarray(Image.open(file))[0, 0]
            shades[file] = 100 if "eight bits" in file else round(float(value) * 255 / white)
            assert (source.read(index) == shades[file]).all()
        assert sorted(pixels[:, 0, 0, 0]) == sorted(shades.values())


@pytest.mark.filterwarnings("ignore:Images of more than 8 bits")
def test_white_is_part_of_the_identity(tmp_path):
    kept, other = write_twelve_bits(tmp_path / "a"), write_twelve_bits(tmp_path / "b", 60000)
    for folder in (kept, other):  # the same training files, only the one that decides lies elsewhere
        (folder / "train").mkdir()
        (folder / "test" / "class 0").mkdir(parents=True)
        for name in ("class 0", "class 1"):
            (folder / name).rename(folder / "train" / name)
        (folder / "test" / "class 1").mkdir()
        (folder / "train" / "class 0" / "12.tif").rename(folder / "test" / "class 0" / "12.tif")
    one, same, another = (find_source(load(folder, validation=0).train).identity for folder in (kept, kept, other))
    assert one == same
    assert one != another


def test_eight_bits_say_nothing_of_white(flowers):
    data = load(flowers)
    assert data.white is None
    assert "8 bits" not in data.summary()


def test_floats_beside_integers_and_impossible_values_are_refused(tmp_path):
    folder = write_twelve_bits(tmp_path / "cells")
    odd = folder / "class 0" / "odd.tif"
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(odd)
    with pytest.raises(DataError, match="Images of floats and of 16-bit integers can't be scaled alike"):
        load(folder)
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(odd)
    with pytest.raises(DataError, match=r"1 file can't be read:\n.*odd\.tif: its pixels lie outside 0–65535"):
        load(folder)


def test_nested_folders_are_walked(tmp_path):
    folder = write_classes(tmp_path / "deep", {"a/2023": 4, "a/2024/may": 4, "b": 8})
    data = load(folder)
    assert data.class_counts == {"a": 8, "b": 8}


def damage(flowers):
    bad = [flowers / "daisy" / "text.png", flowers / "old rose" / "cut.jpg", flowers / "tulipán" / "empty.gif"]
    bad[0].write_text("this is a text")
    whole = write_image(flowers / "old rose" / "whole.jpg", 500, (200, 200)).read_bytes()
    bad[1].write_bytes(whole[: len(whole) * 2 // 3])
    bad[2].write_bytes(b"")
    return bad


def test_unreadable_files_are_listed_by_path(flowers):
    bad = damage(flowers)
    with pytest.raises(DataError, match="3 files can't be read") as caught:
        load(flowers)
    assert all(str(path) in str(caught.value) for path in bad)
    assert "skip_unreadable=True" in str(caught.value)


def test_unreadable_files_are_skipped_with_a_warning_when_told(flowers):
    bad = damage(flowers)
    with pytest.warns(KerastlWarning, match="3 files can't be read") as caught:
        data = load(flowers, skip_unreadable=True)
    assert all(str(path) in str(caught[0].message) for path in bad)
    assert sorted(data.skipped) == sorted(map(str, bad))
    assert data.class_counts == {"daisy": 20, "old rose": 17, "tulipán": 12}
    assert "Unreadable and skipped: 3" in repr(data)
    assert len(labels_of(data.train)) == data.split_sizes["train"]


def test_a_long_list_of_unreadable_files_is_cut(flowers):
    for number in range(30):
        (flowers / "daisy" / f"bad {number}.png").write_bytes(b"no")
    with pytest.raises(DataError, match="and 10 more"):
        load(flowers)


def test_a_class_of_which_nothing_is_readable_is_an_error(flowers):
    for path in (flowers / "daisy").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(DataError, match=r"without readable images: .*daisy"):
        load(flowers, skip_unreadable=True)


@pytest.fixture
def come_split(tmp_path):
    folder = tmp_path / "split"
    write_classes(folder / "train", {"cat": 12, "dog": 8})
    write_classes(folder / "val", {"cat": 3, "dog": 2}, first_seed=100)
    write_classes(folder / "test", {"cat": 2, "dog": 4}, first_seed=200)
    return folder


def test_a_folder_that_comes_split_is_used_as_it_is(come_split):
    data = load(come_split)
    assert data.class_names == ("cat", "dog")
    assert data.split_sizes == {"train": 20, "validation": 5, "test": 6}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert sorted(data.files[split]) == sorted(str(path) for path in (come_split / name).rglob("*.png"))


def test_a_missing_validation_part_is_taken_from_training(come_split):
    shutil.rmtree(come_split / "val")
    assert load(come_split).split_sizes == {"train": 17, "validation": 3, "test": 6}
    assert load(come_split, validation=0.25).split_sizes == {"train": 15, "validation": 5, "test": 6}
    assert load(come_split, validation=0).split_sizes == {"train": 20, "test": 6}


def test_a_missing_test_part_is_only_taken_when_told(come_split):
    shutil.rmtree(come_split / "test")
    assert load(come_split).test is None
    assert load(come_split, test=0.25).split_sizes == {"train": 15, "validation": 5, "test": 5}


def test_training_images_alone_are_divided_in_three(come_split):
    shutil.rmtree(come_split / "test")
    shutil.rmtree(come_split / "val")
    assert load(come_split).split_sizes == {"train": 14, "validation": 3, "test": 3}


def test_shares_for_parts_that_are_there_are_refused(come_split):
    with pytest.raises(ArgumentError, match=r"its own validation images.*validation=0\.2"):
        load(come_split, validation=0.2)
    with pytest.raises(ArgumentError, match="its own test images"):
        load(come_split, test=0)


def test_copies_across_parts_that_came_split_are_named(come_split):
    shutil.copy(come_split / "train" / "cat" / "001.png", come_split / "test" / "cat" / "leak.png")
    with pytest.warns(KerastlWarning, match=r"different splits \(1\): .*001\.png = .*leak\.png"):
        load(come_split)


def test_a_class_that_training_lacks_is_named(come_split):
    write_classes(come_split / "test", {"bird": 2})
    with pytest.raises(DataError, match="the training images lack: 'bird'"):
        load(come_split)


def test_a_test_folder_without_classes_is_an_error(come_split):
    shutil.rmtree(come_split / "test")
    write_image(come_split / "test" / "one.png", 1)
    with pytest.raises(DataError, match=r"without readable images: .*test"):
        load(come_split)


def test_an_empty_part_is_an_error(come_split):
    shutil.rmtree(come_split / "test")
    (come_split / "test").mkdir()
    with pytest.raises(DataError, match=r"without readable images: .*test"):
        load(come_split)


def test_folders_beside_the_parts_are_an_error(come_split):
    write_classes(come_split, {"bird": 2})
    with pytest.raises(DataError, match="also holds 'bird'"):
        load(come_split)


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Valid", "TEST"),
        ("training", "validation", "testing"),
        ("training_set", "eval-set", "holdout"),
        ("train2017", "val2017", "test2017"),
        ("flowers-train", "flowers-val", "flowers-test"),
        ("01 Training images", "02 Dev images", "03 Test images"),
    ],
)
def test_splits_are_told_by_many_names_and_said(tmp_path, names, capsys):
    for seed, (name, count) in enumerate(zip(names, (10, 2, 3), strict=True)):
        write_classes(tmp_path / "data" / name, {"cat": count, "dog": count}, first_seed=100 * seed)
    data = load(tmp_path / "data", verbose=1)
    assert data.split_sizes == {"train": 20, "validation": 4, "test": 6}
    train, validation, test = names
    assert f"Took {train}/ as train, {validation}/ as validation, {test}/ as test" in capsys.readouterr().out


def test_names_that_only_hold_such_words_are_classes(tmp_path):
    folder = write_classes(tmp_path / "things", {"test_tube": 5, "train_station": 5, "valve": 5})
    assert load(folder).class_names == ("test_tube", "train_station", "valve")


def test_unlabelled_images_beside_splits_are_left_out_aloud(come_split):
    write_classes(come_split / "unlabeled", {"some": 3})
    with pytest.warns(KerastlWarning, match=r"unlabeled holds images without labels, and is left out"):
        assert load(come_split).split_sizes == {"train": 20, "validation": 5, "test": 6}


def test_splits_inside_the_classes_are_refused_with_the_place_for_them(tmp_path):
    for seed, name in enumerate(("cat", "dog")):
        write_classes(tmp_path / "data" / name, {"train": 4, "test": 2}, first_seed=100 * seed)
    with pytest.raises(DataError, match=r"cat holds splits itself \(test, train\).*put the split above it") as caught:
        load(tmp_path / "data")
    wanted = str(tmp_path / "data" / "train" / "cat")
    assert wanted in str(caught.value)
    for name in ("cat", "dog"):  # what the message says is done
        for split in ("train", "test"):
            (tmp_path / "data" / split).mkdir(exist_ok=True)
            (tmp_path / "data" / name / split).rename(tmp_path / "data" / split / name)
        (tmp_path / "data" / name).rmdir()
    assert load(tmp_path / "data", validation=0).split_sizes == {"train": 8, "test": 4}


def test_both_names_of_validation_are_an_error(come_split):
    write_classes(come_split / "validation", {"cat": 2, "dog": 2})
    with pytest.raises(DataError, match="Two folders are both the validation split"):
        load(come_split)


def test_a_class_may_be_called_train(tmp_path):
    folder = write_classes(tmp_path / "vehicles", {"train": 5, "bus": 5})
    assert load(folder).class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "holds no class folders"),
        ({"a": 0, "b": 0}, "without readable images: .*a, .*b"),
        ({"only": 5}, "needs two classes or more.* holds 'only'"),
        ({"a": 9, "b": 0}, "without readable images: .*b"),
        ({"a": 9, "b": 1}, r"at least 3 different images.*\{'b': 1\}"),
        ({"a": 9, "b": 2}, r"at least 3 different images.*\{'b': 2\}"),
    ],
)
def test_too_little_is_an_error(tmp_path, counts, message):
    folder = tmp_path / "little"
    folder.mkdir()
    with pytest.raises(DataError, match=message):
        load(write_classes(folder, counts))


def test_images_outside_class_folders(tmp_path, flowers):
    loose = tmp_path / "loose"
    write_image(loose / "one.png", 1)
    with pytest.raises(DataError, match="holds no class folders"):
        load(loose)
    write_image(flowers / "stray.png", 1)
    with pytest.warns(KerastlWarning, match=r"in no class folder, are left out \(1\): .*stray\.png"):
        assert sum(load(flowers).split_sizes.values()) == 48


def test_sources_that_are_not_there(flowers, tmp_path):
    with pytest.raises(DataError, match=r"There is no folder .*Did you mean 'my flowers'"):
        load(tmp_path / "my flower")
    archive = tmp_path / "flowers.zip"
    archive.write_bytes(b"PK")
    with pytest.raises(DataError, match="unpack archives first"):
        load(archive)
    for wrong in (7, None, ""):
        with pytest.raises(ArgumentError, match="`source` must be a folder, 'flowers', 'elpv', 'demo' or 'tfds:NAME'"):
            load(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"image_size": (8, 8, 3)},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"seed": -1},
        {"seed": None},
        {"resize": "stretch"},
        {"validation": 1},
        {"validation": -0.1},
        {"test": 1.5},
        {"test": "0.2"},
        {"test": True},
        {"validation": 0.5, "test": 0.5},
    ],
)
def test_arguments_are_checked_before_anything_is_read(wrong, tmp_path):
    with pytest.raises(ArgumentError) as caught:
        load(tmp_path / "nowhere", **wrong)
    assert next(iter(wrong)) in str(caught.value)


def test_shares_that_leave_nothing_to_train_on_with_a_default(flowers):
    with pytest.raises(ArgumentError, match=r"validation=0\.9, test=0\.15"):
        load(flowers, validation=0.9)


def test_the_table(flowers):
    lines = load(flowers).summary().splitlines()
    assert lines[0] == "my flowers: 48 images, 3 classes; 8×8 pixels (height×width, 'squash'), seed 0"
    assert ["daisy", "14", "3", "3", "20"] in [line.split() for line in lines]
    assert lines[-1].split() == ["total", "34", "7", "7", "48"]
    assert "<td" in load(flowers)._repr_html_()


def test_many_classes_make_a_short_table(tmp_path):
    folder = write_classes(tmp_path / "many", {f"class {number:02d}": 3 for number in range(40)})
    text = load(folder).summary()
    assert "… 11 more" in text
    assert "class 35" not in text
    assert len(text.splitlines()) < 40


def test_a_file_that_vanishes_is_named(flowers):
    data = load(flowers)
    shutil.rmtree(flowers)
    with pytest.raises(KerastlError, match=r"\.png: No such file"):
        find_source(data.test).read(0)


def test_progress_shows_when_it_takes_long_and_not_when_quiet(capsys, monkeypatch):
    monkeypatch.setattr(image_files, "_SECONDS_BEFORE_PROGRESS", 0.0)

    def slowly(item):
        time.sleep(0.01)
        return item * 2

    assert image_files.look_at_all(slowly, range(5), verbose=0) == [0, 2, 4, 6, 8]
    assert capsys.readouterr().out == ""
    assert image_files.look_at_all(slowly, range(5), verbose=1) == [0, 2, 4, 6, 8]
    assert "5/5" in capsys.readouterr().out
    monkeypatch.setattr(image_files, "_SECONDS_BEFORE_PROGRESS", 60.0)
    image_files.look_at_all(slowly, range(5), verbose=1)
    assert capsys.readouterr().out == ""


def test_stopping_early_does_not_wait_for_what_is_queued():
    started = time.monotonic()
    results = image_files.in_threads(lambda item: time.sleep(0.02), range(5000), ahead=5000)
    next(results)
    results.close()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("names", [("TrainingSet", "TestSet"), ("trainset", "valset"), ("trainval", "test")])
def test_names_of_splits_may_be_written_in_one_word(names, tmp_path):
    for name in names:
        for label in ("a", "b"):
            write_classes(tmp_path / name, {label: 4}, first_seed=100 * len(name) + 10 * ord(label))
    data = load(tmp_path)
    assert data.class_names == ("a", "b")
    assert data.split_sizes["validation" if names[1] == "valset" else "test"] == 8


def test_splits_without_training_images_are_refused_with_both_readings(tmp_path):
    for name in ("val", "test"):
        write_classes(tmp_path / name, {"a": 2})
    with pytest.raises(
        DataError, match=r"holds test and val, but no images to train on.*a folder `train`; if they are classes"
    ):
        load(tmp_path)


def test_class_names_that_look_alike_are_refused(tmp_path):
    for name in ("caf\u00e9", "cafe\u0301"):
        write_classes(tmp_path, {name: 2})
    with pytest.raises(DataError, match=r"Two class names look alike.*Rename the folder"):
        load(tmp_path)
