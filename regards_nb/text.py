"""Make text from the network safe to show, to store and to compare. Pure.

`clean` is for eyes: everything that is shown in HTML, in a terminal or in an error goes through
it once. HTML is escaped after that, by the display.
"""

from __future__ import annotations

import ipaddress
import math
import re
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: The length of a remark in a table or an error, and of a line of its own: a cause and an advice.
LIMIT_CHARS, LINE_CHARS = 160, 1000

#: Where the code is that is not the user's: this package, Python's own library, installed ones.
_LIBRARIES = (__file__.removesuffix("text.py"), traceback.__file__.removesuffix("traceback.py"))
_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]|^<frozen ")
_FOLDERS = re.compile(r"^.*[/\\]")
_LAST_NUMBER = re.compile(r" of |/")
_SPACES = re.compile(r"[\s\x1c-\x1f\x85\u2028\u2029]+")
# Controls, bidirectional marks and overrides, lone surrogates, interlinear annotation. Joiners
# stay: emoji and several scripts need them.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f\ud800-\udfff\ufff9-\ufffb]"
)


def clean(text: str, limit_chars: int = LIMIT_CHARS) -> str:
    r"""Return *text* on one line, without characters that move a cursor or turn text around.

    A text longer than *limit_chars* is cut there and ends with an ellipsis.

    >>> ascii(clean("two\nlines, \x1b[31mred, \u202eturned"))
    "'two lines, \\ufffd[31mred, \\ufffdturned'"
    """
    # Cut first: the text may be a megabyte, and is rendered five times a second.
    shown = _UNSAFE.sub("\ufffd", _SPACES.sub(" ", text[: 4 * limit_chars])).strip()
    return shown if len(shown) <= limit_chars else f"{shown[: limit_chars - 1]}…"


def counted(number: int | str, noun: str) -> str:
    """Return a number with its noun; of "3/10" or "0 of 1", the last number decides.

    >>> counted(1, "order"), counted(0, "order"), counted(12_345, "byte")
    ('1 order', '0 orders', '12,345 bytes')
    >>> counted("1/1", "part"), counted("0/?", "part"), counted("1 of 3", "file")
    ('1/1 part', '0/? parts', '1 of 3 files')
    """
    shown = number if isinstance(number, str) else f"{number:,}"
    is_one = _LAST_NUMBER.split(shown)[-1] == "1"
    return f"{shown} {noun}{'' if is_one else 's'}"


def listed(texts: Sequence[str], *, between: str = ", ", most: int = 5) -> str:
    """Return the first texts, and the number of the others.

    >>> listed(["1", "2"]), listed(["1", "2", "3"], between="; ", most=1)
    ('1, 2', '1 and 2 more')
    """
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return between.join(texts[:most]) + more


def numbered(numbers: Iterable[object], *, most: int = 5) -> str:
    """Return the numbers of some orders behind the noun.

    >>> numbered([7]), numbered([1, 2, 3], most=2)
    ('order 7', 'orders 1, 2 and 1 more')
    """
    texts = list(map(str, numbers))
    return f"order{'' if len(texts) == 1 else 's'} {listed(texts, most=most)}"


def similar(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Return known names that may be meant by a misspelt one, the most similar first.

    >>> similar("Frist Pass", ["first pass", "FORBIDDEN"]), similar("NOPE", ["FORBIDDEN"])
    (['first pass'], [])
    """
    from difflib import get_close_matches  # imported here: most names are right

    folded: dict[str, str] = {}
    for each in known:
        folded.setdefault(each.casefold(), each)
    return [folded[each] for each in get_close_matches(name.casefold(), folded, n=most)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the known names that may be meant; empty without any.

    >>> did_you_mean("auto_downlod", ["auto_download", "journal"])
    "Did you mean 'auto_download'?"
    """
    near = similar(name, known)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else ""


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an error that are in the user's own code, the outermost first."""
    return list(traceback.extract_tb(users_part(error.__traceback__)))


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames that are not in the user's own code."""
    own = []
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith(_LIBRARIES) and not _INSTALLED.search(file):
            own.append(trace)
        trace = trace.tb_next
    part = None
    for each in reversed(own):
        part = TracebackType(part, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return part


def raised_at(error: BaseException) -> str:
    """Return file and line of an error in a function of the user, for the end of a sentence.

    The line is in the user's own code also where a library raised the error, as pandas does for a
    name of a column that it does not have.
    """
    last = (user_frames(error) or traceback.extract_tb(error.__traceback__))[-1]
    return f"({_FOLDERS.sub('', last.filename)}, line {last.lineno})"


def size(n_bytes: int) -> str:
    """Return a number of bytes with a decimal unit.

    >>> size(0), size(999), size(1_500_000), size(2 * 10**12)
    ('0 B', '999 B', '1.5 MB', '2.0 TB')
    """
    value, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        # 999.95 would be printed as 1000.0
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{n_bytes} B" if unit == "B" else f"{value:.1f} {unit}"


def replace_surrogates(text: str) -> str:
    r"""Return *text* with halves of surrogate pairs replaced.

    JSON can spell them (``\ud800``), and no file, terminal or database can hold them.
    """
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def escape_unprintable(text: str) -> str:
    r"""Return *text* with backslash escapes if it has characters that cannot be printed.

    For values that are compared: two different values stay different, and every database can hold
    them (PostgreSQL refuses NUL in text).

    >>> print(escape_unprintable("été"), escape_unprintable("a\0"))
    été a\x00
    """
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def is_loopback(host: str) -> bool:
    """Return whether a host is this computer, so that a password may be sent to it without TLS.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "regards.example")]
    [True, True, True, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def doubled(duration_s: float, first_s: float) -> float:
    """Return the last of *first_s*, twice that, four times and so on that is over; else 0.

    A text with this time changes seldom: a log gets a line for each.

    >>> doubled(3, 5), doubled(19, 5), doubled(20, 5)
    (0.0, 10.0, 20.0)
    """
    return first_s * 2.0 ** int(math.log2(duration_s / first_s)) if duration_s >= first_s else 0.0
