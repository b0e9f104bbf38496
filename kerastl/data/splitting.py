"""Dividing images into training, validation and test: stratified, seeded, equal images kept together."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from kerastl.checks import received
from kerastl.errors import DataError

_ROUNDING = 1e-9  # 0.7 * 10 is 6.999…: what is a whole number must count as one


def split_indices(
    strata: Sequence[int],
    groups: Sequence[Hashable],
    fractions: Mapping[str, float],
    *,
    seed: int,
    stratum_names: Sequence[str],
) -> dict[str, np.ndarray]:
    """Divide `range(len(strata))` by `fractions`, in every stratum alike.

    In each stratum every split gets its fraction rounded down or up, and at least one image; which way is rounded is
    chosen so that the splits' totals come out right. Images of one group always stay together, which can cost
    exactness.

    Args:
        strata: the stratum of each image, an index into `stratum_names`: its class, or its class and kind.
        groups: what ties images together: equal values are never separated. A group that spans strata goes where its
            first image goes.
        fractions: the split's name to its share; the shares add up to 1, and a split of 0 gets nothing.
        seed: the same seed makes the same splits.
        stratum_names: what to call the strata in errors.

    Returns:
        The split's name to its indices, int64, ascending.

    Raises:
        DataError: a stratum has fewer groups than there are splits to fill.
    """
    wanted = {name: share for name, share in fractions.items() if share > 0}
    members = _groups_by_stratum(strata, groups)
    _check_enough(members, wanted, stratum_names)
    counts = [sum(len(indices) for indices in stratum) for stratum in members.values()]
    quotas = _quotas(np.array(counts), np.array(list(wanted.values())))
    generator = np.random.default_rng(seed)
    chosen: dict[str, list[int]] = {name: [] for name in fractions}
    names = list(wanted)
    for stratum, quota in zip(members.values(), quotas, strict=True):
        shuffled = [stratum[position] for position in generator.permutation(len(stratum))]
        # The largest groups first: single images can still fill every gap that these leave.
        ordered = sorted(shuffled, key=len, reverse=True)
        for indices, column in zip(ordered, _places([len(group) for group in ordered], quota), strict=True):
            chosen[names[column]].extend(indices)
    return {name: np.sort(np.array(indices, dtype=np.int64)) for name, indices in chosen.items()}


def _groups_by_stratum(strata, groups) -> dict[int, list[list[int]]]:
    """Return each stratum's groups, as lists of indices, in the order of strata."""
    by_group: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        by_group.setdefault(group, []).append(index)
    members: dict[int, list[list[int]]] = {int(stratum): [] for stratum in np.unique(np.asarray(strata))}
    for indices in by_group.values():
        members[int(strata[indices[0]])].append(indices)
    return members


def _check_enough(members, wanted, stratum_names) -> None:
    few = {stratum_names[stratum]: len(groups) for stratum, groups in members.items() if len(groups) < len(wanted)}
    if not few:
        return
    raise DataError(
        f"Every class needs at least {len(wanted)} different images, one for each of {', '.join(wanted)}."
        f" {received(different_images=few)}. Add images, remove the class, or set `validation` or `test` to 0."
    )


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
        while (quotas[row] < 1).any():  # `_check_enough` made sure that there is one to take
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
