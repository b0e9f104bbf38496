"""What does a layer, or a whole model, cost: parameters, multiply-accumulates and bytes?"""

from kerastl.costs.macs import register_layer_cost
from kerastl.costs.totals import ConvCost, LayerCost, LayerCosts, ModelCost, conv_cost, layer_costs, model_cost

__all__ = [
    "ConvCost",
    "LayerCost",
    "LayerCosts",
    "ModelCost",
    "conv_cost",
    "layer_costs",
    "model_cost",
    "register_layer_cost",
]
