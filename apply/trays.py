"""What a worker keeps in mind of its tables' dead letters, and what people are told of them."""

from __future__ import annotations

from functools import partial

from apply.dead_letters import REPLAY, Tray, Waiting, key_columns
from apply.stats import Stats
from apply.tables import TargetTables
from apply.target import TableRefused, Target
from schemas.errors import SchemaUnsupported
from schemas.events import EventKind
from schemas.frontier import HEAL
from schemas.table import TableId
from transport.events import Teller
from transport.views import Registered

_TOLD = 5  # refused rows of one transaction that people are told of one by one


class Trays:
    """Gives out a tray for what a transaction may set aside, and takes it back once that is committed."""

    def __init__(self, target: Target, tables: TargetTables, teller: Teller, stats: Stats, name: str) -> None:
        self._target, self._tables, self._teller, self._stats, self._name = target, tables, teller, stats, name
        self._waiting: dict[TableId, Waiting] = {}

    def read(self) -> None:
        """Ask the target what waits: after the rosters of its tables were read, so that what letters are taken of in
        between can't be moved."""
        self._waiting = self._target.waiting()

    def for_changes(self, version: Registered, *, sifts: bool) -> Tray | None:
        """Return the tray for changes of a table; none is needed if nothing waits and nothing was refused."""
        table = version.table.id
        if not sifts and table not in self._waiting:
            return None
        return Tray(table, self._waiting_of(version), keeps=self._tables.sets_aside(table), sifts=sifts)

    def for_chunk(self, table: TableId, chunk: int, *, renews: bool) -> Tray:
        """Return the tray for a chunk; one that renews a part of the table has rows in it that letters are about."""
        # Only what is healed may have letters already, and then all chunks are in, whoever loaded them.
        heals = chunk == HEAL
        waiting = self._target.waiting().get(table, Waiting()) if heals else Waiting()
        where = "the healing" if heals else f"chunk {chunk}"
        tray = Tray(table, waiting, keeps=self._tables.sets_aside(table), sifts=True, where=where)
        if renews:
            tray.clear()
        return tray

    def _waiting_of(self, version: Registered) -> Waiting:
        """Return what waits of a table; its keys must be comparable with those of a version."""
        waiting = self._waiting.get(version.table.id, Waiting())
        for schema_id in waiting.schema_ids:
            if key_columns(self._tables.versions.by_schema(schema_id).table) != key_columns(version.table):
                raise TableRefused(
                    version.table.id,
                    SchemaUnsupported(
                        "the table's key was changed at the source while some of its rows are in the dead letters",
                        remedy="`penstock dead-letters` replays or discards them; then resume the table",
                    ),
                )
        return waiting

    def keep(self, tray: Tray) -> None:
        """Keep in mind, and tell, what has become a dead letter in a transaction that is committed."""
        if tray.waiting.letters:
            self._waiting[tray.table] = tray.waiting
        else:
            self._waiting.pop(tray.table, None)
        self.tell(tray)

    def forget(self, table: TableId, why: str) -> None:
        """Tell that the letters of a table are gone with its rows."""
        if (waiting := self._waiting.pop(table, None)) is not None:
            text = f"{_gone(waiting.letters)}: the table {why}"
            self._teller.tell(EventKind.NOTICE, text, table=table, target=self._name)

    def tell(self, tray: Tray) -> None:
        """Tell what was set aside, and which letters are gone."""
        self._stats.dead_letters += tray.added
        tell = partial(self._teller.tell, table=tray.table, target=self._name)
        for row, cause, position in tray.refused[:_TOLD]:
            tell(EventKind.ERROR, f"{row}, was set aside: {cause}", remedy=REPLAY, position=position)
        if len(tray.refused) > _TOLD:
            tell(EventKind.ERROR, f"{len(tray.refused) - _TOLD} more rows were set aside", remedy=REPLAY)
        if tray.cleared:
            tell(EventKind.NOTICE, f"{_gone(tray.cleared)}: what they were about {tray.why_cleared}")


def _gone(letters: int) -> str:
    return "1 dead letter is gone" if letters == 1 else f"{letters:,} dead letters are gone"
