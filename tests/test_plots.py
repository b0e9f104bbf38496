import itertools
import types

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from kerastl import plots
from kerastl.errors import ArgumentError, DataError


def history(epochs, start=1.0, seconds=2.0, best=None, metric="accuracy"):
    losses = start * np.exp(-np.arange(epochs) / 4)
    return types.SimpleNamespace(
        history={
            "loss": list(losses),
            metric: list(1 - losses / 2),
            "val_loss": list(losses + 0.1),
            f"val_{metric}": list(0.9 - losses / 2),
        },
        epoch_seconds=[seconds] * epochs,
        best_epoch=best,
    )


def transfer_result(best_phase="fine_tune", best_epoch=2, head=4, fine_tune=3):
    return types.SimpleNamespace(
        head=history(head),
        fine_tune=history(fine_tune, start=0.5, seconds=30.0) if fine_tune else None,
        best_phase=best_phase,
        best_epoch=best_epoch,
    )


def legend_of(panel):
    return [text.get_text() for text in panel.get_legend().get_texts()]


def lines_of(panel, label):
    return [line for line in panel.get_lines() if line.get_label() == label]


def test_both_phases_stand_on_one_axis_with_the_boundary_between_them():
    figure = plots.plot_history(transfer_result())
    loss, accuracy = figure.axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")
    curves = [line.get_xdata() for line in loss.get_lines() if len(line.get_xdata()) > 2]
    assert [list(curve) for curve in curves] == [[1, 2, 3, 4], [5, 6, 7]] * 2
    dashed = [line for line in loss.get_lines() if line.get_linestyle() == "--"]
    assert dashed[0].get_xdata() == [4.5, 4.5]
    assert {text.get_text() for text in loss.texts} == {"head", "fine-tuning"}


@pytest.mark.parametrize(
    ("phase", "epoch", "position"), [("head", 3, 3), ("fine_tune", 2, 6), ("fine_tune", 1, 5), ("head", 4, 4)]
)
def test_the_best_epoch_is_ringed_where_it_is(phase, epoch, position):
    result = transfer_result(phase, epoch)
    for panel, key in zip(plots.plot_history(result).axes, ("val_loss", "val_accuracy"), strict=True):
        values = result.head.history[key] + result.fine_tune.history[key]
        ring = lines_of(panel, f"kept: epoch {position}, {values[position - 1]:.3f}")[0]
        assert ring.get_xdata() == [position]
        assert ring.get_ydata() == [values[position - 1]]


def test_the_starting_weights_can_be_the_best():
    figure = plots.plot_history(transfer_result("start", 0))
    assert "kept: the starting weights" in legend_of(figure.axes[0])


def test_time_is_told_above_the_epochs():
    panel = plots.plot_history(transfer_result()).axes[0]
    labels = [label.get_text() for label in panel.child_axes[0].get_xticklabels()]
    assert labels == ["2.0 s", "4.0 s", "6.0 s", "8.0 s", "38 s", "1:08", "1:38"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0.4 s"), (59.2, "59 s"), (60, "1:00"), (3599.7, "1:00:00"), (3725, "1:02:05")]
)
def test_clock(seconds, text):
    assert plots._clock(seconds) == text


def test_one_history_one_epoch_one_phase_and_plain_dictionaries():
    assert len(plots.plot_history(history(1, best=1)).axes) == 2
    assert len(plots.plot_history(transfer_result("head", 1, fine_tune=0)).axes) == 2
    only_loss = plots.plot_history({"loss": [1.0, 0.5], "learning_rate": [1e-3, 1e-4]})
    assert [panel.get_ylabel() for panel in only_loss.axes] == ["loss"]
    other = plots.plot_history(history(3, metric="auc"))
    assert other.axes[1].get_ylabel() == "auc"


def test_nan_leaves_a_gap_and_no_warning(tmp_path):
    result = transfer_result("head", 2)
    result.fine_tune.history["val_loss"][1:] = [np.nan, np.nan]
    plots.plot_history(result).savefig(tmp_path / "curves.png")


def test_many_epochs_keep_few_ticks():
    for epochs in (1, 2, 7, 15, 60, 100, 999):
        ticks = plots.plot_history(history(epochs)).axes[0].get_xticks()
        assert 1 <= len(ticks) <= 9
        assert ticks[0] == 1
        assert ticks[-1] <= epochs


def test_history_on_given_axes():
    panels = Figure().subplots(2, 1)
    assert plots.plot_history(transfer_result(), axes=panels) is panels[0].figure
    assert panels[0].get_ylabel() == "loss"
    with pytest.raises(ArgumentError, match="Expected 2 axes"):
        plots.plot_history(transfer_result(), axes=Figure().subplots())


def test_a_history_of_nothing_is_an_error():
    for nothing in ({}, {"loss": []}, None, 3):
        with pytest.raises(ArgumentError, match="at least one epoch"):
            plots.plot_history(nothing)


def test_confusion_matrix_writes_counts_and_shares_of_few_classes():
    figure = plots.plot_confusion_matrix([[9, 1], [0, 0]], ["good", "bad"])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["9\n90 %", "1\n10 %", "0", "0"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["good", "bad"]


@pytest.mark.parametrize("count", [2, 26, 100])
def test_class_labels_never_overlap(count):
    names = [f"a rather long name of class number {index}" for index in range(count)]
    figure = plots.plot_confusion_matrix(np.eye(count, dtype=int) * 3, names)
    assert max(figure.get_size_inches()) < 26
    figure.draw_without_rendering()
    for labels, side in ((figure.axes[0].get_yticklabels(), 1), (figure.axes[0].get_xticklabels(), 0)):
        boxes = [label.get_window_extent() for label in labels]
        if side == 0 and labels[0].get_rotation() not in (0, 90):
            continue  # slanted labels share their bounding boxes, not their ink
        starts = sorted((box.min[side], box.max[side]) for box in boxes)
        assert all(first[1] <= second[0] + 1 for first, second in itertools.pairwise(starts))
        assert boxes[0].height >= 5  # points at 100 dpi: still legible


def test_hundreds_of_classes_keep_the_figure_and_its_labels_in_bounds():
    figure = plots.plot_confusion_matrix(np.eye(600), [f"species {index}" for index in range(600)])
    assert max(figure.get_size_inches()) < 26
    assert len(figure.axes[0].get_yticklabels()) <= 200


def test_confusion_matrix_must_be_square_and_named():
    with pytest.raises(ArgumentError, match="square"):
        plots.plot_confusion_matrix([[1, 2]], ["a", "b"])
    with pytest.raises(ArgumentError, match="class_names=3"):
        plots.plot_confusion_matrix(np.eye(2), ["a", "b", "c"])


@pytest.fixture
def answers():
    images = np.stack([np.full((8, 8, 3), 20 * index, "uint8") for index in range(5)])
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.05, 0.95], [0.7, 0.3]])
    return images, np.array([0, 0, 0, 0, 1]), probabilities


def test_the_most_confident_mistakes_come_first(answers):
    images, labels, probabilities = answers
    assert list(plots.most_confident_mistakes(labels, probabilities, 10)) == [3, 1, 4, 2]
    assert list(plots.most_confident_mistakes(labels, probabilities, 2)) == [3, 1]
    figure = plots.plot_mistakes(images, labels, probabilities, ["ok", "broken"], names=list("abcde"), count=3)
    shown = [int(panel.images[0].get_array()[0, 0, 0]) for panel in figure.axes]
    assert shown == [60, 20, 80]
    assert [panel.get_xlabel() for panel in figure.axes] == ["d", "b", "e"]
    assert figure.axes[0].get_title(loc="left") == "predicted broken, 95 %\ntrue class ok, 5 %"


def test_no_mistake_is_said_in_words(answers):
    images, _, probabilities = answers
    figure = plots.plot_mistakes(images, probabilities.argmax(axis=1), probabilities, ["ok", "broken"])
    assert figure.axes[0].texts[0].get_text() == "No mistakes among 5 images."


def test_mistakes_must_fit_together(answers):
    images, labels, probabilities = answers
    with pytest.raises(ArgumentError, match="as many of each"):
        plots.plot_mistakes(images[:3], labels, probabilities, ["ok", "broken"])
    with pytest.raises(ArgumentError, match="column"):
        plots.plot_mistakes(images, labels, probabilities, ["ok"])
    with pytest.raises(DataError, match="from 0 to 1"):
        plots.plot_mistakes(images, labels + 1, probabilities, ["ok", "broken"])


def test_percentages_never_claim_certainty():
    assert [plots._percent(value) for value in (1.0, 0.9999, 0.5, 0.001, 0.0)] == [
        "100 %",
        ">99 %",
        "50 %",
        "<1 %",
        "0 %",
    ]


def test_long_names_keep_both_ends():
    assert plots._shorten("short", 10) == "short"
    shortened = plots._shorten("oxford flower species number 17", 20)
    assert len(shortened) == 20
    assert shortened.startswith("oxford flo")
    assert shortened.endswith("17")


def test_figures_show_themselves_in_notebooks(tmp_path):
    png = plots.plot_history(history(2))._repr_png_()
    (tmp_path / "figure.png").write_bytes(png)
    assert matplotlib.image.imread(tmp_path / "figure.png").shape[1] > 500


def test_pyplot_is_left_alone(answers):
    before = plt.get_fignums(), plt.rcParams.copy()
    plots.plot_history(history(2))
    plots.plot_confusion_matrix(np.eye(2), ["a", "b"])
    plots.plot_mistakes(*answers, ["ok", "broken"])
    assert (plt.get_fignums(), plt.rcParams.copy()) == before
