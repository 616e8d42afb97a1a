"""Start a tracker; whether it runs, only reads a journal, or shares its queue with others."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regards_nb.client import USERS_FUNCTION, LastByte, watched
from regards_nb.computer import is_alive
from regards_nb.consumer import ENDED, HealthReport, HealthState
from regards_nb.errors import (
    JournalError,
    RegardsError,
    ServiceLoginError,
    SettingsError,
    TrackingError,
)
from regards_nb.journal import DEFAULT_PATH
from regards_nb.output import say
from regards_nb.tracker.rest_sync import REST_ANSWERS
from regards_nb.tracker.shared import CLIENT_MISSING
from regards_nb.waits import awaited, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.client import RegardsClient
    from regards_nb.consumer import AmqpParameters, Consumer, Health
    from regards_nb.journal import Holder, Journal
    from regards_nb.tracker.rounds import Poller
    from regards_nb.tracker.shared import Shared

_NOT_STARTED = (
    "this tracker is not started, so no event can arrive: call tracker.start(), or use "
    "`with tracker:`"
)

RUNNING = frozenset({HealthState.CONSUMING, HealthState.POLLING, HealthState.READING})
_TOLD_BY_MESSAGES = RUNNING - {HealthState.POLLING}

#: In the place of the address of a broker: the journal is read, nothing is received.
JOURNAL_ONLY: Any = object()

#: Maximum time that RabbitMQ counts the consumer of a lost connection, until the heartbeat ends.
_STALE_S = 90.0

#: Maximum time that a start waits for the answer to the login after RabbitMQ has answered.
#: Messages arrive without REGARDS, so its outage must not delay a start.
_LOGIN_S = 2.0
#: Maximum time until a start that the user has stopped ends.
_GIVE_UP_S = 2.0
_UNCHECKED = "the login to REGARDS could not be checked{}, and messages arrive: {}"

#: Maximum time that RabbitMQ counts a consumer that was stopped, and until it is asked again.
_COUNTED_S = 10.0

#: Time between two looks at the processes that receive messages.
_LOOK_S = 2.0
#: Those of the trackers of this process: in the journal all have its process id.
_lives: weakref.WeakSet[Life] = weakref.WeakSet()
#: Journal and queue of those that were dropped, and when; their threads end a little later.
_dropped: deque[tuple[tuple[str, str], float]] = deque(maxlen=100)


class Life:
    """Starts the source of events, and refuses what needs a tracker that runs.

    One thread at a time holds *changing*: it starts or stops the tracker. *was_stopped*: the
    tracker ran before. *end* says why it cannot be started again; it is empty as long as it can.
    """

    def __init__(
        self,
        source: Consumer | Poller | JournalReader,
        shared: Shared,
        others: OtherConsumers | None,
    ) -> None:
        self._source = source
        self._errors = shared.errors
        self._journal = shared.journal
        self.others = others
        self.changing = threading.RLock()
        self.was_stopped = False
        self.end = ""
        _lives.add(self)

    def look(self) -> None:
        """Look now and then which other processes receive messages."""
        for each in (self._source, self.others):
            if isinstance(each, JournalReader | OtherConsumers):
                with suppress(JournalError):  # every call of the user tells of an outage
                    each.look()

    @property
    def receives(self) -> bool:
        """Whether it brings events into its journal, or tries to."""
        return not (isinstance(self._source, JournalReader) or self._source.health.state in ENDED)

    @property
    def are_told(self) -> bool:
        """Whether messages tell what is ready; else REGARDS is asked."""
        health = self.health
        is_unreceived = health.state is HealthState.READING and health.reason is not None
        return health.state in _TOLD_BY_MESSAGES and not is_unreceived

    @property
    def health(self) -> Health:
        """The health of the consumer; its reason says if the tracker has ended for good."""
        health = self._source.health
        if self.end and health.state is HealthState.STOPPED:
            return replace(health, reason=self.end)
        return health

    @property
    def outage(self) -> str:
        """Since when and why no event arrives; empty while events arrive."""
        health = self.health
        if health.state is HealthState.READING:
            return health.reason or ""
        if health.state in RUNNING or not health.reason:
            return ""
        return f"no event has arrived since {health.since:%H:%M} UTC: {health.reason}"

    @property
    def sync_advice(self) -> str:
        """How to hear of orders made elsewhere; empty where messages tell of them."""
        health = self._source.health
        if health.state is HealthState.CONSUMING and health.last_event:
            return ""
        return "tracker.sync() asks REGARDS for orders made elsewhere"

    def refusal(self) -> str:
        """Return why no event can arrive; empty while the tracker runs."""
        health = self._source.health
        if health.state not in ENDED:
            return ""
        if self.end:
            return self.end
        if self.was_stopped:
            return "the tracker is stopped; call start() again, no event can arrive before"
        return _NOT_STARTED + (f" ({health.reason})" if health.reason else "")

    def require_running(self) -> None:
        """Refuse a call whose answer is an event; the text says what to do.

        TrackingError: the error in the background that has ended the tracker.
        """
        if text := self.refusal():
            self._errors.raise_new()
            raise SettingsError(text)

    def connect(self, client: RegardsClient | None, timeout_s: float) -> None:
        """Start the source of events, and log in to REGARDS meanwhile if there is a *client*.

        A refused login ends the start. One that is refused later is raised by the next call of the
        user, and an outage is only shown.
        """
        if client is None:
            self._source.start(timeout_s)
            return
        last_byte, n_before = LastByte(), client.n_accepted
        login = in_thread(partial(_log_in, client, last_byte))
        self._source.start(timeout_s)
        tell = partial(self._tell, is_over=lambda: client.n_accepted > n_before)
        try:
            awaited(
                login,
                lambda: f"waiting for {_awaited_by_login(client, last_byte)}",
                timeout_s=_LOGIN_S,
            )
        except TimeoutError:
            say(_unanswered(client, last_byte))
            login.add_done_callback(lambda done: tell(done.exception()))
        except ServiceLoginError:
            self._source.stop(timeout_s)
            raise
        except RegardsError as exc:
            # A wrong address is seen nowhere else while nothing is ordered.
            say(_UNCHECKED.format("", exc))
            tell(exc)

    def give_up_start(self, *, was_running: bool) -> str:
        """Stop the source of events again, and return what the user is told who stopped a start."""
        if was_running:
            return f"start() was stopped; {self._journal.obstacle() or 'events arrive as before'}"
        with suppress(TrackingError):  # what still runs ends by itself
            self._source.stop(_GIVE_UP_S)
        return "start() was stopped, and no event arrives: call start() again"

    def _tell(self, error: BaseException | None, is_over: Callable[[], bool]) -> None:
        if isinstance(error, ServiceLoginError):
            self._errors.record("logging in to REGARDS", error)
        elif error is not None:
            self._errors.note(_UNCHECKED.format("", error), is_over=is_over)

    def end_for_good(self, text: str, client: RegardsClient | None) -> None:
        """Refuse all later calls with *text*, also those of the client."""
        self.end = text
        if client is not None:
            client.close(text)

    def require_no_end(self) -> None:
        """Refuse to start a tracker that has ended for good; the text says what to do instead."""
        if self.end:
            raise SettingsError(self.end)
        refuse_imported_script()


def refuse_imported_script() -> None:
    """Refuse what a script does while a worker process imports it: it would order once more.

    `multiprocessing` runs the script of the user again in each process that it spawns, under
    another name.
    """
    for frame, _ in traceback.walk_stack(None):
        if frame.f_globals.get("__name__") == "__mp_main__" and frame.f_code.co_name == "<module>":
            raise SettingsError(
                "a worker process imports this script, and would order and follow the same again. "
                'Put what the script does below a line  if __name__ == "__main__":'
            )


def _log_in(client: RegardsClient, last_byte: LastByte) -> None:
    with watched(last_byte):
        if client.uses_token:
            # Only a request tells whether the token is accepted; one order is enough.
            next(client.iter_orders(page_size=1), None)
        else:
            client.login()


def _awaited_by_login(client: RegardsClient, last_byte: LastByte) -> str:
    if last_byte.origin == USERS_FUNCTION:
        return USERS_FUNCTION
    return f"the login to REGARDS at {client.base_url}"


def _unanswered(client: RegardsClient, last_byte: LastByte) -> str:
    """Return why a login has not ended, as far as it is known."""
    where = f"REGARDS at {client.base_url}"
    if last_byte.failure:
        advice = "It is tried again. Check base_url=... and the network (VPN, proxy)"
        return _UNCHECKED.format(" so far", f"{last_byte.failure}. {advice}")
    if last_byte.origin == USERS_FUNCTION:
        return f"{USERS_FUNCTION} has not returned yet: what is new at {where} is not known"
    return f"{where} has not answered yet: what is new there is not known"


class JournalReader(HealthReport):
    """Takes the place of the consumer in a tracker that only reads its journal.

    A journal names the processes that have connected it to a queue, or polled REGARDS for it.
    """

    def __init__(self, shared: Shared, queue: str | None, client: RegardsClient | None) -> None:
        super().__init__(shared.signal.send)
        self._shared = shared
        self._queues = None if queue is None else {queue, REST_ANSWERS}
        self._advice = "" if client is None else "; tracker.sync() asks REGARDS meanwhile"
        #: When to look again, also if nothing has changed since the last look.
        self._next_s, self._seen = 0.0, 0
        #: Those that may receive messages, as far as it was looked.
        self._processes: set[Holder] = set()
        #: That no kernel receives the messages, for the user. It is found in another thread than
        #: that of `stop`, so it is no part of the state that is reported.
        self._unreceived: str | None = None

    def start(self, timeout_s: float) -> None:  # noqa: ARG002 - there is nothing to wait for
        """Say that the journal is read."""
        self.report(HealthState.READING)
        self._next_s = 0.0

    @property
    def health(self) -> Health:
        """Whether the journal is read, and when another kernel wrote the newest event."""
        health = replace(super().health, last_event=self._shared.frames.newest_at)
        is_read = health.state is HealthState.READING
        return replace(health, reason=self._unreceived) if is_read else health

    def look(self) -> None:
        """Say whether no kernel receives the messages, as far as it is known."""
        if self.state is not HealthState.READING:
            return
        seen = self._shared.signal.count
        if time.monotonic() < self._next_s and seen == self._seen:
            return
        self._next_s, self._seen = time.monotonic() + _LOOK_S, seen
        text = self.why_not_received()
        before, self._unreceived = self._unreceived, f"{text}{self._advice}" if text else None
        if self._unreceived != before:
            self._shared.signal.send()

    def why_not_received(self) -> str:
        """Return why no kernel receives the messages; empty if one does, or it is not known."""
        self._processes = set(filter(_may_receive, self._processes))
        if all(each.is_suspended for each in self._processes):
            known = self._shared.journal.processes(self._queues)
            self._processes = set(filter(_may_receive, known))
        if not all(each.is_suspended for each in self._processes):
            return ""
        pids = " ".join(str(each.pid) for each in sorted(self._processes))
        how = "start the tracker that does, in its notebook or script"
        if pids:
            how = f"the process that does is suspended, and goes on after: kill -CONT {pids}"
        return f"no kernel receives the messages of this journal now: {how}"

    def stop(self, timeout_s: float) -> None:  # noqa: ARG002
        """Say that it is not read any more."""
        self.report(HealthState.STOPPED)


def _may_receive(process: Holder) -> bool:
    """Return whether a process may receive messages; True if not known."""
    host, pid = process
    if host != socket.gethostname():
        return True
    if pid == os.getpid():
        return any(life.receives for life in list(_lives))
    return is_alive(pid)


def check_sources(
    amqp: str | AmqpParameters | None,
    queue: str | None,
    client: RegardsClient | None,
    *,
    auto_download: bool,
) -> None:
    """Refuse a tracker that has no source of events, or nothing to download with."""
    if auto_download and client is None:
        raise SettingsError(f"auto_download=True {CLIENT_MISSING}")
    if amqp is None and client is None:
        raise SettingsError(
            "a tracker needs a broker (amqp=... and queue=...), a client=RegardsClient(...), or "
            "both. Without an account for RabbitMQ, the client alone is enough"
        )
    if (amqp is None) != (not queue):
        missing = "amqp=..., its broker" if amqp is None else "queue=..."
        raise SettingsError(
            f"{missing} is missing: queue must be the name of the queue your administrator made"
        )


def tenant_of(client: RegardsClient | None, tenant: str | None) -> str | None:
    """Return the tenant of a tracker: that of its client, because numbers count per tenant."""
    if client is None:
        return tenant
    if tenant not in (None, client.tenant):
        raise SettingsError(
            f"tenant={tenant!r}, and the client is of the tenant {client.tenant!r}: a tracker and "
            "its client are of one project"
        )
    return client.tenant


def require_file(journal: str | Path | None) -> None:
    """Refuse a file that does not exist: a reader would make an empty journal."""
    if isinstance(journal, str) and "://" in journal:
        return
    path = Path(DEFAULT_PATH if journal is None else journal).expanduser().absolute()
    if not path.exists():
        raise JournalError(
            f"there is no journal {path}: give the file or the URL that the other kernel writes"
        )


def check_queue(journal: Journal, queue: str | None) -> None:
    """Refuse a reader that would mix up queues, or names one without messages in the journal."""
    known = journal.queues()
    queues = journal.having_messages(sorted(known - {REST_ANSWERS}))
    if queue is None and len(queues) > 1:
        raise SettingsError(
            f"the journal {journal.location} holds messages of {_named(queues)}. Two queues may "
            "hold the same events, so name the one to read: OrderTracker.reader(..., queue="
            f"{queues[0]!r})"
        )
    if queue is not None and queues and queue not in known:
        raise SettingsError(
            f"the journal {journal.location} holds no message of queue {queue!r}, only of "
            f"{_named(queues)}"
        )


def _named(queues: list[str]) -> str:
    return ("queue " if len(queues) == 1 else "the queues ") + " and ".join(map(repr, queues))


class OtherConsumers:
    """Tells consumers with another journal from those that share this one.

    RabbitMQ gives each message to one consumer of a queue. Consumers that share a journal all see
    it; to any other it is lost.
    """

    def __init__(self, shared: Shared, queue: str, consumer: Consumer) -> None:
        self._journal = shared.journal
        self._changed = shared.signal.send
        self.place = (shared.journal.location, queue)
        self._queue = queue
        self.consumer = consumer
        #: Since when RabbitMQ may count this one: its first connection.
        self.connected_at: datetime | None = None
        #: The count of consumers that was last compared with the journal, when to compare it again,
        #: and how many of other processes share it.
        self._compared, self._next_s = 0, 0.0
        self._in_other_processes = 0
        #: The warning at the last look, which asks the journal.
        self._seen = ""

    def begin(self) -> str:
        """Have the consumer connect; return, while RabbitMQ answers, what `_queues` returns."""
        self.consumer.begin()
        try:
            return self._queues()
        except BaseException:
            self.consumer.cancel_start()
            raise

    def _queues(self) -> str:
        """Return a text on the messages of other queues in the journal; empty without any."""
        known = self._journal.queues() - {self._queue, REST_ANSWERS}
        others = known and self._journal.having_messages(sorted(known))
        if not others:
            return ""
        return (
            f"the journal {self._journal.location} also holds messages of {_named(others)}. They "
            f"are kept apart: this tracker shows those of queue {self._queue!r} only. To see the "
            f"others: OrderTracker.reader(journal=..., queue={others[0]!r})"
        )

    def look(self) -> None:
        """Look for such consumers, and wake views and waits if the warning has changed."""
        before, self._seen = self._seen, self._warning()
        if self._seen != before:
            self._changed()

    @property
    def warning(self) -> str:
        """A text if consumers of the queue write to another journal, as of the last look."""
        return self._seen if self._is_counted(self.consumer.health) else ""

    def _is_counted(self, health: Health) -> bool:
        return health.state is HealthState.CONSUMING and bool(health.other_consumers)

    def _warning(self) -> str:
        health = self.consumer.health
        if health.state is HealthState.CONSUMING and self.connected_at is None:
            self.connected_at = health.since
            weakref.finalize(self, _note_dropped, self.place).atexit = False
        if not self._is_counted(health):
            self._compared = 0
            return ""
        # RabbitMQ tells only a number, and may still count the connection before this one.
        is_first = health.since == self.connected_at
        if not is_first and (datetime.now(UTC) - health.since).total_seconds() < _STALE_S:
            return ""
        now_s = time.monotonic()
        if health.other_consumers != self._compared or now_s >= self._next_s:
            # The count is the same if one consumer ends and another one begins.
            self._in_other_processes = self._count_other_processes()
            self._compared, self._next_s = health.other_consumers, now_s + _LOOK_S
        foreign = health.other_consumers - self._in_other_processes - self._count_in_this_process()
        if foreign <= 0:
            return ""
        read = "consumer reads" if foreign == 1 else "consumers read"
        return (
            f"{foreign} other {read} queue {self._queue!r} with another journal. RabbitMQ "
            "gives each message to one of them only (all messages to the first one, if the queue "
            "has a single active consumer), so this tracker misses the rest. Stop the others, give "
            "all the same journal=..., or ask the REGARDS administrator for a queue of your own"
        )

    def sharing(self) -> int:
        """Return how many other consumers of the queue share the journal, as far as it knows."""
        return self._count_other_processes() + self._count_in_this_process()

    def _count_other_processes(self) -> int:
        others = self._journal.processes({self._queue}) - {(socket.gethostname(), os.getpid())}
        return sum(map(_may_receive, others))

    def _count_in_this_process(self) -> int:
        """Return how many others RabbitMQ may count: its answer is older than what is known here.

        Those that connect just now, those that reconnect, and those that have ended lately.
        """
        counted_from_s = time.monotonic() - _COUNTED_S
        places = [place for place, dropped_s in list(_dropped) if dropped_s > counted_from_s]
        for other in filter(None, [life.others for life in list(_lives)]):
            health = other.consumer.health
            unchanged_s = (datetime.now(UTC) - health.since).total_seconds()
            ended_lately = unchanged_s < _COUNTED_S and other.connected_at
            is_open = health.state not in ENDED
            if other is not self and (is_open or ended_lately):
                places.append(other.place)
        return places.count(self.place)


def _note_dropped(place: tuple[str, str]) -> None:
    _dropped.append((place, time.monotonic()))
