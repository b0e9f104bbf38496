"""`predict MODEL IMAGE…`: print labels and probabilities."""

import json

from kerastl.checks import received
from kerastl.cli.models import find_model, labels_beside, load_model, read_labels, resize_beside
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
        predictions = load_bundle(arguments.model).predict(arguments.images, resize=arguments.resize, **options)
    else:
        names = read_labels(arguments.labels) if arguments.labels else labels_beside(file)
        resize = arguments.resize or resize_beside(file)
        predictions = predict(load_model(file), arguments.images, class_names=names, resize=resize, **options)
    print(json.dumps(predictions.to_rows(), indent=2, ensure_ascii=False) if arguments.json else predictions)
    return 0
