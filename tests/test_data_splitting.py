"""Properties that every split must have, whatever the classes, copies, shares and seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerastl.data.splitting import Catalogue, Image, divide, split_indices
from kerastl.errors import DataError

NAMES = tuple(f"class {index}" for index in range(20))
SHARES = st.sampled_from(
    [
        {"train": 0.7, "validation": 0.15, "test": 0.15},
        {"train": 0.65, "validation": 0.1, "test": 0.25},
        {"train": 0.5, "validation": 0.0, "test": 0.5},
        {"train": 0.8, "validation": 0.2},
        {"train": 1.0, "validation": 0.0, "test": 0.0},
    ]
)


@pytest.fixture(autouse=True)
def _seeded():
    """Stands in for the shared fixture, whose clearing of Keras's state no test here needs."""


def strata_of(counts, seed):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def split(strata, groups, shares, seed=0):
    return split_indices([(stratum, NAMES[stratum]) for stratum in strata], groups, shares, seed=seed)


@settings(max_examples=150, deadline=None)
@given(counts=st.lists(st.integers(4, 70), min_size=1, max_size=8), shares=SHARES, seed=st.integers(0, 1000))
def test_every_image_once_and_every_class_in_proportion(counts, shares, seed):
    strata = strata_of(counts, seed)
    parts = split(strata, range(len(strata)), shares, seed)
    assert list(parts) == list(shares)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(strata)))
    for name, share in shares.items():
        np.testing.assert_array_equal(parts[name], np.sort(parts[name]))
        for stratum, count in enumerate(counts):
            got = int((strata[parts[name]] == stratum).sum())
            assert abs(got - share * count) <= 1
            assert got >= (share > 0)


@settings(max_examples=100, deadline=None)
@given(
    copies=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=1, max_size=30),
    shares=SHARES,
    seed=st.integers(0, 1000),
)
def test_copies_stay_together_and_every_class_is_in_every_split(copies, shares, seed):
    copies = [*copies, *[(stratum, 1) for stratum in range(3) for _ in range(3)]]
    strata = [stratum for stratum, size in copies for _ in range(size)]
    groups = [group for group, (_, size) in enumerate(copies) for _ in range(size)]
    order = np.random.default_rng(seed).permutation(len(strata))
    strata, groups = np.array(strata)[order], np.array(groups)[order]
    parts = split(strata, groups, shares, seed)
    used = [name for name, share in shares.items() if share > 0]
    assert sum(map(len, parts.values())) == len(strata)
    for index, name in enumerate(used):
        assert set(strata[parts[name]]) == set(strata)
        for other in used[index + 1 :]:
            assert not set(groups[parts[name]]) & set(groups[parts[other]])


def test_the_seed_decides():
    strata = strata_of([40, 60], 0)
    shares = {"train": 0.7, "validation": 0.15, "test": 0.15}
    first, again, other = (split(strata, range(100), shares, seed) for seed in (3, 3, 4))
    for name in shares:
        np.testing.assert_array_equal(first[name], again[name])
        assert set(first[name]) != set(other[name])


def test_many_small_classes_round_to_the_right_totals():
    strata = strata_of([10] * 20, 0)
    parts = split(strata, range(200), {"train": 0.7, "validation": 0.15, "test": 0.15})
    assert {name: len(indices) for name, indices in parts.items()} == {"train": 140, "validation": 30, "test": 30}


def test_one_image_under_two_classes_stays_in_one_split():
    strata = [0] * 10 + [1] * 10
    groups = [*range(10), 0, *range(10, 19)]
    for seed in range(20):
        parts = split(strata, groups, {"train": 0.5, "test": 0.5}, seed)
        assert (0 in parts["test"]) == (10 in parts["test"])


def test_a_class_too_small_for_all_splits_is_named():
    shares = {"train": 0.7, "validation": 0.15, "test": 0.15}
    with pytest.raises(DataError, match=r"at least 3 different images.*'class 1': 2") as caught:
        split([0, 0, 0, 1, 1], range(5), shares)
    assert "class 0" not in str(caught.value)
    with pytest.raises(DataError, match="'class 0': 2"):  # four files, two of them different
        split([0, 0, 0, 0, 1, 1, 1], [7, 7, 7, 8, 1, 2, 3], shares)
    parts = split([0, 0, 0, 1, 1], range(5), {"train": 0.5, "test": 0.5})
    assert sum(map(len, parts.values())) == 5


def divided(labels, task, names=("a", "b", "c"), copies=1):
    images = [
        Image(label, "train", f"{i}", bytes([i // copies, i // copies // 256]), bytes) for i, label in enumerate(labels)
    ]
    parts = divide(Catalogue("data", names, images, task=task), {"validation": None, "test": None}, seed=0)
    assert sorted(int(image.file) for part in parts.values() for image in part) == list(range(len(labels)))
    return parts


def test_several_labels_are_balanced_by_the_rarest():
    labels = [(0, 1), (0, 1, 2), (1, 2), ()] * 5 + [(0,)] * 40 + [(1, 2)] * 3
    parts = divided(labels, "multi-label")
    assert {name: len(part) for name, part in parts.items()} == {"train": 44, "validation": 10, "test": 9}
    for part in parts.values():
        assert {index for image in part for index in image.label} == {0, 1, 2}
        assert any(image.label == () for image in part)


def test_labels_too_rare_for_every_split_are_no_error():
    parts = divided([(0,)] * 20 + [(1,), (0, 2)], "multi-label")
    assert {name: len(part) for name, part in parts.items()} == {"train": 16, "validation": 3, "test": 3}
    with pytest.raises(DataError, match=r"at least 3 different images of every class.*'all images': 2"):
        divided([(0,), (1,)], "multi-label")


@pytest.mark.parametrize("copies", [1, 3])
def test_numbers_are_spread_alike_over_the_splits(copies):
    numbers = np.random.default_rng(0).exponential(100, 200).tolist()
    parts = {
        name: [image.label for image in part] for name, part in divided(numbers, "regression", copies=copies).items()
    }
    sizes = {1: {"train": 140, "validation": 30, "test": 30}, 3: {"train": 135, "validation": 33, "test": 32}}
    assert {name: len(part) for name, part in parts.items()} == sizes[copies]
    if copies == 1:
        for part in parts.values():
            assert np.mean(part) == pytest.approx(np.mean(numbers), rel=0.15)
            assert max(part) > np.quantile(numbers, 0.9)
            assert min(part) < np.quantile(numbers, 0.1)


def test_few_numbers_and_copies_with_other_numbers_divide():
    assert {name: len(part) for name, part in divided([1.0, 2.0, 3.0], "regression").items()} == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }
    parts = divided([float(i) for i in range(60)], "regression", copies=6)
    for name, part in parts.items():
        contents = {image.digest for image in part}
        assert not any(image.digest in contents for other in parts if other != name for image in parts[other])
