"""Near-duplicates: two photographs of the same thing from the same side, found by features and proved by their pixels.

Features tell which photographs look alike, but take two dandelions for one. So of each photograph's nearest neighbours
places (corners, at several scales) are matched, and those are counted that one shift and stretch brings together.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from kerastl.checks import received
from kerastl.data.images import look_at_all
from kerastl.errors import DataError

_NEIGHBOURS = 3  # of each image, by features, that are compared by pixels
_SIDE, _SCALES, _PLACES = 160, (1.0, 0.8, 0.64, 0.5), 80  # pixels; a crop or step closer shows at another scale; each
_OFFSETS = [(down, right) for down in (-6, -2, 2, 6) for right in (-6, -2, 2, 6)]  # of a descriptor's cells
_MARGIN = 9  # pixels: what descriptors reach beyond their places
_WEAKEST = 50.0  # of a corner's response: below is noise of a sensor or of JPEG
# The nearest descriptor must be clearly nearer than the next at another place: Lowe (2004) takes 0.8 of the distance, which
# is 0.64 of its square; a little more, as few places must do
_RATIO, _APART, _MOST = 0.7, 0.08, 80
_TOLERANCE = 0.02  # of the side: a moment later, or a step aside, nothing stays exactly in its place
_SMALLEST_BASE = 0.08  # of the side, between the two places that give shift and stretch
_LARGEST_STRETCH, _LARGEST_DISTORTION = 2.5, 1.6
_GRID = 12  # matches are counted once in each cell of so many rows and columns
# Places that prove it. Flowers of one kind, in the same pose, agree in up to about a dozen; where features put the pair
# among the very nearest as well, fewer will do. Random matches agree in three or four.
_PROOF, _PROOF_WHERE_NEAR, _NEAR_SHARE = 16, 10, 0.1
_SAME_LEVELS = 3.0  # of 255, root mean square between small copies: saved or resized again, nothing else


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two near-duplicates, by their indices.

    Attributes:
        first, second: indices, the smaller first.
        similarity: the cosine of their features.
        places: how many places of the pictures one shift and stretch brings together; 0 for copies with too few corners.
        mirrored: whether one is the mirror image of the other.
    """

    first: int
    second: int
    similarity: float
    places: int
    mirrored: bool


def find_duplicates(features: np.ndarray, read: Callable[[int], np.ndarray], *, verbose: int = 0) -> list[Pair]:
    """Return the near-duplicates among images, the surest first.

    Found are copies that were resized, saved or exposed anew, cropped (down to about half the sides), stretched or
    mirrored, and photographs of the same thing a moment later; not copies that were turned.

    Args:
        features: `(images, features)`, of any network.
        read: returns the image of an index, uint8 RGB `(height, width, 3)`, all of the same shape; called from threads.
        verbose: 0 shows no progress.

    Raises:
        DataError: features of another shape, or with NaN or infinity.
    """
    features = np.asarray(features, "float32")
    if features.ndim != 2 or not np.isfinite(features).all():
        raise DataError(f"Expected finite features `(images, features)`. {received(shape=features.shape)}")
    candidates, nearest = _candidates(features)
    usual = np.quantile(nearest, 1 - _NEAR_SHARE) if len(nearest) else 0
    sketches = look_at_all(lambda index: _sketch(read(index)), range(len(features)), verbose=verbose)
    turned, pairs = [sketch.mirrored() for sketch in sketches], []
    for first, second, similarity in candidates:
        needed, other = _PROOF_WHERE_NEAR if similarity >= usual else _PROOF, sketches[second]
        # of the image and its mirror image the one in which more places agree, or else the one that is more like the other
        found = [(_agreeing(one, other, needed), -one.difference(other)) for one in (sketches[first], turned[first])]
        mirrored = found[1] > found[0]
        places, alike = found[mirrored]
        if places or -alike < _SAME_LEVELS:
            pairs.append(Pair(first, second, similarity, places, mirrored))
    return sorted(pairs, key=lambda pair: (-pair.places, -pair.similarity))


def groups_of(count: int, pairs: Sequence[Pair]) -> np.ndarray:
    """Return a number for each of `count` images, `(count,)`: the same for those that pairs connect, directly or through
    others.
    """
    groups = np.arange(count)
    for pair in pairs:
        old, new = groups[[pair.first, pair.second]]
        groups[groups == old] = new
    return groups


def nearest_neighbours(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return of each row its `count` nearest others, nearest first: indices and cosines, both `(rows, count)`."""
    from sklearn import config_context, neighbors  # slow to import, and few calls need them

    count = min(count, len(features) - 1)
    if count < 1:  # nobody to be near
        return np.empty((len(features), 0), int), np.empty((len(features), 0))
    with config_context(working_memory=100):  # MB
        distances, indices = neighbors.NearestNeighbors(n_neighbors=count, metric="cosine").fit(features).kneighbors()
    return indices, 1 - distances


def _candidates(features) -> tuple[list[tuple[int, int, float]], np.ndarray]:
    """Return `(first, second, cosine)` of what is to be compared by pixels, and each image's cosine to its nearest."""
    if len(features) < 2:
        return [], np.zeros(0)
    indices, cosines = nearest_neighbours(features, _NEIGHBOURS)
    found = {
        (min(row, near), max(row, near)): cosine
        for row, (line, values) in enumerate(zip(indices.tolist(), cosines.tolist(), strict=True))
        for near, cosine in zip(line, values, strict=True)
    }
    return [(*pair, cosine) for pair, cosine in sorted(found.items())], cosines[:, 0]


@dataclasses.dataclass(frozen=True)
class _Sketch:
    """What is compared of an image.

    `places` are right and down, `(places, 2)`, in parts of the sides; `descriptors` `(places, 4, 4, 4)` by row, column and
    direction of the gradient, their squares add up to 1; `scales` `(places,)`; `small` the image, `(16, 16, 3)`.
    """

    places: np.ndarray
    descriptors: np.ndarray
    scales: np.ndarray
    small: np.ndarray

    def mirrored(self) -> "_Sketch":
        """Return the sketch of the mirror image: columns turned about, gradients to the right now to the left."""
        places, turned = self.places * [-1, 1] + [1, 0], self.descriptors[:, :, ::-1, [1, 0, 2, 3]]
        return _Sketch(places.astype("float32"), turned, self.scales, self.small[:, ::-1])

    def difference(self, other: "_Sketch") -> float:
        """Return the root mean square of the differences between two small images, in levels of 255."""
        return float(np.sqrt(np.mean((self.small - other.small) ** 2)))


def _sketch(image: np.ndarray) -> _Sketch:
    picture = Image.fromarray(image)
    grey, parts = picture.convert("L"), []
    for scale in _SCALES:
        side = round(_SIDE * scale)
        places, descriptors = _corners(np.asarray(grey.resize((side, side), Image.Resampling.BILINEAR), "float32"))
        parts.append((places / side, descriptors, np.full(len(places), scale, "float32")))
    small = np.asarray(picture.resize((16, 16), Image.Resampling.BOX), "float32")
    return _Sketch(*map(np.concatenate, zip(*parts, strict=True)), small)


def _corners(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the strongest corners of an image `(side, side)` in pixels, `(corners, 2)`, and their descriptors.

    Corners are peaks of the smaller eigenvalue of the gradients' covariance (Shi and Tomasi, 1994); descriptors are
    histograms of gradients in 4×4 cells (Lowe, 2004, with four directions), and the square roots of these (Arandjelović
    and Zisserman, 2012).
    """
    from scipy import ndimage  # half a second, which few calls need

    smooth = ndimage.gaussian_filter(grey, 0.8)
    down, right = ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1)
    a, b, c = (ndimage.uniform_filter(one, 5) for one in (right * right, right * down, down * down))
    strength = (a + c) / 2 - np.sqrt(((a - c) / 2) ** 2 + b * b)
    inside = np.zeros_like(strength)
    inside[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = strength[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    y, x = np.nonzero((inside > _WEAKEST) & (inside == ndimage.maximum_filter(inside, 5)))
    strongest = np.argsort(-inside[y, x], kind="stable")[:_PLACES]
    y, x = y[strongest], x[strongest]
    # sums over a moving window can fall a rounding error below zero
    directions = [ndimage.uniform_filter(np.maximum(one, 0), 4) for one in (right, -right, down, -down)]
    directions = np.maximum(np.stack(directions, axis=-1), 0)
    cells = np.stack([directions[y + one, x + other] for one, other in _OFFSETS], axis=1)
    cells /= cells.sum(axis=(1, 2), keepdims=True) + 1e-6
    return np.stack([x, y], axis=1).astype("float32"), np.sqrt(cells).reshape(-1, 4, 4, 4)


def _agreeing(one: _Sketch, other: _Sketch, needed: int) -> int:
    """Return how many places of two images one shift and stretch brings together, 0 where fewer than needed.

    All pairs of matches are tried for it: that is exact, and quick where matches are few.
    """
    here, there, ratio = _matches(one, other)
    if len(here) < needed:
        return 0
    start, end = np.triu_indices(len(here), 1)
    base, image = here[end] - here[start], there[end] - there[start]
    wide = (np.abs(base) > _SMALLEST_BASE).all(axis=1)
    start, stretch = start[wide], image[wide] / base[wide]
    fits = (stretch > 1 / _LARGEST_STRETCH).all(axis=1) & (stretch < _LARGEST_STRETCH).all(axis=1)
    fits &= stretch.max(axis=1, initial=0) < _LARGEST_DISTORTION * stretch.min(axis=1, initial=np.inf)
    start, stretch = start[fits], stretch[fits]
    if not len(start):
        return 0
    shift = there[start] - stretch * here[start]
    close = np.abs(stretch[:, 0, None] * here[:, 0] + shift[:, 0, None] - there[:, 0]) < _TOLERANCE
    close &= np.abs(stretch[:, 1, None] * here[:, 1] + shift[:, 1, None] - there[:, 1]) < _TOLERANCE
    close &= np.abs(np.log(stretch).mean(axis=1)[:, None] - ratio) < 0.5  # found at a scale that goes with the stretch
    best = close[close.sum(axis=1).argmax()]
    count = min(len(np.unique(np.floor(places[best] * _GRID), axis=0)) for places in (here, there))
    return count if count >= needed else 0


def _matches(one: _Sketch, other: _Sketch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return matched places of both, `(matches, 2)`, the clearest first, and the logarithm of the scales' ratio.

    Matches are each other's nearest, and clearly nearer than the next nearest at another place of either image.
    """
    if not len(one.places) or not len(other.places):
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)
    cosines = one.descriptors.reshape(-1, 64) @ other.descriptors.reshape(-1, 64).T
    there = cosines.argmax(axis=1)
    here = np.flatnonzero(cosines.argmax(axis=0)[there] == np.arange(len(there)))
    there = there[here]
    distance = 1 - cosines[here, there]  # half the square of the descriptors' distance
    second = np.maximum(
        _best_elsewhere(cosines[here], other.places, there), _best_elsewhere(cosines.T[there], one.places, here)
    )
    clearness = distance / np.maximum(1 - second, 1e-9)
    order = np.argsort(clearness, kind="stable")[:_MOST]
    order = order[clearness[order] < _RATIO]
    here, there = here[order], there[order]
    return one.places[here], other.places[there], np.log(other.scales[there] / one.scales[here])


def _best_elsewhere(cosines, places, chosen) -> np.ndarray:
    """Return of each row of `cosines` the largest at a place that is not near the chosen one."""
    near = np.abs(places[chosen, 0, None] - places[:, 0]) < _APART
    near &= np.abs(places[chosen, 1, None] - places[:, 1]) < _APART
    return np.where(near, -1, cosines).max(axis=1)
