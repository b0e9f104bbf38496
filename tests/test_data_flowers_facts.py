"""The tables of facts about the flower photographs: they parse, agree with each other, and hold the split as described."""

import collections
import csv
import hashlib
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "data"
LABELS = ("daisy", "dandelion", "rose", "sunflower", "tulip")
ROOM = {"test": 45, "validation": 45, "train": 210}  # of each class, in the order in which they are filled


@pytest.fixture(autouse=True)
def _seeded():
    """Stands in for the shared fixture, whose clearing of Keras's state no test here needs."""


def rows(name, *columns):
    with open(FOLDER / name, encoding="ascii", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        found = [tuple(row[column] for column in columns) for row in reader]
        assert tuple(reader.fieldnames) == columns
    return found


@pytest.fixture(scope="module")
def photographs():
    return {number: (label, split) for number, label, split in rows("flowers.csv", "number", "label", "split")}


@pytest.fixture(scope="module")
def pairs():
    return rows("flowers-duplicates.csv", "first", "second", "kind")


def test_every_photograph_stands_once_and_splits_have_their_sizes(photographs):
    listed = rows("flowers.csv", "number", "label", "split")
    assert len(listed) == len(photographs) == 1500
    assert all(number == str(int(number)) for number in photographs)
    assert listed == sorted(listed, key=lambda row: (row[1], int(row[0])))
    counts = collections.Counter(photographs.values())
    assert counts == {(label, split): room for label in LABELS for split, room in ROOM.items()}


def test_pairs_are_of_photographs_of_the_table_and_stand_once(photographs, pairs):
    assert len({(first, second) for first, second, _ in pairs}) == len(pairs)
    assert {kind for _, _, kind in pairs} == {"near-duplicate", "same scene"}
    for first, second, _ in pairs:
        assert int(first) < int(second)
        assert photographs[first][0] == photographs[second][0]


def test_no_pair_stands_in_two_splits(photographs, pairs):
    assert [pair for pair in pairs if photographs[pair[0]][1] != photographs[pair[1]][1]] == []


def test_the_split_follows_the_rule_of_the_card(photographs, pairs):
    groups = {number: {number} for number in photographs}
    for first, second, _ in pairs:
        groups[first] |= groups[second]
        groups |= dict.fromkeys(groups[first], groups[first])
    for label in LABELS:
        members = [number for number in photographs if photographs[number][0] == label]
        names = {min(groups[number], key=int) for number in members}
        room = dict(ROOM)
        for name in sorted(names, key=lambda name: hashlib.sha256(f"flowers {name}".encode()).hexdigest()):
            split = next(split for split in room if room[split] >= len(groups[name]))
            room[split] -= len(groups[name])
            assert {photographs[number][1] for number in groups[name]} == {split}


def test_doubtful_photographs_are_of_the_table_with_their_label_and_a_reason(photographs):
    doubtful = rows("flowers-doubtful.csv", "number", "label", "why")
    assert len({number for number, _, _ in doubtful}) == len(doubtful)
    for number, label, why in doubtful:
        assert photographs[number][0] == label
        assert why.strip()
