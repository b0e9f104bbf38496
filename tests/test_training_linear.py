"""Linear models on plain arrays: right, with a penalty that helps, and with figures that are honest."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from kerastl.errors import DataError
from kerastl.training import linear
from kerastl.training.linear import fit_ridge, fit_sigmoid, fit_softmax, folds_of


def clusters(count=120, classes=3, features=12, spread=1.5, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = generator.normal(size=(classes, features))
    return (centers[labels] + spread * generator.normal(size=(count, features))).astype("float32"), labels


def scaled(values):
    values = values.astype("float64") - values.mean(axis=0, dtype="float64")
    return values / np.sqrt(values.var(axis=0).mean())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("features", [12, 300])
def test_softmax_is_what_scikit_learn_fits_on_features_divided_by_one_number(classes, features):
    values, labels = clusters(classes=classes, features=features)
    values = values * np.linspace(0.1, 9, features, dtype="float32") + 5
    fit = fit_softmax(values, labels)
    assert fit.kernel.shape == (features, classes)
    assert fit.bias.shape == (classes,)
    assert fit.kernel.dtype == np.float32
    model = LogisticRegression(C=fit.c, max_iter=10000, tol=1e-8).fit(scaled(values), labels)
    wanted = model.predict_proba(scaled(values))
    np.testing.assert_allclose(fit.outputs(values), wanted, atol=5e-3)


def test_accuracy_is_that_of_rows_that_were_not_fitted_on():
    generator = np.random.default_rng(0)
    noise, labels = generator.normal(size=(100, 300)), np.arange(100) % 2
    fit = fit_softmax(noise, labels)
    assert 0.3 < fit.accuracy < 0.65
    np.testing.assert_allclose(fit.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert fit.accuracy == (fit.probabilities.argmax(axis=1) == labels).mean()
    assert fit_softmax(*clusters(spread=0.1)).accuracy == 1


def test_the_penalty_is_weak_for_clear_data_and_strong_for_noise():
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    noise = generator.normal(size=(200, 40))
    clear = noise + 0.0
    clear[:, 0] = labels
    assert fit_softmax(noise, labels).c < fit_softmax(clear, labels).c


def test_a_class_of_two_images_and_one_of_none():
    values, labels = clusters(spread=0.2)
    rare = np.concatenate([labels, [3, 3]])
    values = np.concatenate([values, np.full((2, 12), 6.0) + np.eye(12)[:2]])
    fit = fit_softmax(values, rare, num_classes=6)
    assert fit.kernel.shape == (12, 6)
    assert fit.accuracy == 1
    assert np.isfinite(fit.kernel).all()
    assert np.isfinite(fit.bias).all()
    assert fit.outputs(values)[:, 4:].max() < 1e-3
    alone = fit_softmax(values[:-1], rare[:-1])
    assert alone.probabilities[-1].argmax() != 3


def test_sample_weights_count_rows():
    values, labels = clusters(count=60, classes=2, spread=2.5)
    weights = np.where(labels == 1, 3.0, 1.0)
    weighted, plain = fit_softmax(values, labels, sample_weights=weights), fit_softmax(values, labels)
    column = fit_softmax(values, labels, sample_weights=weights[:, None])
    np.testing.assert_array_equal(column.kernel, weighted.kernel)
    assert weighted.outputs(values)[:, 1].mean() > plain.outputs(values)[:, 1].mean() + 0.1
    repeats = np.repeat(np.arange(60), weights.astype(int))
    wanted = LogisticRegression(C=weighted.c, tol=1e-8).fit(scaled(values)[repeats], labels[repeats])
    np.testing.assert_allclose(weighted.outputs(values), wanted.predict_proba(scaled(values)), atol=5e-3)


@pytest.mark.parametrize("features", [20, 200])  # fewer than rows, and more
def test_features_that_hardly_vary_get_no_large_weights(features):
    values, labels = clusters(count=100, classes=2, features=features)
    faint = values * np.where(np.arange(features) % 4, 1, 1e-3).astype("float32")
    for fit in (fit_softmax(faint, labels), fit_sigmoid(faint, labels), fit_ridge(faint, labels)):
        weights = np.abs(fit.kernel).max(axis=1)
        assert weights[::4].max() < weights[1::4].max()  # standardized, theirs would be a thousand times as large


@pytest.mark.parametrize("features", [13, 400])
def test_constant_features_get_no_weight(features):
    values, labels = clusters(features=features)
    values[:, 3], values[:, 7] = 4.0, 0.0
    for fit in (fit_softmax(values, labels), fit_sigmoid(values, labels == 1), fit_ridge(values, labels)):
        assert not fit.kernel[[3, 7]].any()
        assert fit.kernel[[0, 1]].all()
    assert np.isfinite(fit_softmax(np.ones((20, 3)), np.arange(20) % 2).bias).all()


@pytest.mark.parametrize("features", [3, 40])  # fewer than rows, and more
def test_features_that_are_all_constant_predict_the_shares_of_the_classes(features):
    values, labels = np.full((20, features), 3.0, "float32"), np.arange(20) % 5 // 3
    fit = fit_softmax(values, labels)
    assert not fit.kernel.any()
    np.testing.assert_allclose(fit.outputs(values), [[0.6, 0.4]] * 20, atol=1e-3)
    assert np.isfinite(fit_ridge(values, labels.astype("float32")).outputs(values)).all()


def test_half_precision_features():
    values, labels = clusters(features=30)
    half = fit_softmax((values * 1000).astype("float16"), labels)
    assert half.c == fit_softmax(values * 1000, labels).c
    np.testing.assert_allclose(half.outputs(values * 1000), fit_softmax(values, labels).outputs(values), atol=0.02)


def test_large_features_are_computed_in_32_bits(monkeypatch):
    values, labels = clusters(spread=0.8)
    exact = fit_softmax(values, labels)
    monkeypatch.setattr(linear, "_LARGE", 10)
    np.testing.assert_allclose(fit_softmax(values, labels).outputs(values), exact.outputs(values), atol=0.1)


def test_views_of_an_image_stay_in_one_fold():
    generator = np.random.default_rng(0)
    images = generator.normal(size=(40, 100))
    views = np.repeat(images, 4, axis=0) + 0.01 * generator.normal(size=(160, 100))
    labels, groups = np.repeat(generator.integers(0, 2, 40), 4), np.repeat(np.arange(40), 4)
    assert fit_softmax(views, labels).accuracy > 0.9  # known by heart from the other views
    assert fit_softmax(views, labels, groups=groups).accuracy < 0.7
    folds = folds_of(labels, groups)
    assert (folds.reshape(40, 4) == folds.reshape(40, 4)[:, :1]).all()


def test_folds_hold_every_class_alike():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 5)
    table = np.array([np.bincount(labels[folds_of(labels) == fold], minlength=3) for fold in range(5)])
    assert (table == [10, 2, 1]).all()
    assert (folds_of(labels, seed=1) != folds_of(labels, seed=2)).any()


def test_rows_of_a_class_that_lies_in_one_fold_could_not_be_predicted():
    values, labels = clusters(count=30)
    groups = np.where(labels == 2, 100, np.arange(30))
    assert (fit_softmax(values, labels, groups=groups).seen == (labels != 2)).all()
    assert fit_softmax(values, labels.astype("uint64")).seen.all()
    assert fit_ridge(values, labels).seen is None


def test_sigmoid_fits_every_label_by_itself():
    values, labels = clusters(classes=4, spread=0.8)
    several = np.stack([labels == 1, labels >= 2, np.ones(len(labels)), np.zeros(len(labels))], axis=1)
    fit = fit_sigmoid(values, several)
    assert fit.kernel.shape == (12, 4)
    assert fit.activation == "sigmoid"
    assert fit.accuracy > 0.9
    np.testing.assert_allclose(fit.accuracy, ((fit.probabilities > 0.5) == several).mean())
    assert not fit.kernel[:, 2:].any()
    assert fit.outputs(values)[:, 2].min() > 0.98 > 0.02 > fit.outputs(values)[:, 3].max()
    alone = fit_sigmoid(values, labels == 1)
    assert alone.kernel.shape == (12, 1)


def test_sigmoid_is_softmax_of_two_classes():
    values, labels = clusters(classes=2)
    one, two = fit_sigmoid(values, labels), fit_softmax(values, labels)
    np.testing.assert_allclose(one.outputs(values)[:, 0], two.outputs(values)[:, 1], atol=1e-5)


@pytest.mark.parametrize("features", [12, 300])
def test_ridge_is_scikit_learns(features):
    values, _ = clusters(features=features)
    numbers = values[:, :3] @ np.array([[2.0, 0], [0, 1], [1, 1]]) + 7
    fit = fit_ridge(values, numbers)
    wanted = Ridge(alpha=1 / fit.c).fit(scaled(values), numbers).predict(scaled(values))
    np.testing.assert_allclose(fit.outputs(values), wanted, atol=1e-3)
    assert fit.accuracy > (0.99 if features == 12 else 0.2)
    assert fit_ridge(values, np.random.default_rng(0).normal(size=120)).accuracy < 0.1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda values, labels: fit_softmax(values, labels * 0 + 1), "one class"),
        (lambda values, labels: fit_softmax(values * np.nan, labels), "NaN"),
        (lambda values, labels: fit_softmax(values, labels[:-1]), "rows"),
        (lambda values, labels: fit_softmax(values, labels.astype(float)), "whole numbers"),
        (lambda values, labels: fit_softmax(values, labels, num_classes=2), "num_classes"),
        (lambda values, labels: fit_softmax(values, labels, groups=labels * 0), "two images"),
        (lambda values, labels: fit_softmax(values[:, 0], labels), "features"),
        (lambda values, labels: fit_sigmoid(values, labels), "0 and 1"),
        (lambda values, labels: fit_sigmoid(values, labels * 0), "same labels"),
        (lambda values, labels: fit_softmax(values, labels, sample_weights=labels * np.nan), "Sample weights"),
        (lambda values, labels: fit_softmax(values, labels, sample_weights=labels * 0), "not all 0.*largest=0"),
        (lambda values, labels: fit_sigmoid(values, labels == 1, sample_weights=labels - 1), "from 0 on.*smallest=-1"),
        (lambda values, labels: fit_ridge(values, labels, sample_weights=np.ones((120, 2))), r"shape=\(120, 2\)"),
        (lambda values, labels: fit_softmax(values, labels, sample_weights=np.arange(120) == 7), "rows_with_weight=1"),
        (lambda values, labels: fit_ridge(values, labels, sample_weights=np.arange(120) == 7), "rows_with_weight=1"),
        (lambda values, labels: fit_ridge(values, labels * 0), "same"),
        (lambda values, labels: fit_ridge(values, labels * np.inf), "finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(call, words):
    with np.errstate(invalid="ignore"), pytest.raises(DataError, match=words):
        call(*clusters())
