"""kerastl: a Keras transfer-learning cookbook.

Freeze, train the head, fine-tune the end at a low learning rate, and run the frozen part once instead of every epoch:
functions over plain `keras.Model`s. See the README for the recipe in ten lines.

Names are imported when they are first used: `import kerastl` costs next to nothing, and `python -m kerastl` can keep
TensorFlow's start-up lines out of the terminal, which it couldn't once Keras was imported.
"""

import importlib

from kerastl._version import __version__

_HOMES = {
    "kerastl.evaluation.audit": ["AuditResult", "audit"],
    "kerastl.lab.auxiliary_heads": ["add_auxiliary_heads", "remove_auxiliary_heads"],
    "kerastl.models.backbones": ["list_backbones", "load_backbone"],
    "kerastl.export.bundle": ["Bundle", "load_bundle"],
    "kerastl.training.callbacks": ["early_stopping"],
    "kerastl.lab.choice": ["BackboneChoice", "choose_backbone"],
    "kerastl.lab.comparison": ["BackboneComparison", "compare_backbones"],
    "kerastl.models.compiling": ["recompile"],
    "kerastl.costs": ["conv_cost", "layer_costs", "model_cost"],
    "kerastl.data.folders": ["ImageSplits", "load_images"],
    "kerastl.errors": ["BundleError", "GateError", "KerastlError", "KerastlWarning", "WeightsUnavailableError"],
    "kerastl.export.exporting": ["export_model"],
    "kerastl.features.plan": ["CacheOptions", "CachePlan", "plan_cache"],
    "kerastl.models.freezing": ["TrainableSummary", "freeze", "list_blocks", "trainable_summary", "unfreeze"],
    "kerastl.lab.diagnosis": ["diagnose_depth"],
    "kerastl.lab.gradients": ["dead_relu_fraction", "gradient_norms"],
    "kerastl.models.graph": ["Block"],
    "kerastl.models.heads": ["build_classifier"],
    "kerastl.evaluation.plots": [
        *("plot_comparison", "plot_confusion_matrix", "plot_feature_maps", "plot_filters", "plot_grad_cam"),
        *("plot_gradient_norms", "plot_history", "plot_learning_rates", "plot_mistakes", "plot_probe"),
        "plot_reliability",
    ],
    "kerastl.evaluation.prediction": ["Predictions", "predict"],
    "kerastl.evaluation.calibration": ["Calibration", "calibrate"],
    "kerastl.evaluation.thresholds": ["Thresholds", "choose_thresholds"],
    "kerastl.lab.pruning": [
        *("SparsityReport", "gradual_pruning", "keep_pruned", "prune", "sparsity_report", "zipped_size"),
    ],
    "kerastl.evaluation.measures": ["Evaluation", "evaluate"],
    "kerastl.lab.feature_maps": ["feature_maps", "layer_filters"],
    "kerastl.evaluation.explanation": ["grad_cam"],
    "kerastl.models.weights": ["describe_weights"],
    "kerastl.training.doctor": ["CheckResult", "check"],
    "kerastl.training.probe": ["ProbeResult", "probe"],
    "kerastl.training.rate_search": ["LearningRates", "find_learning_rate"],
    "kerastl.training.recipe": ["TransferResult", "extract_features", "fine_tune", "train_head", "transfer_learn"],
    "kerastl.training.session": ["fit"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'kerastl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
