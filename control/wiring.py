"""Puts the services together: which parts each is made of, over which log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Generic, TypeVar

from control.service import Loop, StopSignal
from schemas.errors import LogRewound
from schemas.pipeline import Pipeline
from transport import open_log
from transport.log import Log

if TYPE_CHECKING:
    from apply.loop import Apply
    from snapshot.loop import SnapshotWorker

A_LOOK = 10.0
"""Patience of commands that only look: somebody waits for the answer."""

_FIRST_LOOK, _LONGEST_LOOK = 0.005, 0.2

Make = Callable[[], AbstractContextManager[Loop]]


@contextmanager
def opened_log(pipeline: Pipeline, *, patience: float = math.inf) -> Iterator[Log]:
    """Open the pipeline's log for the length of the block; `patience` bounds the seconds that it has for an answer."""
    settings = pipeline.log
    log = open_log(
        settings.url,
        pipeline.pipeline,
        pipeline.state,
        settings=settings.plain_settings(),
        replication_factor=settings.replication_factor,
        budget_bytes=settings.budget,
        deadline_s=min(settings.deadline, patience),
    )
    with closing(log):
        yield log


def exists(log: Log) -> bool:
    """Whether anybody has made the log of this pipeline yet."""
    try:
        log.identity()
    except LogRewound:
        return False
    return True


_MODULES = {
    # The holder is forked first, and is the one that all others wait for: it gets no more than it needs at once.
    "holder": ["snapshot.holder", "snapshot.postgres"],
    "capture": ["capture.loop", "capture.postgres"],
    "snapshot": ["snapshot.loop", "snapshot.postgres"],
    "apply": ["apply.loop", "apply.postgres.target"],
    "trimmer": ["control.trimmer"],
    "retention": ["control.retention"],
    "registrar": ["control.registrar"],
    "watch": ["control.watch", "apply.postgres.control"],
}


def preload(kind: str, pipeline: Pipeline) -> None:
    """Import what a kind of service needs, so that the processes to be forked have it."""
    for module in [*_MODULES[kind], "transport.kafka" if pipeline.log.url else "transport.sqlite"]:
        import_module(module)


class _NotYet:
    """The loop of a service whose log is not there: the holder has not made it yet. Done when it is, or at a stop."""

    def __init__(self, log: Log, stop: StopSignal) -> None:
        self._log, self._stop, self._pause = log, stop, _FIRST_LOOK
        self.done = False

    def step(self) -> bool:
        self.done = exists(self._log)
        return self.done

    def wait(self, timeout: float) -> None:
        self._stop.wait(min(timeout, self._pause))
        self._pause = min(self._pause * 1.5, _LONGEST_LOOK)


def holder(pipeline: Pipeline, stop: StopSignal) -> Make:
    """The holder: sets the source up, holds snapshots as long as tables are read; ends with a load."""
    from snapshot.holder import open as open_holder

    @contextmanager
    def make() -> Iterator[Loop]:
        with opened_log(pipeline) as log, closing(open_holder(pipeline, log)) as loop:
            yield loop

    return make


def capture(pipeline: Pipeline, stop: StopSignal) -> Make:
    """Capture: the source's changes into the log."""
    from capture.loop import CaptureService
    from capture.loop import open as open_capture

    @contextmanager
    def make() -> Iterator[Loop]:
        with opened_log(pipeline) as log, ExitStack() as stack:
            yield _AfterLog(
                log, stop, lambda: stack.enter_context(closing(open_capture(pipeline, log))), CaptureService.metrics
            )

    return make


def snapshot(pipeline: Pipeline, stop: StopSignal, number: int) -> Make:
    """One snapshot worker: chunks of tables into the log."""
    from snapshot.loop import open as open_worker

    @contextmanager
    def make() -> Iterator[Loop]:
        with opened_log(pipeline) as log, ExitStack() as stack:
            yield _AfterLog(
                log, stop, lambda: stack.enter_context(closing(open_worker(pipeline, log, number))), _read_figures
            )

    return make


def apply(pipeline: Pipeline, stop: StopSignal, name: str, *, follows: bool) -> Make:
    """One apply worker of a target: the log into the target; one that does not follow only loads."""
    from apply.loop import Apply
    from apply.target import find_target

    settings = pipeline.target(name)

    @contextmanager
    def make() -> Iterator[Loop]:
        with opened_log(pipeline) as log:
            target = find_target(settings, pipeline.pipeline)
            loop = Apply(
                pipeline.pipeline,
                log,
                target,
                name=settings.name,
                tables=settings.tables,
                follows=follows,
                policy=pipeline.policies(name),
            )
            with closing(loop):
                yield _Counted(loop)

    return make


def _read_figures(worker: SnapshotWorker) -> dict[str, float]:
    return {"rows": worker.rows, "bytes": worker.bytes, "chunks": worker.chunks_final}


class _Counted:
    """An apply worker with its figures by the names that control knows."""

    def __init__(self, worker: Apply) -> None:
        self._stats = worker.stats
        self.step, self.wait = worker.step, worker.wait

    def metrics(self) -> dict[str, float]:
        stats = self._stats
        figures: dict[str, float] = {
            "rows": stats.rows_loaded + stats.changes,
            "chunks": stats.chunks_loaded,
            "commits": stats.batches + stats.chunks_loaded,
            "tables_failed": stats.failures,
            "dead_letters": stats.dead_letters,
        }
        if stats.captured_at:
            figures["lag_seconds"] = max(0.0, time.time() - stats.captured_at / 1_000_000)
        return figures


L = TypeVar("L", bound=Loop)


def trimmer(pipeline: Pipeline, stop: StopSignal) -> Make:
    """The trimmer: lets the log forget what every target has."""
    from control.trimmer import Trimmer

    @contextmanager
    def make() -> Iterator[Loop]:
        with opened_log(pipeline) as log, closing(Trimmer(pipeline, log)) as loop:
            yield loop

    return make


def registrar(pipeline: Pipeline, stop: StopSignal) -> Make:
    """The registrar: takes tables over that are made at the source."""
    from control.registrar import Registrar

    @contextmanager
    def make() -> Iterator[Loop]:
        with opened_log(pipeline) as log, ExitStack() as stack:
            yield _AfterLog(
                log, stop, lambda: stack.enter_context(closing(Registrar(pipeline, log, sleep=stop.wait))), lambda _: {}
            )

    return make


def retention(pipeline: Pipeline, stop: StopSignal) -> Make:
    """What keeps the source's log within its budget, of a pipeline that has one."""
    from control.dropping import slot_name
    from control.herald import Herald
    from control.retention import PostgresSlot, Retention

    source, budget = pipeline.source, pipeline.source.wal_budget
    assert budget is not None

    @contextmanager
    def make() -> Iterator[Loop]:
        slot = PostgresSlot(source.url.get_secret_value(), slot_name(pipeline))
        with (
            closing(Herald(pipeline, "retention")) as herald,
            closing(Retention(slot, budget, source.at_wal_budget, herald.tell, sleep=stop.wait)) as loop,
        ):
            yield loop

    return make


class _AfterLog(Generic[L]):
    """A loop that is opened when its log is there."""

    def __init__(
        self,
        log: Log,
        stop: StopSignal,
        open_loop: Callable[[], L],
        figures: Callable[[L], Mapping[str, float]],
    ) -> None:
        self._waiting, self._open, self._figures = _NotYet(log, stop), open_loop, figures
        self._loop: L | None = None

    def metrics(self) -> Mapping[str, float]:
        return self._figures(self._loop) if self._loop is not None else {}

    @property
    def done(self) -> bool:
        return bool(getattr(self._loop, "done", False))

    def step(self) -> bool:
        if self._loop is not None:
            return self._loop.step()
        if self._waiting.step():
            self._loop = self._open()
            return True
        return False

    def wait(self, timeout: float) -> None:
        (self._loop or self._waiting).wait(timeout)
