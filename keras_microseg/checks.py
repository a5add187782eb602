"""Argument checks, the wording of errors, and the deprecation decorator.

Every error meant for a user says what is wrong, in which file or argument, and what to do. `UserError` marks such a
message: the command line prints it as it stands, without a traceback.
"""

from __future__ import annotations

import difflib
import functools
import re
import warnings
from collections.abc import Callable, Collection
from typing import Any

import numpy as np


class UserError(ValueError):
    """Something the user can put right; the message says what, where and how."""


class FileError(UserError):
    """A file that cannot be read or written. The message starts with its name.

    Args:
        path: the file.
        problem: what is wrong with it.
        remedy: what to do about it.
    """

    def __init__(self, path: Any, problem: str, remedy: str = ""):
        self.path = str(path)
        super().__init__(f"{path}: {problem}" + (f" {remedy}" if remedy else ""))


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message gives the install command."""

    def __init__(self, package: str, purpose: str, extra: str | None = None):
        install = f'pip install "keras_microseg[{extra}]"' if extra else f"pip install {package}"
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed. Install it with: {install}")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> Any:
    """Return `value` when it is one of `choices`; raise `UserError` that lists them otherwise."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise UserError(f"`{name}` must be one of {listed}. Received: {name}={value!r}")
    return value


def check_names(given: Collection[str], known: Collection[str], what: str = "setting") -> None:
    """Raise `UserError` for the first of `given` that is not in `known`, with the nearest names, or all of them."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), [str(one) for one in known], n=3, cutoff=0.6)
            told = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(map(str, known))}."
            raise UserError(f"There is no {what} {name!r}. {told}")


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive: bool = False,
    integer: bool = False,
) -> Any:
    """Return `value` when it is a finite number inside the stated limits; raise `UserError` otherwise.

    Args:
        name: argument name for the message.
        value: what the caller passed.
        minimum, maximum: limits, inclusive unless `exclusive`.
        exclusive: the limits themselves are not allowed.
        integer: only whole numbers are allowed.
    """
    kind = "a whole number" if integer else "a number"
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    valid = is_number and bool(np.isfinite(value))
    if valid and integer:
        valid = float(value).is_integer()
    limits = []
    if minimum is not None:
        limits.append(f"{'>' if exclusive else '>='} {minimum}")
        valid = valid and (value > minimum if exclusive else value >= minimum)
    if maximum is not None:
        limits.append(f"{'<' if exclusive else '<='} {maximum}")
        valid = valid and (value < maximum if exclusive else value <= maximum)
    if not valid:
        raise UserError(f"`{name}` must be {kind} {' and '.join(limits)}".rstrip() + f". Received: {name}={value!r}")
    return int(value) if integer else value


def standardize_tuple(value: Any, size: int, name: str, *, minimum: int | None = 1) -> tuple[int, ...]:
    """Return `value` as a tuple of `size` whole numbers; one number stands for all axes.

    Raises:
        UserError: wrong length, not whole numbers, or below `minimum`.
    """
    values = (value,) * size if np.isscalar(value) else tuple(value)
    whole = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in values)
    if len(values) != size or not whole or (minimum is not None and any(v < minimum for v in values)):
        at_least = "" if minimum is None else f" >= {minimum}"
        raise UserError(
            f"`{name}` must be a whole number{at_least} or a tuple of {size} of them. Received: {name}={value!r}"
        )
    return tuple(int(v) for v in values)


_BYTE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_bytes(size: str | int | float, name: str = "max_ram") -> int:
    """Number of bytes meant by `"4GB"`, `"500 MiB"` or a plain number of bytes; `name` stands in the error."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([kmgt]?)(i?)b?\s*", str(size).lower())
    if match is None or not float(match[1]) or (match[3] and not match[2]):
        raise UserError(f"`{name}` must be a number of bytes such as '4GB' or '500MB'. Received: {name}={size!r}")
    factor = _BYTE_UNITS[match[2]]
    if match[3]:
        factor = 2 ** round(10 * np.log10(factor) / 3)
    return max(1, int(float(match[1]) * factor))


def format_bytes(size: float) -> str:
    """A number of bytes for reading: `"4.2 GB"`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def deprecated_argument(old: str, new: str, *, since: str, removed_in: str) -> Callable:
    """Decorator that accepts the keyword `old` for `new` and warns.

    The old value is passed on unchanged. Giving both is an error.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                if new in kwargs:
                    raise UserError(f"{function.__name__}: pass `{new}`, not both `{new}` and its old name `{old}`.")
                warnings.warn(
                    f"{function.__name__}: `{old}` is called `{new}` since version {since}; "
                    f"the old name goes in {removed_in}.",
                    FutureWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper

    return decorate
