"""The package's exceptions and its warning category.

Every error that a user can cause derives from `KerastlError`, and from the built-in exception that fits, so that
`except ValueError` keeps working. The command line turns a `KerastlError` into one line and exit status 2; anything
else is a bug and keeps its traceback.
"""

import sys
import warnings


class KerastlError(Exception):
    """Base of every error that this package raises on purpose.

    Example:
        >>> try:
        ...     kerastl.unfreeze(model, last_blocks=9)
        ... except kerastl.KerastlError as error:
        ...     print(type(error).__name__, isinstance(error, ValueError))
        ArgumentError True
    """


class ArgumentError(KerastlError, ValueError):
    """An argument, or a combination of arguments, that can't be used."""


class DataError(KerastlError, ValueError):
    """Images or labels that can't be used: missing, unreadable, out of range, of the wrong size."""


class ChangingDataError(DataError):
    """A dataset that gives other images or labels at every pass, so that nothing of it can be kept."""


class ModelError(KerastlError, ValueError):
    """A model in which the needed part (a backbone, a block, a head) can't be found, or that can't be read."""


class CompileError(KerastlError, RuntimeError):
    """A model that is not compiled, or whose optimizer doesn't hold exactly the trainable variables."""


class WeightsUnavailableError(KerastlError, RuntimeError):
    """Pretrained weights that are not available: no connection, no such source, or a file that is not what it should be.

    Example:
        >>> kerastl.load_backbone("resnet18", weights="imagenet")
        Traceback (most recent call last):
            ...
        kerastl.errors.WeightsUnavailableError: There are no 'imagenet' weights for resnet18...
    """


class BackendError(KerastlError, RuntimeError):
    """Something that the installed Keras backend, or the absence of an optional package, rules out."""


class OutputError(KerastlError, OSError):
    """A file or folder that can't be written: it exists already, is something else, or the disk is full."""


class StoreError(KerastlError, OSError):
    """A store of features that can't be made, continued or read: a foreign folder, no room, another format."""


class StoreMismatchError(StoreError):
    """A store of features that was made for something else: another model, other data, another shape."""


class StoreDamagedError(StoreError):
    """A store of features whose files are not what was written (cut short, changed or missing), or of another format."""


class FeatureOverflowError(KerastlError, OverflowError):
    """Values that the number type of a store can't hold."""


class GateError(KerastlError, RuntimeError):
    """An exported model whose outputs are worse than the Keras model's.

    Attributes:
        reason: what fell below which limit, in a sentence.
        table: how every export compares with Keras, as text.
    """

    def __init__(self, reason: str, table: str = ""):
        super().__init__(f"{reason}\n\n{table}" if table else reason)
        self.reason, self.table = reason, table


class BundleError(KerastlError, ValueError):
    """A bundle that is not what was written: a file changed, missing, added or of a name that leads out of the folder.

    Example:
        >>> kerastl.load_bundle("flowers")
        Traceback (most recent call last):
            ...
        kerastl.errors.BundleError: flowers/model_card.json is missing...
    """


class KerastlWarning(UserWarning):
    """Base of every warning that this package gives.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", kerastl.KerastlWarning)  # stop instead
        ...     kerastl.recompile(model, divide_by=2)
        Traceback (most recent call last):
            ...
        kerastl.errors.KerastlWarning: The learning rate goes from 0.001 to 0.0005...
    """


_PASSED_OVER = ("kerastl", "keras", "contextlib")  # callbacks are called by Keras, `with` blocks end in contextlib


def warn(message: str) -> None:
    """Give a `KerastlWarning` that names the user's line: the nearest one that is neither this package's nor Keras's."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, KerastlWarning, stacklevel=level)
