"""Where everything stands on a target, as one worker knows it, and the one way to change that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from apply.cohort import Cohorts
from apply.limits import Limits
from apply.stats import Stats
from apply.tables import TargetTables
from apply.target import Batch, GroupMove, Progress, TableMove, TableProgress, Target
from apply.telling import StateTeller
from schemas.errors import ReplicationError
from schemas.states import STOPPED, TableState
from schemas.table import TableId

_AT_LEISURE = 200  # times as long as a look at the target's tables takes nobody looks again once all is settled


class BeginAgain(Exception):
    """What this worker knows of the target is not so any more, and is to be read anew. Nothing has gone wrong."""


class Standing:
    """The progress of groups and tables: what was read from the target last, and what was written since.

    Of the tables of other workers what is known may be late.
    """

    def __init__(
        self,
        target: Target,
        tables: TargetTables,
        cohorts: Cohorts,
        states: StateTeller,
        clock: Callable[[], float],
        limits: Limits,
        stats: Stats,
    ) -> None:
        self._target, self._tables, self._states = target, tables, states
        self._clock, self._limits, self._stats = clock, limits, stats
        self.cohorts = cohorts
        self.owned: frozenset[int] = frozenset()  # groups
        self.groups: dict[int, Progress] = {}  # those that are owned
        self.tables: dict[TableId, TableProgress] = {}
        self.unsettled: set[TableId] = set()  # of this worker's tables, those that go on by themselves
        self.unsettled_anywhere: set[TableId] = set()
        self.failed: set[TableId] = set()
        self.arriving: dict[TableId, float] = {}  # loaded, and not live yet; since when
        self.ripe: dict[TableId, None] = {}  # tables that may be ripe for their next states, in this order
        self.any_ripe = True  # any table may be, because another one has moved
        self.revision = 0  # goes up whenever a table has another state
        self._refreshed_at = self._refresh_from = -1e9
        self._refresh_took = 0.0

    # ------------------------------------------------------------------------------------------------ what is known

    def read(self) -> None:
        """Read everything anew from the target."""
        stored = self._target.groups()
        self.groups = {group: progress for group, progress in stored.items() if group in self.owned}
        for of_tables in (self.tables, self.unsettled, self.unsettled_anywhere, self.failed, self.arriving, self.ripe):
            of_tables.clear()
        for table in self._target.tables().values():
            self.learn(table)
        self.any_ripe = True
        self._refreshed_at = self._clock()
        self._refresh_from = self._refreshed_at + self._limits.look_every

    def refresh(self) -> bool:
        """Look at what others did to the tables' states, not again before ten times as long as that took; return
        whether that was done. Raises `BeginAgain` if they did it to one of this worker's."""
        now = self._clock()
        if now < self._refresh_from:
            return False
        tables = self._target.tables()
        self._refreshed_at = self._clock()
        self._refresh_took = self._refreshed_at - now
        self._refresh_from = self._refreshed_at + max(self._limits.look_every, 10 * self._refresh_took)
        for table, progress in tables.items():
            before = self.tables.get(table)
            if progress is before:
                continue
            if before is not None and self.is_mine(progress):
                if (before.state, before.generation) != (progress.state, progress.generation):
                    raise BeginAgain
            else:
                self.learn(progress)
        return True

    def look_around(self) -> bool:
        """Do so, but seldom once all is settled: the target may have been restored to an earlier state meanwhile, and
        somebody may have let a failed table go on."""
        limits = self._limits
        often = limits.failed_every if self.failed else max(limits.settled_every, _AT_LEISURE * self._refresh_took)
        due = self.unsettled_anywhere or self._clock() - self._refreshed_at >= often
        return bool(due) and self.refresh()

    def learn(self, progress: TableProgress) -> None:
        """Note what a table's state is, and whether there is anything to do about it."""
        table = progress.table
        before = self.tables.get(table)
        self.tables[table] = progress
        if before is None or (before.state, before.generation) != (progress.state, progress.generation):
            self.revision += 1
        mine = self.is_mine(progress)
        settled = progress.state in STOPPED or (progress.state is TableState.LIVE and progress.tied)
        if mine:
            self._states.note(progress)
        for tables, belongs in (
            (self.unsettled, not settled and mine),
            (self.unsettled_anywhere, not settled and table in self._tables),
            (self.failed, progress.state is TableState.FAILED),
        ):
            if belongs:
                tables.add(table)
            else:
                tables.discard(table)
        if mine and progress.state in {TableState.INDEXING, TableState.CATCHING_UP}:
            self.arriving.setdefault(table, self._clock())
        else:
            self.arriving.pop(table, None)

    def is_mine(self, progress: TableProgress) -> bool:
        return progress.group in self.owned and progress.table in self._tables

    def mine(self) -> list[TableProgress]:
        return [progress for progress in self.tables.values() if self.is_mine(progress)]

    def places(self) -> list[object]:
        """Return where all that is this worker's stands, to be compared."""
        return [*self.groups.items(), *((t.table, t.state, t.generation, t.progress) for t in self.mine())]

    def place_of(self, table: TableProgress) -> Progress:
        """Return where in the frontiers a table has come to, as far as that is stored: what its group has applied it
        has applied too as long as it is live, but nothing after that."""
        return self.groups[table.group].place if table.state is TableState.LIVE else table.progress

    # ------------------------------------------------------------------------------------------------ what changes

    def table_move(self, table: TableId, **changed: object) -> TableMove:
        before = self.tables[table]
        return TableMove(before, replace(before, **changed))  # type: ignore[arg-type]

    def group_move(self, group: int, progress: Progress, *, other_members: bool = False) -> GroupMove:
        """Return the move of a group to a place. If a table joins or leaves it in the same batch, whoever does not know
        of that must not move the group any more: he would leave that table's changes out, or apply them twice."""
        before = self.groups[group]
        return GroupMove(group, before, progress._replace(roster=before.roster + other_members))

    def write(self, batch: Batch) -> None:
        self._target.write(batch)
        for group in batch.groups:
            self.groups[group.group] = group.progress
        for table in batch.tables:
            self.learn(table.progress)

    def fail(self, table: TableId, cause: ReplicationError) -> None:
        """Set a table aside with its error, where it stands; its group goes on without it."""
        before = self.tables[table]
        groups: list[GroupMove] = []
        progress = self.place_of(before)
        if before.state is TableState.LIVE:
            groups.append(self.group_move(before.group, progress, other_members=True))
        move = self.table_move(
            table,
            state=TableState.FAILED,
            progress=progress,
            error=f"{type(cause).__name__}: {cause}",
            remedy=cause.remedy,
            stopped_in=before.state.value,
        )
        self.write(Batch(groups, [move]))
        self._stats.failures += 1
        self.cohorts.forget(table)
        self.any_ripe = True
