"""`predict MODEL IMAGE…`: print labels and probabilities."""

import json
from pathlib import Path

from kerastl.checks import received
from kerastl.cli.models import find_model, labels_beside, load_model, read_labels, resize_beside
from kerastl.errors import DataError
from kerastl.images import list_images
from kerastl.prediction import predict


def run(arguments) -> int:
    """Predict, print, and return the exit status."""
    file = find_model(arguments.model)
    names = read_labels(arguments.labels) if arguments.labels else labels_beside(file)
    paths = [path for given in arguments.images for path in _paths_of(given)]
    predictions = predict(
        load_model(file),
        paths,
        class_names=names,
        views=arguments.views,
        resize=arguments.resize or resize_beside(file),
        batch_size=arguments.batch_size,
        top=arguments.top,
    )
    print(json.dumps(predictions.to_rows(), indent=2, ensure_ascii=False) if arguments.json else predictions)
    return 0


def _paths_of(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if not path.is_dir():
        return [path]
    found = list_images(path)
    if found:
        return found
    raise DataError(f"There are no images in that folder. {received(image=given)}")
