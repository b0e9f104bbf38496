"""For editors and type checkers: where each public name comes from. `kerastl/__init__.py` imports them when they are used."""

import keras as _keras

from kerastl._version import __version__ as __version__
from kerastl.costs import conv_cost as conv_cost
from kerastl.costs import layer_costs as layer_costs
from kerastl.costs import model_cost as model_cost
from kerastl.data.folders import ImageSplits as ImageSplits
from kerastl.data.folders import load_images as load_images
from kerastl.errors import BundleError as BundleError
from kerastl.errors import GateError as GateError
from kerastl.errors import KerastlError as KerastlError
from kerastl.errors import KerastlWarning as KerastlWarning
from kerastl.errors import WeightsUnavailableError as WeightsUnavailableError
from kerastl.evaluation.audit import AuditResult as AuditResult
from kerastl.evaluation.audit import audit as audit
from kerastl.evaluation.calibration import Calibration as Calibration
from kerastl.evaluation.calibration import calibrate as calibrate
from kerastl.evaluation.explanation import grad_cam as grad_cam
from kerastl.evaluation.measures import Evaluation as Evaluation
from kerastl.evaluation.measures import evaluate as evaluate
from kerastl.evaluation.plots import plot_comparison as plot_comparison
from kerastl.evaluation.plots import plot_confusion_matrix as plot_confusion_matrix
from kerastl.evaluation.plots import plot_feature_maps as plot_feature_maps
from kerastl.evaluation.plots import plot_filters as plot_filters
from kerastl.evaluation.plots import plot_grad_cam as plot_grad_cam
from kerastl.evaluation.plots import plot_gradient_norms as plot_gradient_norms
from kerastl.evaluation.plots import plot_history as plot_history
from kerastl.evaluation.plots import plot_learning_rates as plot_learning_rates
from kerastl.evaluation.plots import plot_mistakes as plot_mistakes
from kerastl.evaluation.plots import plot_probe as plot_probe
from kerastl.evaluation.plots import plot_reliability as plot_reliability
from kerastl.evaluation.prediction import Predictions as Predictions
from kerastl.evaluation.prediction import predict as predict
from kerastl.evaluation.thresholds import Thresholds as Thresholds
from kerastl.evaluation.thresholds import choose_thresholds as choose_thresholds
from kerastl.export.bundle import Bundle as Bundle
from kerastl.export.bundle import load_bundle as load_bundle
from kerastl.export.exporting import export_model as export_model
from kerastl.features.plan import CacheOptions as CacheOptions
from kerastl.features.plan import CachePlan as CachePlan
from kerastl.features.plan import plan_cache as plan_cache
from kerastl.lab.auxiliary_heads import add_auxiliary_heads as add_auxiliary_heads
from kerastl.lab.auxiliary_heads import remove_auxiliary_heads as remove_auxiliary_heads
from kerastl.lab.choice import BackboneChoice as BackboneChoice
from kerastl.lab.choice import choose_backbone as choose_backbone
from kerastl.lab.comparison import BackboneComparison as BackboneComparison
from kerastl.lab.comparison import compare_backbones as compare_backbones
from kerastl.lab.diagnosis import diagnose_depth as diagnose_depth
from kerastl.lab.feature_maps import feature_maps as feature_maps
from kerastl.lab.feature_maps import layer_filters as layer_filters
from kerastl.lab.gradients import dead_relu_fraction as dead_relu_fraction
from kerastl.lab.gradients import gradient_norms as gradient_norms
from kerastl.lab.pruning import SparsityReport as SparsityReport
from kerastl.lab.pruning import gradual_pruning as gradual_pruning
from kerastl.lab.pruning import keep_pruned as keep_pruned
from kerastl.lab.pruning import prune as prune
from kerastl.lab.pruning import sparsity_report as sparsity_report
from kerastl.lab.pruning import zipped_size as zipped_size
from kerastl.models.backbones import list_backbones as list_backbones
from kerastl.models.backbones import load_backbone as load_backbone
from kerastl.models.compiling import recompile as recompile
from kerastl.models.freezing import TrainableSummary as TrainableSummary
from kerastl.models.freezing import freeze as freeze
from kerastl.models.freezing import list_blocks as list_blocks
from kerastl.models.freezing import trainable_summary as trainable_summary
from kerastl.models.freezing import unfreeze as unfreeze
from kerastl.models.graph import Block as Block
from kerastl.models.heads import build_classifier as build_classifier
from kerastl.models.weights import describe_weights as describe_weights
from kerastl.training.callbacks import early_stopping as early_stopping
from kerastl.training.doctor import CheckResult as CheckResult
from kerastl.training.doctor import check as check
from kerastl.training.probe import ProbeResult as ProbeResult
from kerastl.training.probe import probe as probe
from kerastl.training.rate_search import LearningRates as LearningRates
from kerastl.training.rate_search import find_learning_rate as find_learning_rate
from kerastl.training.recipe import TransferResult as TransferResult
from kerastl.training.recipe import extract_features as extract_features
from kerastl.training.recipe import fine_tune as fine_tune
from kerastl.training.recipe import train_head as train_head
from kerastl.training.recipe import transfer_learn as transfer_learn

# With the arguments of `model.fit`, which `kerastl.training.session.fit` takes as they come
def fit(
    model: _keras.Model,
    x=None,
    y=None,
    batch_size=None,
    epochs=1,
    verbose="auto",
    callbacks=None,
    validation_split=0.0,
    validation_data=None,
    shuffle=True,
    class_weight=None,
    sample_weight=None,
    initial_epoch=0,
    steps_per_epoch=None,
    validation_steps=None,
    validation_batch_size=None,
    validation_freq=1,
    *,
    cache="auto",
    views: int = 1,
) -> _keras.callbacks.History: ...
