"""`backbones`: print the table of pretrained networks."""

from kerastl.checks import nearest, received
from kerastl.errors import ArgumentError
from kerastl.models.backbones import BACKBONES, IN_MODEL
from kerastl.tables import Table

_IN_WORDS = {
    "caffe": "BGR, minus ImageNet's mean",
    "tf": "scaled to -1 to 1",
    "torch": "ImageNet's mean and deviation",
    IN_MODEL: "in the network itself",
}


def run(arguments) -> int:
    """Print the table and return the exit status."""
    word = (arguments.word or "").lower()
    rows = [row for row in BACKBONES.values() if word in row.name]
    if not rows:
        raise ArgumentError(f"No backbone's name contains that.{nearest(word, BACKBONES)} {received(word=word)}")
    header = ["name", "native size", "smallest", "preprocessing (done for you)"]
    cells = [[row.name, _size(row.native_size), _size(row.smallest_size), _preprocessing(row)] for row in rows]
    print(Table(header, cells, right={1, 2}))
    return 0


def _size(size) -> str:
    return f"{size}×{size}" if isinstance(size, int) else "×".join(map(str, size))


def _preprocessing(row) -> str:
    return "its own" if callable(row.preprocessing) else _IN_WORDS.get(row.preprocessing, row.preprocessing)
