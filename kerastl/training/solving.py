"""The head without gradient steps: its one dense layer is put where a linear model of the stored features says.

Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", 2022 (LP-FT).
"""

import keras
import numpy as np

from kerastl.data.labels import CLASSIFICATION, MULTI_LABEL
from kerastl.models import compiling, graph, outputs
from kerastl.training.callbacks import as_list
from kerastl.training.scoring import Problem

# Layers that do nothing to features in inference mode, or to logits but make probabilities of them
_PASS = {"Dropout", "Identity", "Activation", "Softmax"}
_LARGEST = 10**8  # numbers in the features: with more of them, steps of a few images reach the same sooner


def can_solve(session, cut: int, settings) -> bool:
    """Tell whether the rest of a model behind a cut is one dense layer for classes or labels, and its loss the usual one."""
    tail, store = session.tail(cut), session.stores["train"]
    nodes = [node for node in graph.nodes_in_order(tail) if not node.is_input]
    dense = [node.operation for node in nodes if isinstance(node.operation, keras.layers.Dense)]
    others = {type(node.operation).__name__ for node in nodes if node.operation not in dense}
    shape, labels = tail.inputs[0].shape[1:], store.read("labels", slice(None))
    return (
        len(dense) == 1
        and dense[0].use_bias
        and others <= _PASS
        and len(shape) == 1
        and settings.task in (CLASSIFICATION, MULTI_LABEL)
        and outputs.output_kind(settings.model) is not None
        and compiling.loss_name(settings.model) in ("", *(f"{kind}crossentropy" for kind in _CROSSENTROPIES))
        and np.isin(labels, (0, 1)).all() | (settings.label_kind == "integer")
        and len(np.unique(labels, axis=0)) > 1
        and len(labels) * shape[0] <= _LARGEST
    )


_CROSSENTROPIES = ("sparsecategorical", "categorical", "binary")


def solve_head(session, cut: int, *, callbacks, class_weight, verbose, **_) -> keras.callbacks.History:
    """Put the dense layer behind a cut where the training images' features say; for callbacks it is a phase of one epoch."""
    tail, model = session.tail(cut), session.model
    dense = next(layer for layer in tail.layers if isinstance(layer, keras.layers.Dense))
    params = {"epochs": 1, "verbose": 0, "fitted": True}
    listed = keras.callbacks.CallbackList(as_list(callbacks), add_history=True, model=model, **params)
    model.stop_training = False
    if not model.optimizer.built:  # what is kept of a run holds its variables
        model.optimizer.build(model.trainable_variables)
    listed.on_train_begin()
    listed.on_epoch_begin(0)
    features, labels, weights = session.training_rows(cut, class_weight)
    is_softmax = dense.units > 1 and "binary" not in compiling.loss_name(model)
    problem = Problem(CLASSIFICATION if is_softmax else MULTI_LABEL, list(range(dense.units)))
    targets = problem.targets(labels if is_softmax else labels.reshape(len(labels), -1))
    fitted = problem.fit(features, targets, weights, seed=0)
    dense.kernel.assign(fitted.kernel)
    dense.bias.assign(fitted.bias)
    logs = session.evaluate(cut, "train")
    if "validation" in session.stores:
        logs |= {f"val_{name}": value for name, value in session.evaluate(cut).items()}
    if verbose:
        print(f"The head was fitted on the features: {fitted.accuracy:.1%} right by cross-validation")
    listed.on_epoch_end(0, logs)
    listed.on_train_end(logs)
    return model.history
