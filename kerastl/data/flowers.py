"""The flower photographs: 1,500 of the public set of five classes, with a split that is the same for everyone.

`flowers.csv` beside this file has the Flickr number, label and split of each; `data/cards/flowers.md` says how they were
chosen. The photographs are in no package: they lie in `data/flowers` of a checkout, or come with the archive of Keras's
own tutorials, whose photographs have other sizes and which lacks some of them.
"""

import csv
import importlib.resources
import os
import shutil
import urllib.request
from pathlib import Path

import keras

from kerastl.checks import received
from kerastl.data.images import find_files
from kerastl.data.splitting import Catalogue, Image
from kerastl.errors import DataError, OutputError
from kerastl.files import find_data_dir, keras_home, new_folder

_CLASS_NAMES = ("daisy", "dandelion", "rose", "sunflower", "tulip")
_ARCHIVE = "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
_ARCHIVE_SHA256 = "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"  # as TensorFlow Datasets has it
_TIMEOUT = 10  # seconds for an answer, so that a machine without a network goes on soon
_LICENCE = "each photographer's own; those of Keras's archive: Creative Commons, by attribution"


def catalogue_flowers(data_dir: str | os.PathLike | None = None, *, verbose: int = 1) -> Catalogue:
    """Return the catalogue of the flower photographs, not read yet, downloaded if they are nowhere.

    Looked for in the folder `flowers` of the data folder, with a folder for each class (`rose` or `roses`) and file names
    that begin with the Flickr number. What the table lacks is left out; what the photographs lack is warned of.

    Raises:
        DataError: where the photographs are nowhere and can't be downloaded, or too few of them are there.
    """
    table = importlib.resources.files("kerastl.data").joinpath("flowers.csv").read_text("ascii")
    rows = list(csv.DictReader(table.splitlines()))
    folder = _find_folder(data_dir, verbose)
    paths = {path.name.split("_")[0]: path for path in find_files(folder)[0]}
    found = [row for row in rows if row["number"] in paths]
    if {(row["label"], row["split"]) for row in found} != {(row["label"], row["split"]) for row in rows}:
        raise DataError(
            f"{folder} should hold the flower photographs, in files that begin with their Flickr number, and has "
            f"{len(found)} of the {len(rows)}. Delete the folder: they are downloaded again. {received(folder=str(folder))}"
        )
    images = [
        Image(_CLASS_NAMES.index(row["label"]), row["split"], str(path), b"", path.read_bytes)
        for row, path in ((row, paths[row["number"]]) for row in found)
    ]
    return Catalogue("flowers", _CLASS_NAMES, images, licence=_LICENCE, notices=_lacking(folder, len(rows), len(found)))


def _lacking(folder: Path, listed: int, found: int) -> tuple[str, ...]:
    if found == listed:
        return ()
    return (
        f"{listed - found} of the {listed} flower photographs are not in {folder} and are left out. Accuracies can be "
        "compared only with others on the same photographs.",
    )


def _find_folder(data_dir, verbose: int) -> Path:
    """Return `flowers` in the data folder; where it isn't there, first make it of Keras's archive."""
    folder = Path(find_data_dir(data_dir) or keras_home() / "datasets", "flowers")
    if folder.is_dir():
        return folder
    try:
        # Keras itself would wait for minutes where nobody answers
        urllib.request.urlopen(_ARCHIVE, timeout=_TIMEOUT).close()
        if verbose:
            print(f"Downloading the flower photographs (229 MB) to {folder}", flush=True)
        with new_folder(folder, files=(), what="data set") as place:
            unpacked = keras.utils.get_file(
                "flower_photos.tgz", _ARCHIVE, file_hash=_ARCHIVE_SHA256, cache_subdir=str(place), extract=True
            )
            for part in Path(unpacked, "flower_photos").iterdir():
                part.rename(place / part.name)
            shutil.rmtree(unpacked)
            (place / "flower_photos.tgz").unlink()
    except OutputError:
        raise
    # Whatever else fails: no connection, a proxy's page, the checksum
    except Exception as error:
        raise DataError(
            f"The flower photographs are not in {folder}, and can't be downloaded: {error}. Put the folder there (class "
            "folders, file names that begin with the Flickr number), or take 'elpv', which comes with a package. "
            f"{received(source='flowers')}"
        ) from error
    return folder
