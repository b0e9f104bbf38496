"""Where the gradient goes: its norm per layer, ReLUs that are dead, and what is wrong when a deep network doesn't learn.

`gradient_norms` measures; `diagnose_depth` answers the question that follows: does the gradient vanish on its way to the
first layers, or is there nothing to learn in the data? Both look like a loss that doesn't fall. Everything returns rows
that print as tables; plots of them live elsewhere.
"""

from kerastl.lab.gradients.diagnosis import (
    EXPLODING,
    HEALTHY,
    NO_GRADIENT,
    NOTHING_TO_LEARN,
    VANISHING,
    DepthDiagnosis,
    diagnose_depth,
)
from kerastl.lab.gradients.norms import GradientNorm, GradientNorms, gradient_norms
from kerastl.lab.gradients.relus import DeadReluFractions, DeadRelus, dead_relu_fraction

__all__ = [
    "EXPLODING",
    "HEALTHY",
    "NOTHING_TO_LEARN",
    "NO_GRADIENT",
    "VANISHING",
    "DeadReluFractions",
    "DeadRelus",
    "DepthDiagnosis",
    "GradientNorm",
    "GradientNorms",
    "dead_relu_fraction",
    "diagnose_depth",
    "gradient_norms",
]
