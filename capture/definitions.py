"""What the catalogue says of tables that the stream does not show: looked at now and then, and when there is a sign.

What is found is as of the moment it was read. It takes its place among the rows when the stream has passed a message
that was emitted after that, unless the stream has described the table by itself since the reading began: then the
rows know better, and the catalogue is read once more. Between the two no row of the table has come, so nothing is
carried too early, nor too late for any row.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import psycopg

from engines.postgres import catalogue, definitions, replication
from engines.postgres.objects import objects_of_each
from schemas.table import Table, TableId

LOOK_SECONDS, TOLD_SECONDS = 5.0, 60.0
LOOK_SHARE = 50
"""How long after a look without a sign the next one is, also where the event trigger gives signs, and at least how many
times longer than it took to see that nothing was altered."""

AGAIN_SECONDS = 1.0


class Watched(NamedTuple):
    """A table as capture knows it, and how often the stream has described it so far."""

    table: Table
    described: int


class Found(NamedTuple):
    """A table as the catalogue has it, to be believed when the stream has passed `position`."""

    id: TableId
    table: Table | None  # None: it is gone
    described: int
    position: int


class Definitions:
    """Looks at the catalogue for one capture; used by its caretaker, which has a connection of its own.

    `watched` gives the tables to look at; `found` is read by the thread that reads the stream.
    """

    def __init__(
        self, slot: str, watched: Callable[[], Mapping[TableId, Watched]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._slot, self._watched, self._clock = slot, watched, clock
        self._seen: dict[TableId, tuple[str, ...]] = {}
        # What came before is looked at when those who have just started are at work.
        self._next = clock() + LOOK_SECONDS
        self.found: deque[Found] = deque()

    def look_soon(self) -> None:
        """Look with the next chance: something was altered."""
        self._next = 0.0

    def forget(self, table: TableId) -> None:
        """Look at a table once more, though it may be as it was."""
        self._seen.pop(table, None)
        self.look_soon()

    @property
    def due(self) -> bool:
        return self._clock() >= self._next

    def look(self, connection: psycopg.Connection) -> None:
        """Read the tables that may have been altered since the last look."""
        began = self._clock()
        # Before the reading: a sign that comes meanwhile is one for the next look, and so is an error.
        self._next = began + AGAIN_SECONDS
        watched = dict(self._watched())
        prints = self._prints(connection, watched)
        took = self._clock() - began
        altered = [id for id in watched if self._seen.get(id) != prints[id]]
        if altered:
            self._read(connection, {id: watched[id] for id in altered})
            self._seen.update((id, prints[id]) for id in altered)
        pause = TOLD_SECONDS if definitions.has_trigger(connection, self._slot) else LOOK_SECONDS
        if self._next > began:
            self._next = self._clock() + max(pause, LOOK_SHARE * took)

    def _prints(
        self, connection: psycopg.Connection, watched: Mapping[TableId, Watched]
    ) -> dict[TableId, tuple[str, ...]]:
        oids = {id: seen.table.oids for id, seen in watched.items()}
        prints = definitions.fingerprints(connection, [oid for some in oids.values() for oid in some])
        return {id: tuple(prints.get(oid, "") for oid in some) for id, some in oids.items()}

    def _read(self, connection: psycopg.Connection, watched: Mapping[TableId, Watched]) -> None:
        now = definitions.names(connection, [seen.table.oid for seen in watched.values()])
        names = {TableId(*name) for name in now.values()}
        fresh = {table.id: table for table in catalogue.tables(connection, names.__contains__)}
        rests_on = objects_of_each(connection, fresh.values())
        hidden = [seen.table.oid for seen in watched.values() if now.get(seen.table.oid, ("", "")) not in fresh]
        ours = {seen.table.oid for seen in self._watched().values()}
        attached = {oid for oid, root in definitions.roots(connection, hidden).items() if root in ours}
        read: dict[TableId, Table | None] = {}
        for id, seen in watched.items():
            name = now.get(seen.table.oid)
            table = fresh.get(TableId(*name)) if name else None
            if table is not None:
                renamed = table.id if table.id != id else None
                table = table.model_copy(update={"id": id, "renamed": renamed, "objects": rests_on[table.id]})
            elif name is not None and seen.table.oid not in attached:
                continue  # it is there, but can't be read as a table: somebody is about to change it
            read[id] = table
        position = replication.emit_message(connection, "penstock", "definitions")
        # What is gone comes first: another one may have its name, or it is a partition of another one now.
        for id in sorted(read, key=lambda id: read[id] is not None):
            self.found.append(Found(id, read[id], watched[id].described, position))
