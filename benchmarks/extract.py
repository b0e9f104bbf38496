"""Images per second of the frozen part: `predict`, the compiled forward function, LiteRT, and kerastl's extraction.

    python benchmarks/extract.py --network mobilenet_v2 --count 1024 --json extract.json

All in one process, in turns, medians of `--repeats`. "arrays" are images in memory; "files" are read, decoded and resized
from the ELPV photographs. kerastl's figure is the whole extraction: reading, running, and writing the store, and is compared
with the fastest engine that gets its images from the same place, a batch read and then a batch run. What LiteRT's conversion
takes stands apart, as it is paid once.
"""

import argparse
import time
import types

from common import photographs, report  # isort: skip

import keras
import numpy as np

import kerastl
from kerastl.data.batches import adapt, attach_source, rows_of
from kerastl.features.extraction import Trunk, extract
from kerastl.features.litert import KerasEngine, LiteRTEngine, litert_available
from kerastl.features.plan import CacheOptions, make_plan


def rate(function, count) -> float:
    start = time.perf_counter()
    function()
    return count / (time.perf_counter() - start)


def in_batches(engine, images):
    for start in range(0, len(images), 32):
        engine(images[start : start + 32])


def reading_in_batches(engine, source):
    """Read a batch, run it, read the next: what a loop around the engine does."""
    for start in range(0, len(source), 32):
        engine(np.stack([source.read(index) for index in range(start, min(start + 32, len(source)))]))


def variants(trunk_of, images, rows_of, source, with_predict):
    """Return name → function that runs over all images once."""
    model = next(iter(trunk_of.values())).model
    functions = {}
    if with_predict:
        functions["model.predict, from arrays"] = lambda: model.predict(images, batch_size=32, verbose=0)
    for name in trunk_of:
        engine = trunk_of[name].engine(len(images))
        functions[f"{name} engine alone, from arrays"] = lambda engine=engine: in_batches(engine, images)
        if source is not None:
            functions[f"{name} engine alone, from files"] = lambda engine=engine: reading_in_batches(engine, source)
        for place, rows in rows_of.items():
            functions[f"kerastl, {name}, from {place}"] = lambda name=name, rows=rows: extract(
                trunk_of[name], rows, views=1, part="train", count_all=rows.count
            ).close()
    return functions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mobilenet_v2")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=["keras", "litert"], help="leave predict and the others out")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    images, labels = photographs(arguments.count, arguments.size)
    model = kerastl.build_classifier(arguments.network, 2, input_shape=arguments.size, weights=None)
    model.compile("adam", "sparse_categorical_crossentropy")
    rows_by_place, source = {"arrays": rows_of((images, labels))}, None
    if keras.backend.backend() == "tensorflow":
        splits = kerastl.load_images("elpv", image_size=arguments.size, validation=0, test=0, verbose=0)
        from kerastl.data.batches import find_source

        source = _first(find_source(splits.train), arguments.count)
        rows_by_place["files"] = adapt(attach_source(types.SimpleNamespace(), source))
    trunks, prepared = {}, {}
    for name in arguments.engines or (("keras", "litert") if litert_available() else ("keras",)):
        options = CacheOptions(engine=name)
        plan = make_plan(model, rows_by_place["arrays"], None, epochs=[10], options=options)
        trunks[name] = Trunk(plan, options)
        start = time.perf_counter()
        engine = trunks[name].engine(1)
        engine(images[:32])
        prepared[name] = time.perf_counter() - start
        assert type(engine) in (KerasEngine, LiteRTEngine)
    functions = variants(trunks, images, rows_by_place, source, not arguments.engines)
    rates = {name: [] for name in functions}
    for _ in range(arguments.repeats):
        for name, function in functions.items():
            rates[name].append(rate(function, arguments.count))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    rows = []
    for name, value in medians.items():
        place = "files" if name.endswith("files") else "arrays"
        beside = [other for other in medians if not other.startswith("kerastl") and other.endswith(place)]
        fastest = max(medians[other] for other in beside)
        rows.append({"what": name, "images/s": value, "of the fastest engine": value / fastest})
    report(
        f"{arguments.network} {arguments.size}², {arguments.count} images", rows, arguments.json, prepared_s=prepared
    )
    print("seconds to prepare:", {name: round(value, 1) for name, value in prepared.items()})


def _first(source, count):
    import dataclasses

    return dataclasses.replace(source, labels=source.labels[:count])


if __name__ == "__main__":
    main()
