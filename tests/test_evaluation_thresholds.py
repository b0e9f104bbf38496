"""Thresholds are those of the greatest score, and prediction, evaluation and reports go by them."""

import keras
import numpy as np
import pytest
from hypothesis import example, given, strategies

import kerastl
from kerastl.errors import ArgumentError, KerastlWarning
from kerastl.evaluation.probabilities import check_thresholds, decide
from kerastl.evaluation.thresholds import METRICS, best_threshold

NAMES = ["hot", "wet", "old"]
pairs = strategies.lists(strategies.tuples(strategies.booleans(), strategies.integers(0, 20)), min_size=2, max_size=30)


def score(labels, said, metric):
    return METRICS[metric]((labels & said).sum(), said.sum(), labels.sum(), len(labels))


@example([(False, 10), (True, 0)], "balanced_accuracy")  # best where nothing is called so
@given(pairs, strategies.sampled_from(sorted(METRICS)))
def test_no_threshold_is_better(rows, metric):
    labels, probabilities = np.array([one for one, _ in rows]), np.array([value for _, value in rows]) / 20
    threshold, before, after = best_threshold(labels, probabilities, metric)
    if labels.all() or not labels.any():
        assert (threshold, before, after) == (0.5, None, None)
        return
    assert 0 < threshold < 1
    assert after == pytest.approx(score(labels, probabilities >= threshold, metric))
    assert before == pytest.approx(score(labels, probabilities >= 0.5, metric))
    assert after >= max(score(labels, probabilities >= one, metric) for one in np.linspace(0.01, 0.99, 99)) - 1e-9
    assert threshold == 0.5 or after > before


def test_scores_are_those_counted_by_hand():
    labels, said = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    assert score(labels, said, "f1") == pytest.approx(2 / 3)
    assert score(labels, said, "balanced_accuracy") == pytest.approx((2 / 3 + 1 / 2) / 2)


def channels(units, activation="sigmoid"):
    """A model that says the brightness of its first channels, 0–255 as a logit from −5 to 5."""
    inputs = keras.Input((4, 4, 3))
    head = keras.layers.Dense(units, activation=activation, use_bias=False)
    model = keras.Model(inputs, head(keras.layers.GlobalAveragePooling2D()(inputs / 25.5 - 5)))
    head.set_weights([np.eye(3)[:, :units]])
    return model


def rare(count=200, seed=0):
    """Images of three labels of which the second is rare and never brighter than a quarter; labels there or not."""
    random = np.random.default_rng(seed)
    labels = random.random((count, 3)) < [0.5, 0.1, 0.5]
    brightness = np.where(labels, [200, 90, 200], [50, 20, 50]) + random.normal(0, 8, (count, 3))
    return np.broadcast_to(brightness, (4, 4, count, 3)).transpose(2, 0, 1, 3).clip(0, 255).astype("uint8"), labels


def test_a_rare_label_is_found_by_its_threshold_everywhere():
    images, labels = rare()
    model, data = channels(3), (images, labels.astype("float32"))
    found = kerastl.choose_thresholds(model, data, NAMES)
    assert (found["hot"], found["old"]) == (0.5, 0.5)
    assert found["wet"] < 0.15
    assert (found.rows[1].before, found.rows[1].after, found.rows[1].support) == (0, 1, labels[:, 1].sum())
    assert "F1 at 0.5" in str(found)
    assert found.to_rows()[1]["threshold"] == found["wet"]
    fresh, truth = rare(seed=1)
    said = kerastl.predict(model, fresh, class_names=NAMES, thresholds=found)
    assert [set(one) for one in said.labels] == [
        set(np.array(NAMES)[row]) or {NAMES[place]}
        for row, place in zip(truth, said.probabilities.argmax(axis=1), strict=True)
    ]
    assert "labels of their thresholds or more" in str(said)
    judged = kerastl.evaluate(model, (fresh, truth.astype("float32")), NAMES, thresholds=dict(found))
    assert judged.scores["f1"] == 1
    assert not judged.mistakes.images
    plain = kerastl.evaluate(model, (fresh, truth.astype("float32")), NAMES)
    assert plain.to_rows()[1]["f1"] == 0
    assert plain.baseline == judged.baseline
    assert len(plain.mistakes.images) == min(12, truth[:, 1].sum())


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_one_of_two_classes_has_a_threshold_by_balanced_accuracy(activation):
    images, labels = rare()
    model = channels(2 if activation == "softmax" else 1, activation)
    shown = images.copy()
    if activation == "sigmoid":
        shown[..., 0] = images[..., 1]
    else:
        shown[..., 0] = 128
    found = kerastl.choose_thresholds(model, (shown, labels[:, 1].astype(int)), ["dry", "wet"])
    assert list(found) == ["wet"]
    assert found["wet"] < 0.3
    assert (found.rows[0].before, found.rows[0].after) == (0.5, 1)
    options = {"class_names": ["dry", "wet"], "thresholds": found}
    said = kerastl.predict(model, shown, **options)
    assert said.labels == ["wet" if one else "dry" for one in labels[:, 1]]
    wet = int(labels[:, 1].argmax())
    assert said[wet].probability == said.probabilities[wet, 1] < 0.5
    assert list(said[wet].probabilities) == ["dry", "wet"]
    shown_row = str(said).splitlines()[2 + wet].split()
    assert shown_row[:4] == ["image", str(wet), "wet", f"{100 * said[wet].probability:.1f}"]
    judged = kerastl.evaluate(model, (shown, labels[:, 1].astype(int)), **options)
    assert judged.accuracy == 1
    wrong = kerastl.evaluate(model, (shown, np.zeros(len(shown), int)), **options).mistakes
    assert len(wrong.images) == 12
    # By the other class it is the same
    other = kerastl.predict(model, shown, class_names=["dry", "wet"], thresholds={"dry": 1 - found["wet"]})
    assert other.labels == said.labels


def test_a_label_without_examples_keeps_a_half():
    images, labels = rare()
    labels[:, 1] = False
    with pytest.warns(KerastlWarning, match="none has: wet. They keep 0.5"):
        found = kerastl.choose_thresholds(channels(3), (images, labels.astype("float32")), NAMES)
    assert found["wet"] == 0.5
    assert found.rows[1].after is None


@pytest.mark.parametrize(
    ("thresholds", "names", "task", "words"),
    [
        (0.5, NAMES, "multi-label", "must be what `kerastl.choose_thresholds` returned"),
        ({"wett": 0.5}, NAMES, "multi-label", "Did you mean 'wet'"),
        ({"wet": 1.0}, NAMES, "multi-label", r"thresholds\['wet'\]"),
        ({"wet": 0.4}, NAMES, "classification", "or for one of two classes"),
        ({"a": 0.4, "b": 0.5}, ["a", "b"], "classification", "or for one of two classes"),
        ({"wet": 0.4}, NAMES, "regression", "or for one of two classes"),
    ],
)
def test_thresholds_that_can_t_be_used(thresholds, names, task, words):
    with pytest.raises(ArgumentError, match=words):
        check_thresholds(thresholds, names, task)


def test_models_that_have_no_thresholds(colours, labelled):
    with pytest.raises(ArgumentError, match="of two classes"):
        kerastl.choose_thresholds(colours, labelled)
    with pytest.raises(ArgumentError, match="`metric` must be one of"):
        kerastl.choose_thresholds(channels(3), labelled, metric="f2")


def test_decisions_without_thresholds_are_the_usual_ones():
    rows = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    assert decide(rows, "classification").tolist() == [1, 0, 0]
    assert decide(rows, "multi-label").tolist() == [[False, True], [True, False], [True, True]]
    assert decide(rows, "regression") is rows
