"""`README.md` of a bundle: what the exported models take and return, and some ten lines of code for each format."""

# What happens to an image, and the code for it
_RESIZES = {
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

# Of each format what is imported, and what runs it; `{path}` and `{name}` of the output are filled in
_RUNTIMES = {
    "litert": (
        "from ai_edge_litert.interpreter import Interpreter",
        'outputs = Interpreter("{path}").get_signature_runner()(pixels=pixels)["{name}"][0]',
    ),
    "saved_model": (
        "import tensorflow as tf",
        """model = tf.saved_model.load("{path}").signatures["serving_default"]
outputs = model(pixels=tf.constant(pixels))["{name}"][0].numpy()""",
    ),
    "onnx": (
        "import onnxruntime",
        'outputs = onnxruntime.InferenceSession("{path}").run(["{name}"], {{"pixels": pixels}})[0][0]',
    ),
    "coreml": (
        "import coremltools  # runs on macOS",
        """model = coremltools.models.MLModel("{path}")
outputs = next(iter(model.predict({{"pixels": pixels}}).values()))[0]""",
    ),
}

# What makes a probability for each class of the outputs, by their kind and whether there is one unit only
_TO_PROBABILITIES = {
    ("logits", False): "outputs = np.exp(outputs - outputs.max()) / np.exp(outputs - outputs.max()).sum()",
    ("logits", True): "outputs = 1 / (1 + np.exp([outputs[0], -outputs[0]]))",
    ("sigmoid", True): "outputs = [1 - outputs[0], outputs[0]]",
}
_TO_LABELS = {"logits": "outputs = 1 / (1 + np.exp(-outputs))"}


def readme(card: dict) -> str:
    """Return the text for a card of `export_model`: pixels, resizing, classes, and code that prints the probabilities."""
    pixels, kind = card["input"], card["output"]["kind"]
    height, width = pixels["shape"][1:3]
    how, resizing = _RESIZES[pixels["resize"]]
    conversion = {
        "classification": _TO_PROBABILITIES.get((kind, card["output"]["units"] == 1), ""),
        "multi-label": _TO_LABELS.get(kind, ""),
        "regression": "",
    }[card["output"].get("task", "classification")]
    further = ""
    if (views := card["output"].get("views", 1)) > 1:
        further += f"\n- The model itself averages {views} flips of each image: hand it the image once."
    if thresholds := card["output"].get("thresholds"):
        counted = ", ".join(f"{name} from {value:.4g}" for name, value in thresholds.items())
        further += f"\n- Thresholds, chosen on validation images: {counted}; any other label from 0.5."
    parts = [
        f"""# How to use this model

- Size: {height} × {width} pixels (height × width). An image is turned upright (EXIF), and resized by antialiased bilinear
  interpolation {how} ("{pixels["resize"]}").
- Pixels: red, green, blue; 0–255 as {pixels["type"]}; `(1, {height}, {width}, 3)`. Preprocessing: {pixels["preprocessing"]}.
- Outputs: {kind or "as they are"}, in the order of the lines of `labels.txt`. The rest is in `model_card.json`.{further}"""
    ]
    for format_name, model in card["models"].items():
        imported, run = _RUNTIMES[format_name]
        code = f"""from pathlib import Path

import numpy as np
{imported}
from PIL import Image, ImageOps

image, size = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"), ({width}, {height})
{resizing}
pixels = np.asarray(image, "{pixels["type"]}")[np.newaxis]
{run.format(path=model["path"], name=model["output_name"])}
{conversion}
labels = Path("labels.txt").read_text(encoding="utf-8").splitlines()
for label, probability in zip(labels, outputs):
    print(f"{{label}}: {{probability:.4f}}")""".replace("\n\nlabels", "\nlabels")
        parts.append(f"## {format_name}\n\n```python\n{code}\n```")
    return "\n\n".join(parts) + "\n"
