"""How far the events of a journal were handed to callbacks, for the next process."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from typing import TYPE_CHECKING

from regards_nb.errors import JournalError

if TYPE_CHECKING:
    from regards_nb.journal import Journal

_log = logging.getLogger(__name__)

#: The cursor is written at most so often: a commit costs more than most callbacks.
SAVE_PERIOD_S = 1.0


class DispatchCursor:
    """The last row whose callbacks have returned, kept in the journal.

    A process that was killed leaves it behind the newest row, and the next process calls again from
    there: each event reaches the callbacks at least once. Trackers with the same queue and tenant
    share it. It is not *is_kept* by a reader, which writes nothing to the journal.
    """

    def __init__(
        self, journal: Journal, queue: str | None, tenant: str | None, *, is_kept: bool
    ) -> None:
        self._journal = journal
        self._is_kept = is_kept
        digest = hashlib.blake2b(json.dumps([queue, tenant]).encode(), digest_size=12)
        self._name = digest.hexdigest()
        self._saved = self._done = (-1, 0)
        self._not_before_s = 0.0

    def start(self) -> int:
        """Return the row after which to begin: the cursor, or the newest row if there is none.

        A first cursor is written with the next write of this process, so before its first message:
        the process may be killed before it has called anything.
        """
        if not self._is_kept:
            return self._journal.last_id()
        generation = self._journal.generation
        found = self._journal.cursors.read(self._name)
        if found is not None:
            return found
        newest_id = self._journal.last_id()
        self._journal.cursors.begin(self._name, newest_id, generation=generation)
        self._saved = self._done = (generation, newest_id)
        return newest_id

    def advance(self, generation: int, row_id: int) -> None:
        """Store that the callbacks up to a row of a generation of the journal have returned."""
        self._done = (generation, row_id)

    def save(self, *, at_once: bool = False) -> None:
        """Write the cursor if it has advanced and was not written within `SAVE_PERIOD_S`."""
        if not self._is_kept:
            return
        done = self._done
        now_s = time.monotonic()
        if done == self._saved or (now_s < self._not_before_s and not at_once):
            return
        self._not_before_s = now_s + SAVE_PERIOD_S
        try:
            self._journal.cursors.advance(self._name, done[1], generation=done[0])
        except JournalError as exc:
            _log.warning("the position of the callbacks was not written: %s", exc)
        else:
            self._saved = done
