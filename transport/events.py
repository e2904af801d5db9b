"""Writing and reading what a pipeline tells of itself."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from schemas.errors import LogUnavailable
from schemas.events import Event, EventKind
from schemas.record import decode_control, encode_control
from schemas.table import TableId
from transport.log import Log, LogReader, LogWriter
from transport.topics import Topics

MOST_KEPT = 10_000
"""Events that wait for a log which takes nothing; of more the oldest are lost."""

AT_ONCE = 1_000


class Teller:
    """Writes the events of one service, in order.

    To tell something is no reason to stop: `tell` only keeps it, `flush` writes what is kept, and what the log does
    not take then is kept for the next time. So whoever tells of a change of state does so when it is stored, and what
    was not written when a process dies is lost: its successor looks at what is stored.
    """

    def __init__(self, log: Log, topics: Topics, service: str, now: Callable[[], float] = time.time) -> None:
        self._log, self._topics, self._service, self._now = log, topics, service, now
        self._stack = contextlib.ExitStack()
        self._writer: LogWriter | None = None
        self._kept: deque[Event] = deque(maxlen=MOST_KEPT)

    def tell(
        self,
        kind: EventKind,
        text: str,
        *,
        table: TableId | None = None,
        target: str = "",
        state: str = "",
        remedy: str = "",
        position: int = 0,
    ) -> None:
        """Keep an event for the next `flush`. It must hold no secret and no row's values beyond its key."""
        at, name = int(self._now() * 1_000_000), str(table) if table else ""
        self._kept.append(Event(at, kind.value, self._service, text, name, target, state, remedy, position))

    def flush(self) -> bool:
        """Write what is kept, as far as the log takes it; return whether there was anything, else it costs nothing."""
        if not self._kept:
            return False
        while self._kept:
            some = [self._kept[i] for i in range(min(len(self._kept), AT_ONCE))]
            try:
                if self._writer is None:
                    self._writer = self._stack.enter_context(self._log.writer("control"))
                self._writer.put_all(self._topics.events, [encode_control(event) for event in some])
            except LogUnavailable:
                self._drop()
                break
            for _ in some:
                self._kept.popleft()
        return True

    def close(self) -> None:
        """Write what is kept, if that goes, and let go of the log; never raises."""
        with contextlib.suppress(Exception):
            self.flush()
        self._drop()

    def _drop(self) -> None:
        self._writer = None
        with contextlib.suppress(Exception):
            self._stack.close()


class Told(NamedTuple):
    """An event and the offset it stands at."""

    offset: int
    event: Event


def told(reader: LogReader, topics: Topics, start: int, limit: int = 1_000) -> Iterator[Told]:
    """Yield the events from `start` on that are there now, at most `limit`."""
    for offset, _, value in reader.records(topics.events, start, limit):
        if value is not None:
            yield Told(offset, decode_control(value))
