"""What tests of the command line share: photos, and a command that must fail."""

import numpy as np
from PIL import Image

from kerastl.cli import main


def write_photos(folder, classes, count=16, size=(32, 32)):
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (len(classes), 3))
    for name, colour in zip(classes, colours, strict=True):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(colour + generator.normal(0, 40, (*size, 3)), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    return folder


def only_line(capsys):
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def fails(capsys, *arguments):
    """Run a command that must end with status 2, and return the one line it said."""
    assert main([str(argument) for argument in arguments]) == 2
    line = only_line(capsys)
    assert line.startswith("error: ")
    return line
