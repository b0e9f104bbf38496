"""kerastl: a Keras transfer-learning cookbook.

Freeze, train the head, fine-tune the end at a low learning rate, and run the frozen part once instead of every epoch:
functions over plain `keras.Model`s. See the README for the recipe in ten lines.
"""

from kerastl._version import __version__
from kerastl.backbones import list_backbones, load_backbone
from kerastl.callbacks import early_stopping
from kerastl.compiling import recompile
from kerastl.costs import conv_cost, layer_costs, model_cost
from kerastl.data import ImageSplits, load_images
from kerastl.errors import KerastlError, KerastlWarning, WeightsUnavailableError
from kerastl.features.plan import CacheOptions, CachePlan, plan_cache
from kerastl.freezing import TrainableSummary, freeze, list_blocks, trainable_summary, unfreeze
from kerastl.graph import Block
from kerastl.heads import build_classifier
from kerastl.plots import plot_confusion_matrix, plot_history, plot_mistakes
from kerastl.prediction import Predictions, predict
from kerastl.training import TransferResult, fine_tune, fit, train_head, transfer_learn

__all__ = [
    "Block",
    "CacheOptions",
    "CachePlan",
    "ImageSplits",
    "KerastlError",
    "KerastlWarning",
    "Predictions",
    "TrainableSummary",
    "TransferResult",
    "WeightsUnavailableError",
    "__version__",
    "build_classifier",
    "conv_cost",
    "early_stopping",
    "fine_tune",
    "fit",
    "freeze",
    "layer_costs",
    "list_backbones",
    "list_blocks",
    "load_backbone",
    "load_images",
    "model_cost",
    "plan_cache",
    "plot_confusion_matrix",
    "plot_history",
    "plot_mistakes",
    "predict",
    "recompile",
    "train_head",
    "trainable_summary",
    "transfer_learn",
    "unfreeze",
]
