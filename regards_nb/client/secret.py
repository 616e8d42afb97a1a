"""A text that shows itself only to who asks for it by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable


class Secret:
    """A password or a token: unprintable, and it does not leave the process in a pickle.

    Examples
    --------
    >>> secret = Secret("hunter2")
    >>> f"{secret} {secret!r}", secret.reveal()
    ('*** Secret(***)', 'hunter2')
    """

    __slots__ = ("_reveal",)

    def __init__(self, text: str) -> None:
        # in a closure: a debugger or traceback that lists attributes finds only a function
        self._reveal: Callable[[], str] = lambda: text

    @classmethod
    def of(cls, text: str | Secret) -> Secret:
        """Hide a text, if it is not hidden already."""
        return text if isinstance(text, Secret) else cls(text)

    def reveal(self) -> str:
        """Return the text itself."""
        return self._reveal()

    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")
