"""Audit: what is wrong with the data: copies, leaks, wrong labels, odd ones, classes that look alike, bad files."""

import csv
import dataclasses
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from kerastl.checks import check_choice, check_count, received
from kerastl.data.batches import ImageSource, find_source, rows_of
from kerastl.data.folders import ImageSplits, load_images
from kerastl.data.images import look_at_all, size_in_file
from kerastl.data.labels import CLASSIFICATION, class_indices
from kerastl.errors import ArgumentError, DataError
from kerastl.evaluation.audit_page import KINDS, audit_page
from kerastl.evaluation.report import write_json
from kerastl.features.duplicates import find_duplicates, groups_of, nearest_neighbours
from kerastl.features.pooled import pooled_features
from kerastl.files import new_folder
from kerastl.models import backbones
from kerastl.models.outputs import scaled_range
from kerastl.tables import Printed, Table
from kerastl.training.linear import fit_softmax

AUDIT_FILES = ("audit.html", "findings.csv", "findings.json")
"""What `AuditResult.write` writes."""

_BACKBONE = "efficientnet_lite0"
_ROWS_SHOWN = 5  # of each kind, in the table
_NEIGHBOURS = 5
# Of robust z-scores; Iglewicz and Hoaglin (1993)
_FAR = 3.5
# Guessing between two classes is wrong half of the time: they count as alike where the classifier is half as wrong as that
_ALIKE = 0.25
_TINY = 4  # times that the network sees an image enlarged
_CLASSES_LISTED = 10  # of those that can't be checked
_OVERSHOOT = 64  # a sharp resizing, bicubic for one, goes beyond 0–255 at edges; it is clipped
_BLANK_LEVELS = 2.0  # of 255, standard deviation over the pixels


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is probably wrong.

    Attributes:
        kind: one of `KINDS`.
        names: paths, or names in the data set, of the images concerned: of a pair both.
        splits, labels: the split and the class of each, "" where there is none.
        suggestion: the class that an image probably shows; of "classes" the other class; else "".
        score: how sure it is, more being surer; comparable within a kind only.
        why: the evidence, in words.
        indices: of the images, train, validation and test one after the other; none for files that can't be read.
    """

    kind: str
    names: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    suggestion: str
    score: float
    why: str
    indices: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class AuditResult(Printed):
    """What `audit` found; printed, a table.

    Attributes:
        findings: the worst kind first, within a kind the surest first.
        name: of the data.
        count: of images.
        class_names: of the classes or labels.
        accuracy: of a linear classifier on the features, cross-validated on the labels as they are; `None` where labels
            aren't classes, or none can be checked.
        label_quality: float32 `(images,)`: that classifier's probability of the label less that of the best other class,
            −1…1, the lowest first to be looked at; `None` likewise, and NaN where a label can't be checked.
        wrong_labels: about how many labels are wrong, an estimate of confident learning; `None` likewise.
        not_checked: what was left out, and why.
        read: returns an image by its index, uint8 `(height, width, 3)`.
    """

    findings: tuple[Finding, ...]
    name: str
    count: int
    class_names: tuple[str, ...]
    accuracy: float | None
    label_quality: np.ndarray | None
    wrong_labels: int | None
    not_checked: tuple[str, ...]
    read: Callable[[int], np.ndarray]

    @property
    def facts(self) -> str:
        """What is known of the data as a whole, in a line."""
        known = [f"{self.count} images", f"{len(self.findings)} findings"]
        if self.accuracy is not None:
            known.append(f"a linear classifier is right on {self.accuracy:.1%} (cross-validated)")
            known.append(f"about {self.wrong_labels} labels are wrong")
        return "; ".join(known)

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """Return the findings of a kind: "leak", "label", "duplicate", "classes", "outlier" or "file"; raise for another."""
        check_choice("kind", kind, KINDS)
        return tuple(one for one in self.findings if one.kind == kind)

    def to_rows(self) -> list[dict]:
        """Return the findings as dictionaries of plain values, for `pandas.DataFrame`."""
        return [dataclasses.asdict(one) for one in self.findings]

    def write(self, folder: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write `audit.html`, a page with thumbnails that needs nothing beside it, `findings.csv` and `findings.json`.

        The folder must not exist, be empty, or with `overwrite` hold nothing but an earlier audit (else `OutputError`).
        Returns its absolute path.
        """
        with new_folder(folder, overwrite=overwrite, files=AUDIT_FILES, what="audit") as place:
            (place / "audit.html").write_text(audit_page(self), encoding="utf-8")
            (place / "findings.csv").write_text(self._csv(), encoding="utf-8", newline="")
            names = ("name", "count", "class_names", "accuracy", "wrong_labels", "not_checked")
            facts = {name: getattr(self, name) for name in names}
            write_json(place / "findings.json", {**facts, "findings": self.to_rows()})
        return Path(folder).expanduser().resolve()

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text)
        columns = ["name", "split", "label", "name_2", "split_2", "label_2"]
        writer.writerow(["kind", *columns, "suggestion", "score", "why"])
        for one in self.findings:
            images = [*zip(one.names, one.splits, one.labels, strict=True), ("", "", "")][:2]
            writer.writerow([one.kind, *images[0], *images[1], one.suggestion, f"{one.score:.4g}", one.why])
        return text.getvalue()

    def _tables(self) -> list[Table]:
        rows = []
        for kind, heading in KINDS.items():
            found = self.of_kind(kind)
            rows.append([heading, str(len(found)), "", ""])
            rows += [["", "", " = ".join(map(_short, one.names[:2])), one.why] for one in found[:_ROWS_SHOWN]]
            rows += [["", "", f"… {len(found) - _ROWS_SHOWN} more", ""]] if len(found) > _ROWS_SHOWN else []
        notes, title = [f"Not checked: {what}" for what in self.not_checked], f"{self.name}: {self.facts}"
        return [Table(["what", "found", "images", "why"], rows, right={1}, title=title, notes=notes)]


@dataclasses.dataclass(frozen=True)
class _Images:
    """All images of the data, in one order: train, validation, test."""

    name: str
    names: Sequence[str]
    splits: Sequence[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    task: str
    skipped: tuple[str, ...]
    size: tuple[int, int]
    rows: list  # the `Rows` of each split

    def read(self, index: int) -> np.ndarray:
        for rows in self.rows:
            if index < rows.count:
                return _as_bytes(rows.read(index))
            index -= rows.count
        raise IndexError(index)

    def finding(self, kind: str, indices, score, why: str, suggestion: str = "") -> Finding:
        indices = tuple(int(one) for one in indices)
        labels = tuple(self.class_names[self.labels[one]] if self.task == CLASSIFICATION else "" for one in indices)
        names, splits = (tuple(listed[one] for one in indices) for listed in (self.names, self.splits))
        return Finding(kind, names, splits, labels, suggestion, float(score), why, indices)


def audit(
    data,
    features: np.ndarray | None = None,
    *,
    backbone: str = _BACKBONE,
    weights="imagenet",
    image_size: int | tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> AuditResult:
    """Look for what is wrong with the data: copies, leaks, wrong labels, odd images, classes that look alike, bad files.

    Near-duplicates are found by features and proved by pixels (`kerastl.features.duplicates`), also across splits, where
    they make validation and test measure memory. Probable label errors are those of confident learning (Northcutt et al.
    2021), by a linear classifier on the features, cross-validated with near-duplicates in one fold. A class of nothing but
    near-duplicates of one image can't be checked so. Outliers are far from their nearest neighbours. They are suggestions,
    to be looked at; nothing is changed.

    Args:
        data: what `load_images` takes (unreadable files are findings then), or its result, or a pair of arrays: images
            0–255 `(images, height, width, 3)`, or grey ones without the 3, and classes.
        features: `(images, features)`, of train, validation and test one after the other, in the order of
            `ImageSplits.files`; by default the backbone's outputs, averaged over the image.
        backbone, weights: where features are not given: a name of `list_backbones()`, and `"imagenet"`, `"auto"` or a path.
        image_size: in pixels, where `data` is loaded here; default: the backbone's own.
        class_names: of a pair of arrays.
        seed: of the splits, as `load_images` makes them, and of the folds.
        verbose: 0 shows no progress.

    Raises:
        ArgumentError, DataError: arguments or data that can't be used.
        WeightsUnavailableError: the backbone's weights are not available.

    Example:
        >>> features = images.reshape(30, -1)[:, ::97]  # without them a backbone runs
        >>> result = kerastl.audit((images, labels), features, class_names=data.class_names, verbose=0)
        >>> result.count, result.of_kind("duplicate")
        (30, ())
    """
    seed, row = check_count("seed", seed, smallest=0), backbones.backbone_row(backbone)
    images = _images_of(data, image_size or row.native_size, class_names, seed, verbose)
    given = _extract(images, row.name, weights, verbose) if features is None else features
    features = _checked_features(given, len(images.names))
    pairs = find_duplicates(features, images.read, verbose=verbose)
    found, *known = _labels_and_classes(images, features, groups_of(len(features), pairs), seed)
    findings = [*_duplicates(images, pairs), *found, *_outliers(images, features), *_bad_files(images, verbose)]
    order = list(KINDS)
    findings.sort(key=lambda one: (order.index(one.kind), -one.score))
    return AuditResult(tuple(findings), images.name, len(images.names), images.class_names, *known, images.read)


def label_errors(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return each label's quality, `(rows,)`, and about how many labels are wrong.

    Confident learning (Northcutt, Jiang and Chuang, 2021): the quality is the normalized margin, the probability of the
    label less that of the best other class; a row counts as of another class where its probability of that is at least the
    mean that rows labelled so have, and is the largest of those. These lines are all that is needed: cleanlab, the authors'
    package, is under the AGPL, which would bind whoever installs this one.

    Args:
        probabilities: `(rows, classes)`, by classifiers that haven't seen the row.
        labels: classes `(rows,)`.
    """
    rows, others = np.arange(len(labels)), probabilities.copy()
    others[rows, labels] = -1
    thresholds = np.full(probabilities.shape[1], np.inf)
    for present in np.unique(labels):
        thresholds[present] = probabilities[labels == present, present].mean()
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    wrong = confident.max(axis=1) > confident[rows, labels]  # of two that are alike the label itself
    return (probabilities[rows, labels] - others.max(axis=1)).astype("float32"), int(wrong.sum())


def _checked_features(features, count: int) -> np.ndarray:
    try:
        found = np.asarray(features, "float32")
    except (TypeError, ValueError):  # text, or rows of different lengths
        found = None
    if found is None or found.ndim != 2 or len(found) != count or not np.isfinite(found).all():
        what = received(features=features) if found is None else received(shape=found.shape)
        expected = f"Expected finite `features` of shape ({count}, features), a row for each image"
        raise DataError(f"{expected}, in the order of `ImageSplits.files`. {what}")
    return found


def _images_of(data, image_size, class_names, seed: int, verbose: int) -> _Images:
    if isinstance(data, (str, os.PathLike)):
        data = load_images(data, image_size=image_size, seed=seed, skip_unreadable=True, verbose=verbose)
    if isinstance(data, ImageSplits):
        parts = {split: find_source(getattr(data, split)) for split in data.split_sizes}
        names = [name for split in parts for name in data.files[split]]
        about = (data.class_names, data.task, data.skipped, data.image_size)
        name, labels = data.name, np.concatenate([part.labels for part in parts.values()])
    else:
        rows, labels, class_names = _arrays_of(data, class_names)
        parts, name, names = {"": rows}, "images", [f"image {index}" for index in range(rows.count)]
        about = (class_names, CLASSIFICATION, (), rows.read(0).shape[:2])
    splits = [split for split, part in parts.items() for _ in range(part.count)]
    return _Images(name, names, splits, labels, *about, list(parts.values()))


def _arrays_of(data, class_names) -> tuple:
    """Return the `Rows` of a pair of arrays, its classes `(images,)` and their names, having checked all of it."""
    rows = rows_of(data)
    if rows is None or not rows.skips:
        raise ArgumentError(
            "`data` must be a source or the result of `load_images`, or a pair of arrays (images, classes). "
            f"{received(data=type(data).__name__)}"
        )
    _check_pixels(rows)
    labels, names = np.asarray(rows.labels), [] if class_names is None else class_names
    if isinstance(names, str) or not np.iterable(names):
        raise ArgumentError(f"`class_names` must be a list of names. {received(class_names=class_names)}")
    names, is_finite = list(map(str, names)), labels.dtype.kind in "iufb" and np.isfinite(labels).all()
    columns = labels.shape[1] if labels.ndim == 2 else 1
    count = len(names) or (columns if columns > 1 else int(labels.max()) + 1 if is_finite else 0)
    try:
        return rows, class_indices(labels, count), tuple(names or map(str, range(count)))
    except DataError:
        facts = {"dtype": str(labels.dtype), "shape": labels.shape, "first": labels[:3].tolist()}
        which = f"to {count - 1}" if count > 0 else "on"
        raise DataError(
            f"Expected one class for each image, a whole number from 0 {which} or a one-hot row, and a name in "
            "`class_names` for each class, if any. Make numbers of text by `numpy.unique(labels, return_inverse=True)`. "
            "Images with several labels, or with numbers to predict, are audited from a folder with a table: "
            f"`load_images(folder, labels=...)`. {received(**facts, class_names=class_names)}"
        ) from None


def _check_pixels(rows) -> None:
    """Raise `DataError` unless there are images, RGB 0–255 or grey: others would all look alike."""
    shape, dtype = rows.first[0].shape, rows.first[0].dtype
    if 0 in shape or not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
        raise DataError(
            "Expected images `(images, height, width, 3)`, or grey ones without the 3, and at least one. `images[..., :3]` "
            f"leaves out a fourth channel (alpha). {received(shape=(rows.count, *shape[1:]))}"
        )
    if dtype == np.uint8:
        return
    extremes = np.array([np.nan])
    if dtype.kind in "iuf":
        extremes = np.array([(one.min(), one.max()) for one in map(rows.read, range(rows.count))])
    low, high = extremes.min().item(), extremes.max().item()
    beyond = _OVERSHOOT if dtype.kind == "f" else 0
    if not (low >= -beyond and high <= 255 + beyond) or scaled_range(extremes):
        raise DataError(
            "Expected pixels 0–255 without NaN, as the colours of images are compared. Undo a scaling (`images * 255` of 0–1, "
            f"`images // 257` of 16 bits), and clip the rest. {received(dtype=str(dtype), smallest=low, largest=high)}"
        )


def _extract(images: _Images, backbone: str, weights, verbose: int) -> np.ndarray:
    """Return the backbone's outputs averaged over the image, float32 `(images, channels)`."""
    shape = (*images.size, 3)
    pixels = keras.Input(shape)
    base = backbones.load_backbone(backbone, input_shape=shape, weights=weights, pooling="avg", verbose=verbose)
    model = keras.Model(pixels, base(backbones.preprocess(backbone, pixels)))
    rows = ImageSource(images.labels, images.size, "", False, images.read)  # all splits as one
    [features], _, _ = pooled_features(model, rows, part="", verbose=verbose)
    return features[:, 0]


def _duplicates(images: _Images, pairs) -> list[Finding]:
    findings = []
    for pair in pairs:
        both = [pair.first, pair.second]
        kind = "duplicate" if images.splits[pair.first] == images.splits[pair.second] else "leak"
        why = f"{pair.places} places agree" if pair.places else "the same pixels but for their size"
        why += ", mirrored" if pair.mirrored else ""
        if images.task == CLASSIFICATION and images.labels[pair.first] != images.labels[pair.second]:
            why += "; their labels differ"
        findings.append(images.finding(kind, both, pair.places + pair.similarity, why))
    return findings


def _labels_and_classes(images: _Images, features, groups, seed: int) -> tuple:
    """Return findings, accuracy, the labels' quality, about how many are wrong, and what can't be checked of them."""
    if images.task != CLASSIFICATION or len(np.unique(images.labels)) < 2:
        why = "labels and classes that look alike, as there is not one of several classes an image"
        return [], None, None, None, (why,)
    fit = None
    if len(np.unique(groups)) > 1:
        fit = fit_softmax(features, images.labels, num_classes=len(images.class_names), groups=groups, seed=seed)
    if fit is None or not fit.seen.any():
        why = "labels and classes that look alike, as no class has two images that are not near-duplicates"
        return [], None, None, None, (why,)
    seen, labels, quality = fit.seen, images.labels[fit.seen], np.full(len(images.labels), np.nan, "float32")
    quality[seen], wrong = label_errors(fit.probabilities[seen], labels)
    findings = [_label_finding(images, fit.probabilities, index) for index in np.flatnonzero(quality < 0)]
    findings += _alike(images, fit.probabilities, seen)
    accuracy = float((fit.probabilities[seen].argmax(axis=1) == labels).mean())
    return findings, accuracy, quality, wrong, _never_seen(images, seen)


def _never_seen(images: _Images, seen) -> tuple[str, ...]:
    """Say which classes the classifier never saw where it was asked about them."""
    classes = [images.class_names[one] for one in np.unique(images.labels[~seen])]
    if not classes:
        return ()
    listed = ", ".join(classes[:_CLASSES_LISTED]) + (", …" if len(classes) > _CLASSES_LISTED else "")
    why = "such a class has one image, or near-duplicates of one, and no other to learn it from"
    return (f"labels of {listed} ({np.sum(~seen)} images): {why}",)


def _label_finding(images: _Images, probabilities, index: int) -> Finding:
    label, said = images.labels[index], probabilities[index].copy()
    own, said[label] = said[label], -1
    best = int(said.argmax())
    why = f"labelled {images.class_names[label]} ({own:.2f}), looks like {images.class_names[best]} ({said[best]:.2f})"
    return images.finding("label", [index], said[best] - own, why, images.class_names[best])


def _alike(images: _Images, probabilities, seen) -> list[Finding]:
    """Return the pairs of classes between which the classifier is right little more often than a guess."""
    findings, names, labels = [], images.class_names, np.where(seen, images.labels, -1)
    for one, other in zip(*np.triu_indices(len(names), 1), strict=True):
        between = (labels == one) | (labels == other)
        says_other = probabilities[:, other] > probabilities[:, one]
        wrong = [says_other[labels == one], ~says_other[labels == other]]
        if not all(map(len, wrong)):
            continue
        rate = float(np.mean([part.mean() for part in wrong]))
        if rate >= _ALIKE:
            sides = ((says_other == (labels == one)) & between).nonzero()[0]
            examples = sides[np.argsort(-np.abs(probabilities[sides, one] - probabilities[sides, other]))][:8]
            why = f"between {names[one]} and {names[other]} it is wrong on {rate:.0%} (guessing: 50%)"
            findings.append(images.finding("classes", examples, rate, why, f"{names[one]} / {names[other]}"))
    return findings


def _outliers(images: _Images, features) -> list[Finding]:
    """Return images whose mean distance to the nearest others is far above what is usual, by median and deviation."""
    if len(features) <= _NEIGHBOURS:
        return []
    distance = 1 - nearest_neighbours(features, _NEIGHBOURS)[1].mean(axis=1)
    middle = np.median(distance)
    scores = (distance - middle) / max(1.4826 * np.median(np.abs(distance - middle)), 1e-6)
    why = "{:.1f} deviations further from others than usual"
    far = np.flatnonzero(scores > _FAR)
    return [images.finding("outlier", [index], scores[index], why.format(scores[index])) for index in far]


def _bad_files(images: _Images, verbose: int) -> list[Finding]:
    """Return files that can't be read, that the network sees much enlarged, and that show nothing."""

    def look(index: int) -> str:
        path, pixels = Path(images.names[index]), images.read(index)
        height, width = size_in_file(path) if path.is_file() else pixels.shape[:2]
        if min(height, width) * _TINY < min(images.size):
            return f"only {height}×{width} pixels (height×width)"
        return "blank: all pixels are nearly alike" if pixels.std(axis=(0, 1)).max() < _BLANK_LEVELS else ""

    said = look_at_all(look, range(len(images.names)), verbose=verbose)
    broken = [Finding("file", (name,), ("",), ("",), "", 2.0, "can't be read") for name in images.skipped]
    return broken + [images.finding("file", [index], 1.0, why) for index, why in enumerate(said) if why]


def _short(name: str) -> str:
    """Return the last two parts of a path: the folder and the file."""
    return "/".join(name.replace("\\", "/").split("/")[-2:])


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    pixels = np.asarray(pixels)
    pixels = np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3))  # grey as well
    return pixels if pixels.dtype == np.uint8 else np.clip(np.rint(pixels), 0, 255).astype("uint8")
