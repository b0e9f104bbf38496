"""Keep the terminal for what the user asked for: TensorFlow's start-up lines and foreign warnings stay out of it."""

import contextlib
import importlib
import logging
import os
import sys
import tempfile
import warnings

from kerastl.errors import KerastlWarning


@contextlib.contextmanager
def quiet_session(verbose: bool = False):
    """Import Keras without its noise, then show warnings of this package as one line each, and no others unless `verbose`."""
    with warnings.catch_warnings():
        if not verbose:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            warnings.simplefilter("ignore")
            for name in ("absl", "tensorflow"):
                logging.getLogger(name).setLevel(logging.ERROR)
        import_quietly("keras", verbose=verbose)
        warnings.simplefilter("always", KerastlWarning)
        warnings.showwarning = _one_line_each(warnings.showwarning)
        yield


def import_quietly(name: str, *, verbose: bool = False) -> None:
    """Import a module while standard error goes to a file, which is shown only if the import fails.

    TensorFlow 2.21 writes some lines before it reads `TF_CPP_MIN_LOG_LEVEL`, and from C++: nothing but the file
    descriptor itself holds them back.
    """
    kept = None
    if not verbose and name not in sys.modules:
        with contextlib.suppress(OSError):  # there is no standard error, so there is nothing to keep clean
            kept = os.dup(2)
    if kept is None:
        importlib.import_module(name)
        return
    with tempfile.TemporaryFile() as caught:
        sys.stderr.flush()
        os.dup2(caught.fileno(), 2)
        try:
            importlib.import_module(name)
        except BaseException:
            caught.seek(0)
            os.write(kept, caught.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _one_line_each(show):
    """Return a `showwarning` that prints each warning of this package once, in one line, and hands on the others."""
    said = set()

    def show_one(message, category, filename, lineno, file=None, line=None):
        if not issubclass(category, KerastlWarning):
            show(message, category, filename, lineno, file, line)
            return
        text = " ".join(str(message).split())
        if text not in said:
            said.add(text)
            print(f"warning: {text}", file=sys.stderr)

    return show_one
