"""The page of a run: whole by itself, whatever its names are, and no danger to the run."""

import base64
import io
import re
import types

import numpy as np
import pytest
from PIL import Image

import kerastl
from kerastl.errors import KerastlWarning
from kerastl.evaluation import report, run_page
from kerastl.evaluation.audit import Finding
from tests import test_docs_site as site
from tests.pages import Page
from tests.runs import make_run, make_splits, small_run
from tests.test_evaluation_snippets import printed, write_photo

TASKS = ["classification", "multi-label", "regression"]
HOSTILE = ["<script>alert(1)</script>", "\"a\" onload='b' & co", "花🌻"]
no_font = pytest.mark.filterwarnings("ignore:No installed font has the characters")
browser = site.browser


def page_of(run, **more):
    """Return the text of the page, and what it holds."""
    known = {key: value for key, value in run.items() if key != "report"}
    text = run_page.run_page(run["report"], **known, **more)
    return text, Page(text)


def hostile_run(**more):
    files = tuple(f"data/<img src=x>/{index}\"'&.png" for index in range(16))
    command = "python -m kerastl train '<img src=x>' --out \"a'b\""
    noted = {
        "command": command,
        "arguments": {"source": "<img src=x>", "labels": "a b.csv", "out": None, "audit": False},
    }
    splits = {"name": "<i>data</i>", "licence": "CC-BY & <b>", "files": {"test": files}}
    return small_run(names=HOSTILE, splits=splits, backbone="<u>net</u>", **noted, **more)


def some_audit():
    """Return what `kerastl.audit` found, with names that no page would like."""
    pair = Finding(
        "leak", ("a/<i>1.png", "b/2.png"), ("train", "test"), (HOSTILE[0], HOSTILE[1]), "", 2.0, "<b>why", (0, 1)
    )
    labels = [
        Finding("label", (f"a/{one}.png",), ("train",), ("x",), HOSTILE[0], 1.0, "why", (one,)) for one in range(20)
    ]
    found = [pair, *labels]
    return types.SimpleNamespace(
        name="<i>data</i>",
        facts=f"40 images; {len(found)} findings",
        findings=tuple(found),
        accuracy=0.9,
        not_checked=("<s>",),
        of_kind=lambda kind: tuple(one for one in found if one.kind == kind),
        read=lambda index: np.full((50, 40, 3), index, "uint8"),
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_page_of_each_task_holds_everything(task):
    run = small_run(task, seconds={"evaluation": 1.0}, command="python -m kerastl train colours", backbone="tiny")
    text, page = page_of(run)
    words = " ".join(page.text)
    mistakes = len(run["report"]["mistakes"])
    assert 5 < mistakes <= 12
    heat = [alt for alt in page.values("alt") if alt.startswith("Grad-CAM of ")]
    assert len(heat) == mistakes
    # two curves, or one where there is no accuracy; the picture of the task; a photograph and a heat map for each mistake
    assert page.tags.count("img") == 2 + 1 + 2 * mistakes == len(page.values("alt"))
    assert {source.partition(",")[0] for source in page.sources if not source.startswith("#")} == {
        "data:image/png;base64",
        "data:image/jpeg;base64",
    }
    assert [f"#{place}" for place in page.values("id")] == [one for one in page.sources if one.startswith("#")]
    picture = {
        "classification": "How often each class was taken for each other. Most often: ",
        "multi-label": "The average precision of each label.",
        "regression": "Predicted numbers against true ones.",
    }[task]
    assert any(alt.startswith(picture) for alt in page.values("alt"))
    for row in run["report"]["per_class"]:
        assert row["name"] in page.text
    assert "tiny on colours" in page.text
    lead = {"classification": "Accuracy 0.", "multi-label": "Average precision 0.", "regression": "MAE "}[task]
    assert any(text.startswith(lead) and text.endswith(" on 16 test images") for text in page.text)
    assert "python -m kerastl train colours" in page.code
    assert "No heat maps" not in words
    assert len(text) < 1_500_000


def test_the_heat_is_of_what_was_predicted(monkeypatch):
    asked = []
    monkeypatch.setattr(
        run_page,
        "grad_cam",
        lambda model, images, class_index: asked.append(list(class_index)) or np.ones(np.shape(images)[:3], "float32"),
    )
    for task, names in (("classification", "ab"), ("multi-label", "abc"), ("regression", "a")):
        run = small_run(task, list(names), units=1 if task == "classification" else None)
        _, page = page_of(run)
        if task == "classification":
            said = [list(names).index(row["predicted"]) for row in run["report"]["mistakes"]]
        elif task == "multi-label":
            said = [list(names).index(row["label"]) for row in run["report"]["mistakes"]]
        else:  # what makes the one number larger, not smaller
            said = [1] * len(run["report"]["mistakes"])
        assert asked.pop() == said
        captions = [text for text in page.text if text in [f"for {name}" for name in names]]
        assert len(captions) == len(said)


@no_font
def test_hostile_names_are_read_as_names():
    text, page = page_of(hostile_run(), audit=some_audit())
    assert {"script", "i", "u", "s"}.isdisjoint(page.tags)
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert "x" not in page.sources
    words = "".join(page.text)
    for name in (
        *HOSTILE,
        "<u>net</u> on <i>data</i>",
        "CC-BY & <b>",
        "python -m kerastl train '<img src=x>' --out \"a'b\"",
    ):
        assert name in words
    assert page.text.count("<u>net</u> on <i>data</i>") == 2  # the title as well
    assert any(value == "data/<img src=x>/3\"'&.png" for value in page.values("title"))
    assert any(HOSTILE[0] in value for value in page.values("alt"))
    text.encode("utf-8")


def test_the_baseline_names_its_class_as_it_is():
    run = small_run(names=['it\'s "q"', "\\frac"])
    assert f"always predicting '{run['evaluation'].majority_class}'" in page_of(run)[1].text


@no_font
def test_an_audit_is_shown_in_part_or_else_how_to_run_one():
    _, page = page_of(hostile_run(), audit=some_audit())
    words = "".join(page.text)
    assert "40 images; 21 findings" in words
    assert "Probable label errors: 20" in words
    assert "14 more are shown by " in words
    assert [value for value in page.values("alt") if value in ("0.png", "5.png", "6.png")] == ["0.png", "5.png"]
    assert not any("kerastl audit '" in one for one in page.code)
    _, page = page_of(hostile_run())
    assert "python -m kerastl audit '<img src=x>' --labels 'a b.csv' --out audit" in page.code


def test_the_lines_of_the_page_load_the_model(tmp_path, capsys, monkeypatch):
    run = small_run()
    place = report.write_run(tmp_path / "run", **run)
    write_photo(place / "photo.jpg")
    (code,) = [one for one in Page((place / "report.html").read_text("utf-8")).code if one.startswith("from pathlib")]
    said = printed(code, place, capsys, monkeypatch)
    expected = kerastl.predict(run["model"], "photo.jpg", class_names=["red", "green", "blue"], resize="crop")
    assert said == pytest.approx(dict(zip(said, map(float, expected.probabilities[0]), strict=True)), abs=1e-4)
    assert list(said) == ["red", "green", "blue"]


def test_a_network_without_heat_maps_still_has_a_page(colours, labelled):
    _, page = page_of(make_run(colours, labelled, make_splits()))
    said = "".join(page.text)
    assert "No heat maps: ModelError: " in said
    assert page.tags.count("img") == 2 + 1 + 3
    assert [alt for alt in page.values("alt") if "Grad-CAM" in alt] == []


def test_no_mistakes_are_said(colours, labelled):
    run = make_run(colours, (labelled[0], labelled[0].max(axis=(1, 2)).argmax(axis=1)), make_splits())
    assert "No mistakes among 10 images." in page_of(run)[1].text


@no_font
def test_pages_of_many_classes_and_noise_stay_small():
    names = [f"class {index}" for index in range(450)]
    text, page = page_of(small_run(names=names, count=64))
    assert "The other 50 are in report.json." in page.text
    assert len(text) < 2_000_000
    thumbnail = next(source for source in page.sources if source.startswith("data:image/jpeg"))
    noise = np.random.default_rng(0).integers(0, 256, (800, 600, 3)).astype("uint8")
    largest = run_page.thumbnail(noise, 200)
    assert max(Image.open(io.BytesIO(base64.b64decode(largest.partition(",")[2]))).size) == 200
    assert len(thumbnail) < len(largest) < 50_000  # 24 of them: 1.2 MB


@pytest.mark.parametrize("failing", ["run_page", "plot", "thumbnail", "_settings"])
def test_a_page_that_fails_is_a_warning_and_loses_nothing(failing, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    run = small_run()
    monkeypatch.setattr(report if failing == "run_page" else run_page, failing, broken)
    place = tmp_path / "run"
    with pytest.raises(KerastlWarning, match=r"report.html couldn't be made \(RuntimeError: a bug\)"):
        report.write_run(place, **run)  # in these tests a warning is an error
    expected = set(report.run_files("classification")) - {"report.html"}
    assert {path.name for path in place.iterdir()} == expected


def test_heat_maps_that_fail_leave_the_rest_of_the_page(monkeypatch):
    def broken(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(run_page, "grad_cam", broken)
    _, page = page_of(small_run())
    assert "No heat maps: MemoryError: no room" in page.text
    assert page.tags.count("img") == 2 + 1 + 12


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """The address of a page with everything on it."""
    text, _ = page_of(hostile_run(), audit=some_audit())
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


@pytest.mark.docs
@no_font
@pytest.mark.parametrize("ground", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_the_page_and_runs_nothing(browser, hostile_page, width, ground):
    window = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    feature = {"name": "prefers-color-scheme", "value": ground}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    site.open_page(browser, hostile_page)
    assert site.problems_of_loading(browser, hostile_page) == []
    assert site.width_of(browser) <= width
    assert browser.title == "<u>net</u> on <i>data</i>"
    assert browser.execute_script("return document.querySelectorAll('script, iframe, object, link').length") == 0
    browser.execute_script("document.querySelectorAll('img').forEach(one => { one.loading = 'eager'; })")
    shown = "return [...document.images].every(one => one.complete && one.naturalWidth && one.clientWidth && one.alt)"
    assert site.wait_for(lambda: browser.execute_script(shown))
    colour = browser.execute_script("return getComputedStyle(document.body).color")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) > 600) == (ground == "dark"), colour
    for name in HOSTILE:
        assert name in browser.find_element("css selector", "body").text
