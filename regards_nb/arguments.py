"""Refuse an argument of a wrong type by its name, before anything is done with it. Pure.

`in_order` lists a set that the user gave.

`bool` would accept any text as True, and a comparison or a path fails deep inside the library.
"""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from functools import partial, wraps
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from regards_nb.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_P = ParamSpec("_P")
_Result = TypeVar("_Result")

#: How a time limit is given, for a number that is no order.
SECONDS_MEANT = "If seconds are meant: wait(timeout_s={})"

#: The start of a URL, also as `pathlib.Path` writes it; one letter is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def url_scheme(text: str) -> str | None:
    """Return the scheme of a URL; None for a path.

    >>> url_scheme("S3://bucket/out"), url_scheme("C:/out")
    ('S3', None)
    """
    found = _URL.match(text)
    return found[1] if found else None


def check_flags(**values: object) -> None:
    """Refuse a value that is neither True nor False, such as "no".

    Examples
    --------
    >>> check_flags(download="no")
    Traceback (most recent call last):
    regards_nb.errors.SettingsError: download must be True or False, not 'no'
    """
    # by name: NumPy has a class of its own, called bool or bool_
    _check("True or False", lambda value: type(value).__name__ in {"bool", "bool_"}, values)


def check_numbers(**values: object) -> None:
    """Refuse a value that is no number from 0 on, such as "60" for seconds; None is no limit."""
    _check("a number, 0 or more", partial(_is_from_zero, Real), values)


def check_texts(**values: object) -> None:
    """Refuse a value that is not a text, such as 8 for a label; None stands for no text."""
    _check("a text", lambda value: isinstance(value, str | None), values)


def check_paths(**values: object) -> None:
    """Refuse a value that is not a path, such as 5 for a folder; None is the default path."""
    _check("a path", _is_path, values)


def check_local_paths(**values: object) -> None:
    """Refuse a value that is no path of this computer, such as the URL of a bucket."""
    check_paths(**values)
    for name, value in values.items():
        if url_scheme(str(value)):
            raise SettingsError(
                f"{name} must be a path on this computer, not {value!r:.100}: write there, then "
                "copy it to the bucket"
            )


def check_counts(**values: object) -> None:
    """Refuse a value that is not a whole number from 0 on; None is no limit."""
    _check("a whole number, 0 or more", partial(_is_from_zero, Integral), values)


def check_choice(name: str, value: object, *choices: str) -> None:
    """Refuse a value that is none of the choices."""
    _check(" or ".join(f'"{each}"' for each in choices), choices.__contains__, {name: value})


def check_function(name: str, function: object, argument: str) -> None:
    """Refuse what cannot be called with one *argument*, or whose body would not run."""
    if not callable(function):
        raise SettingsError(f"{name} must be a function of {argument}, not {function!r:.100}")
    with suppress(ValueError):  # a function of C may have no signature
        try:
            inspect.signature(function).bind(None)
        except TypeError as exc:
            raise SettingsError(
                f"{name} must take one argument, {argument}, and {function!r} does not: {exc}"
            ) from None
    for called in (function, type(function).__call__):
        # A call of either only makes an object, which nobody awaits or iterates.
        if inspect.iscoroutinefunction(called):
            kind, advice = "an async", "lambda given: asyncio.run(function(given))"
        elif inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            kind, advice = "a generator", "a function without yield"
        else:
            continue
        raise SettingsError(
            f"{name} must be a plain function, and {function!r} is {kind} function, whose body "
            f"would not run. Give {advice}"
        )


def check_seconds_are_named(method: Callable[_P, _Result]) -> Callable[_P, _Result]:
    """Say how a time limit is given to a wait that takes no argument without its name."""

    @wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _Result:
        if len(args) > 1:
            raise TypeError(f"wait() of an order takes no other. {SECONDS_MEANT.format(args[1])}")
        return method(*args, **kwargs)

    return call


def in_order(values: Iterable[Any]) -> Iterable[Any]:
    """Return values; those of a set in the same order in each process.

    A request is compared with one of its name, which another process may have sent.
    """
    return sorted(values, key=str) if isinstance(values, set | frozenset) else values


def _check(words: str, is_right: Callable[[object], bool], values: dict[str, object]) -> None:
    for name, value in values.items():
        if not is_right(value):
            raise SettingsError(f"{name} must be {words}, not {value!r:.100}")


def _is_from_zero(kind: Any, value: object) -> bool:
    if value is None or isinstance(value, bool):
        return value is None
    # Also refuses NaN: as a time limit it would never be over.
    return isinstance(value, kind) and bool(value >= 0)


def _is_path(value: object) -> bool:
    # A UPath of a bucket has no __fspath__.
    is_object = hasattr(value, "__fspath__") or hasattr(value, "joinpath")
    return isinstance(value, str | None) or is_object
