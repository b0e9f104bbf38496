"""`README.md` of a bundle: what the exported models take and return, and some ten lines of code for each format."""

from kerastl.evaluation.snippets import RESIZES, code_for

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


def readme(card: dict) -> str:
    """Return the text for a card of `export_model`: pixels, resizing, classes, and code that prints the probabilities."""
    pixels, kind = card["input"], card["output"]["kind"]
    height, width = pixels["shape"][1:3]
    task, units = card["output"].get("task", "classification"), card["output"]["units"]
    known = {"size": (height, width), "resize": pixels["resize"], "kind": kind, "units": units, "task": task}
    further = ""
    if (views := card["output"].get("views", 1)) > 1:
        further += f"\n- The model itself averages {views} flips of each image: hand it the image once."
    if thresholds := card["output"].get("thresholds"):
        counted = ", ".join(f"{name} from {value:.4g}" for name, value in thresholds.items())
        further += f"\n- Thresholds, chosen on validation images: {counted}; any other label from 0.5."
    parts = [
        f"""# How to use this model

- Size: {height} × {width} pixels (height × width). An image is turned upright (EXIF), and resized by antialiased bilinear
  interpolation {RESIZES[pixels["resize"]][0]} ("{pixels["resize"]}").
- Pixels: red, green, blue; 0–255 as {pixels["type"]}; `(1, {height}, {width}, 3)`. Preprocessing: {pixels["preprocessing"]}.
- Outputs: {kind or "as they are"}, in the order of the lines of `labels.txt`. The rest is in `model_card.json`.{further}"""
    ]
    for format_name, model in card["models"].items():
        imported, run = _RUNTIMES[format_name]
        run = run.format(path=model["path"], name=model["output_name"])
        code = code_for(imported, run, dtype=pixels["type"], **known)
        parts.append(f"## {format_name}\n\n```python\n{code}\n```")
    return "\n\n".join(parts) + "\n"
