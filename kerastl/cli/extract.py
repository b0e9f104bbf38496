"""`extract SOURCE --to PLACE`: run the frozen part over the images, and keep what `train --cache PLACE` needs."""

import sys

from kerastl.checks import check_count
from kerastl.cli import train
from kerastl.features.plan import CacheOptions
from kerastl.training.recipe import default_blocks, extract_features


def run(arguments) -> int:
    """Load images and build the network as `train` does, keep the features, and return the exit status."""
    train.fill_in(arguments)
    train.check_images(arguments)
    if arguments.last_blocks is not None:
        check_count("--last-blocks", arguments.last_blocks, smallest=0)
    where = {"engine": arguments.engine, "workers": arguments.workers}
    CacheOptions(folder=arguments.to, **where)  # which checks them before the images are read
    splits, model = train.load_and_build(arguments)
    last_blocks = default_blocks(model) if arguments.last_blocks is None else arguments.last_blocks
    views = arguments.views or (None if last_blocks else 1)
    try:
        extract_features(splits, model, to=arguments.to, **where, views=views, last_blocks=last_blocks or None)
    except KeyboardInterrupt:
        print(
            f"\nInterrupted: what is done is in {arguments.to}; the same command goes on from there.", file=sys.stderr
        )
        return 130
    print(f"The features are in {arguments.to}: train with --cache {arguments.to}")
    return 0
