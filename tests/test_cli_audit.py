"""`audit`: a folder in, a table, a page and tables out."""

import json

import pytest
from PIL import Image

from kerastl.cli import main
from tests.commands import fails, write_photos


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", ["amber", "blue"], count=8)


def test_audit_prints_and_writes_what_it_found(photos, tmp_path, capsys):
    (photos / "amber" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("RGB", (32, 32), "red").save(photos / "blue" / "blank.png")
    options = [
        "--backbone",
        "mobilenet_v3_small",
        "--weights",
        "none",
        "--image-size",
        "32",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["audit", str(photos), *options]) == 0
    said = capsys.readouterr().out
    assert "Broken, tiny and blank files" in said
    assert "amber/broken.png" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit.html", "findings.csv", "findings.json"]
    findings = json.loads((tmp_path / "out" / "findings.json").read_text("utf-8"))["findings"]
    found = {one["names"][0].rpartition("/")[2] for one in findings if one["kind"] == "file"}
    assert found == {"broken.png", "blank.png"}
    assert main(["audit", str(photos), *options, "--overwrite"]) == 0


def test_audit_says_in_one_line_what_is_wrong(photos, tmp_path, capsys):
    assert "no such backbone" in fails(capsys, "audit", photos, "--backbone", "resnet51")
    assert "--seed" in fails(capsys, "audit", photos, "--seed", -1)
    assert "no folder" in fails(capsys, "audit", tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    line = fails(capsys, "audit", photos, "--out", tmp_path / "mine", "--overwrite")
    assert "thesis.txt" in line
    assert "holds more than an audit" in line
