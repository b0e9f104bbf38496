"""The notes' recipe as a plain PyTorch script: ResNet50, nothing of Keras; `gpu.py` compares with it.

bfloat16 autocast, channels_last, images on the card from the start, nothing stored: every epoch runs the whole network,
which is a PyTorch user's usual way. 10 epochs of the head, then 5 with the last residual block (Keras's last 10 layers),
BatchNorm frozen in both, validation after each epoch. Weights are random: the time doesn't depend on them.
"""

import statistics
import time

import torch
from torch import nn
from torch.nn import functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Bottleneck(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(channels_in, channels, 1, stride, bias=False),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.Conv2d(channels, 4 * channels, 1, bias=False),
            ]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(one.out_channels) for one in self.convolutions])
        self.shortcut = None
        if channels_in != 4 * channels:
            projection = nn.Conv2d(channels_in, 4 * channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(4 * channels))

    def forward(self, x):
        shortcut = x if self.shortcut is None else self.shortcut(x)
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(x))
            x = functional.relu(x) if index < 2 else x
        return functional.relu(x + shortcut)


class ResNet50(nn.Module):
    """Bytes `(batch, height, width, 3)` in, logits out. As in Keras, a stage's first 1×1 convolution has its stride."""

    def __init__(self, num_classes=2):
        super().__init__()
        blocks, channels_in = [], 64
        for stage, count in enumerate((3, 4, 6, 3)):
            for index in range(count):
                blocks.append(Bottleneck(channels_in, 64 << stage, 2 if stage and not index else 1))
                channels_in = 4 * (64 << stage)
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.pool, self.blocks, self.head = nn.MaxPool2d(3, 2, 1), nn.Sequential(*blocks), nn.Linear(2048, num_classes)

    def forward(self, images):
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1  # of bytes in this order it is channels_last already
        return self.head(self.blocks(self.pool(self.stem(pixels))).mean((2, 3)))


def network():
    """Return the network in inference mode on the device, all of it frozen."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    return ResNet50().to(DEVICE, memory_format=torch.channels_last).eval().requires_grad_(False)


def recipe(train, validation, epochs, batch) -> dict:
    """Train as the notes do; return seconds, those of compiling and of the upload, and the last validation accuracy.

    "compile s" is the first epoch of each phase less the median of its later ones: cuDNN tries its algorithms there.
    """
    model = network()
    start = time.perf_counter()
    data = [[torch.from_numpy(array).to(DEVICE) for array in pair] for pair in (train, validation)]
    _wait()
    upload, warming = time.perf_counter() - start, 0.0
    for phase, (count, rate) in enumerate(zip(epochs, (1e-3, 1e-4), strict=True)):
        trained = [model.head, *(model.blocks[-1].convolutions if phase else ())]
        parameters = [one for module in trained for one in module.requires_grad_(True).parameters()]
        optimizer, seconds = torch.optim.Adam(parameters, lr=rate), []
        for _ in range(count):
            began = time.perf_counter()
            accuracy = _epoch(model, optimizer, *data, batch)
            seconds.append(time.perf_counter() - began)
        warming += max(seconds[0] - statistics.median(seconds[1:] or seconds), 0.0) if seconds else 0.0
    whole = time.perf_counter() - start
    return {"seconds": whole, "compile s": warming, "upload s": upload, "val. acc.": accuracy}


def _epoch(model, optimizer, train, validation, batch) -> float:
    images, labels = train
    for chosen in torch.randperm(len(labels), device=DEVICE).split(batch):
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = 0
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
        for some, theirs in zip(*(one.split(batch) for one in validation), strict=True):
            right += (model(some).argmax(1) == theirs).sum()
    return float(right) / len(validation[1])  # waits for the card


def forward(images):
    """Return a function that runs the network over a batch in bfloat16, without waiting for the card, and one that waits."""
    model, batch = network(), torch.from_numpy(images).to(DEVICE)

    def run():
        with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
            return model(batch)

    return run, _wait


def _wait(*_):
    if DEVICE == "cuda":
        torch.cuda.synchronize()
