"""`predict MODEL IMAGE…`: print labels and probabilities, or numbers."""

import json

from kerastl.checks import received
from kerastl.cli.models import (
    find_model,
    labels_beside,
    load_model,
    preprocessing_for,
    read_labels,
    report_beside,
    resize_beside,
)
from kerastl.errors import ArgumentError
from kerastl.evaluation.prediction import predict
from kerastl.export.bundle import is_bundle, load_bundle


def run(arguments) -> int:
    """Predict, print, and return the exit status."""
    file = None if is_bundle(arguments.model) else find_model(arguments.model)
    options = {"views": arguments.views, "batch_size": arguments.batch_size, "top": arguments.top}
    if file is None:
        if arguments.labels:
            raise ArgumentError(
                f"A bundle brings its own labels: leave --labels out. {received(labels=arguments.labels)}"
            )
        if arguments.preprocessing != "auto":
            raise ArgumentError(
                "The preprocessing of a bundle is part of it: leave --preprocessing out. "
                f"{received(preprocessing=arguments.preprocessing)}"
            )
        predictions = load_bundle(arguments.model).predict(arguments.images, resize=arguments.resize, **options)
    else:
        names = read_labels(arguments.labels) if arguments.labels else labels_beside(file)
        report, resize = report_beside(file), arguments.resize or resize_beside(file)
        model = load_model(file)
        options |= {"resize": resize, "white": report.get("white"), "task": report.get("task")}
        options["preprocessing"] = preprocessing_for(model, arguments.preprocessing)
        predictions = predict(model, arguments.images, class_names=names, **options)
    print(json.dumps(predictions.to_rows(), indent=2, ensure_ascii=False) if arguments.json else predictions)
    return 0
