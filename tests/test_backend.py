"""The lines that differ between backends: forward passes in parts, and batches without tf.data's autotuning."""

import platform
import subprocess
import sys

import keras
import numpy as np
import pytest

from kerastl import backend
from kerastl.features import litert
from tests import models

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="about TensorFlow alone")


class Numbered(keras.utils.PyDataset):
    """Three batches of numbers; the order turns round after every pass."""

    def __init__(self):
        super().__init__()
        self.passes, self._order = 0, [0, 1, 2]

    def __len__(self):
        return 3

    def __getitem__(self, index):
        first = 4.0 * self._order[index]
        size = 2 if self._order[index] == 2 else 4  # the last one is smaller
        return (np.full((size, 2), first, "float32"), np.arange(size)), np.arange(size) + int(first)

    def on_epoch_end(self):
        self.passes += 1
        self._order.reverse()


@pytest.mark.parametrize("count", [1, 7, 33])
def test_a_compiled_forward_gives_what_the_model_does_whatever_the_number_of_images(count):
    model = models.tiny_backbone()
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    expected = keras.ops.convert_to_numpy(model(images.astype("float32"), training=False))
    (given,) = backend.compiled_forward(model, 4)(images)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)


@on_tensorflow
def test_fewer_images_run_at_once_where_activations_are_large():
    sizes = [litert.cpu_batch(models.tiny_backbone(size)) for size in (32, 512, 4096)]
    assert sizes == [32, 8, 1]  # (size / 2)² pixels of 8 channels, 4 bytes each, in 32 MB: 4096, 16 and 0.25


def test_freed_memory_is_kept_for_the_next_tensors():
    """Blocks of 16 MB, as feature maps are, cost a page fault for every 4 kB unless the process keeps them."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("about glibc")
    code = """
import ctypes, resource, sys
from kerastl import backend
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
library.mallopt(-3, 2**17)  # glibc's own start, which some process has for good
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        block = library.malloc(2**24)
        ctypes.memset(block, 1, 2**24)
        library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
backend.keep_freed_memory()
faults()
print(faults())
backend.give_memory_back()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    usual, kept = map(int, result.stdout.split())
    assert usual > 20 * 2**24 / 4096 / 2
    assert kept < usual / 20


@on_tensorflow
def test_batches_for_fit_come_in_order_with_the_end_of_each_pass_told():
    batches = Numbered()
    dataset = backend.batches_for_fit(batches)
    assert int(dataset.cardinality()) == 3
    firsts = [[int(labels[0]) for _, labels in dataset.as_numpy_iterator()] for _ in range(2)]
    assert firsts == [[0, 4, 8], [8, 4, 0]]
    assert batches.passes == 2


@on_tensorflow
def test_batches_for_fit_are_not_autotuned():
    """TensorFlow 2.21's tuning thread holds up the end of an epoch until it wakes: 2.9 s become 5.1 s."""
    assert backend.batches_for_fit(Numbered()).options().autotune.enabled is False


def test_other_backends_are_given_the_batches_themselves(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    batches = Numbered()
    assert backend.batches_for_fit(batches) is batches
