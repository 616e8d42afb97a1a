"""Write lines of text: below the running cell, to a terminal, or to a log file.

Only the thread of the user writes: other lines would appear in the cell that runs at that time.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_ASCII = str.maketrans("█░▼✕▲●✓○…·■", "#-!x!*+o.|#")

#: Rewords each line that is written: the command line says what to type in a terminal.
_reword: ContextVar[Callable[[str], str]] = ContextVar("_reword", default=str)
#: Writes what `say` says, in the command line.
_speaker: ContextVar[Callable[[str], object] | None] = ContextVar("_speaker", default=None)


@contextmanager
def rewording(reword: Callable[[str], str], speaker: Callable[[str], object]) -> Iterator[None]:
    """Pass each line of this thread through *reword*, and what `say` says to *speaker*."""
    tokens = _reword.set(reword), _speaker.set(speaker)
    try:
        yield
    finally:
        _reword.reset(tokens[0])
        _speaker.reset(tokens[1])


def reworded(words: str) -> str:
    """Return a line as it is written in this thread."""
    return _reword.get()(words)


def ipython() -> Any:
    """Return the shell of IPython that runs this code; None outside of IPython."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def say(words: str) -> None:
    """Write a sentence below the running cell, or to the standard output of a script."""
    if (speaker := _speaker.get()) is not None:
        speaker(words)
    else:
        write_lines(sys.stdout, [words])


def write_lines(stream: TextIO, written: Iterable[str]) -> None:
    """Write whole lines at once, in characters that the stream can encode."""
    words = "".join(f"{reworded(each)}\n" for each in written)
    if words:
        # A replacement of stdout may have no encoding: a Tee, or the stream of some kernels.
        stream.write(encodable(words, getattr(stream, "encoding", None) or "utf-8"))
        stream.flush()


def encodable(words: str, encoding: str) -> str:
    """Replace what an encoding does not have, signs and bars by ASCII characters.

    >>> encodable("✓ DONE ██░░ 中", "ascii")
    '+ DONE ##-- ?'
    """
    try:
        words.encode(encoding)
    except UnicodeEncodeError:
        return words.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return words
