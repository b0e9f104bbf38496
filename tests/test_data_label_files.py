"""Labels files: how names, splits and labels are read, what is refused, and what the datasets yield."""

import keras
import numpy as np
import pytest

from kerastl.data.batches import find_source
from kerastl.data.folders import load_images
from kerastl.errors import ArgumentError, DataError, KerastlWarning
from tests.test_data_folders import images_of, labels_of, write_image

pytestmark = pytest.mark.filterwarnings("ignore:(Classes|Labels) with fewer than 10 images")
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _seeded():
    """Stands in for the shared fixture, whose clearing of Keras's state the tests here don't need."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def photos(tmp_path):
    """Thirty photographs, the last six in a folder below."""
    folder = tmp_path / "photos"
    for number in range(30):
        write_image(folder / ("more" if number >= 24 else "") / f"{number:02d}.png", number, size=(4, 4))
    return folder


NAMES = [f"{'more/' if number >= 24 else ''}{number:02d}.png" for number in range(30)]


def write(photos, header, rows, name="train.csv", separator=",", encoding="utf-8"):
    lines = [separator.join(map(str, row)) for row in [header, *rows]]
    (photos / name).write_text("\n".join(lines), encoding=encoding)
    return name


def load(photos, labels="train.csv", **options):
    return load_images(photos, labels=labels, **{"image_size": 4, "batch_size": 5, "verbose": 0, **options})


def labels_by_file(data):
    """Return the label of each file, whatever its split."""
    found = {}
    for split in data.split_sizes:
        for file, label in zip(data.files[split], find_source(getattr(data, split)).labels, strict=True):
            found[file.rpartition("/")[2]] = label.tolist()
    return found


def test_text_is_classes(photos):
    write(photos, ["filename", "label"], [(name, ["owl", "cat", "dog"][i % 3]) for i, name in enumerate(NAMES)])
    data = load(photos)
    assert (data.task, data.class_names) == ("classification", ("cat", "dog", "owl"))
    assert data.class_counts == {"cat": 10, "dog": 10, "owl": 10}
    assert data.split_sizes == {"train": 21, "validation": 5, "test": 4}
    assert labels_by_file(data) == {f"{i:02d}.png": [2, 0, 1][i % 3] for i in range(30)}
    labels = data.train.element_spec[1]
    assert (labels.shape.as_list(), labels.dtype.name) == ([None], "int32")
    for split in SPLITS:
        assert set(labels_of(getattr(data, split))) == {0, 1, 2}


@pytest.mark.parametrize("form", ["|", "columns", "booleans"])
def test_several_labels_an_image(photos, form):
    has = {name: {"sun": i % 2 == 0, "sea": i % 3 == 0, "bird": i in (1, 4, 9, 28)} for i, name in enumerate(NAMES)}
    if form == "|":
        rows = [(name, "|".join(label for label, one in known.items() if one)) for name, known in has.items()]
        write(photos, ["image", "shows"], rows)
        names = ("bird", "sea", "sun")
    else:
        values = {
            name: [one if form == "booleans" else int(one) for one in known.values()] for name, known in has.items()
        }
        write(photos, ["image", "sun", "sea", "bird"], [(name, *known) for name, known in values.items()])
        names = ("sun", "sea", "bird")
    data = load(photos)
    assert (data.task, data.class_names) == ("multi-label", names)
    assert data.class_counts == {"sun": 15, "sea": 10, "bird": 4}
    expected = {name.rpartition("/")[2]: [float(known[label]) for label in names] for name, known in has.items()}
    assert labels_by_file(data) == expected
    labels = data.train.element_spec[1]
    assert (labels.shape.as_list(), labels.dtype.name) == ([None, 3], "float32")
    for split in SPLITS:
        values = labels_of(getattr(data, split))
        np.testing.assert_array_equal(
            np.sort(values, axis=0), np.sort(find_source(getattr(data, split)).labels, axis=0)
        )
        assert values.any(axis=0).all(), "every split has every label"


def test_the_table_of_several_labels_counts_an_image_for_each(photos):
    write(photos, ["file", "a", "b"], [(name, 1, int(i < 15)) for i, name in enumerate(NAMES)])
    rows = [line.split() for line in str(load(photos, test=0)).splitlines()]
    assert rows[0][:5] == ["photos:", "30", "images,", "2", "labels;"]
    assert ["label", "train", "validation", "total"] in rows
    assert [row[-1] for row in rows if row[0] in ("a", "b", "total")] == ["30", "15", "30"]


def test_a_column_of_numbers_is_regression(photos):
    write(photos, ["path", "price"], [(name, i * 2.5 - 1) for i, name in enumerate(NAMES)])
    data = load(photos)
    assert (data.task, data.class_names, data.class_counts) == ("regression", ("price",), {"price": 30})
    assert labels_by_file(data) == {f"{i:02d}.png": i * 2.5 - 1 for i in range(30)}
    labels = data.train.element_spec[1]
    assert (labels.shape.as_list(), labels.dtype.name) == ([None], "float32")
    low, high = sorted(labels_of(data.train))[:7][-1], sorted(labels_of(data.train))[-7]
    for split in ("validation", "test"):
        assert min(labels_of(getattr(data, split))) < low
        assert max(labels_of(getattr(data, split))) > high
    rows = {line.split()[0]: line.split()[1:] for line in data.summary().splitlines()}
    assert rows["photos:"][:5] == ["30", "images,", "numbers", "of", "'price';"]
    assert (rows["mean"][-1], rows["smallest"][-1], rows["largest"][-1]) == ("35.25", "-1", "71.5")
    assert rows["total"][-1] == "30"


@pytest.mark.parametrize(
    ("column", "values", "task", "names"),
    [
        ("label", range(12), "classification", tuple(map(str, range(12)))),
        ("Class ID", [float(one) for one in range(12)], "classification", tuple(map(str, range(12)))),
        ("target", [1, -1], "classification", ("-1", "1")),
        ("categories", [1, 2, "unknown"], "classification", ("1", "2", "unknown")),
        ("age", range(12), "regression", ("age",)),
        ("label", [0.5, 0.25, 1], "regression", ("label",)),
        ("species", ["10_1", "10_2"], "classification", ("10_1", "10_2")),
        ("species", ["nan", "inf", "x", "y"], "classification", ("inf", "nan", "x", "y")),
    ],
)
def test_whole_numbers_are_classes_where_the_column_says_so(photos, column, values, task, names):
    write(photos, ["filename", column], [(name, list(values)[i % len(values)]) for i, name in enumerate(NAMES)])
    data = load(photos, validation=0, test=0)
    assert (data.task, data.class_names) == (task, names)
    if task == "classification":
        assert labels_by_file(data)["01.png"] == names.index(
            str(int(float(values[1]))) if "0" in names or "1" in names else values[1]
        )


@pytest.mark.parametrize(
    ("header", "values", "told"),
    [
        ("kind", ["cat", "dog"], "'kind' taken as classes (for several labels an image separate them by '|', for"),
        ("label", [0, 1], "numbers call the column 'value')."),
        ("value", [0, 1], "'value' taken as numbers to predict (for classes call the column 'label', and use whole"),
        (
            "has",
            ["a|b", "b"],
            "'has' taken as labels, several an image (for classes keep one column of names without",
        ),
        ("a,b", ["0,1", "1,1"], "2 columns taken as labels, several an image"),
    ],
)
def test_what_was_taken_as_what_is_told_once(photos, header, values, told, capsys):
    write(photos, ["filename", header, "set"], [(name, values[i % 2], "train") for i, name in enumerate(NAMES)])
    load(photos, verbose=1)
    printed = capsys.readouterr().out
    assert "train.csv: file names in 'filename', splits in 'set', " in printed
    assert told in printed
    load(photos, verbose=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("separator", "encoding", "name"),
    [(";", "utf-8-sig", "a.csv"), ("\t", "utf-8", "a.tsv"), (",", "utf-8-sig", "a.txt")],
)
def test_separators_and_encodings(photos, separator, encoding, name):
    rows = [(name, "cafè" if i % 2 else "mañana") for i, name in enumerate(NAMES)]
    write(photos, ["filename", "label"], [*rows[:9], ("", ""), *rows[9:]], name, separator, encoding)
    assert load(photos, name).class_names == ("cafè", "mañana")


def test_a_decimal_comma_beside_semicolons(photos):
    write(photos, ["file", "weight"], [(name, f"{i},5") for i, name in enumerate(NAMES)], separator=";")
    assert labels_by_file(load(photos))["07.png"] == 7.5


def test_quotes_and_the_row_numbers_that_pandas_writes(photos):
    rows = [(i, name, '"x, y"' if i % 2 else '"said ""z"""') for i, name in enumerate(NAMES)]
    write(photos, ["", "filename", "label"], rows)
    assert load(photos).class_names == ('said "z"', "x, y")


@pytest.mark.parametrize("form", ["text", "numbers", "lists", "booleans"])
def test_parquet(photos, form):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values, task = {
        "text": (["a", "b"] * 15, "classification"),
        "numbers": ([0.5, 1.5] * 15, "regression"),
        "lists": ([["a"], []] * 15, "multi-label"),
        "booleans": ([True, False] * 15, "multi-label"),
    }[form]
    columns = {"filename": NAMES, "first": values, **({"second": values} if form == "booleans" else {})}
    parquet.write_table(pyarrow.table(columns), photos / "labels.parquet")
    data = load(photos, "labels.parquet")
    assert data.task == task
    assert labels_by_file(data)["01.png"] == {"text": 1, "numbers": 1.5, "lists": [0.0], "booleans": [0.0, 0.0]}[form]
    (photos / "cut.parquet").write_bytes((photos / "labels.parquet").read_bytes()[:50])
    with pytest.raises(DataError, match=r"Can't read the labels file .*cut\.parquet"):
        load(photos, "cut.parquet")


def test_parquet_without_its_reader(photos, monkeypatch):
    (photos / "labels.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match="`pip install pyarrow`"):
        load(photos, "labels.parquet")


@pytest.mark.parametrize(
    "spell",
    [
        lambda name, folder: f"./{name}",
        lambda name, folder: name.replace("/", "\\"),
        lambda name, folder: f"photos/{name}",
        lambda name, folder: f"{folder}/{name}",
        lambda name, folder: f"../photos/{name}",
        lambda name, folder: name.removesuffix(".png"),
        lambda name, folder: name.rpartition("/")[2],
        lambda name, folder: name.rpartition("/")[2].removesuffix(".png"),
    ],
)
@pytest.mark.parametrize("column", ["Image_ID", "any"])
def test_file_names_of_every_form(photos, spell, column, monkeypatch):
    write(photos, [column, "label"], [(spell(name, photos), "ab"[i % 2]) for i, name in enumerate(NAMES)])
    expected = {f"{i:02d}.png": i % 2 for i in range(30)}
    assert labels_by_file(load(photos)) == expected
    monkeypatch.chdir(photos.parent)
    assert labels_by_file(load_images("photos", labels="photos/train.csv", image_size=4, verbose=0)) == expected


def test_the_file_at_the_very_path_is_meant_before_one_below(photos):
    write_image(photos / "more" / "00.png", 77, size=(4, 4))
    write(photos, ["filename", "label"], [(name, "ab"[i % 2]) for i, name in enumerate(NAMES)])
    with pytest.warns(KerastlWarning, match=r"1 images in .*photos are not listed in train\.csv, and left out"):
        data = load(photos)
    assert str(photos / "00.png") in [file for split in SPLITS for file in data.files[split]]


def test_composed_and_decomposed_names_are_the_same(photos):
    write_image(photos / "cafe\N{COMBINING ACUTE ACCENT}.png", 70, size=(4, 4))
    rows = [(name, "ab"[i % 2]) for i, name in enumerate([*NAMES, "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png"])]
    write(photos, ["filename", "label"], rows)
    assert sum(load(photos).split_sizes.values()) == 31


def test_a_column_of_splits(photos):
    parts = ["Training"] * 20 + ["val"] * 5 + ["holdout"] * 5
    rows = [(name, "ab"[i % 2], parts[i]) for i, name in enumerate(NAMES)]
    write(photos, ["filename", "label", "Split"], rows)
    data = load(photos)
    assert data.split_sizes == {"train": 20, "validation": 5, "test": 5}
    assert [file.rpartition("/")[2] for file in data.files["validation"]] == [
        "20.png",
        "21.png",
        "22.png",
        "23.png",
        "24.png",
    ]
    with pytest.raises(ArgumentError, match="comes with its own test images"):
        load(photos, test=0.1)


def test_copies_stay_together_and_a_row_given_twice_counts_once(photos):
    for number in range(8):
        (photos / f"copy{number}.png").write_bytes((photos / f"{number:02d}.png").read_bytes())
    names = [*NAMES, *(f"copy{number}.png" for number in range(8))]
    for values in ([f"{i % 8}.5" for i in range(38)], ["a|b" if i % 8 < 3 else "a" for i in range(38)]):
        rows = [(name, values[int(name[-6:-4].strip("y"))]) for name in names]
        write(photos, ["filename", "has"], [*rows, rows[0]])
        data = load(photos)
        assert sum(data.split_sizes.values()) == 38
        contents = {split: {image.tobytes() for image in images_of(getattr(data, split))} for split in SPLITS}
        assert sum(map(len, contents.values())) == 30


def test_identity_follows_labels_and_their_form(photos):
    seen = set()
    for header, values in (("label", ["1", "0"]), ("value", ["1", "0"]), ("value", ["1", "2"]), ("has", ["|", "a|"])):
        write(photos, ["filename", header], [(name, values[i % 2]) for i, name in enumerate(NAMES)])
        data = load(photos, validation=0, test=0)
        seen.add(find_source(data.train).identity)
        assert find_source(load(photos, validation=0, test=0).train).identity in seen
    assert len(seen) == 4


PAIRS = [(name, "ab"[i % 2]) for i, name in enumerate(NAMES)]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (
            ["filename", "label"],
            [*PAIRS, ("x.png", "a"), ("y", "b")],
            r"2 of the 32 rows of train\.csv\): row 32 \('x\.png'\), row 33 \('y'\)\. Correct or remove these rows",
        ),
        (
            ["label", "fname"],
            [(label, name) for name, label in PAIRS],
            r"30 of the 30 .*row 2 \('a'\), row 3 \('b'\), row 4 \('a'\) and 27 more\. .*'label' isn't the column",
        ),
        (
            ["filename", "label"],
            [*PAIRS, ("00.png", "b")],
            r"different labels or splits \(2 of the 31 .*row 2 \('00\.png'\), row 32 \('00\.png'\)\. Keep one row",
        ),
        (
            ["filename", "label", "split"],
            [*((*pair, "train") for pair in PAIRS), ("00.png", "a", "test")],
            r"row 32 \('00\.png'\)\. Keep one",
        ),
        (
            ["filename", "label", "split"],
            [(*pair, i) for i, pair in enumerate(PAIRS)],
            r"Not the name of a split .*row 2 \('0'\).*Write train, validation or test",
        ),
        (["filename", "label", "split"], [(*pair, "test") for pair in PAIRS], "no images of the split train"),
        (
            ["filename", "label"],
            [*PAIRS[:5], ("05.png", " "), *PAIRS[6:]],
            r"No label in the column 'label' \(1 of the 30 .*row 7 \(''\)\. Fill",
        ),
        (
            ["filename", "size"],
            [*((name, 2) for name in NAMES[:28]), (NAMES[28], "nan"), (NAMES[29], "n/a")],
            r"No finite number in the column 'size' .*row 30 \('nan'\), row 31 \('n/a'\).*call the column 'label'",
        ),
        (
            ["filename", "size"],
            [*((name, 2) for name in NAMES[:29]), (NAMES[29], "")],
            r"No label in the column 'size' .*row 31",
        ),
        (
            ["filename", "label", "width"],
            [(*pair, 640) for pair in PAIRS],
            r"Neither 0 nor 1 in the column 'label' .*row 2 \('a'\).*Keep one column of labels",
        ),
        (
            ["filename", "a", "b"],
            [(name, 1, 2 if name == "03.png" else 0) for name in NAMES],
            r"in the column 'b' \(1 of .*row 5 \('2'\)",
        ),
        (
            ["filename"],
            [(name,) for name in NAMES],
            r"needs a column of file names and one of labels.*first_row=\['filename'\]",
        ),
        (["filename", "label"], [], r"and rows below it.*rows=0"),
        (["01.png", "cat"], PAIRS, r"The first row of train\.csv must name the columns.*\['01\.png', 'cat'\]"),
        (["filename", "label"], [("00.png", "a", "b"), *PAIRS], r"Not 2 cells.*row 2 \('00\.png,a,b'\)\. Quote"),
        (["filename", "label", "label"], [("00.png", "a", "b")], "Two columns of .* have one name"),
        (
            ["filename", "label"],
            [(name, "a") for name in NAMES],
            r"two classes or more\. 'label' in train\.csv holds \['a'\]",
        ),
        (
            ["filename", "label"],
            [*PAIRS[:29], (NAMES[29], "a\u200e\u202eb")],
            r"readable text in one line\. Correct them in train\.csv",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_their_numbers(photos, header, rows, message):
    write(photos, header, rows)
    with pytest.raises(DataError, match=message):
        load(photos)


def test_a_name_of_two_files_is_refused(photos):
    write_image(photos / "00.jpg", 50)
    write(photos, ["filename", "label"], [("00", "a"), *PAIRS])
    with pytest.raises(
        DataError, match=r"Names of several files in .*row 2 \('00'\)\. Write their folders and endings"
    ):
        load(photos)


def test_labels_files_that_can_not_be_read(photos):
    with pytest.raises(DataError, match=r"no labels file labels\.csv, here or in .*photos\. Did you mean 'label\.csv'"):
        load(photos, write(photos, ["a"], [], "label.csv").replace("label", "labels"))
    (photos / "labels.csv").write_bytes(b"\xff\xfef\x00i\x00")
    with pytest.raises(DataError, match=r"Can't read the labels file .*Save it as CSV \(UTF-8\)"):
        load(photos, "labels.csv")
    with pytest.raises(ArgumentError, match=r"must be the path of a CSV or Parquet file\. Received: labels=3"):
        load(photos, 3)
    with pytest.raises(ArgumentError, match="`labels` goes with a folder; tfds:beans brings its own"):
        load("tfds:beans", "labels.csv")


def test_listed_files_that_are_no_images_are_named(photos):
    (photos / "notes.txt").write_text("no image")
    write(photos, ["filename", "label"], [*PAIRS, ("notes.txt", "a")])
    with pytest.raises(DataError, match=r"(?s)1 file can't be read.*notes\.txt: it is not a JPEG"):
        load(photos)
    with pytest.warns(KerastlWarning, match="Skipped"):
        assert sum(load(photos, skip_unreadable=True).split_sizes.values()) == 30
