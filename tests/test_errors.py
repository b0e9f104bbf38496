"""Warnings name the user's line, however deep in the package they are given."""

import numpy as np
import pytest

import kerastl
from kerastl.errors import KerastlWarning
from tests import models

DATA = np.random.default_rng(0).uniform(-1, 1, (8, 32, 32, 3)).astype("float32"), np.arange(8) % 3
QUIET = {"epochs": 1, "verbose": 0}


@pytest.mark.parametrize(
    "call",
    [
        lambda model: kerastl.fit(model, *DATA, cache=False, **QUIET),
        lambda model: kerastl.train_head(model, DATA, DATA, **QUIET),
        lambda model: kerastl.evaluate(model, DATA),
        lambda model: kerastl.predict(model, list(DATA[0])),
    ],
    ids=["fit", "train_head", "evaluate", "predict"],
)
def test_pixels_that_look_scaled_are_told_of_at_the_users_line(call):
    with pytest.warns(KerastlWarning, match="look scaled already") as caught:
        call(models.compiled(kerastl.freeze(models.flat())))
    assert {one.filename for one in caught if one.category is KerastlWarning} == {__file__}
