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
    cells = [[row.name, *_sizes(row), _IN_WORDS.get(row.preprocessing, row.preprocessing)] for row in rows]
    print(Table(header, cells, right={1, 2}))
    return 0


def _sizes(row) -> list[str]:
    return [f"{size}×{size}" for size in (row.native_size, row.smallest_size)]
