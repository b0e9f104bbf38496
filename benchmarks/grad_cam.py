"""Does Grad-CAM point at what the model uses? Hide the hottest tenth of each image, then a random tenth, and compare.

    python -m kerastl train elpv --backbone mobilenet_v2 --weights auto --out runs/mobilenet_v2
    python benchmarks/grad_cam.py runs/mobilenet_v2 --images 50 --json grad_cam.json

Hidden pixels are replaced by the image's mean colour. The score is that of the predicted class before the softmax (its
logit), which Grad-CAM differentiates; the probability stands beside it. A random tenth is drawn in three ways, several
times for each image: the hottest tenth's own shape, moved elsewhere (around the edges) and flipped; cells of a grid of
7×7; and single pixels, which hide nothing, but sprinkle the whole image with noise.
"""

import argparse
import pathlib
import time

from common import report  # isort: skip

import keras
import numpy as np

import kerastl

SHARE = 0.1
GRID = 7


def hottest(heat) -> np.ndarray:
    """Return a mask of the hottest tenth of the pixels, exactly as many in each image."""
    mask = np.zeros(heat.size, bool)
    mask[np.argsort(-heat.ravel(), kind="stable")[: round(SHARE * heat.size)]] = True
    return mask.reshape(heat.shape)


def moved(mask, random) -> np.ndarray:
    """Return the same shape somewhere else: rolled around the edges, flipped or not."""
    height, width = mask.shape
    rolled = np.roll(mask, (random.integers(height), random.integers(width)), axis=(0, 1))
    return rolled[:: random.choice([1, -1]), :: random.choice([1, -1])]


def cells(mask, random) -> np.ndarray:
    """Return random cells of a grid, cut to as many pixels as the mask hides."""
    rows, columns = (np.arange(side) * GRID // side for side in mask.shape)
    order = random.permutation(GRID * GRID)[rows[:, None] * GRID + columns[None, :]]
    return hottest(-order.astype("float32"))


def pixels(mask, random) -> np.ndarray:
    """Return as many single pixels as the mask hides."""
    return hottest(random.random(mask.shape))


def hidden(images, masks) -> np.ndarray:
    """Return the images with the masked pixels replaced by each image's mean colour."""
    return np.where(masks[..., None], images.mean(axis=(1, 2), keepdims=True), images).astype("float32")


def outputs_of(model, images) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and probabilities, `(batch, classes)` each, of a classifier that ends in a softmax."""
    logits = kerastl.feature_maps(model, images, "predictions", before_activation=True)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return logits, powers / powers.sum(axis=1, keepdims=True)


def test_images(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the first images of the test part, which is drawn by class and seed."""
    splits = kerastl.load_images("elpv", image_size=size, seed=seed, verbose=0)
    batches = list(splits.test.take(-(-count // 32)).as_numpy_iterator())
    images, labels = (np.concatenate(parts)[:count] for parts in zip(*batches, strict=True))
    return images.astype("float32"), labels, splits.class_names


def compare(model, images, draws: int, seed: int) -> tuple[list[dict], dict]:
    """Return a row for each way to hide a tenth, and what each image's score changed by."""
    heat = kerastl.grad_cam(model, images)
    assert heat.shape == images.shape[:3]
    assert 0 <= heat.min() <= heat.max() <= 1
    logits, probabilities = outputs_of(model, images)
    classes = probabilities.argmax(axis=1)
    masks, random = np.stack([hottest(one) for one in heat]), np.random.default_rng(seed)
    ways = {
        "hottest tenth": [masks],
        "its shape elsewhere": drawn(moved, masks, draws, random),
        "random cells": drawn(cells, masks, draws, random),
        "random pixels": drawn(pixels, masks, draws, random),
        "coldest tenth": [np.stack([hottest(-one) for one in heat])],
    }
    rows, changes, index = [], {}, np.arange(len(images))
    for way, all_masks in ways.items():
        after = [outputs_of(model, hidden(images, one)) for one in all_masks]
        score = np.stack([new[index, classes] - logits[index, classes] for new, _ in after])
        chance = np.stack([new[index, classes] - probabilities[index, classes] for _, new in after])
        changes[way] = np.abs(score).mean(axis=0)
        more = changes["hottest tenth"] - changes[way]
        rows.append(
            {
                "hidden": way,
                "score change": float(score.mean()),
                "|score change|": float(np.abs(score).mean()),
                "hottest changes it by more": float(more.mean()),
                "± standard error": float(more.std(ddof=1) / np.sqrt(len(more))),
                "in % of images": float(100 * (more > 0).mean()),
                "probability change": float(chance.mean()),
                "|probability change|": float(np.abs(chance).mean()),
            }
        )
    return rows, {way: values.tolist() for way, values in changes.items()}


def drawn(draw, masks, draws: int, random) -> list[np.ndarray]:
    """Return `draws` arrays of random masks, one for each of the images'."""
    return [np.stack([draw(mask, random) for mask in masks]) for _ in range(draws)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="run folder of a model trained on ELPV")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split that the model was trained on, and of the draws"
    )
    parser.add_argument("--picture", help="write a picture of the first images and their heat maps")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    model = keras.models.load_model(arguments.run / "model.keras", compile=False)
    images, labels, names = test_images(arguments.images, model.input_shape[1], arguments.seed)
    start = time.perf_counter()
    heat = kerastl.grad_cam(model, images)
    seconds = time.perf_counter() - start
    rows, changes = compare(model, images, arguments.draws, arguments.seed)
    print(f"Grad-CAM of {len(images)} images: {seconds:.1f} s")
    report("Grad-CAM on ELPV", rows, arguments.json, images=len(images), seconds=seconds, changes=changes)
    if arguments.picture:
        panels = kerastl.plot_grad_cam(images, heat, outputs_of(model, images)[1], names, labels=labels)
        panels[0, 0].figure.savefig(arguments.picture, dpi=150)


if __name__ == "__main__":
    main()
