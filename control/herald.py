"""Tells of a service's troubles in the log, as events, without ever waiting for the log."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from control.wiring import exists, opened_log
from schemas.errors import ReplicationError
from schemas.events import Event, EventKind
from schemas.pipeline import Pipeline
from schemas.record import encode_control
from transport.topics import Topics

AGAIN_SECONDS = 5.0
"""How long an event waits for a log that took nothing, and a process that ends for its events."""

MOST_KEPT = 100


class Herald:
    """Writes events in a thread of its own, with a log of its own: what is told may well be that the log takes nothing.

    What the log does not take is kept for later; what was not written when the process ends is lost, and stands in the
    service's log file all the same. The thread is only there once there is something to tell.
    """

    def __init__(self, pipeline: Pipeline, service: str, now: Callable[[], float] = time.time) -> None:
        self._pipeline, self._service, self._now = pipeline, service, now
        self._waiting: deque[Event] = deque(maxlen=MOST_KEPT)
        self._news = threading.Event()
        self._over = False
        self._thread: threading.Thread | None = None

    def tell(self, kind: EventKind, text: str, remedy: str) -> None:
        """Have an event written, soon."""
        self._waiting.append(Event(int(self._now() * 1_000_000), kind.value, self._service, text, remedy=remedy))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="herald", daemon=True)
            self._thread.start()
        self._news.set()

    def close(self) -> None:
        """Give what is not written yet a moment."""
        self._over = True
        self._news.set()
        if self._thread is not None:
            self._thread.join(AGAIN_SECONDS)

    def _run(self) -> None:
        while True:
            self._news.wait(AGAIN_SECONDS if self._waiting else None)
            self._news.clear()
            with contextlib.suppress(ReplicationError, OSError):  # the log takes nothing now: it is tried again
                self._write()
            if self._over:
                return

    def _write(self) -> None:
        some = list(self._waiting)
        if not some:
            return
        topics = Topics(self._pipeline.pipeline)
        with opened_log(self._pipeline) as log:
            if not exists(log) or not topics.are_made(log):
                return
            with log.writer("control") as writer:
                writer.put_all(topics.events, [encode_control(event) for event in some])
        for _ in some:
            self._waiting.popleft()
