"""Lines of code that use a model where this package is not installed: read a photograph, run the model, print by label."""

import keras

from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL
from kerastl.models.outputs import main_index, main_tensor

RESIZES = {
    "squash": ("to this size whatever its proportions", "image = image.resize(size, Image.Resampling.BILINEAR)"),
    "crop": (
        "from the largest part in its middle that has the proportions of this size",
        """scale = min(image.width / size[0], image.height / size[1])
part = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
left, top = (image.width - part[0]) // 2, (image.height - part[1]) // 2
box = (left, top, left + part[0], top + part[1])
image = image.resize(size, Image.Resampling.BILINEAR, box=box)""",
    ),
    "pad": (
        "so that it fits into this size, and lies in the middle of black",
        """scale = min(size[0] / image.width, size[1] / image.height)
inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
whole, image = image.resize(inner, Image.Resampling.BILINEAR), Image.new("RGB", size)
image.paste(whole, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))""",
    ),
}
"""What happens to an image by each way of resizing, and the code for it."""

# What makes a probability for each class of the outputs, by their kind and whether there is one unit only
_TO_PROBABILITIES = {
    ("logits", False): "outputs = np.exp(outputs - outputs.max()) / np.exp(outputs - outputs.max()).sum()",
    ("logits", True): "outputs = 1 / (1 + np.exp([outputs[0], -outputs[0]]))",
    ("sigmoid", True): "outputs = [1 - outputs[0], outputs[0]]",
}
_TO_LABELS = {"logits": "outputs = 1 / (1 + np.exp(-outputs))"}


def code_for(imported: str, run: str, *, size, resize: str, kind: str | None, units: int, task: str, dtype: str) -> str:
    """Return code that prints what a model says of `photo.jpg`, a line for each of `labels.txt`.

    `imported` is the import of what runs the model, and `run` the lines that turn `pixels` into `outputs`; `size` is
    `(height, width)`; `kind` is what `output_kind` returned, `dtype` the type of the pixels.
    """
    conversions = {CLASSIFICATION: _TO_PROBABILITIES.get((kind, units == 1), ""), MULTI_LABEL: _TO_LABELS.get(kind, "")}
    return f"""from pathlib import Path

import numpy as np
{imported}
from PIL import Image, ImageOps

image, size = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"), ({size[1]}, {size[0]})
{RESIZES[resize][1]}
pixels = np.asarray(image, "{dtype}")[np.newaxis]
{run}
{conversions.get(task, "")}
labels = Path("labels.txt").read_text(encoding="utf-8").splitlines()
for label, output in zip(labels, outputs):
    print(f"{{label}}: {{output:.4f}}")""".replace("\n\nlabels", "\nlabels")


def keras_code(model: keras.Model, report: dict) -> str:
    """Return code that loads `model.keras` of a run folder with Keras alone; `report` is what `describe_run` returned."""
    main = f"\nmodel = keras.Model(model.inputs, model.outputs[{main_index(model)}])" if len(model.outputs) > 1 else ""
    run = f'model = keras.models.load_model("model.keras"){main}\noutputs = model.predict(pixels, verbose=0)[0]'
    known = {"resize": report["resize"], "kind": report["output"], "task": report["task"], "dtype": "float32"}
    return code_for("import keras", run, size=report["image_size"], units=main_tensor(model).shape[-1], **known)
