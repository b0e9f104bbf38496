"""`predict MODEL IMAGE…`: print labels and probabilities, or numbers."""

import json

from kerastl.checks import received
from kerastl.cli import models
from kerastl.errors import ArgumentError
from kerastl.evaluation.prediction import predict
from kerastl.export.bundle import is_bundle, load_bundle


def run(arguments) -> int:
    """Predict, print, and return the exit status."""
    options = {"views": arguments.views, "batch_size": arguments.batch_size, "top": arguments.top}
    if is_bundle(arguments.model):
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
        file = models.find_model(arguments.model)
        names, report = models.labels_for(file, arguments.labels), models.report_beside(file)
        model = models.load_model(file)
        options["resize"] = arguments.resize or models.resize_beside(file)
        options["preprocessing"] = models.preprocessing_for(model, arguments.preprocessing)
        options |= {"white": report.get("white"), "task": report.get("task")}
        options["thresholds"] = models.thresholds_in(report, names)
        predictions = predict(model, arguments.images, class_names=names, **options)
    print(json.dumps(predictions.to_rows(), indent=2, ensure_ascii=False) if arguments.json else predictions)
    return 0
