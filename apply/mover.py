"""The tables' states: each table is brought to its next one when it is ripe for that."""

from __future__ import annotations

from collections.abc import Callable

from apply.cohort import Beginning
from apply.commands import resumed
from apply.follower import Follower
from apply.limits import Limits
from apply.loader import Final, Loader, takes_generations
from apply.standing import BeginAgain, Standing
from apply.tables import TargetTables
from apply.target import NOWHERE, Batch, Redefinition, TableMove, TableProgress, TableRefused, Target
from apply.telling import StateTeller
from apply.trays import Trays
from conversion.alter import loosened
from schemas.errors import LogRewound, ValueUnsupported
from schemas.events import EventKind
from schemas.frontier import HEAL
from schemas.pipeline import Ddl, Mode
from schemas.states import TableState
from schemas.table import TableId
from transport.log import LogReader
from transport.topics import Topics
from transport.views import Part, Registered, TableChunks

PREPARED_AT_ONCE = 50
"""Tables, partitions counted, that are made in one transaction: the target's server has room for so many locks."""

_IMPATIENT = 0.001  # seconds until it is asked again what has been built; doubled as long as nothing has


class Mover:
    """Prepares tables, ends their loads, has their indexes and keys made, and lets them catch up."""

    def __init__(
        self,
        reader: LogReader,
        topics: Topics,
        target: Target,
        tables: TargetTables,
        standing: Standing,
        loader: Loader,
        follower: Follower,
        trays: Trays,
        states: StateTeller,
        name: str,
        clock: Callable[[], float],
        limits: Limits,
    ) -> None:
        self._reader, self._topics, self._target = reader, topics, target
        self._tables, self._standing, self._loader = tables, standing, loader
        self._follower, self._trays, self._states, self._name = follower, trays, states, name
        self._clock, self._limits = clock, limits
        self._beginnings: dict[int, Beginning] = {}
        self._building: set[TableId] = set()  # the target has something to make for them
        self._patience = _IMPATIENT
        self._moved_at = -1e9
        self._heard = -1  # how far the chunks had been read when tables were looked at last
        self._loosened: dict[TableId, int] = {}  # by which version, of tables that had failed

    def begin_again(self) -> None:
        self._building.clear()
        self._heard = -1

    def next_pause(self) -> float:
        """Return the seconds until tables are to be looked at again; each time more, while nothing has been built."""
        pause = self._patience if self._building else self._limits.share_every
        self._patience = min(2 * self._patience, self._limits.share_every) if self._building else _IMPATIENT
        return pause

    def move(self) -> bool:
        """Bring some tables to their next states; return whether there may be more."""
        standing, now = self._standing, self._clock()
        if standing.look_around():
            standing.any_ripe = True
            self._let_go_on()
        if self._building and (built := self._target.built()):
            self._building.difference_update(built)
            standing.ripe |= dict.fromkeys(built)
            self._patience = _IMPATIENT
        if not standing.ripe:
            self._find_ripe(now)
        return bool(standing.ripe) and self._move_some()

    def _find_ripe(self, now: float) -> None:
        standing, chunks = self._standing, self._tables.chunks
        heard = chunks.next != self._heard
        late = bool(standing.unsettled) and now - self._moved_at >= self._limits.share_every
        if heard or late or standing.any_ripe:
            # A table that has failed has to move only when it is to be loaded again.
            again = chunks.tables.keys() & standing.failed if heard else set()
            standing.ripe |= dict.fromkeys(sorted(standing.unsettled | again))
            standing.any_ripe, self._moved_at, self._heard = False, now, chunks.next

    def _move_some(self) -> bool:
        """Bring tables to their next states, each by one; what needs no work of its own is written all at once."""
        standing = self._standing
        moves: list[TableMove] = []
        moved: list[TableId] = []
        until = self._clock() + self._limits.move_seconds
        while standing.ripe and self._clock() <= until:
            table = next(iter(standing.ripe))
            del standing.ripe[table]
            progress = standing.tables[table]
            if not standing.is_mine(progress):
                continue
            try:
                done = self._move(progress)
            except TableRefused as refused:
                standing.fail(refused.table, refused.cause)
                done = True
            if isinstance(done, TableMove):
                moves.append(done)
            if done:
                moved.append(progress.table)
        if moves:
            standing.write(Batch(tables=moves))
            self._take_places([move.progress for move in moves])
        standing.ripe |= dict.fromkeys(moved)
        return bool(moved or standing.ripe)

    def _take_places(self, tables: list[TableProgress]) -> None:
        """Let tables that have moved stand where their new states say."""
        catching_up = [progress.table for progress in tables if progress.state is TableState.CATCHING_UP]
        if catching_up:
            self._trays.read()  # whoever loaded chunks has set rows of them aside
        for progress in tables:
            if progress.state is TableState.LOADING:
                self._standing.cohorts.forget(progress.table)
                self._loader.look_now()
        self._follower.place(catching_up)

    def _move(self, progress: TableProgress) -> TableMove | bool:
        """Bring one table to its next state, if it is ripe for that; return whether it was, or the move that is to be
        written."""
        chunks = self._tables.chunks.of(progress.table)
        generation = chunks.plan.generation if chunks.plan else -1
        if progress.state is TableState.WAITING:
            return self._prepare(progress)
        if progress.state is TableState.LOADING and progress.generation in chunks.parts:
            return self._end_part(progress, chunks.parts[progress.generation])
        if generation > progress.generation and takes_generations(progress) and self._may_load(chunks):
            return self._begin_generation(progress, generation)
        match progress.state:
            case TableState.LOADING:
                return self._end_load(progress, chunks)
            case TableState.INDEXING:
                return self._finish(progress)
            case TableState.LIVE if not progress.tied:
                return self._tie(progress)
            case _:
                return False

    def _let_go_on(self) -> None:
        """Let tables go on that have failed because of a constraint which the source has no more: where nobody says at
        once that a table was altered, its rows come before its definition. Raises `BeginAgain` if any goes on.

        Each version is tried once: what refuses rows all the same is the target's own.
        """
        standing, versions = self._standing, self._tables.versions
        constrained = [p for p in standing.mine() if p.is_constrained] if standing.failed else []
        if not constrained:
            return
        versions.refresh()
        went_on = False
        for progress in constrained:
            table, latest = progress.table, versions.latest(progress.table)
            tried = max(progress.schema_id, self._loosened.get(table, 0))
            if latest is None or latest.schema_id <= tried or self._tables.policy(table).ddl is not Ddl.APPLY:
                continue
            self._loosened[table] = latest.schema_id
            before = self._tables.on_target(progress)
            looser = loosened(before.table, latest.table)
            if looser.definition != before.table.definition:
                went_on |= self._loosen(progress, before, before.like(looser))
        if went_on:
            raise BeginAgain

    def _loosen(self, progress: TableProgress, before: Registered, after: Registered) -> bool:
        standing = self._standing
        move = standing.table_move(progress.table, state=resumed(progress), error="", remedy="", stopped_in="")
        try:
            standing.write(Batch(tables=[move], pieces=[Redefinition(before, after, progress, told=False)]))
        except TableRefused as refused:
            self._states.tell(EventKind.ERROR, progress.table, str(refused.cause), refused.cause.remedy)
            return False
        text = "goes on: the source has no longer the constraint that refused its row"
        self._states.tell(EventKind.NOTICE, progress.table, text)
        return True

    # ------------------------------------------------------------------------------------------------ prepare

    def _prepare(self, progress: TableProgress) -> bool:
        """Prepare a table, and those that wait behind it for the same: a transaction for each would cost more."""
        standing = self._standing
        if not self._may_prepare(progress):
            return False
        tables: list[TableId] = []
        weight = 0
        for table in (progress.table, *standing.ripe):
            weight += 1 + len(self._tables.on_target(standing.tables[table]).table.definition.partitions)
            if tables and (weight > PREPARED_AT_ONCE or not self._may_prepare(standing.tables[table])):
                break
            tables.append(table)
        for table in tables:
            standing.ripe.pop(table, None)
        loads = self._tables.setup.mode != Mode.CHANGES
        state = TableState.LOADING if loads else TableState.INDEXING
        moves = [
            (self._tables.on_target(standing.tables[table]), standing.table_move(table, state=state))
            for table in tables
        ]
        try:
            for version, _ in moves:
                self._target.get_ready(version)  # tables that were added bring what they rest on
            prepared = self._target.prepare(moves)
        except TableRefused as refused:
            standing.ripe |= dict.fromkeys(table for table in tables if table != refused.table)
            raise
        for done in prepared:
            standing.learn(done)
        standing.ripe |= dict.fromkeys(tables)
        return True

    def _may_prepare(self, progress: TableProgress) -> bool:
        known = self._standing.tables
        if progress.state is not TableState.WAITING or not self._standing.is_mine(progress):
            return False
        definition = self._tables.on_target(progress).table.definition
        others = (*definition.inherits, *definition.row_types)
        # The statement that makes the table names them.
        return all(other not in known or known[other].state is not TableState.WAITING for other in others)

    # ------------------------------------------------------------------------------------------------ load

    def _may_load(self, chunks: TableChunks) -> bool:
        """Whether a table's plan is for this target too: it is not, if it came when the log had been trimmed."""
        admitted = self._tables.chunks.admitted
        return not chunks.outdated and (admitted is None or self._name in admitted.targets)

    def _begin_generation(self, progress: TableProgress, generation: int) -> TableMove | bool:
        plan = self._tables.chunks.of(progress.table).plan
        assert plan is not None
        before, version = self._tables.on_target(progress), self._tables.versions.by_schema(plan.schema_id)
        move = self._standing.table_move(
            progress.table,
            state=TableState.LOADING,
            schema_id=plan.schema_id,
            generation=generation,
            progress=NOWHERE,
            snapshot=-1,
            rows=0,
            error="",
            remedy="",
            stopped_in="",
        )
        if self._tables.policy(progress.table).ddl is Ddl.IGNORE:
            version = before = self._tables.accepted(version)
        if progress.generation < 0 and version is before:
            return move
        self._target.get_ready(version)
        piece = Redefinition(before, version, progress, told=False)
        if progress.generation < 0:
            self._target.write(Batch(tables=[move], pieces=[piece]))
        else:
            self._target.restart(piece, move)
            self._trays.forget(progress.table, "is loaded anew")
        self._standing.learn(move.progress)
        self._take_places([move.progress])
        return True

    def _end_load(self, progress: TableProgress, chunks: TableChunks) -> TableMove | bool:
        """Once everything final is loaded, healing last, the rows stand for one snapshot.

        Raises `TableRefused` if the source has a row that can't be read: the rest is of no use without it.
        """
        given_up, snapshot = chunks.given_up, chunks.effective_snapshot()
        if given_up is not None and given_up.generation == progress.generation:
            raise TableRefused(progress.table, ValueUnsupported(given_up.cause, remedy=given_up.remedy))
        if chunks.plan is None or not chunks.complete() or progress.generation != chunks.plan.generation:
            return False
        snapshots = self._tables.chunks.snapshots
        if snapshot is not None and snapshot not in snapshots:
            return False
        if not self._loader.has(progress, {number for number in chunks.manifests if number != HEAL}):
            return False
        if chunks.healed and not self._loader.is_healed(progress):
            version = self._tables.versions.by_schema(chunks.plan.schema_id)
            self._loader.load(Final(progress, chunks.manifests[HEAL], version))
            return True
        rows = sum(manifest.rows for number, manifest in chunks.manifests.items() if number != HEAL)
        if snapshot is None:
            # A table without a single chunk: nothing was read, so it stands for the oldest snapshot there is.
            snapshot = min(snapshots)
        return self._standing.table_move(progress.table, state=TableState.INDEXING, snapshot=snapshot, rows=rows)

    def _end_part(self, progress: TableProgress, part: Part) -> TableMove | bool:
        """Once a part is loaded all rows stand for the snapshot that it was read in, and the table goes on from there;
        if it can't be had, from where it has stopped."""
        if part.given_up:
            return self._standing.table_move(progress.table, state=TableState.CATCHING_UP)
        if part.manifest is None:
            return False
        if not self._loader.is_healed(progress):
            self._loader.load(Final(progress, part.manifest, self._tables.on_target(progress)))
            return True
        return self._catch_up(progress, part.manifest.snapshot)

    # ------------------------------------------------------------------------------------------------ after the load

    def _finish(self, progress: TableProgress) -> TableMove | bool:
        """Once its indexes are there, a table begins to catch up where its snapshot ends."""
        if not self._target.finish(self._tables.on_target(progress), progress):
            self._building.add(progress.table)
            return False
        return self._catch_up(progress, progress.snapshot)

    def _catch_up(self, progress: TableProgress, snapshot: int) -> TableMove:
        # Without a snapshot all that was ever captured is to be applied.
        xmin = self._tables.chunks.snapshots[snapshot].xmin if snapshot >= 0 else 0
        if xmin not in self._beginnings:
            self._beginnings[xmin] = Beginning(self._reader, self._topics, self._tables.setup.position, xmin)
        try:
            start = self._beginnings[xmin].find()
        except LogRewound as error:
            raise TableRefused(progress.table, error) from error
        return self._standing.table_move(
            progress.table, state=TableState.CATCHING_UP, progress=start, snapshot=snapshot
        )

    def _tie(self, progress: TableProgress) -> TableMove | bool:
        """Make foreign keys when all that they tie together is live."""
        known = self._standing.tables
        tied = self._tables.tied_to(progress.table)
        if any(table not in known or known[table].state is not TableState.LIVE for table in tied):
            return False
        try:
            last = self._tables.setup.mode == Mode.LOAD
            if not self._target.tie(self._tables.on_target(progress), progress, last=last):
                self._building.add(progress.table)
                return False
        except TableRefused as refused:
            # The rows are what the source's are: a key that does not hold is told, but stops nothing.
            error = f"{type(refused.cause).__name__}: {refused.cause}"
            remedy = f"{refused.cause.remedy or 'mend the cause'}; then `penstock resume` the table"
            self._states.tell(EventKind.ERROR, progress.table, error, remedy)
            return self._standing.table_move(progress.table, tied=True, error=error, remedy=remedy)
        return self._standing.table_move(progress.table, tied=True)
