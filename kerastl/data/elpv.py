"""ELPV: 2,624 electroluminescence photographs of solar cells, read from the installed package `elpv-dataset`.

300×300 pixels, 8-bit grey. Experts gave each cell a probability of being defective (0, 1/3, 2/3 or 1) and the type of its
module. data/cards/elpv.md has the counts, the licence and whom to cite.
"""

import csv
import hashlib
import importlib.resources

from kerastl.checks import received
from kerastl.data.images import look_at_all
from kerastl.data.splitting import TRAIN, Catalogue, Image
from kerastl.errors import BackendError, DataError

_PACKAGE = "elpv_dataset"
# Of the labels in elpv-dataset 1.0.0.post1: other labels would be another version of the data set.
_LABELS_SHA256 = "0abe6fe7700aea571717d7d7dfec005a47c6207b4cde26a4556b6807a115483d"
_LICENCE = "CC BY-NC-SA 4.0 (non-commercial use only)"
_CLASS_NAMES = ("functional", "defective")
_CELL_TYPES = ("mono", "poly")


def catalogue_elpv(*, verbose: int = 1) -> Catalogue:
    """Return the catalogue of ELPV: a cell is "defective" where the experts' probability exceeds 0.5.

    Splits are balanced by label × cell type: polycrystalline cells look different, and are defective less often. The test
    share is that of Deitsch et al. 2019, so that accuracies can be set beside the published ones.
    """
    try:
        folder = importlib.resources.files(_PACKAGE).joinpath("data")
    except ModuleNotFoundError as error:
        raise BackendError(
            "ELPV comes with the package `elpv-dataset`, which is not installed. Install it with"
            ' `pip install "kerastl[demo]"`, or `pip install elpv-dataset==1.0.0.post1`.'
        ) from error
    table = folder.joinpath("labels.csv").read_bytes()
    checksum = hashlib.sha256(table).hexdigest()
    if checksum != _LABELS_SHA256:
        raise DataError(
            "The installed `elpv-dataset` holds other labels than release 1.0.0.post1. Install"
            f" elpv-dataset==1.0.0.post1. {received(sha256=checksum)}"
        )
    rows = list(csv.reader(table.decode("ascii").splitlines(), delimiter=" ", skipinitialspace=True))
    readers = [folder.joinpath(*file.split("/")).read_bytes for file, _, _ in rows]
    digests = look_at_all(lambda read: hashlib.sha256(read()).digest(), readers, verbose=verbose)
    images = []
    for (file, probability, cell_type), read, digest in zip(rows, readers, digests, strict=True):
        label, kind = int(float(probability) > 0.5), _CELL_TYPES.index(cell_type)
        stratum = label * len(_CELL_TYPES) + kind, f"{_CLASS_NAMES[label]}, {cell_type}"
        images.append(Image(label, TRAIN, file, digest, read, stratum))
    return Catalogue("elpv", _CLASS_NAMES, images, licence=_LICENCE, validation_share=0.10, test_share=0.25)
