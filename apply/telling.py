"""Telling people of every change of a table's state on one target."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from apply.target import TableProgress
from schemas.errors import LogRewound
from schemas.events import EventKind
from schemas.states import STOPPED, TableState
from schemas.table import TableId
from transport.events import Teller, told
from transport.log import Log, LogReader
from transport.topics import Topics

AT_ONCE = 1_000
"""Events that are read in one piece of work."""


class StateTeller:
    """Tells each change once, and what a worker that died could not tell any more.

    What was told last of a table stands in `p.events`, which is read in the background (`recall`), and again now and
    then: a worker that was slow may have told of what is past. Until it was read for the first time, and again after
    `begin_again`, nothing is told, but kept: only then it is known what is news.
    """

    def __init__(self, teller: Teller, log: Log, reader: LogReader, topics: Topics, target: str) -> None:
        self._teller, self._log, self._reader, self._topics, self._target = teller, log, reader, topics, target
        self._next = 0
        self._end: int | None = None  # of what is read now
        self._fresh: set[str] = set()  # tables of which something was told since that began
        self._told: dict[str, str] = {}  # the last state of each table
        self._read: set[str] = set()  # tables of which something was read since they were compared
        self._kept: list[TableProgress] | None = []  # while it is not known yet what was told

    def begin_again(self) -> None:
        """Others may have told of tables that are taken over now."""
        if self._kept is None:
            self._kept = []

    def recall(self, tables: Callable[[], Iterable[TableProgress]]) -> bool:
        """Read on for one piece of work; return whether there may be more. `tables` are those whose states are told."""
        if self._end is None:
            self._teller.flush()
            self._fresh.clear()
            self._end = self._log.offsets(self._topics.events).end
        before = self._next
        try:
            limit = min(AT_ONCE, self._end - self._next)
            for offset, event in told(self._reader, self._topics, self._next, limit) if limit > 0 else ():
                self._next = offset + 1
                if event.state and event.target == self._target and event.table not in self._fresh:
                    self._told[event.table] = event.state
                    self._read.add(event.table)
        except LogRewound:
            self._next = self._log.offsets(self._topics.events).start  # older ones are forgotten
        if self._next != before:
            return True
        self._end = None
        kept, self._kept = self._kept or [], None
        for progress in kept:
            self.note(progress)
        read, self._read = self._read, set()
        if read:
            for progress in tables():
                if str(progress.table) in read:
                    self.note(progress)
        return False

    def note(self, progress: TableProgress) -> None:
        """Tell what state a table has, if that is news."""
        if self._kept is not None:
            self._kept.append(progress)
            return
        name, state = str(progress.table), progress.state
        if self._told.get(name, TableState.WAITING) == state:
            return
        self._told[name] = state.value
        self._fresh.add(name)
        failed = state is TableState.FAILED
        self._teller.tell(
            EventKind.ERROR if failed else EventKind.STATE,
            f"has failed: {progress.error}" if failed else f"is {state.value}",
            table=progress.table,
            target=self._target,
            state=state.value,
            remedy=progress.remedy if failed else "",
            position=progress.progress.position if state in STOPPED else 0,
        )

    def tell(self, kind: EventKind, table: TableId, text: str, remedy: str = "") -> None:
        """Tell something else of a table."""
        self._teller.tell(kind, text, table=table, target=self._target, remedy=remedy)
