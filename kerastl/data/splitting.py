"""What a source of images holds, and its division into training, validation and test."""

import collections
import dataclasses
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

from kerastl.checks import check_fraction, received
from kerastl.data.labels import CLASSIFICATION, REGRESSION
from kerastl.errors import ArgumentError, DataError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainval"), TRAIN),
    **dict.fromkeys(("validation", "val", "valid", "eval", "evaluation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "holdout"), TEST),
    **dict.fromkeys(("unlabeled", "unlabelled"), ""),  # a part that can't be used
}
_MORE = ("set", "split", "data", "images", "imgs")  # what may follow such a word, or stand beside it
_SPLIT_WORDS |= {word + more: split for word, split in _SPLIT_WORDS.items() for more in _MORE}
_NO_NAMES = {*_MORE, "dataset", "folder"}

_ROUNDING = 1e-9  # 0.7 * 10 is 6.999…: what is a whole number must count as one


@dataclasses.dataclass(frozen=True)
class Image:
    """One image of a source."""

    label: int | tuple[int, ...] | float  # an index into the source's class names, several of them, or a number
    part: str  # the split that it came in; `"train"` in a source that came unsplit
    file: str  # its path, or its name in the data set
    digest: bytes  # of its encoded bytes
    read: Callable[[], bytes]  # returns these bytes, from several threads at once
    stratum: tuple[int, str] | None = None  # number and name of what splits are balanced by; by default the class

    @property
    def indices(self) -> tuple[int, ...]:
        """The indices of its class or labels among the class names; 0, of the only name, for a number."""
        return self.label if isinstance(self.label, tuple) else (0 if isinstance(self.label, float) else self.label,)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The images of a source, unsplit or with the splits that they came with.

    `name`, `class_names`, `licence`, `skipped`, `ignored` and `task` are those of `ImageSplits`; `validation_share` and
    `test_share` are taken where nobody says, and `notices` is what the user has to be warned of.
    """

    name: str
    class_names: tuple[str, ...]
    images: list[Image] = dataclasses.field(repr=False)
    licence: str | None = None
    validation_share: float = 0.15
    test_share: float = 0.15
    skipped: tuple[str, ...] = ()
    ignored: dict[str, int] = dataclasses.field(default_factory=dict)
    notices: tuple[str, ...] = ()
    task: str = CLASSIFICATION


def splits_of(names: Iterable[str]) -> dict[str, str]:
    """Return which of the names are those of splits, and of which: "train", "validation", "test", or "" for unlabelled.

    A split's name holds one word for it, in any case, and beside it at most numbers, words such as "set" and "images", and
    what all these names share: `Training_set`, `train2017`, `flowers-val`. So `test_tube` beside `train_station` is none.
    """
    words = {name: re.findall("[a-z]+", name.lower()) for name in names}
    found = {name: [word for word in words[name] if word in _SPLIT_WORDS] for name in words}
    splits = {name: _SPLIT_WORDS[known[0]] for name, known in found.items() if len(known) == 1}
    others = {name: {*words[name]} - {*found[name]} - _NO_NAMES for name in splits}
    shared = set.intersection(*others.values()) if len(others) > 1 else set()
    return {name: split for name, split in splits.items() if others[name] <= shared}


def check_shares(**shares: float | None) -> dict[str, float]:
    """Return those of the shares of validation and test that are said; raise for what can't be a share."""
    said = {name: share for name, share in shares.items() if share is not None}
    said = {name: check_fraction(name, share, zero=True, one=False) for name, share in said.items()}
    if sum(said.values()) >= 1:
        raise ArgumentError(
            "`validation` and `test` together must leave something to train on, so add up to less than 1."
            f" {received(**shares)}"
        )
    return said


def divide(catalogue: Catalogue, fractions: dict, seed: int) -> dict[str, list[Image]]:
    """Return the images of each split that gets any; the training images in a mixed order.

    `fractions` holds for validation and test the share asked for, or `None` for the usual one. Raises `ArgumentError` for
    the share of a part that the source brings along.
    """
    fractions = check_shares(**fractions)
    divided = {part: [image for image in catalogue.images if image.part == part] for part in (TRAIN, VALIDATION, TEST)}
    brought = [split for split in (VALIDATION, TEST) if divided[split]]
    for split in brought:
        if split in fractions:
            raise ArgumentError(
                f"{catalogue.name} comes with its own {split} images: leave the argument `{split}` out."
                f" {received(**{split: fractions[split]})}"
            )
    # Who keeps a part of the data apart has decided what to test on, if at all; unsplit sources get all three parts.
    usual = {VALIDATION: catalogue.validation_share, TEST: 0.0 if brought else catalogue.test_share}
    shares = check_shares(**{split: share for split, share in (usual | fractions).items() if split not in brought})
    pool = divided[TRAIN]
    shares = {TRAIN: 1 - sum(shares.values()), **shares}
    indices = split_indices(_strata(catalogue, pool), [image.digest for image in pool], shares, seed=seed)
    # In the order of files, batches of a loop that doesn't shuffle would hold one class only.
    indices[TRAIN] = np.random.default_rng(seed).permutation(indices[TRAIN])
    divided |= {split: [pool[index] for index in chosen] for split, chosen in indices.items()}
    return {split: images for split, images in divided.items() if images}


def _strata(catalogue: Catalogue, pool: list[Image]) -> list[tuple[int, str]]:
    """Return what each image is balanced by: its class, the rarest of its labels, or the tenth that its number lies in.

    Of labels and numbers, those too few for every split are balanced with the largest stratum.
    """
    if catalogue.task == CLASSIFICATION:
        return [image.stratum or (image.label, catalogue.class_names[image.label]) for image in pool]
    if catalogue.task == REGRESSION:
        ranks = np.argsort(np.argsort([image.label for image in pool]))
        keys = (ranks * min(10, 1 + len(pool) // 10) // max(len(pool), 1)).tolist()
    else:
        counts = collections.Counter(index for image in pool for index in image.indices)
        keys = [min(image.indices, key=counts.__getitem__, default=-1) for image in pool]
    by_content = {image.digest: key for image, key in zip(pool[::-1], keys[::-1], strict=True)}  # the first copy's
    sizes = collections.Counter(by_content.values())
    keys = [by_content[image.digest] for image in pool]
    return [(key if sizes[key] >= 3 else max(sizes, key=sizes.get), "all images") for key in keys]


def split_indices(
    strata: Sequence[tuple[int, str]], groups: Sequence[Hashable], fractions: Mapping[str, float], *, seed: int
) -> dict[str, np.ndarray]:
    """Divide `range(len(strata))` by `fractions`, in every stratum alike; indices are int64, ascending.

    In each stratum (number and name of an image's class, or of class and kind) every split gets its fraction rounded down
    or up, so that the splits' totals come out right, and at least one image; a stratum with too few is a `DataError`. Images
    of one group always stay together, where the first of them goes, which can cost exactness.
    """
    wanted = {name: share for name, share in fractions.items() if share > 0}
    by_group = collections.defaultdict(list)
    for index, group in enumerate(groups):
        by_group[group].append(index)
    members = {stratum: [] for stratum in sorted(set(strata))}
    for indices in by_group.values():
        members[strata[indices[0]]].append(indices)
    few = {name: len(found) for (_, name), found in members.items() if len(found) < len(wanted)}
    if few:
        raise DataError(
            f"There must be at least {len(wanted)} different images of every class, one for each of {', '.join(wanted)}."
            f" {received(different_images=few)}. Add images, remove the class, or set `validation` or `test` to 0."
        )
    counts = [sum(len(indices) for indices in stratum) for stratum in members.values()]
    quotas = _quotas(np.array(counts), np.array(list(wanted.values())))
    generator = np.random.default_rng(seed)
    chosen, names = {name: [] for name in fractions}, list(wanted)
    for stratum, quota in zip(members.values(), quotas, strict=True):
        shuffled = [stratum[position] for position in generator.permutation(len(stratum))]
        # The largest groups first: single images can still fill every gap that these leave.
        ordered = sorted(shuffled, key=len, reverse=True)
        for indices, column in zip(ordered, _places(list(map(len, ordered)), quota), strict=True):
            chosen[names[column]].extend(indices)
    return {name: np.sort(np.array(indices, dtype=np.int64)) for name, indices in chosen.items()}


def _quotas(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return how many images of each stratum go to each split, `(strata, splits)`.

    Each entry is its exact share rounded down or up, and at least 1. The images that rounding down leaves over go, row
    by row, to splits that have none yet, then to those that are furthest behind in total.
    """
    exact = counts[:, np.newaxis] * (shares / shares.sum())
    quotas = np.floor(exact + _ROUNDING).astype(int)
    behind = exact.sum(axis=0) - quotas.sum(axis=0)
    for row, count in enumerate(counts):
        left = count - quotas[row].sum()
        fractional = exact[row] - quotas[row] > _ROUNDING
        urgency = np.where(quotas[row] == 0, np.inf, behind)
        order = np.argsort(np.where(fractional, -urgency, np.inf), kind="stable")[:left]
        quotas[row, order] += 1
        behind[order] -= 1
        while (quotas[row] < 1).any():  # `split_indices` made sure that there is one to take
            quotas[row, np.argmax(quotas[row])] -= 1
            quotas[row, np.argmin(quotas[row])] += 1
    return quotas


def _places(sizes: Sequence[int], quota: np.ndarray) -> list[int]:
    """Return the split of each group: where most is missing, but in time for every split to get one group."""
    missing = quota.astype(float)
    empty = np.ones(len(quota), dtype=bool)
    places = []
    for position, size in enumerate(sizes):
        must_fill = empty.sum() >= len(sizes) - position
        column = int(np.argmax(np.where(empty, missing, -np.inf) if must_fill else missing))
        places.append(column)
        missing[column] -= size
        empty[column] = False
    return places
