"""What `fit` accepts, seen from outside: arrays, `tf.data.Dataset`, `keras.utils.PyDataset`, and images with an identity.

An `ImageSource` is the list of images behind a dataset of `load_images`: it can be read by index, in a fixed order, and
has an identity, so that stored features can be told apart. It hangs on the dataset object itself: a dataset derived with
`.map` or `.filter` is another object, holds other data, and rightly has none.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

_SOURCE_ATTRIBUTE = "_kerastl_source"


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """The images behind a dataset, in a fixed order.

    Attributes:
        labels: integer labels, `(count,)`.
        image_size: `(height, width)` in pixels of what `read` returns.
        identity: a hex digest of the images, their order, labels, size and resizing: equal digests mean equal data.
        shuffle: whether the dataset shuffles its images anew in every epoch (training data does).
        read: from an index to that image, uint8 RGB `(height, width, 3)`. Safe to call from several threads.
    """

    labels: np.ndarray
    image_size: tuple[int, int]
    identity: str
    shuffle: bool
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return len(self.labels)


def attach_source(dataset, source: ImageSource):
    """Hang `source` on `dataset` (any object that takes attributes) and return the dataset."""
    setattr(dataset, _SOURCE_ATTRIBUTE, source)
    return dataset


def find_source(dataset) -> ImageSource | None:
    """Return the `ImageSource` that was attached to exactly this dataset, or `None`."""
    return getattr(dataset, _SOURCE_ATTRIBUTE, None)
