"""How true probabilities are before and after a temperature, on cross-validated outputs over a folder of class folders.

    python benchmarks/calibration.py data/flowers --json calibration.json

The outputs are those of a logistic regression on the pooled features of a frozen backbone, for penalties that make it not
sure enough, about right and too sure. The temperature of each fold is chosen inside its training part, by an inner
cross-validation, so that no image has a say in its own. Needs scikit-learn.
"""

import argparse

from common import report  # isort: skip

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kerastl
from kerastl.data.images import find_files, in_threads, read_image
from kerastl.evaluation.calibration import find_temperature, log_loss, reliability, scale


def features(folder: str, backbone: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pooled features of all images of class folders, `(count, channels)`, and their classes, `(count,)`."""
    paths, _ = find_files(folder)
    classes, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
    model = kerastl.build_classifier(backbone, len(classes), input_shape=size, weights="auto", dropout=0)
    pooled = keras.Model(model.inputs, model.layers[-1].input)
    images = np.stack(list(in_threads(lambda path: read_image(path, (size, size)), paths)))
    return np.asarray(pooled.predict(images, batch_size=50, verbose=0)), labels


def row(x: np.ndarray, labels: np.ndarray, penalty: float, folds: int) -> dict:
    """Return what the outputs are worth before and after, for one inverse penalty of the regression."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=300))
    (before, after), temperatures = np.zeros((2, len(x), labels.max() + 1)), []
    inner = StratifiedKFold(3, shuffle=True, random_state=1)
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(x, labels):
        said = cross_val_predict(classifier, x[train], labels[train], cv=inner, method="predict_proba")
        temperatures.append(float(find_temperature(said, labels[train])))
        before[test] = classifier.fit(x[train], labels[train]).predict_proba(x[test])
        after[test] = scale(before[test], temperatures[-1], labels[test])
    return {
        "C": penalty,
        "accuracy": float((before.argmax(axis=1) == labels).mean()),
        "temperature": float(np.mean(temperatures)),
        "error before": reliability(before, labels).error,
        "error after": reliability(after, labels).error,
        "log loss before": log_loss(before, labels),
        "log loss after": log_loss(after, labels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--penalties", type=float, nargs="+", default=[0.003, 0.03, 1.0])
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    x, labels = features(arguments.folder, arguments.backbone, arguments.image_size)
    rows = [row(x, labels, penalty, arguments.folds) for penalty in arguments.penalties]
    report(f"calibration error on {arguments.folder}", rows, arguments.json)


if __name__ == "__main__":
    main()
