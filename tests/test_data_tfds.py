"""Data sets of TensorFlow Datasets: their splits, reading by index, and what happens when they can't be had."""

import warnings

import numpy as np
import pytest

from kerastl.data.batches import find_source
from kerastl.data.folders import load_images
from kerastl.errors import ArgumentError, DataError, KerastlWarning, OutputError

try:  # protobuf and tensorflow-metadata may not fit each other, as on Colab
    import tensorflow_datasets.public_api as tfds

    from kerastl.data import tfds as tfds_data
except Exception as error:
    pytest.skip(f"TensorFlow Datasets can't be imported: {error}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:Classes with fewer than 10 images")
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0)}


@pytest.fixture(autouse=True)
def _seeded():
    """Stands in for the shared fixture, whose clearing of Keras's state no test here needs."""


def examples(count: int, first: int = 0):
    """Yield blue and green pictures in turn, each its own shade."""
    for number in range(first, first + count):
        name = list(COLOURS)[number % 2]
        image = np.full((6, 8, 3), COLOURS[name], np.uint8)
        image[..., 0] = number
        yield number, {"image": image, "label": name}


class Painted(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A base for tiny builders: `splits` says how many images each split holds."""

    VERSION = tfds.core.Version("1.2.0")
    splits: dict[str, int] = {}  # noqa: RUF012  each builder below sets its own

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": self.label_feature()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), license="CC0")

    def label_feature(self):
        return tfds.features.ClassLabel(names=list(COLOURS))

    def _split_generators(self, dl_manager):
        starts = np.cumsum([0, *self.splits.values()])
        return {
            name: self._generate_examples(count, int(start))
            for (name, count), start in zip(self.splits.items(), starts, strict=False)
        }

    def _generate_examples(self, count, first):
        yield from examples(count, first)


class PaintedWhole(Painted, skip_registration=True):
    splits = {"train": 40}  # noqa: RUF012


class PaintedSplit(Painted, skip_registration=True):
    splits = {"train": 24, "test": 10}  # noqa: RUF012


class PaintedOddly(Painted, skip_registration=True):
    splits = {"part_a": 6, "part_b": 6}  # noqa: RUF012


class PaintedSecretly(Painted, skip_registration=True):
    """Its test images have no labels, as in contests."""

    splits = {"train": 24, "test": 10}  # noqa: RUF012

    def _generate_examples(self, count, first):
        for number, example in examples(count, first):
            yield number, example if first == 0 else {**example, "label": -1}


class PaintedInNumbers(Painted, skip_registration=True):
    splits = {"train": 6}  # noqa: RUF012

    def label_feature(self):
        return tfds.features.Scalar(np.float32)

    def _generate_examples(self, count, first):
        for number, example in examples(count, first):
            yield number, {**example, "label": 0.5}


class PaintedInTwelveBits(Painted, skip_registration=True):
    """Pictures of 100, 200, … in files of 16 bits."""

    splits = {"train": 40}  # noqa: RUF012
    dtype = np.uint16

    def _info(self):
        image = tfds.features.Image(shape=(6, 8, 1), dtype=self.dtype)
        features = tfds.features.FeaturesDict({"image": image, "label": self.label_feature()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self, count, first):
        for number in range(count):
            image = np.full((6, 8, 1), 100 * (number + 1), self.dtype)
            yield number, {"image": image, "label": list(COLOURS)[number % 2]}


class PaintedInFloats(PaintedInTwelveBits, skip_registration=True):
    dtype = np.float32


class PaintedNowhere(Painted, skip_registration=True):
    splits = {"train": 6}  # noqa: RUF012

    def _split_generators(self, dl_manager):
        raise ConnectionError("no route to images.example")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`load_images` of a builder class, prepared in a folder of the test's own, by its registered name."""

    def load_builder(builder_class, **options):
        def find(name, data_dir=None, try_gcs=False):
            assert name == builder_class.name
            assert not try_gcs
            return builder_class(data_dir=data_dir)

        monkeypatch.setattr(tfds, "builder", find)
        options = {"image_size": (6, 8), "batch_size": 4, "verbose": 0, "data_dir": tmp_path, **options}
        return load_images(f"tfds:{builder_class.name}", **options)

    return load_builder


def check_colours(data):
    """Hold that every image that the sources and the datasets yield has the colour that its label says."""
    for split in data.split_sizes:
        dataset = getattr(data, split)
        source = find_source(dataset)
        for index, label in enumerate(source.labels):
            assert tuple(source.read(index)[0, 0, 1:]) == COLOURS[data.class_names[label]][1:]
        shades = sorted(int(image[0, 0, 0]) for images, _ in dataset for image in images.numpy())
        assert shades == sorted(int(source.read(index)[0, 0, 0]) for index in range(len(source)))


def test_a_data_set_with_one_split_is_divided_in_three(load):
    data = load(PaintedWhole)
    assert data.class_names == ("blue", "green")
    assert data.split_sizes == {"train": 28, "validation": 6, "test": 6}
    assert (data.name, data.licence) == ("tfds:painted_whole/1.2.0", "CC0")
    check_colours(data)
    shades = [find_source(getattr(data, split)).read(0)[0, 0, 0] for split in data.split_sizes]
    assert len(set(shades)) == 3
    assert load(PaintedWhole).files == data.files
    assert set(load(PaintedWhole, seed=1).files["test"]) != set(data.files["test"])


def test_a_data_set_that_comes_split_is_used_as_it_is(load):
    data = load(PaintedSplit)
    assert data.split_sizes == {"train": 20, "validation": 4, "test": 10}
    check_colours(data)
    test = find_source(data.test)
    assert {int(test.read(index)[0, 0, 0]) for index in range(10)} == set(range(24, 34))
    with pytest.raises(ArgumentError, match="its own test images"):
        load(PaintedSplit, test=0.2)


def test_array_records_and_tf_records_are_the_same_data(load, tmp_path):
    pytest.importorskip("array_record")
    usual = load(PaintedSplit)
    assert list(tmp_path.rglob("*.tfrecord-*"))
    PaintedSplit(data_dir=tmp_path / "other").download_and_prepare(file_format="array_record")
    other = load(PaintedSplit, data_dir=tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*.tfrecord-*"))
    check_colours(other)
    for split in ("train", "validation", "test"):
        one, same = find_source(getattr(usual, split)), find_source(getattr(other, split))
        assert one.identity == same.identity
        np.testing.assert_array_equal(one.labels, same.labels)


def test_data_that_tfds_prepared_itself_is_read_in_its_order(load, tmp_path):
    builder = PaintedSplit(data_dir=tmp_path)
    builder.download_and_prepare()
    expected = [int(example["image"][0, 0, 0]) for example in tfds.as_numpy(builder.as_dataset(split="test"))]
    source = find_source(load(PaintedSplit).test)
    assert [int(source.read(index)[0, 0, 0]) for index in range(10)] == expected


@pytest.mark.parametrize("cut", [5, 200])
def test_a_record_file_that_is_cut_short(load, tmp_path, cut):
    load(PaintedWhole)
    path = next(tmp_path.rglob("*.tfrecord-*"))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"cut short\. Delete its folder"):
        load(PaintedWhole)


def test_a_record_file_that_lacks_records(load, tmp_path):
    load(PaintedWhole)
    next(tmp_path.rglob("*.tfrecord-*")).write_bytes(b"")
    with pytest.raises(DataError, match="are damaged"):
        load(PaintedWhole)


def test_a_record_that_is_damaged(load, tmp_path):
    load(PaintedWhole)
    path = next(tmp_path.rglob("*.tfrecord-*"))
    data = bytearray(path.read_bytes())
    data[12:60] = b"\xff" * 48
    path.write_bytes(data)
    with pytest.raises(DataError, match="A record of the data set is damaged"):
        load(PaintedWhole)


def test_a_split_without_labels_is_left_out_aloud(load):
    with pytest.warns(KerastlWarning, match=r"'test' of tfds:painted_secretly/1\.2\.0 has no labels"):
        data = load(PaintedSecretly)
    assert data.split_sizes == {"train": 17, "validation": 4, "test": 3}  # out of the training images
    check_colours(data)


def test_what_cannot_be_used_is_said(load):
    with pytest.raises(DataError, match=r"no 'train' split.*part_a"):
        load(PaintedOddly)
    with pytest.raises(DataError, match="needs one image and one class label"):
        load(PaintedInNumbers)


def test_a_failed_download_says_what_failed_and_leaves_nothing(load, tmp_path):
    with pytest.raises(DataError, match=r"painted_nowhere.*failed\. ConnectionError: no route to images\.example"):
        load(PaintedNowhere)
    assert not list(tmp_path.rglob("dataset_info.json"))
    assert not list(tmp_path.rglob("*incomplete*"))


def test_a_data_dir_that_cannot_be_written(load, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(OutputError, match="taken"):
        load(PaintedWhole, data_dir=taken)


def test_another_process_may_have_been_faster(tmp_path):
    class Overtaken(PaintedWhole, skip_registration=True):
        def _split_generators(self, dl_manager):
            Winner(data_dir=tmp_path).download_and_prepare()
            return super()._split_generators(dl_manager)

    class Winner(PaintedWhole, skip_registration=True):
        name = "overtaken"

    builder = tfds_data.prepare(Overtaken(data_dir=tmp_path), verbose=0)
    catalogue = tfds_data.catalogue_builder(builder, verbose=0)
    assert len(catalogue.images) == 40
    assert not list(tmp_path.rglob("*incomplete*"))


def test_unknown_names_get_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r"knows no data set 'tf_flower'\. Did you mean 'tf_flowers'"):
        load_images("tfds:tf_flower", image_size=8, data_dir=tmp_path)
    with pytest.raises(DataError, match="tfds:mnist/nonesuch can't be set up"):
        load_images("tfds:mnist/nonesuch", image_size=8, data_dir=tmp_path)


def test_quiet_means_quiet_and_the_bars_come_back(load, capsys):
    load(PaintedWhole, verbose=0)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert tfds.core.utils.tqdm_utils._active


def test_nothing_here_warns(load):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(PaintedWhole)


def test_images_of_sixteen_bits_have_one_white(load):
    with pytest.warns(
        KerastlWarning, match=r"8 bits a channel \(40\) use 0–4095: their largest value is 4000, in train\["
    ):
        data = load(PaintedInTwelveBits)
    assert data.white == 4095
    sources = [find_source(getattr(data, split)) for split in data.split_sizes]
    shades = sorted(int(source.read(index)[0, 0, 0]) for source in sources for index in range(len(source)))
    assert shades == [round(value * 255 / 4095) for value in range(100, 4100, 100)]


def test_images_of_floats_are_refused(load):  # TFDS stores their bytes as colors
    with pytest.raises(DataError, match=r"painted_in_floats/1\.2\.0 holds images of floats.*Write them to a folder"):
        load(PaintedInFloats)
