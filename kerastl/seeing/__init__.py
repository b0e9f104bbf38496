"""Seeing what a network sees: feature maps, filters, and which part of an image speaks for a class (Grad-CAM).

Layers are named as `model.summary()` names them, however deeply a nested model holds them. Everything returns arrays;
`kerastl.plot_feature_maps`, `plot_filters` and `plot_grad_cam` draw them.
"""

from kerastl.seeing.cam import grad_cam
from kerastl.seeing.maps import feature_maps, layer_filters

__all__ = ["feature_maps", "grad_cam", "layer_filters"]
