"""`summary MODEL`: print a model block by block."""

from kerastl.cli.models import find_model, load_model
from kerastl.models.freezing import trainable_summary


def run(arguments) -> int:
    """Print the summary and return the exit status."""
    print(trainable_summary(load_model(find_model(arguments.model))))
    return 0
