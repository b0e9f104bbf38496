"""Shared argument validation: every message says what was expected, what was received, and what to do."""

import difflib
import numbers

from kerastl.errors import ArgumentError


def received(**values) -> str:
    """Return `Received: name=value, …` for an error message, long values shortened."""
    texts = {name: repr(value) for name, value in values.items()}
    short = {name: text if len(text) <= 200 else text[:197] + "..." for name, text in texts.items()}
    return "Received: " + ", ".join(f"{name}={text}" for name, text in short.items())


def nearest(name, options) -> str:
    """Return ` Did you mean 'a' or 'b'?`, or an empty string where nothing is near."""
    matches = difflib.get_close_matches(str(name), map(str, options), cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def check_choice(argument: str, value, options) -> None:
    """Raise `ArgumentError` unless `value` is one of `options`."""
    options = list(options)
    if value.__hash__ is None or value not in options:  # arrays can't be asked whether they are equal
        raise ArgumentError(
            f"`{argument}` must be one of {', '.join(map(repr, options))}.{nearest(value, options)} "
            f"{received(**{argument: value})}"
        )


def check_count(argument: str, value, *, smallest: int = 1, largest: int | None = None, unit: str = "") -> int:
    """Return `value` as an `int`; raise `ArgumentError` unless it is a whole number in `smallest`…`largest`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if is_whole and value >= smallest and (largest is None or value <= largest):
        return int(value)
    bounds = f"of at least {smallest}" if largest is None else f"from {smallest} to {largest}"
    of_what = f" ({unit})" if unit else ""
    raise ArgumentError(f"`{argument}` must be a whole number {bounds}{of_what}. {received(**{argument: value})}")


def check_fraction(argument: str, value, *, zero: bool = False, one: bool = True) -> float:
    """Return `value` as a `float`; raise `ArgumentError` unless it lies between 0 and 1 (ends as told)."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and (0 < value < 1 or (zero and value == 0) or (one and value == 1)):
        return float(value)
    bounds = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    raise ArgumentError(f"`{argument}` must be a number in {bounds}. {received(**{argument: value})}")


def check_exactly_one(**arguments) -> None:
    """Raise `ArgumentError` where none or several of the arguments are given, so not `None`."""
    given = {name: value for name, value in arguments.items() if value is not None}
    if len(given) != 1:
        names = ", ".join(f"`{name}`" for name in arguments)
        raise ArgumentError(f"Exactly one of {names} must be given. {received(**given) if given else 'Received: none'}")
