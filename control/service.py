"""Runs one loop in a process: stop signals, errors and what follows from them, logs, health."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from enum import IntEnum
from types import FrameType
from typing import Any, Protocol, runtime_checkable

from control.metrics import Health
from schemas.errors import IntegrityError, OperatorError, ReplicationError, RowError, TransientError
from schemas.events import EventKind


class Exit(IntEnum):
    """Exit codes, of a service and of the commands."""

    DONE = 0
    CRASHED = 1  # a bug, or an invariant that did not hold: starting again may help
    USAGE = 2  # the command line was wrong
    OPERATOR = 3  # a person has to act: message and remedy were shown
    DIFFERENT = 4  # `check` found something to be mended, a comparison found differences


class Loop(Protocol):
    """A service as a machine of small steps."""

    def step(self) -> bool:
        """Do one small bounded piece of work; return whether there was any."""

    def wait(self, timeout: float) -> None:
        """Return when there may be work again, or after `timeout` seconds."""


@runtime_checkable
class Finite(Protocol):
    """A loop that ends by itself."""

    @property
    def done(self) -> bool: ...


@runtime_checkable
class Measured(Protocol):
    """A loop with figures of its own, by the names of `control.metrics.MetricName`."""

    def metrics(self) -> Mapping[str, float]: ...


class Reporter(Protocol):
    """What the runner needs of a logger."""

    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...


class Stopped(BaseException):
    """Ends the wait of a loop when the process is to stop. Never raised in a step."""


class StopSignal:
    """Becomes true at SIGTERM or SIGINT, and wakes a wait that is under way."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew, in a process that was forked: the parent's stop is not ours."""
        self.stopping = False
        self.interrupts = False  # a wait is under way that goes on to its time-out unless an exception ends it
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
            weakref.finalize(self, os.close, end)

    def install(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request()
        if self.interrupts:
            self.interrupts = False
            raise Stopped

    def request(self) -> None:
        self.stopping = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b".")

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or as soon as the process is to stop."""
        if not self.stopping:
            select.select([self._reader], [], [], seconds)

    def __bool__(self) -> bool:
        return self.stopping


class Backoff:
    """Waiting times between attempts: doubled each time up to a limit, with jitter, and short again after success."""

    def __init__(self, first: float = 0.02, longest: float = 10.0, healthy_after: float = 3.0) -> None:
        self._first, self._longest, self._healthy_after = first, longest, healthy_after
        self.failures = 0

    def next(self, ran_seconds: float) -> float:
        """Return how long to wait after an attempt that was well for `ran_seconds`."""
        if ran_seconds >= self._healthy_after:
            self.failures = 0
        self.failures += 1
        pause = min(self._first * 2.0 ** min(self.failures - 1, 20), self._longest)
        return pause * random.uniform(0.75, 1.25)


_NEWS_SECONDS, _REMINDER_SECONDS = 3.0, 60.0
"""After so long of failing attempts people are told, and told again."""

SHORTEST_WAIT, LONGEST_WAIT = 0.01, 0.5
"""How long a loop may wait at once: short after work was done, because more is likely and a pipeline's start must not
be made of naps; longer and longer when idle. Where a signal does not end a wait, as in librdkafka, the longest bounds
how soon it is seen."""


def serve(
    make: Callable[[], AbstractContextManager[Loop]],
    *,
    stop: StopSignal,
    log: Reporter,
    health: Health | None = None,
    now: Callable[[], float] = time.monotonic,
    backoff: Backoff | None = None,
    tell: Callable[[EventKind, str, str], None] = lambda kind, text, remedy: None,
) -> Exit:
    """Run the loop that `make` opens until it is done or `stop` is asked for, and return the exit code.

    After a `TransientError` the loop is closed and made anew, later and later: it reads its state again from log and
    target. Every other error ends the process: `OperatorError` for good, anything else to be started again. A stop
    takes effect between two steps; closing makes durable what has to be.
    """
    health, backoff = health or Health(now), backoff or Backoff()
    failing_since = now()
    told, told_at = "", 0.0
    while not stop:
        began = now()
        try:
            with make() as loop:
                health.source = loop.metrics if isinstance(loop, Measured) else None
                health.ready = True
                _turn(loop, stop, health)
                if not stop:
                    log.info("done")
                    return Exit.DONE
        except TransientError as error:
            health.ready = False
            kind = type(error).__name__
            health.retries[kind] = health.retries.get(kind, 0) + 1
            # Up to the step that failed: one that waits long for an answer, and gets none, makes nothing healthy.
            pause = backoff.next(health.begun - began)
            # A conflict is the normal way in which two owners sort themselves out; a hiccup is no news.
            if backoff.failures == 1:
                failing_since, told = began, ""
            is_new = str(error) != told
            is_news = is_new or now() - told_at > _REMINDER_SECONDS
            report = log.info
            if is_news and now() - failing_since > _NEWS_SECONDS:
                report, told, told_at = log.warning, str(error), now()
                if is_new:  # events are for what changes
                    tell(EventKind.WARNING, str(error), error.remedy)
            report("will try again", error=str(error), remedy=error.remedy, kind=kind, seconds=round(pause, 2))
            stop.wait(pause)
        except OperatorError as error:
            # Whoever started this process tells people, once for all workers that stopped for the same reason.
            log.error("stopped", error=str(error), remedy=error.remedy, kind=type(error).__name__, told=True)
            tell(EventKind.ERROR, str(error), error.remedy)
            raise
        except (IntegrityError, RowError) as error:
            log.error("stopped", error=str(error), remedy=error.remedy, kind=type(error).__name__, exc_info=True)
            return Exit.CRASHED
        except ReplicationError as error:
            log.error("stopped", error=str(error), kind=type(error).__name__, exc_info=True)
            return Exit.CRASHED
        except Exception as error:
            if stop and isinstance(error, InterruptedError):
                break
            log.error("crashed", error=f"{type(error).__name__}: {error}", exc_info=True)
            return Exit.CRASHED
    log.info("stopped on request")
    return Exit.DONE


def _turn(loop: Loop, stop: StopSignal, health: Health) -> None:
    """Step until the loop is done or the process is to stop."""
    finite = loop if isinstance(loop, Finite) else None
    pause = SHORTEST_WAIT
    # A wait that is cut short may leave a loop that can only be closed, which is what follows anyhow.
    with contextlib.suppress(Stopped):
        while not stop:
            health.beat()
            worked = loop.step()
            health.steps += 1
            if finite is not None and finite.done:
                return
            if worked:
                pause = SHORTEST_WAIT
                continue
            try:
                stop.interrupts = True
                if not stop:
                    loop.wait(pause)
            finally:
                stop.interrupts = False
            pause = min(pause * 1.5, LONGEST_WAIT)


@contextlib.contextmanager
def signals(stop: StopSignal, *, keyboard: bool = True) -> Iterator[None]:
    """Let SIGTERM, and with `keyboard` SIGINT, ask for a stop while the block lasts.

    Under a supervisor the keyboard is its business: Ctrl-C reaches every process of the terminal at once, but the
    supervisor tells its services itself.
    """
    numbers = [signal.SIGTERM, signal.SIGINT]
    before = {number: signal.getsignal(number) for number in numbers}
    stop.install(signal.SIGTERM)
    if keyboard:
        stop.install(signal.SIGINT)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
