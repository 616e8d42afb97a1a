"""Waits of a call of the user: after a second a line names the cause; Ctrl-C ends them in one line.

`awaited` runs one step of a call that may take long, `progress` one of many steps. They alone know
when to speak and who may: the thread that runs the call of the user, below whose cell the line
appears. A line that a thread of this package writes lands in the output of any cell.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from regards_nb.errors import RegardsError, StoppedWaiting
from regards_nb.output import ipython, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

_P = ParamSpec("_P")
_Result = TypeVar("_Result")

#: A call that waits for longer says what it waits for.
SAID_AFTER_S = 1.0
#: What Ctrl-C says before a download has begun.
STOPPED_EARLY = "stopped before a file was fetched: call it again"
#: Minimum time between two lines about a server that answers each of many requests late, about that
#: of a journal, or about how far a call is.
AGAIN_S = 5.0
#: Maximum time until Ctrl-C ends a wait.
_TURN_S = 1.0
#: How often it is looked whether a job was stopped.
_STOP_TURN_S = 0.1
_MOMENT_S = 0.1
#: Nobody sets it: `idle.wait(0.1)` is a pause that nothing ends; see also `pause`.
idle = threading.Event()


class _Call:
    """A call of the user: the thread that runs it, and what that said last, and when."""

    def __init__(self, thread: threading.Thread | None, began_s: float) -> None:
        #: It alone speaks; None: no thread does.
        self.thread = thread
        #: Infinite where something else says how far the call is.
        self.began_s = began_s
        #: What the call does, and how far it is.
        self.progress = ""
        self.text = ""
        self.at_s = -math.inf
        #: Until when the cause of the last line was there at least.
        self.lasts_s = -math.inf
        self.is_over = False
        #: What was being handled as it began, such as the Ctrl-C of the call before.
        self.handled = sys.exc_info()[1]

    @property
    def due_s(self) -> float:
        """When the call has lasted so long, also since its last line, that it says what it does."""
        return max(self.began_s + SAID_AFTER_S, self.at_s + AGAIN_S)


#: What runs outside of a call of the user.
_outside = _Call(None, math.inf)
#: The call that runs: each call of the user says anew what it waits for.
_call: ContextVar[_Call] = ContextVar("call", default=_outside)
#: The end of what is awaited, on the monotonic clock; see `limited`.
_deadline_s: ContextVar[float] = ContextVar("deadline_s", default=math.inf)
#: Each ends what is awaited; see `ended_by`.
_stops: ContextVar[tuple[threading.Event, ...]] = ContextVar("stops", default=())
#: Whether the block shows what was read before.
_is_unasked: ContextVar[bool] = ContextVar("is_unasked", default=False)


def awaited(
    job: Callable[[], _Result] | Future[_Result],
    text: str | Callable[[], str],
    *,
    timeout_s: float = math.inf,
    ends_after_s: float = math.inf,
    unwanted: Callable[[_Result], object] = lambda _: None,
) -> _Result:
    """Return the result of *job*; in the thread of the user, say *text* and a limit after a second.

    A function returns the text, and is asked again each second. A call that has lasted for a second
    in many short waits says it, too, or its `progress`. The job is a future, or runs in another
    thread: Ctrl-C ends the wait at once, also where the system does not end a look-up of a host,
    and *unwanted* gets the result that comes later. TimeoutError: there was none within
    *timeout_s*, before the end of a `limited` block, or before that of one `ended_by` an event;
    then the job is not begun any more. The line names *ends_after_s* as the limit if the job
    itself ends after that.
    """
    limit_s = min(time_left_s(), timeout_s)
    has_stop = bool(_stops.get())
    if limit_s == math.inf and not has_stop and not speaks():
        return job.result() if isinstance(job, Future) else job()
    if limit_s <= 0 or is_stopped():
        raise TimeoutError
    words = text if callable(text) else lambda: text
    future = job if isinstance(job, Future) else in_thread(job)
    call, began_s = _call.get(), time.monotonic()
    now_s, said = began_s, ""
    end_s, turn_s = began_s + limit_s, _STOP_TURN_S if has_stop else _TURN_S
    with interruptible():
        try:
            speak_s = call.due_s
            if not call.progress:
                own_s = began_s + max(SAID_AFTER_S, AGAIN_S - _age_s(words()))
                speak_s = min(max(speak_s, began_s + _MOMENT_S), own_s)
            # In turns: a signal that comes just before this thread sleeps does not wake it.
            while not (future.done() or now_s >= end_s or is_stopped()):
                if now_s >= speak_s:
                    speak_s = now_s + (AGAIN_S if call.progress else _TURN_S)
                    texts, line_limit_s = [call.progress] if call.progress else [], math.inf
                    if not texts or now_s - began_s >= SAID_AFTER_S / 2:
                        texts.append(words())
                        line_limit_s = min(limit_s, ends_after_s)
                    if said != (said := "; ".join(texts)):
                        told(said, math.inf, again_s=0.0, limit_s=line_limit_s)
                wait_for([future], min(turn_s, speak_s - now_s, end_s - now_s))
                now_s = time.monotonic()
            return future.result(0)
        except (KeyboardInterrupt, TimeoutError):
            future.add_done_callback(lambda done: done.exception() or unwanted(done.result()))
            raise


@contextmanager
def having(variable: ContextVar[_Result], value: _Result) -> Iterator[None]:
    """Give a variable of the context a value in the block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def limited(deadline_s: float | None) -> AbstractContextManager[None]:
    """End at *deadline_s*, on the monotonic clock, what the block awaits; None: no limit."""
    return having(_deadline_s, math.inf if deadline_s is None else deadline_s)


def within(limit_s: float) -> AbstractContextManager[None]:
    """End after this time, or at the end of the outer block, what the block awaits."""
    return limited(time.monotonic() + min(limit_s, time_left_s()))


def time_left_s() -> float:
    """Return how long the block may still wait; infinite where it is not `limited`.

    A call that Ctrl-C has stopped waits a moment at most, for what it reads or writes at its end.
    """
    left_s, is_stopped = _deadline_s.get() - time.monotonic(), is_after_stop(sys.exc_info()[1])
    return min(left_s, _MOMENT_S) if is_stopped and _call.get() is not _outside else left_s


def unasked() -> AbstractContextManager[None]:
    """Take in the block what was read of a journal before: its server may not answer."""
    return having(_is_unasked, value=True)


def is_unasked() -> bool:
    """Return whether this is such a block."""
    return _is_unasked.get()


def ended_by(stop: threading.Event | None) -> AbstractContextManager[None]:
    """End the requests, pauses and logins of the block once *stop* is set."""
    return having(_stops, _stops.get() if stop is None else (*_stops.get(), stop))


def is_stopped() -> bool:
    """Return whether an event has ended the block; see `ended_by`."""
    return any(stop.is_set() for stop in _stops.get())


def pause(pause_s: float) -> bool:
    """Wait for a time; return whether the block was ended or its time limit has passed."""
    end_s, stops = time.monotonic() + pause_s, _stops.get()
    # A thread waits for one event; of several it looks at each in turn.
    event, turn_s = (stops[0], math.inf) if len(stops) == 1 else (idle, _STOP_TURN_S)
    while not (is_over := is_stopped() or time_left_s() <= 0):
        if (left_s := end_s - time.monotonic()) <= 0:
            break
        event.wait(min(left_s, max(time_left_s(), 0), turn_s))
    return is_over


def told(text: str, wait_s: float, *, again_s: float = 60.0, limit_s: float = math.inf) -> None:
    """Say *text* in the thread of the user before a wait of *wait_s* that is longer than a second.

    The same text is said once in *again_s* while its cause lasts, and when it has come back; the
    line ends with the limit of the wait.
    """
    if not speaks() or wait_s <= SAID_AFTER_S:
        return
    call, now_s, age_s = _call.get(), time.monotonic(), _age_s(text)
    is_back = now_s - call.lasts_s > AGAIN_S
    call.lasts_s = now_s if wait_s == math.inf else now_s + wait_s
    if age_s > again_s or is_back:
        call.text, call.at_s = text, now_s
        say(f"{text}, {_at_most(limit_s)}" if 0 < limit_s < math.inf else text)


def _at_most(limit_s: float) -> str:
    return f"at most {limit_s:.0f} s" if limit_s >= 10 else f"at most {limit_s:.2g} s"


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Say how far the call is, once it has lasted for a second, and every few seconds after that.

    The block is one step of many; *text* is said at its begin or in its waits. Inside of another
    such block it is that one's. An empty text says nothing.
    """
    call = _call.get()
    if not (speaks() and text) or call.began_s == math.inf or call.progress:
        yield
        return
    call.progress = text
    try:
        if time.monotonic() >= call.due_s:
            told(text, math.inf)
        yield
    finally:
        call.progress = ""


@contextmanager
def shown_meanwhile() -> Iterator[None]:
    """Let something else, such as a view, say how far the call is: `progress` says nothing."""
    call, before_s = _call.get(), _call.get().began_s
    call.began_s = math.inf
    try:
        yield
    finally:
        call.began_s = before_s


@contextmanager
def said_meanwhile(text: str) -> Iterator[None]:
    """Say *text* if a block takes long that must run in the user's thread: it may ask the user.

    Another thread writes the line, and the block ends after it, so it comes below the running cell.
    While the block waits for something that is told, it says nothing. Nor does an empty text.
    """
    if not (speaks() and text):
        yield
        return
    is_over, call = threading.Event(), _call.get()

    def speak() -> None:
        while not is_over.wait(SAID_AFTER_S):
            now_s = time.monotonic()
            if now_s - call.lasts_s >= SAID_AFTER_S:
                call.text, call.at_s = text, now_s
                # in a terminal a prompt may stand before the line
                say("\n" * getattr(sys.stdout, "isatty", bool)() + text)
                break

    speaker = in_thread(speak)
    try:
        yield
    finally:
        is_over.set()
        wait_for([speaker])


def growing(first_s: float, longest_s: float, factor: float = 2.0) -> Iterator[float]:
    """Yield pauses for ever: each is *factor* times the one before, up to the longest."""
    while True:
        yield first_s
        first_s = min(factor * first_s, longest_s)


def in_main_thread() -> bool:
    """Return whether the main thread calls this: it alone gets Ctrl-C."""
    return threading.current_thread() is threading.main_thread()


def is_own_thread() -> bool:
    """Return whether this package has started this thread, such as that of the callbacks."""
    return threading.current_thread().name.startswith("regards-nb")


def speaks() -> bool:
    """Return whether this thread runs the call of the user: it alone says what the call does."""
    call = _call.get()
    if call is _outside:
        return in_main_thread()
    return threading.current_thread() is call.thread


def this_call() -> object | None:
    """Return the call of the user for which this thread works; None outside of one."""
    call = _call.get()
    # A thread that a call began has its context also later.
    return None if call is _outside or call.is_over else call


def _age_s(text: str) -> float:
    """Return how long ago *text* was said, if it was said last."""
    call = _call.get()
    return time.monotonic() - call.at_s if call.text == text else math.inf


def in_thread(job: Callable[[], _Result], name: str = "regards-nb-request") -> Future[_Result]:
    """Run a job in a thread that delays no end of Python.

    Ctrl-C in `threading.Thread.join` marks a running thread as ended (Python 3.11); in
    `concurrent.futures.wait` it does not.
    """
    future: Future[_Result] = Future()
    run = copy_context().run
    threading.Thread(target=run, args=(fulfil, future, job), name=name, daemon=True).start()
    return future


def fulfil(future: Future[Any], job: Callable[[], Any]) -> None:
    """Set the result of a future, or its exception, to that of a job."""
    try:
        future.set_result(job())
    except BaseException as exc:  # noqa: BLE001 - the future hands it to its reader
        future.set_exception(exc)
    finally:
        # The traceback of the exception has this frame: without this it would hold itself.
        del future, job


def joined(
    threads: Sequence[threading.Thread], timeout_s: float, text: Callable[[str], str]
) -> bool:
    """Wait for the ends of threads, at most *timeout_s*; return whether they have ended.

    The end of a `limited` block is kept; a moment is left to threads that end just now. *text*
    returns what is said after a second, and is asked again each second; it is called with the limit
    in words.
    """
    began_s, pauses, speak_s, said = time.monotonic(), growing(0.001, 0.05), SAID_AFTER_S, ""
    timeout_s = min(timeout_s, max(time_left_s(), _MOMENT_S))
    # Not by Thread.join: Ctrl-C in it makes Python 3.11 take a thread that runs for ended.
    while any(thread.is_alive() for thread in threads):
        waited_s = time.monotonic() - began_s
        if waited_s >= timeout_s:
            return False
        if waited_s >= speak_s:
            speak_s = waited_s + _TURN_S
            if said != (said := text(_at_most(timeout_s))):
                say(said)
        idle.wait(min(next(pauses), timeout_s - waited_s))
    return True


@contextmanager
def user_call() -> Iterator[None]:
    """Say anew in a call of the user what it waits for; a call inside of another one is part of it.

    Many requests of one call that are all answered late would say the same line each.
    """
    outer, thread = _call.get(), threading.current_thread()
    call = outer
    # A thread of this package may have the context of the call that began it.
    if not is_own_thread() and (call is _outside or call.thread not in (None, thread)):
        call = _Call(thread, time.monotonic())
    try:
        with having(_call, call):
            yield
    finally:
        call.is_over = call is not outer


def users_code() -> AbstractContextManager[None]:
    """Run code of the user inside of a call: its calls are calls of their own."""
    return having(_call, _outside)


def unspoken() -> AbstractContextManager[None]:
    """Say nothing in a block that a thread of the user runs for a call of another thread."""
    return having(_call, _Call(None, math.inf))


@contextmanager
def stopped_by_user(
    outcome: str | Callable[[], str] = "stopped waiting; tracking continues",
    *,
    keeps_inner: bool = False,
) -> Iterator[None]:
    """End a call at Ctrl-C or the stop button with one line instead of a traceback.

    *outcome* is the line, or returns it: what is done so far, and how it goes on. *keeps_inner*: a
    block inside, which may not have begun, has the better line. An error of the package in what the
    block does after Ctrl-C is not raised: the journal may not answer then.
    """
    with interruptible(), user_call():
        try:
            yield
        except (KeyboardInterrupt, RegardsError) as exc:
            if not isinstance(stop := _stop_before(exc), KeyboardInterrupt):
                raise
            if keeps_inner and isinstance(stop, StoppedWaiting):
                raise stop from None
            try:
                text = outcome if isinstance(outcome, str) else outcome()
            except RegardsError as error:
                text = f"stopped; it cannot be told what was done so far: {error}"
            raise StoppedWaiting(text) from None


def is_after_stop(error: BaseException | None) -> bool:
    """Return whether an error is, or came after, the Ctrl-C of this call or the end of its task."""
    return _stop_before(error) is not None


def _stop_before(error: BaseException | None) -> BaseException | None:
    """Return that Ctrl-C, or that end of a task."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return None if error is _call.get().handled else error
        if type(error).__name__ == "CancelledError":
            return error
        error = error.__context__
    return None


@contextmanager
def words_first(kind: type[RegardsError], words: str | Callable[[], str]) -> Iterator[None]:
    """Begin the text of an error of the block with words, which a function returns then."""
    try:
        yield
    except kind as exc:
        exc.put_first(words if isinstance(words, str) else words())
        raise


def reads_only(function: Callable[_P, _Result]) -> Callable[_P, _Result]:
    """End a method that changes nothing at Ctrl-C with one line."""
    outcome = f"{function.__name__}() was stopped, and has changed nothing"
    return stopped_by_user(outcome)(function)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the stop button raise KeyboardInterrupt in this block.

    In a kernel, Python's own handler of SIGINT is installed meanwhile: kernels (xeus-python) and
    libraries replace it, and then the stop button ends the kernel or does nothing.
    """
    replaced: Any = None
    if in_cell():
        replaced = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        # None: the handler was not installed from Python, and cannot be installed again.
        if replaced is not None:
            signal.signal(signal.SIGINT, replaced)


def in_cell() -> bool:
    """Return whether a cell of a Jupyter kernel calls this."""
    return in_kernel() and in_main_thread()


def in_kernel() -> bool:
    """Return whether a Jupyter kernel runs this code; IPython in a terminal has none."""
    return getattr(ipython(), "kernel", None) is not None
