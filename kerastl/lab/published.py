"""ImageNet top-1 accuracy as published, and where: of the full network at its own image size, on the validation images.

Figures of one column were not all measured alike (crops, training recipes): a point up or down between sources means
little.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Top1:
    """A published accuracy."""

    percent: float  # of the 50,000 validation images of ImageNet (ILSVRC 2012)
    source: str  # where it stands


_BY_KERAS = """
    xception 79.0
    vgg16 71.3  vgg19 71.3
    resnet50 74.9  resnet101 76.4  resnet152 76.6
    resnet50_v2 76.0  resnet101_v2 77.2  resnet152_v2 78.0
    inception_v3 77.9  inception_resnet_v2 80.3
    mobilenet 70.4  mobilenet_v2 71.3
    densenet121 75.0  densenet169 76.2  densenet201 77.3
    nasnet_mobile 74.4  nasnet_large 82.5
    efficientnet_b0 77.1  efficientnet_b1 79.1  efficientnet_b2 80.1  efficientnet_b3 81.6
    efficientnet_b4 82.9  efficientnet_b5 83.6  efficientnet_b6 84.0  efficientnet_b7 84.3
    efficientnet_v2_b0 78.7  efficientnet_v2_b1 79.8  efficientnet_v2_b2 80.5  efficientnet_v2_b3 82.0
    efficientnet_v2_s 83.9  efficientnet_v2_m 85.3  efficientnet_v2_l 85.7
    convnext_tiny 81.3  convnext_small 82.3  convnext_base 85.3
    convnext_large 86.3  convnext_xlarge 86.7
"""

_MOBILENET_V3 = "Keras documentation of MobileNetV3, checkpoint {}_1.0_224"
_TORCHVISION = "torchvision documentation, {}_Weights.IMAGENET1K_V1"
_EFFICIENTNET_LITE = "the authors' repository, tensorflow/tpu, models/official/efficientnet/lite"

TOP1: dict[str, Top1] = {
    **{
        name: Top1(float(percent), "Keras documentation, keras.io/api/applications")
        for name, percent in re.findall(r"(\w+) ([\d.]+)", _BY_KERAS)
    },
    "mobilenet_v3_small": Top1(68.1, _MOBILENET_V3.format("mobilenet_v3_small")),
    "mobilenet_v3_large": Top1(75.6, _MOBILENET_V3.format("mobilenet_v3_large")),
    # The networks of kerastl.models.networks follow these to the layer; weights come with EfficientNet-Lite alone
    "resnet18": Top1(69.758, _TORCHVISION.format("ResNet18")),
    "resnet34": Top1(73.314, _TORCHVISION.format("ResNet34")),
    "squeezenet": Top1(58.092, _TORCHVISION.format("SqueezeNet1_0")),
    "shufflenet": Top1(67.8, "the authors' repository, megvii-model/ShuffleNet-Series, ShuffleNetV1 1.0x (group=3)"),
    "efficientnet_lite0": Top1(75.1, _EFFICIENTNET_LITE),
    "efficientnet_lite1": Top1(76.7, _EFFICIENTNET_LITE),
    "efficientnet_lite2": Top1(77.6, _EFFICIENTNET_LITE),
}
"""By the names of `list_backbones`, built with their default options."""
