"""Following the frontiers: the changes of the groups, and of the tables that catch up with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container

from apply.cohort import Cohort, Portion, Wanted
from apply.limits import Limits
from apply.portions import PortionReader, Reading
from apply.standing import Standing
from apply.stats import Stats
from apply.tables import TargetTables
from apply.target import Batch, TableProgress, TableRefused
from apply.trays import Trays
from schemas.errors import LOAD_AGAIN, LOAD_TABLE_AGAIN, LogRewound, RowError
from schemas.pipeline import Ddl
from schemas.states import TableState
from schemas.table import TableId
from transport.log import Log, LogReader
from transport.topics import Topics
from transport.views import Registered, read_trimmed


class Follower:
    """Writes what the frontiers name, for the cohort that is ahead and for the one that is last, and lets tables join
    their groups."""

    def __init__(
        self,
        log: Log,
        reader: LogReader,
        topics: Topics,
        tables: TargetTables,
        standing: Standing,
        portions: PortionReader,
        trays: Trays,
        clock: Callable[[], float],
        limits: Limits,
        stats: Stats,
    ) -> None:
        self._log, self._reader, self._topics = log, reader, topics
        self._tables, self._standing, self._portions, self._trays = tables, standing, portions, trays
        self._clock, self._limits, self._stats = clock, limits, stats
        self._cohorts = standing.cohorts
        self._counted: dict[TableId, int] = defaultdict(int)
        self._noted_at = -1e9

    # ------------------------------------------------------------------------------------------------ begin

    def begin_again(self, coming: Container[TableId]) -> None:
        """Put everything where the target says that it stands, but for the tables that are to be loaded anew."""
        standing = self._standing
        self._cohorts.clear()
        start, end = self._log.offsets(self._topics.frontier)
        # What is said to be forgotten is not there for whoever goes on now, though some of it still may be: the
        # frontiers go last.
        trimmed = read_trimmed(self._reader, self._topics)
        first, forgotten_to = (trimmed.offset, trimmed.position) if trimmed is not None else (start, 0)
        for group, progress in sorted(standing.groups.items()):
            if progress.offset > end:
                raise LogRewound(
                    f"the target has applied the log up to {progress.offset}, but it ends at {end}",
                    remedy=f"restore the log, or {LOAD_AGAIN}",
                )
            if progress.offset < start or progress.position < forgotten_to:
                raise LogRewound(
                    f"the target has applied the log up to {progress.offset}, but it was trimmed up to"
                    f" {max(start, first)}",
                    remedy="the target was restored, or not in the file for a while: drop its schema penstock and the"
                    " tables that were loaded, and give it another name in the file",
                )
            self._cohorts.at(progress.place).groups.add(group)
        self._leave_out()
        behind = [
            table for table in standing.mine() if table.state is TableState.CATCHING_UP and table.table not in coming
        ]
        for table in behind:
            if table.progress.position < forgotten_to:
                standing.fail(table.table, forgotten())
            else:
                self._cohorts.at(table.progress).tables.add(table.table)
        self._show()

    def _leave_out(self) -> None:
        """Let the live tables that the file no longer has for this target stay behind where their groups are, which go
        on without them: if they are there again one day, they have to catch up from here."""
        standing = self._standing
        left = [
            progress
            for progress in standing.tables.values()
            if progress.state is TableState.LIVE
            and progress.group in standing.groups
            and progress.table not in self._tables
        ]
        if not left:
            return
        places = {progress.group: standing.groups[progress.group].place for progress in left}
        standing.write(
            Batch(
                [standing.group_move(group, place, other_members=True) for group, place in sorted(places.items())],
                [
                    standing.table_move(progress.table, state=TableState.CATCHING_UP, progress=places[progress.group])
                    for progress in left
                ],
            )
        )

    # ------------------------------------------------------------------------------------------------ follow

    def follow_ahead(self) -> bool:
        """Apply the next frontiers to those who are ahead of all others."""
        ahead = self._cohorts.ahead
        return ahead is not None and not self._awaits(ahead) and self._follow(ahead, None)

    def follow_behind(self) -> bool:
        """Apply the next frontiers to those who are behind all others, up to where the next ones stand."""
        behind = self._cohorts.behind
        return behind is not None and self._follow(*behind)

    @property
    def next(self) -> int | None:
        """The offset of the frontier that those who are ahead go on with; None if they wait for something else."""
        ahead = self._cohorts.ahead
        return None if ahead is None or self._awaits(ahead) else ahead.next

    def _awaits(self, ahead: Cohort) -> bool:
        """Whether those who are ahead wait for tables that are loaded and only have to come to where they stand, so
        that the target is as of one moment; not for ever, for these may have far to go."""
        arriving = self._standing.arriving
        if not arriving:
            return False
        late = self._clock() - self._limits.together_seconds
        return any(since > late for table, since in arriving.items() if table not in ahead.tables)

    def _follow(self, cohort: Cohort, bound: Cohort | None) -> bool:
        limits = self._limits
        try:
            portion = cohort.take(self._wants, bound, limits.batch_records, limits.batch_frontiers)
            if portion is not None:
                self._apply(cohort, portion)
                cohort.done(portion)
        except TableRefused as refused:
            self._standing.fail(refused.table, refused.cause)
            return True
        if bound is not None and cohort.reached.offset == bound.reached.offset:
            self._cohorts.unite(cohort, bound)
            cohort = bound
        joined = self.join(cohort)
        if portion is None:
            return joined
        self._show()
        self.note()
        return True

    def _wants(self, cohort: Cohort, schema_id: int) -> Wanted:
        version = self._tables.version(schema_id)
        if version is None:
            return Wanted.NO
        progress = self._standing.tables[version.id]
        if is_of_the_one_before(version, progress):
            return Wanted.NO
        if progress.state is TableState.LIVE:
            if progress.group not in cohort.groups:
                return Wanted.NO
        elif progress.table not in cohort.tables:
            return Wanted.NO
        return Wanted.YES if schema_id == progress.schema_id else Wanted.ALONE

    def _apply(self, cohort: Cohort, portion: Portion) -> None:
        """Write what a portion holds, and the progress of the members that it holds something for."""
        if not portion.records:
            return
        standing = self._standing
        groups: set[int] = set()
        tables: set[TableId] = set()
        for schema_id in portion.expected:
            progress = standing.tables[self._tables.version_of(schema_id).table.id]
            if progress.state is TableState.LIVE:
                groups.add(progress.group)
            else:
                tables.add(progress.table)
        moves = {table: standing.table_move(table, progress=portion.progress) for table in tables}
        left: set[int] = set()  # groups that a table leaves
        for table, version in (self._portions.redefined(portion) if portion.redefines else {}).items():
            place = portion.progress if table in tables else standing.tables[table].progress
            moves[table] = standing.table_move(table, progress=place, schema_id=version.schema_id)
            if version.table.dropped and self._tables.policy(table).ddl is not Ddl.IGNORE:
                moves[table] = standing.table_move(
                    table, progress=portion.progress, schema_id=version.schema_id, state=TableState.DROPPED
                )
                left |= {standing.tables[table].group} & groups
        group_moves = [
            standing.group_move(group, portion.progress, other_members=group in left) for group in sorted(groups)
        ]
        table_moves = [moves[table] for table in sorted(moves)]

        def write(refused: TableId | None) -> None:
            reading = Reading(sifts=refused is not None)
            pieces = self._portions.pieces(portion, reading)
            standing.write(Batch(group_moves, table_moves, pieces, refused=refused))
            for tray in reading.trays.values():
                self._trays.keep(tray)
            for table, count in reading.counts.items():
                self._counted[table] += count
                self._stats.by_table[table] += count
                self._stats.changes += count

        try:
            write(None)
        except TableRefused as refused:
            if not isinstance(refused.cause, RowError):
                raise
            write(refused.table)  # row by row where that is needed
        for move in table_moves:
            if move.progress.state is TableState.DROPPED:
                self._trays.forget(move.progress.table, "was dropped at the source")
                cohort.tables.discard(move.progress.table)
        self._stats.batches += 1
        self._stats.records += portion.records

    def _show(self) -> None:
        """Put in the figures how far the cohort is that is ahead."""
        if (ahead := self._cohorts.ahead) is not None:
            reached = ahead.reached
            self._stats.position = reached.position
            self._stats.commit_time, self._stats.captured_at = reached.commit_time, reached.captured_at

    # ------------------------------------------------------------------------------------------------ join

    def place(self, tables: list[TableId]) -> None:
        """Let tables that catch up from now on stand where their progress says."""
        cohorts: list[Cohort] = []
        for table in tables:
            cohort = self._cohorts.at(self._standing.tables[table].progress)
            cohort.tables.add(table)
            if cohort not in cohorts:
                cohorts.append(cohort)
        for cohort in cohorts:
            self.join(cohort)

    def join(self, cohort: Cohort) -> bool:
        """Let the tables that stand where their group stands go on with it, once that is past all their snapshots."""
        standing = self._standing
        ready = [
            table
            for table in sorted(cohort.tables)
            if standing.tables[table].group in cohort.groups and cohort.reached.position >= self._join_position(table)
        ]
        if not ready:
            return False
        # Rows of the group up to here are in the target, though that may not be noted yet: it must be, because the
        # table's own are counted from here on with the group's.
        groups = {standing.tables[table].group for table in ready}
        standing.write(
            Batch(
                [standing.group_move(group, cohort.reached, other_members=True) for group in sorted(groups)],
                [standing.table_move(table, state=TableState.LIVE, progress=cohort.reached) for table in ready],
            )
        )
        cohort.tables.difference_update(ready)
        standing.any_ripe = True
        return True

    def _join_position(self, table: TableId) -> int:
        """Return the position that capture must have passed before nothing that a snapshot saw can be lost."""
        snapshot = self._standing.tables[table].snapshot
        # It is the newest of those that the table was read in, and so its message is the last.
        return 0 if snapshot < 0 else self._tables.chunks.snapshots[snapshot].position

    # ------------------------------------------------------------------------------------------------ note

    def note(self, *, now: bool = False) -> bool:
        """Store how far the members have come that had no changes for a while, all at once and, but for `now`, not
        often; return whether anything was stored."""
        time = self._clock()
        if not now and time - self._noted_at < self._limits.note_every:
            return False
        if not self.is_behind_with_notes():
            return False
        standing = self._standing
        groups = [
            standing.group_move(group, cohort.reached)
            for cohort in self._cohorts
            for group in sorted(cohort.groups)
            if standing.groups[group].place != cohort.reached
        ]
        tables = [
            standing.table_move(table, progress=cohort.reached)
            for cohort in self._cohorts
            for table in sorted(cohort.tables)
            if standing.tables[table].progress != cohort.reached
        ]
        self._noted_at = time
        counted, self._counted = self._counted, defaultdict(int)
        standing.write(Batch(groups, tables, changes=counted))
        return True

    def is_behind_with_notes(self) -> bool:
        standing = self._standing
        return bool(self._counted) or any(
            any(standing.groups[group].place != cohort.reached for group in cohort.groups)
            or any(standing.tables[table].progress != cohort.reached for table in cohort.tables)
            for cohort in self._cohorts
        )

    @property
    def until_note(self) -> float:
        """Seconds until the next note is due."""
        return max(0.0, self._noted_at + self._limits.note_every - self._clock())


def forgotten() -> LogRewound:
    """Say why a table that had failed, or was not in the file for a while, can't go on."""
    return LogRewound("what it needs was forgotten while it had failed or was left out", remedy=LOAD_TABLE_AGAIN)


def is_of_the_one_before(version: Registered, progress: TableProgress) -> bool:
    """Whether a version tells of the end of a table that had the name before: what the target has by now was made
    again, and registered behind that. It may have been loaded before the frontier came by that names the end."""
    return version.table.dropped and version.schema_id < progress.schema_id
