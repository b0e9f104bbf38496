"""ELPV, electroluminescence photographs of solar cells, as a TensorFlow Datasets builder.

It prepares itself from the installed package `elpv-dataset` (the `demo` extra) and opens no connection. Importing this
module registers the builder, so that `tfds.load("elpv")` works too.
"""

import csv
import dataclasses
import hashlib
import importlib.resources
import os
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from kerastl.checks import received
from kerastl.data.catalogues import Catalogue
from kerastl.data.tfds_catalogue import catalogue_builder, find_data_dir, is_prepared, write_builder
from kerastl.errors import BackendError, DataError

LICENCE = "CC BY-NC-SA 4.0 (non-commercial use only)"
CLASS_NAMES = ("functional", "defective")
CELL_TYPES = ("mono", "poly")
VALIDATION_SHARE, TEST_SHARE = 0.10, 0.25
"""The test share is that of Deitsch et al. 2019, so that accuracies can be set beside the published ones."""

_PACKAGE = "elpv_dataset"
# Of the labels in elpv-dataset 1.0.0.post1: other labels would be another version of the data set.
_LABELS_SHA256 = "0abe6fe7700aea571717d7d7dfec005a47c6207b4cde26a4556b6807a115483d"
_HOMEPAGE = "https://github.com/zae-bayern/elpv-dataset"
_DESCRIPTION = """\
2,624 photographs of solar cells under electroluminescence, 300×300 pixels, 8-bit grey, cut out of 44 photovoltaic
modules, size and perspective normalized. Experts gave each cell a probability of being defective (0, 1/3, 2/3 or 1) and
the type of its module (mono- or polycrystalline). The binary label is "defective" where the probability exceeds 0.5:
1,803 functional, 821 defective cells. For non-commercial use only (CC BY-NC-SA 4.0).
"""
_CITATION = """\
@InProceedings{Buerhop2018,
  author    = {Buerhop-Lutz, Claudia and Deitsch, Sergiu and Maier, Andreas and Gallwitz, Florian and Berger, Stephan
               and Doll, Bernd and Hauch, Jens and Camus, Christian and Brabec, Christoph J.},
  title     = {A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery},
  booktitle = {European PV Solar Energy Conference and Exhibition (EU PVSEC)},
  year      = {2018},
  doi       = {10.4229/35thEUPVSEC20182018-5CV.3.15},
}
@Article{Deitsch2019,
  author    = {Deitsch, Sergiu and Christlein, Vincent and Berger, Stephan and Buerhop-Lutz, Claudia and Maier, Andreas
               and Gallwitz, Florian and Riess, Christian},
  title     = {Automatic classification of defective photovoltaic module cells in electroluminescence images},
  journal   = {Solar Energy},
  year      = {2019},
  volume    = {185},
  pages     = {455--468},
  doi       = {10.1016/j.solener.2019.02.067},
}
@Article{Deitsch2021,
  author    = {Deitsch, Sergiu and Buerhop-Lutz, Claudia and Sovetkin, Evgenii and Steland, Ansgar and Maier, Andreas
               and Gallwitz, Florian and Riess, Christian},
  title     = {Segmentation of photovoltaic module cells in uncalibrated electroluminescence images},
  journal   = {Machine Vision and Applications},
  year      = {2021},
  volume    = {32},
  number    = {4},
  doi       = {10.1007/s00138-021-01191-9},
}
"""


class Elpv(tfds.core.GeneratorBasedBuilder):
    """ELPV: one split, `train`, in the order of the package's table of labels."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The photographs and labels of elpv-dataset 1.0.0.post1."}  # noqa: RUF012  TFDS's own way

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(300, 300, 1), dtype=np.uint8, encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                    "defect_probability": tfds.features.Scalar(np.float32),
                    "cell_type": tfds.features.ClassLabel(names=CELL_TYPES),
                    "file": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=_HOMEPAGE,
            citation=_CITATION,
            license=LICENCE,
            disable_shuffling=True,  # `load_images` shuffles and splits, by its seed
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        folder = _package_data()
        for file, probability, cell_type in _read_labels(folder.joinpath("labels.csv").read_bytes()):
            yield (
                file,
                {
                    # The PNG's own bytes are stored: the pixels are not encoded anew.
                    "image": folder.joinpath(*file.split("/")).read_bytes(),
                    "label": CLASS_NAMES[probability > 0.5],
                    "defect_probability": probability,
                    "cell_type": cell_type,
                    "file": file,
                },
            )


def catalogue_elpv(data_dir: str | os.PathLike | None = None, *, verbose: int = 1) -> Catalogue:
    """Return the catalogue of ELPV, prepared under `data_dir` on first use (a few seconds, 90 MB).

    Splits are balanced by label × cell type: polycrystalline cells look different, and are defective less often.

    Raises:
        BackendError: ELPV isn't prepared, and the package `elpv-dataset` isn't installed.
        DataError: that package holds other labels than the release that this builder was written for.
        OutputError: the disk is full, or the folder can't be written.
    """
    builder = Elpv(data_dir=find_data_dir(data_dir))
    if not is_prepared(builder):
        _package_data()  # said before TFDS starts
        if verbose:
            print(f"Preparing ELPV under {builder.data_dir} (once; 2,624 photographs, 90 MB)", flush=True)
        builder = write_builder(lambda: Elpv(data_dir=find_data_dir(data_dir)), verbose=0)
    catalogue = catalogue_builder(builder, name="elpv", licence=LICENCE, stratum_feature="cell_type", verbose=verbose)
    return dataclasses.replace(catalogue, validation_share=VALIDATION_SHARE, test_share=TEST_SHARE)


def _package_data():
    """Return the data folder of the installed package, whose own dependencies are not needed."""
    try:
        return importlib.resources.files(_PACKAGE).joinpath("data")
    except ModuleNotFoundError as error:
        raise BackendError(
            "ELPV comes with the package `elpv-dataset`, which is not installed. Install it with"
            ' `pip install "kerastl[demo]"`, or `pip install elpv-dataset==1.0.0.post1`.'
        ) from error


def _read_labels(table: bytes) -> Iterator[tuple[str, float, str]]:
    """Yield `(file, probability, cell type)` of each photograph, in the table's order."""
    checksum = hashlib.sha256(table).hexdigest()
    if checksum != _LABELS_SHA256:
        raise DataError(
            "The installed `elpv-dataset` holds other labels than release 1.0.0.post1, for which version 1.0.0 of this"
            f" data set is written. Install elpv-dataset==1.0.0.post1. {received(sha256=checksum)}"
        )
    for row in csv.reader(table.decode("ascii").splitlines(), delimiter=" ", skipinitialspace=True):
        file, probability, cell_type = row
        yield file, float(probability), cell_type
