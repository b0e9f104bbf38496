import itertools
import types

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from kerastl.errors import ArgumentError, DataError, KerastlWarning
from kerastl.evaluation import plots
from kerastl.evaluation.measures import most_confident_mistakes
from kerastl.evaluation.plots import drawing
from kerastl.evaluation.plots.drawing import percent, shorten


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
    figure = plots.plot_history(result)
    figure.savefig(tmp_path / "curves.png")
    assert any(np.isnan(line.get_ydata()).sum() == 2 for line in figure.axes[0].lines)


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
    assert list(most_confident_mistakes(labels, probabilities, 10)) == [3, 1, 4, 2]
    assert list(most_confident_mistakes(labels, probabilities, 2)) == [3, 1]
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
    assert [percent(value) for value in (1.0, 0.9999, 0.5, 0.001, 0.0)] == [
        "100 %",
        ">99 %",
        "50 %",
        "<1 %",
        "0 %",
    ]


def test_long_names_keep_both_ends():
    assert shorten("short", 10) == "short"
    shortened = shorten("oxford flower species number 17", 20)
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


# ---------------------------------------------------------------- gradient norms


def norms(values, kinds=("Conv2D",)):
    kind = itertools.cycle(kinds)
    return [
        types.SimpleNamespace(layer=f"backbone/layer_{index}", kind=next(kind), gradient_norm=value)
        for index, value in enumerate(values)
    ]


def test_gradient_norms_stand_against_depth_on_a_logarithmic_scale():
    panel = plots.plot_gradient_norms(norms([1e-4, 5.0, 1e-2, 6.0], ("Conv2D", "BatchNormalization")))
    assert panel.get_yscale() == "log"
    kernels = lines_of(panel, "layers with kernels")[0]
    assert (list(kernels.get_xdata()), list(kernels.get_ydata())) == ([1, 3], [1e-4, 1e-2])
    normalization = lines_of(panel, "normalization")[0]
    assert (list(normalization.get_xdata()), normalization.get_linestyle()) == ([2, 4], "None")
    assert [label.get_text() for label in panel.get_xticklabels()] == [f"layer_{index}" for index in range(4)]
    assert legend_of(panel) == ["layers with kernels", "normalization"]


def test_models_stand_side_by_side_on_one_scale():
    first, second = plots.plot_gradient_norms({"deep": norms([1e-30] * 20), "shallow": norms([1.0, 2.0])})
    assert [panel.get_title() for panel in (first, second)] == ["deep", "shallow"]
    low, high = first.get_ylim()
    assert (low, high) == second.get_ylim()
    assert low < 1e-30 < 2 < high
    assert first.get_xticks()[0] == 1
    diagnosis = types.SimpleNamespace(norms=norms([1.0, 2.0]))
    assert lines_of(plots.plot_gradient_norms(diagnosis), "layers with kernels")[0].get_ydata()[1] == 2


def test_zero_and_nan_gradients_are_marked_at_the_edges(tmp_path):
    panel = plots.plot_gradient_norms(norms([0.0, 1e-3, np.nan, np.inf, 1e-2]))
    assert "exactly zero: 1 layer" in legend_of(panel)
    assert "NaN or infinite: 2 layers" in legend_of(panel)
    drawn = lines_of(panel, "layers with kernels")[0].get_ydata()
    np.testing.assert_array_equal(drawn, [np.nan, 1e-3, np.nan, np.nan, 1e-2])
    panel.figure.savefig(tmp_path / "norms.png")
    nothing = plots.plot_gradient_norms(norms([0.0, 0.0, 0.0]))
    assert "exactly zero: 3 layers" in legend_of(nothing)
    nothing.figure.savefig(tmp_path / "zero.png")


@pytest.mark.parametrize(("rows", "columns", "labelled"), [(2, 2, [0, 2]), (3, 1, [0, 1, 2]), (1, 3, [0])])
def test_a_grid_of_the_users_own_is_labelled_at_its_left_edge(rows, columns, labelled):
    axes = Figure().subplots(rows, columns)
    models = {str(number): norms([1.0, 2.0]) for number in range(3)}
    panels = plots.plot_gradient_norms(models, axes=axes)
    assert [bool(panel.get_ylabel()) for panel in panels] == [number in labelled for number in range(3)]
    shown = [any(label.get_visible() for label in panel.get_yticklabels()) for panel in panels]
    assert shown == [number in labelled for number in range(3)]


def test_gradient_norms_must_be_some():
    for nothing in ({}, [], None, 3, {"a": []}, [1.0, 2.0]):
        with pytest.raises(ArgumentError, match=r"gradient_norms|gradient norms"):
            plots.plot_gradient_norms(nothing)
    with pytest.raises(ArgumentError, match="Expected 2 axes"):
        plots.plot_gradient_norms({"a": norms([1.0]), "b": norms([1.0])}, axes=Figure().subplots())


# ---------------------------------------------------------------- feature maps and filters


def test_feature_maps_have_a_panel_per_channel_and_one_scale():
    maps = np.random.default_rng(0).random((2, 5, 7, 40)).astype("float32")
    panels = plots.plot_feature_maps(maps, image=1)
    assert len(panels) == 32
    np.testing.assert_array_equal(panels[3].images[0].get_array(), maps[1, :, :, 3])
    assert len({panel.images[0].get_clim() for panel in panels}) == 1
    assert panels[0].images[0].get_clim()[0] == 0
    some = plots.plot_feature_maps(maps[0], channels=[39, 0])
    assert [panel.get_title() for panel in some] == ["39", "0"]


def test_negative_maps_meet_in_white_at_zero(tmp_path):
    maps = np.linspace(-1, 3, 48).reshape(4, 4, 3)
    panels = plots.plot_feature_maps(maps)
    low, high = panels[0].images[0].get_clim()
    assert low == -high
    for odd in (np.zeros((4, 4, 2)), np.full((4, 4, 2), np.nan)):
        plots.plot_feature_maps(odd)[0].figure.savefig(tmp_path / "odd.png")


def test_feature_maps_that_cannot_be_drawn_are_refused():
    maps = np.zeros((2, 4, 4, 3))
    for wrong in ({"image": 2}, {"channels": [3]}, {"channels": []}, {"count": 0}, {"axes": Figure().subplots(1, 2)}):
        with pytest.raises(ArgumentError, match=r"image|channels|count|Expected 3 axes"):
            plots.plot_feature_maps(maps, **wrong)
    with pytest.raises(ArgumentError, match="batch, height, width"):
        plots.plot_feature_maps(np.zeros((2, 10)))


def test_filters_over_rgb_are_pictures_around_grey():
    filters = np.zeros((3, 3, 3, 2), "float32")
    filters[0, 0, 0, 1] = 4.0
    filters[2, 2, 2, 1] = -2.0
    first, second = plots.plot_filters(filters)
    assert (np.asarray(first.images[0].get_array()) == 0.5).all()
    picture = np.asarray(second.images[0].get_array())
    assert (picture[0, 0, 0], picture[2, 2, 2], picture[1, 1, 1]) == (1.0, 0.25, 0.5)


@pytest.mark.parametrize(
    ("shape", "panels", "title"),
    [
        ((3, 3, 1, 5), 5, "4"),
        ((3, 3, 50, 1), 32, "31"),
        ((5, 5, 6, 9), 30, "4 ← 5"),
        ((3, 3, 100, 2), 16, "1 ← 7"),
        ((1, 1, 20, 30), 1, ""),
    ],
)
def test_other_filters_are_weights_divided_by_the_largest(shape, panels, title):
    filters = np.random.default_rng(0).normal(size=shape)
    drawn = plots.plot_filters(filters)
    assert (len(drawn), drawn[-1].get_title()) == (panels, title)
    assert all(panel.images[0].get_clim() == (-1, 1) for panel in drawn)
    largest = max(np.abs(panel.images[0].get_array()).max() for panel in drawn)
    assert largest <= 1 + 1e-6
    with pytest.raises(ArgumentError, match="filters \\(height"):
        plots.plot_filters(filters[0])


# ---------------------------------------------------------------- Grad-CAM


@pytest.fixture
def heated():
    images = np.full((3, 6, 8, 3), 100, "uint8")
    heat = np.zeros((3, 6, 8), "float32")
    heat[0, 2, 3] = heat[2, 0, 0] = 1.0
    return images, heat, np.array([[0.2, 0.8], [0.999, 0.001], [0.4, 0.6]])


def test_an_image_stands_beside_itself_under_its_heat(heated):
    panels = plots.plot_grad_cam(*heated, ["ok", "broken"], labels=[1, 0, 0])
    assert panels.shape == (3, 2)
    titles = [[panel.get_title(loc="left") for panel in pair] for pair in panels]
    assert titles[0] == ["predicted broken, 80 %\ntrue class broken", "speaks for broken\n"]
    assert titles[1] == ["predicted ok, >99 %\ntrue class ok", "nothing speaks for ok\n"]
    image, under = (np.asarray(panel.images[0].get_array()) for panel in panels[0])
    assert (image == 100).all()
    np.testing.assert_allclose(under[0, 0], 100 / 255)  # no heat: the grey image
    assert under[2, 3].max() > 0.8
    bar = panels[0, 0].figure.axes[-1]
    assert bar.get_ylim() == (0, 1)


def test_the_class_that_was_asked_for_is_named(heated):
    panels = plots.plot_grad_cam(*heated, class_index=[0, 0, 1], count=2)
    assert panels.shape == (2, 2)
    assert panels[0, 1].get_title(loc="left") == "speaks for 0\nprobability 20 %"
    bare = plots.plot_grad_cam(*heated[:2])
    assert {panel.get_title(loc="left") for panel in bare.flat} == {""}
    given = Figure().subplots(1, 4)
    drawn = plots.plot_grad_cam(*heated, axes=given, count=2)
    assert drawn[1, 1] is given[3]


def test_images_that_were_scaled_are_stretched_for_the_picture(heated):
    images, heat, _ = heated
    scaled = np.linspace(-1, 1, images.size).reshape(images.shape)
    picture = np.asarray(plots.plot_grad_cam(scaled, heat)[0, 0].images[0].get_array())
    assert (picture.min(), picture.max()) == (0, 255)
    assert plots.plot_grad_cam(images[..., :1], heat)[0, 0].images[0].get_array().shape == (6, 8, 3)


def test_heat_maps_must_fit_the_images(heated):
    images, heat, probabilities = heated
    for wrong in (
        {"labels": [0, 1]},
        {"class_names": ["a"]},
        {"class_index": 2},
        {"class_index": [0, 1]},
        {"labels": [0, 1, 5]},
    ):
        with pytest.raises(ArgumentError, match="Expected"):
            plots.plot_grad_cam(images, heat, probabilities, **wrong)
    for wrong in ((images[:2], heat), (images[:, :5], heat), (images, heat[0]), (images[:0], heat[:0])):
        with pytest.raises(ArgumentError, match="one heat map of the same height"):
            plots.plot_grad_cam(*wrong)
    with pytest.raises(ArgumentError, match="row of probabilities"):
        plots.plot_grad_cam(images, heat, probabilities[:2])
    with pytest.raises(ArgumentError, match="Expected 6 axes"):
        plots.plot_grad_cam(images, heat, axes=Figure().subplots(1, 2))
    with pytest.raises(DataError, match="height, width, 3"):
        plots.plot_grad_cam(images[..., :2], heat)


def test_axes_show_themselves_in_notebooks_and_leave_pyplot_alone(heated):
    before = plt.get_fignums(), plt.rcParams.copy()
    shown = [
        plots.plot_gradient_norms(norms([1.0, 2.0])),
        plots.plot_gradient_norms({"a": norms([1.0, 2.0])}),
        plots.plot_feature_maps(np.zeros((4, 4, 2))),
        plots.plot_filters(np.zeros((3, 3, 3, 2))),
        plots.plot_grad_cam(*heated),
    ]
    assert all(axes._repr_png_().startswith(b"\x89PNG") for axes in shown)
    assert (plt.get_fignums(), plt.rcParams.copy()) == before


@pytest.fixture
def fresh_fonts():
    drawing._fonts_besides.cache_clear()
    drawing._TOLD.clear()
    yield
    drawing._fonts_besides.cache_clear()


def test_another_font_is_taken_where_the_usual_one_lacks_a_character(fresh_fonts):
    usual = drawing._characters(font_manager.findfont("DejaVu Sans"))
    serif = drawing._characters(font_manager.findfont("DejaVu Serif"))
    character = min(one for one in serif - usual if one.isalpha())
    matrix = plots.plot_confusion_matrix(np.eye(2, dtype=int), ["plain", character])
    drawing.as_png(matrix)
    first, second = matrix.axes[0].get_xticklabels()
    assert len(first.get_fontfamily()) == 1
    assert any(character in drawing._characters(font_manager.findfont(name)) for name in second.get_fontfamily()[1:])


def test_characters_that_no_font_has_are_said_once(fresh_fonts, monkeypatch, tmp_path):
    usual = font_manager.findfont(font_manager.FontProperties())
    alone = [font for font in font_manager.fontManager.ttflist if font.fname == usual]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", alone)
    with pytest.warns(KerastlWarning, match=r"No installed font has the characters 猫.*fonts-noto-cjk"):
        drawing.as_png(plots.plot_confusion_matrix(np.eye(2, dtype=int), ["猫", "b"]))
    drawing.as_png(plots.plot_confusion_matrix(np.eye(2, dtype=int), ["a", "猫"]))  # a warning is an error here


def test_label_scores_are_bars_from_the_lowest_up():
    rows = [{"name": f"label {index}", "average_precision": index / 70, "support": 14} for index in range(70)]
    rows.append({"name": "never", "average_precision": None, "support": 0})
    figure = plots.plot_label_scores(rows, 70)
    (panel,) = figure.axes
    names = [one.get_text() for one in panel.get_yticklabels()]
    assert names == ["never", *(f"label {index}" for index in range(59))]
    assert [bar.get_width() for bar in panel.patches][:3] == [0, 0, pytest.approx(1 / 70)]
    assert panel.get_xlabel() == "average precision, the lowest 60 of 71 labels"
    assert [one.get_text() for one in panel.texts][:3] == ["no image has it", "0.00", "0.01"]
    assert figure.get_figwidth() < 8


def test_numbers_stand_against_true_ones_on_equal_axes():
    labels, outputs = np.array([[1.0, 10], [2, 20], [4, 30]]), np.array([[1.5, 10], [0, 25], [9, 30]])
    figure = plots.plot_numbers(labels, outputs, ["age", "$weight$"])
    first, second = figure.axes
    assert first.collections[0].get_offsets().tolist() == [[1, 1.5], [2, 0], [4, 9]]
    assert first.get_xlim() == first.get_ylim() == (pytest.approx(-0.45), pytest.approx(9.45))
    assert (first.get_xlabel(), first.get_ylabel()) == ("true age", "predicted age")
    assert second.get_xlabel() == r"true \$weight\$"
    assert first.get_aspect() == 1
