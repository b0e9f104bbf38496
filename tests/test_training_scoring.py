"""Scores of predictions, and nearest neighbours, on plain arrays."""

import warnings

import numpy as np
import pytest

from kerastl.errors import DataError
from kerastl.training.scoring import Problem, neighbour_score, task_of_labels


def test_classes_are_scored_in_all_and_one_by_one():
    problem = Problem("classification", ["a", "b", "c"])
    predicted = np.array([[0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    targets = problem.targets(np.eye(3)[[0, 1, 1]])
    assert problem.score(predicted, targets) == pytest.approx(2 / 3)
    assert [(one.name, one.score, one.images) for one in problem.per_class(predicted, targets)] == [
        ("a", 1, 1),
        ("b", 0.5, 2),
        ("c", None, 0),
    ]
    assert problem.loss(predicted, targets) == pytest.approx(-np.log([0.6, 0.2, 0.8]).mean())
    assert problem.standard_error(0.5, 100) == 0.05


def test_labels_are_scored_one_by_one():
    problem = Problem("multi-label", ["a", "b"])
    predicted, targets = np.array([[0.9, 0.4], [0.8, 0.1]]), problem.targets(np.array([[1.0, 1], [0, 0]]))
    assert [one.score for one in problem.per_class(predicted, targets)] == [0.5, 0.5]
    assert problem.score(predicted, targets) == 0.5
    assert problem.loss(predicted, targets) == pytest.approx(-np.log([0.9, 0.4, 0.2, 0.9]).mean())


def test_numbers_are_scored_by_r2():
    problem = Problem("regression", ["a", "b"])
    targets = problem.targets(np.array([[0.0, 1], [2, 1], [4, 1]]))
    assert [one.score for one in problem.per_class(targets, targets)] == [1, None]
    assert problem.score(targets * 0 + 2, targets) == 0
    assert problem.loss(targets * 0 + 2, targets) == 1
    assert problem.standard_error(0.5, 100) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(problem.score(targets, np.ones((3, 2))))  # there is nothing to explain


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="whole numbers"):
        Problem("classification", ["a", "b"]).targets(np.array([0, 2]))
    with pytest.raises(DataError, match="multi-label"):
        Problem("multi-label", ["a", "b"]).targets(np.array([[0, 2.0]]))


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        ([0, 1, 2], "classification"),
        ([0.0, 1.0], "classification"),
        ([[0, 1], [1, 0]], "classification"),
        ([[0.9, 0.1], [0.2, 0.8]], "classification"),
        ([[1, 1], [0, 0]], "multi-label"),
        ([0.5, 1], "regression"),
        ([-1, 1], "regression"),
        ([[3.0, 1], [0, 0]], "regression"),
    ],
)
def test_labels_tell_what_they_are_for(labels, task):
    assert task_of_labels(np.array(labels)) == task


def test_neighbours_are_near_by_angle_and_never_an_image_itself():
    generator = np.random.default_rng(0)
    labels, problem = np.arange(40) % 2, Problem("classification", ["a", "b"])
    directions = np.stack([np.cos(labels * 0.5), np.sin(labels * 0.5)], axis=1)
    lengths = generator.uniform(0.1, 10, (40, 1))
    assert neighbour_score(directions * lengths, labels, problem) == 1
    assert neighbour_score(generator.normal(size=(40, 30)), labels, problem) < 0.75
    pairs = np.repeat(generator.normal(size=(20, 30)), 2, axis=0)  # each image has one twin, of the other class
    assert neighbour_score(pairs, labels, problem) < 0.75


def test_neighbours_tell_numbers():
    angles = np.linspace(0, 1, 60)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert neighbour_score(features, angles[:, None], Problem("regression", ["angle"])) > 0.98
