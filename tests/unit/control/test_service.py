"""The runner: what each kind of error leads to, and that a stop comes between two steps."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from control.metrics import Health
from control.service import Backoff, Exit, Loop, StopSignal, serve, signals
from schemas.errors import DecodeError, OperatorError, PositionLost, SourceUnavailable
from schemas.events import EventKind


class Script:
    """A loop that does what it is told, step by step; an exception in the list is raised."""

    def __init__(self, *steps: bool | BaseException | Callable[[], bool]) -> None:
        self.steps = list(steps)
        self.waits: list[float] = []
        self.closed = 0
        self.done = False

    def step(self) -> bool:
        if not self.steps:
            self.done = True
            return False
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step if isinstance(step, bool) else step()

    def wait(self, timeout: float) -> None:
        self.waits.append(timeout)


class Told:
    """Keeps what becomes an event."""

    def __init__(self) -> None:
        self.events: list[tuple[EventKind, str, str]] = []

    def __call__(self, kind: EventKind, text: str, remedy: str) -> None:
        self.events.append((kind, text, remedy))


class Log:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(("warning", event, fields))

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append(("error", event, fields))


def making(*loops: Script) -> Callable[[], AbstractContextManager[Loop]]:
    left = list(loops)

    @contextmanager
    def make() -> Iterator[Loop]:
        loop = left.pop(0)
        try:
            yield loop
        finally:
            loop.closed += 1

    return make


def quick() -> Backoff:
    return Backoff(0.0, 0.0)


def test_a_loop_that_is_done_ends_the_service() -> None:
    loop = Script(True, False, True)
    assert serve(making(loop), stop=StopSignal(), log=Log()) is Exit.DONE
    assert loop.closed == 1
    assert len(loop.waits) == 1


def test_waits_grow_while_nothing_happens_and_are_short_again_after_work() -> None:
    loop = Script(False, False, False, True, False)
    serve(making(loop), stop=StopSignal(), log=Log())
    assert loop.waits[0] < loop.waits[1] < loop.waits[2]
    assert loop.waits[3] == loop.waits[0]


def test_after_a_transient_error_the_loop_is_made_anew() -> None:
    first, second = Script(True, SourceUnavailable("gone")), Script(True)
    health = Health()
    assert serve(making(first, second), stop=StopSignal(), log=Log(), backoff=quick(), health=health) is Exit.DONE
    assert (first.closed, second.closed) == (1, 1)
    assert health.retries == {"SourceUnavailable": 1}


def test_a_hiccup_is_no_warning_but_long_trouble_is() -> None:
    log = Log()
    times = iter(range(0, 1000))
    loops = [Script(SourceUnavailable("gone")) for _ in range(4)]
    serve(making(*loops, Script()), stop=StopSignal(), log=log, backoff=quick(), now=lambda: float(next(times)))
    levels = [level for level, event, _ in log.lines if event == "will try again"]
    assert levels[0] == "info"
    assert "warning" in levels


def test_people_are_told_of_one_trouble_once_a_minute_and_of_another_at_once() -> None:
    log = Log()
    clock = [0.0]

    def fail(after: float, why: str) -> Callable[[], bool]:
        def step() -> bool:
            clock[0] += after
            raise SourceUnavailable(why, remedy="start it")

        return step

    troubles = [(1.0, "gone"), (4.0, "gone"), (5.0, "gone"), (5.0, "closed"), (5.0, "closed"), (70.0, "closed")]
    loops = [Script(fail(after, why)) for after, why in troubles]
    patient = Backoff(0.0, 0.0, healthy_after=1000.0)
    serve(making(*loops, Script()), stop=StopSignal(), log=log, backoff=patient, now=lambda: clock[0])
    told = [(level, fields["error"]) for level, event, fields in log.lines if event == "will try again"]
    assert told == [
        ("info", "gone"),
        ("warning", "gone"),
        ("info", "gone"),
        ("warning", "closed"),
        ("info", "closed"),
        ("warning", "closed"),
    ]
    assert all(fields["remedy"] == "start it" for _, event, fields in log.lines if event == "will try again")


def test_an_operator_error_ends_the_service_for_good() -> None:
    loop = Script(PositionLost("the slot is gone", remedy="drop it"))
    log = Log()
    with pytest.raises(OperatorError, match="the slot is gone"):
        serve(making(loop), stop=StopSignal(), log=log)
    assert loop.closed == 1
    assert log.lines[-1][2]["remedy"] == "drop it"


@pytest.mark.parametrize("error", [DecodeError("bad bytes"), RuntimeError("a bug")])
def test_anything_else_ends_the_process(error: Exception) -> None:
    loop = Script(error)
    assert serve(making(loop), stop=StopSignal(), log=Log()) is Exit.CRASHED
    assert loop.closed == 1


def test_a_stop_comes_between_two_steps() -> None:
    stop = StopSignal()

    def ask() -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    loop = Script(ask, AssertionError("one step too many"))
    with signals(stop):
        assert serve(making(loop), stop=stop, log=Log()) is Exit.DONE
    assert loop.closed == 1


def test_a_stop_ends_the_waiting_for_another_attempt() -> None:
    stop = StopSignal()

    def never() -> bool:
        stop.request()
        raise SourceUnavailable("gone")

    assert serve(making(Script(never)), stop=stop, log=Log(), backoff=Backoff(1000.0, 1000.0)) is Exit.DONE


def test_backoff_doubles_and_forgets_after_a_healthy_time() -> None:
    backoff = Backoff(1.0, 8.0, healthy_after=10.0)
    pauses = [backoff.next(0.0) for _ in range(6)]
    for pause, middle in zip(pauses, [1, 2, 4, 8, 8, 8], strict=True):
        assert 0.75 * middle <= pause <= 1.25 * middle
    assert backoff.next(11.0) <= 1.25


@pytest.mark.parametrize(
    ("at_work", "at_the_failing_step", "failures"),
    [(1.0, 0.0, 6), (1.0, 60.0, 6), (4.0, 0.0, 1)],
    ids=["soon broken off", "soon broken off, after a long wait for an answer", "some seconds of work"],
)
def test_what_worked_for_some_seconds_is_tried_again_at_once(
    at_work: float, at_the_failing_step: float, failures: int
) -> None:
    clock = [0.0]

    def take(seconds: float, end: BaseException | None = None) -> Callable[[], bool]:
        def step() -> bool:
            clock[0] += seconds
            if end is not None:
                raise end
            return True

        return step

    loops = [Script(take(at_work), take(at_the_failing_step, SourceUnavailable("gone"))) for _ in range(6)]
    backoff = Backoff(0.0)
    serve(making(*loops, Script()), stop=StopSignal(), log=Log(), backoff=backoff, now=lambda: clock[0])
    assert backoff.failures == failures


def test_what_lasts_and_what_stops_a_service_become_events_once() -> None:
    told, clock = Told(), iter(range(0, 10_000, 2))
    lasting = [Script(SourceUnavailable("gone", remedy="start it")) for _ in range(60)]
    stopped = Script(PositionLost("lost", remedy="load again"))
    with pytest.raises(PositionLost):
        serve(
            making(*lasting, stopped),
            stop=StopSignal(),
            log=Log(),
            now=lambda: float(next(clock)),
            backoff=Backoff(first=0.0, longest=0.0, healthy_after=1e9),
            tell=told,
        )
    assert told.events == [(EventKind.WARNING, "gone", "start it"), (EventKind.ERROR, "lost", "load again")]
