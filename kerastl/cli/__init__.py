"""The command line: `python -m kerastl train|extract|predict|export|backbones|compare|summary|cache`, or `kerastl …`.

It is thin: every command checks its arguments, calls what Python users call, and prints. Keras is imported only when a
command runs, so that `--help` is quick.
"""

import argparse
import contextlib
import importlib
import os
import re
import sys

from kerastl.cli.parser import build_parser
from kerastl.cli.quiet import quiet_session
from kerastl.errors import KerastlError

_OPERANDS = {"source", "model", "images", "names", "word", "folders", "module", "command_line"}
_USER_ERROR, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141


def main(argv=None) -> int:
    """Run one command, by default of the process's own arguments, and return the exit status.

    0 when all went well; 2 for an error that the user can mend, told in one line; 130 after Ctrl-C. Anything else is a
    bug, and keeps its traceback.
    """
    _never_fail_to_print()
    arguments = argparse.Namespace()
    try:
        arguments = build_parser().parse_args(argv)
        arguments.command_line = list(sys.argv[1:] if argv is None else argv)
        with quiet_session(arguments.verbose):
            command = importlib.import_module(arguments.module)
            status = command.run(arguments)
        sys.stdout.flush()
        return status
    except KerastlError as error:
        print(f"error: {in_options(error, arguments)}", file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, say) has seen enough. What is still in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def in_options(error, arguments) -> str:
    """Return an error's text in one line, with options of the command line where it names arguments of Python."""
    text = " ".join(str(error).split())
    for name in vars(arguments).keys() - _OPERANDS:
        option = f"--{name.replace('_', '-')}"
        text = re.sub(rf"`{name}=?`|(?<![\w`.-]){name}=True\b", option, text)
        said, received, values = text.rpartition("Received: ")
        text = said + received + re.sub(rf"(^|, ){name}=", rf"\1{option} ", values)
    return text


def chosen(arguments, names) -> dict:
    """Return the arguments of these names."""
    return {name: getattr(arguments, name) for name in names}


def _never_fail_to_print() -> None:
    """Let characters that a terminal doesn't know become question marks instead of ending a run."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")
