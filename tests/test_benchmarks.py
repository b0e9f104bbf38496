"""The benchmarks: that they run, and that what one says on paper agrees with what was measured."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name, *arguments):
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_plan_agrees_with_what_was_measured(tmp_path):
    result = run("plan_scale.py", "--json", tmp_path / "plan.json", "--set", "gpu_hour=8")
    assert result.returncode == 0, result.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["assumed"]["gpu_hour"] == 8
    ratios = [float(row["predicted / measured"]) for row in plan["tables"]["Measured and predicted"]]
    assert len(ratios) == 8
    assert all(0.75 < ratio < 1.25 for ratio in ratios), ratios


def test_the_plan_names_what_can_be_set():
    result = run("plan_scale.py", "--set", "gpu_hours=8")
    assert result.returncode == 2
    assert "gpu_hour" in result.stderr
    assert "Received: gpu_hours" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not any(map(importlib.util.find_spec, ("jax", "torch"))), reason="needs JAX or PyTorch")
def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path):
    network = "resnet50" if importlib.util.find_spec("torch") else "mobilenet_v2"
    sizes = ["--count", 64, "--size", 64, "--network", network, "--head-epochs", 2, "--fine-tune-epochs", 2]
    result = run("gpu.py", "--cpu", *sizes, "--minutes", 20, "--json", tmp_path / "gpu.json")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    measured = {row["what"]: row for row in rows if row["seconds"]}
    assert {"kerastl", "plain Keras"} <= set(measured)
    assert measured["kerastl"]["times kerastl"] == 1
    assert measured["kerastl"]["images/s"] > 0
    missing = [row for row in rows if not row["seconds"] and not row["images/s"]]
    assert all("is not installed" in row["note"] or "resnet50 only" in row["note"] for row in missing), missing
