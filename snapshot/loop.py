"""The loop of a snapshot worker: tables are planned, chunks read into the log, and made final.

Any number of workers share the chunks. One is handed on to be made final, see `Delivery`, only if the table was, while
its rows were read, the same physical thing as planned and as the snapshot sees it.

Whatever else a worker leaves in the log when it dies is named by no manifest and read by nobody. Two workers that
read the same chunk do no harm: the first manifest counts.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from codec.frames import pack
from schemas.errors import (
    LOAD_AGAIN,
    RELOAD,
    LogRewound,
    LogUnavailable,
    OperatorError,
    ReplicationError,
    RowError,
    SchemaUnsupported,
    SnapshotLost,
)
from schemas.events import EventKind
from schemas.frontier import HEAL, GivenUp, Plan, Setup
from schemas.pipeline import Mode, Pipeline
from schemas.record import encode_control
from schemas.table import Table, TableId
from snapshot import heal, rules
from snapshot.delivery import TOGETHER_ROWS, TOGETHER_SECONDS, Delivery, Reading, Writer
from snapshot.reader import GONE, Comparer, Reader, Rows, reader_factory
from snapshot.tasks import PLAN, Task, Views, is_untouched, tasks
from transport.events import Teller
from transport.log import Block, Log, LogReader, Partition
from transport.topics import Topics
from transport.views import Chunks, Frontiers, TableChunks, Tables, read_setup

STEP_BYTES = 4 << 20
"""Read and appended in one step."""

LOOK_SECONDS = 0.1
"""How often a worker that has work looks what else there is, and whether a finished chunk has become final."""

AGAIN_SECONDS = 1.0
"""After the log refused to take more."""

ASIDE_SECONDS = 30.0
"""After which a table that could not be read is tried again."""

PLANNED_AT_ONCE = 200
"""Tables that the source is asked about in one query."""

LIST_SHARE = 5
LIST_FREELY = 0.01
"""How many times longer than listing all tasks the pause after it is, when that takes longer than these seconds."""

GROUP = "snapshot"

CHANGED = "its columns were changed"
"""The cause of a plan for another version of the table."""

_log = logging.getLogger(__name__)


class SnapshotWorker:
    """One worker of a pipeline, as a machine of small steps.

    `number` is its own among all workers that run: it owns that partition of every load topic. `done` says that
    every table of a pipeline that only loads is complete, once the holder has told of all `targets`: a new one may need
    another load. One that follows changes as well may have to read a table again at any time. After an exception the
    worker is over: `close` it and make another; chunks that were read but were not final yet are read again.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        make_reader: Callable[[], Reader],
        number: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        targets: tuple[str, ...] = (),
    ) -> None:
        if not 0 <= number < rules.LOAD_PARTITIONS:
            raise ValueError(f"there are at most {rules.LOAD_PARTITIONS} snapshot workers, numbered from 0")
        self._log, self._topics, self._make_reader, self._number = log, topics, make_reader, number
        self._clock, self._now, self._sleep = clock, now, sleep
        self._targets = frozenset(targets)
        self._stack = contextlib.ExitStack()
        self._reader: LogReader | None = None
        self._views: Views | None = None
        self._teller = Teller(log, topics, f"snapshot-{number}", now)
        self._load, self._control = Writer(log, f"load-{number}"), Writer(log, "control")
        self._delivery = Delivery(log, topics, self._load, self._control, clock, self._micros)
        self._engine: Reader | None = None

        self._tasks: deque[Task] = deque()
        self._listed: tuple[int, frozenset[int]] | None = None  # what the tasks were listed from
        self._reading: Reading | None = None
        self._planned: list[Plan] = []  # not in the log yet
        self._lost: dict[int, float] = {}  # snapshots that could not be opened, until when they are not tried again
        self._spoilt: dict[TableId, tuple[int, str]] = {}  # a generation that is to be given up, and the cause
        self._unfit: dict[TableId, tuple[int, set[int]]] = {}  # a generation, and snapshots that can't read it
        self._aside: dict[TableId, float] = {}  # until when
        self._bad: dict[TableId, float] = {}  # since when a table could not be read
        self._look_at = self._again_at = self._list_at = 0.0
        self._passing = False  # whether a healing waits for capture to pass a snapshot's message

        # What control shows; plain values, of this incarnation.
        self.done = False
        self.table = ""  # that is being read
        self.chunk = 0
        self.rows = 0
        self.bytes = 0
        self.chunks_read = 0
        self.chunks_final = 0
        self.heals = 0
        self.restarts = 0  # tables that begin again, in a next generation
        self.problems: dict[str, ReplicationError] = {}  # of tables that are set aside

    @property
    def pending(self) -> int:
        """Chunks that are read and durable, and wait for capture."""
        return self._delivery.pending

    # ------------------------------------------------------------------------------------------------- driving

    def step(self) -> bool:
        """Do one bounded piece of work and say whether there was any.

        Raises what the source raises, except that a table which can't be read is set aside while there are others:
        only when nothing else is left, and trying again did not help, is its error raised. A table that has a row
        which can't be read is given up. A log that takes no more is waited for.
        """
        if self.done:
            return False
        if self._views is None:
            return self._begin()
        now = self._clock()
        if now < self._again_at:
            return False
        try:
            # Tasks that are listed are as good as a moment ago: with very many of them looking costs more than they do.
            if now >= self._look_at or (self._reading is None and not self._tasks):
                self._look_at = now + LOOK_SECONDS
                if self._look(self._views) and self._reading is None:
                    return True
            if self._reading is not None:
                self._read_on(self._views, self._reading)
                return True
            return self._next(self._views)
        except LogUnavailable as error:
            # What was appended of the chunk is an orphan; its rows are read once more.
            _log.warning("the log takes nothing now: %s", error)
            self._abandon()
            self._listed = None  # a task that was just beginning is in no list any more
            self._drop_load()
            self._planned.clear()
            self._control.drop()
            self._again_at = self._clock() + AGAIN_SECONDS
            return False

    def wait(self, timeout: float) -> None:
        """Wait until there may be something to do, at most `timeout` seconds."""
        self._teller.flush()
        # Not for long: nobody tells us when another worker leaves and its share becomes ours.
        timeout = min(timeout, 1.0)
        now = self._clock()
        if self.done or self._reading is not None:
            return
        if self._reader is None:
            self._sleep(min(timeout, 0.2))
        elif now < self._again_at:
            self._sleep(min(timeout, self._again_at - now))
        elif self._views is None:
            self._reader.wait({self._topics.control: self._log.offsets(self._topics.control).end}, timeout)
        else:
            ends = {self._topics.chunks: self._views.chunks.next}
            if self._delivery.pending or self._passing:
                ends[self._topics.frontier] = self._views.frontiers.next
            if now < self._list_at:
                timeout = min(timeout, self._list_at - now)
            self._reader.wait(ends, timeout)

    def close(self) -> None:
        """Let go of source and log; never raises."""
        self._abandon()
        self._drop_engine()
        self._drop_load()
        self._control.drop()
        self._teller.close()
        with contextlib.suppress(Exception):
            self._stack.close()

    # ------------------------------------------------------------------------------------------------ looking

    def _begin(self) -> bool:
        """Wait for a log with a setup in it."""
        if self._reader is None:
            try:
                self._log.identity()
                made = self._topics.are_made(self._log)
            except LogRewound:
                return False  # nobody has made it yet
            if not made:
                return False
            self._reader = self._stack.enter_context(self._log.reader())
        setup = read_setup(self._reader, self._topics)
        if setup is None:
            return False
        if setup.mode == Mode.CHANGES:
            self.done = True
            return True
        tables = Tables(self._reader, self._topics)
        self._views = Views(
            setup=setup,
            tables=tables,
            chunks=Chunks(self._reader, self._topics),
            frontiers=Frontiers(self._reader, self._topics),
            membership=self._stack.enter_context(self._log.membership(GROUP)),
        )
        return True

    def _look(self, views: Views) -> bool:
        """Read on in the log and make final what may be; return whether there was anything new to work with."""
        if views.tables.refresh():
            self._aside.clear()  # a new definition may be just what was missing
            self._listed = None
        news = views.chunks.refresh()
        if not self._delivery.pending and not self._passing:
            return news
        at, final = views.frontiers.next, 0
        views.frontiers.poll()
        if self._delivery.is_due(views.frontiers.position):
            if self._delivery.forget_unwanted(views.chunks):
                self._listed = None  # for its sake a chunk was passed over, which the plan of now may still want
            final = self._delivery.make_final(views.chunks, views.frontiers.position)
            self.chunks_final += final
        return news or final > 0 or views.frontiers.next != at

    def _put(self, entries: Sequence[Plan | GivenUp]) -> None:
        self._control().put_all(self._topics.chunks, [encode_control(entry) for entry in entries])

    # ------------------------------------------------------------------------------------------------ choosing

    def _next(self, views: Views) -> bool:
        """Begin the next task that can be begun; return whether there was one."""
        now, mine = self._clock(), views.membership.poll()
        for table in [table for table, until in self._aside.items() if now >= until]:
            del self._aside[table]
            self._listed = None
        for snapshot in [snapshot for snapshot, until in self._lost.items() if now >= until]:
            # Its holder would know; if that holds it after all, nobody else will help.
            del self._lost[snapshot]
            self._listed = None
        if not self._tasks:
            if self._planned:
                return self._put_plans(views)
            if self._delivery.has_read:
                self._make_durable(views)
                return True
            state = (views.chunks.next, mine)
            if (self._listed == state and not self._passing) or now < self._list_at:
                return False
            self._listed = state
            self._passing = False
            self._forget_what_is_planned_again(views)
            self._tasks.extend(tasks(views, mine, self._spoilt))
            # With very many tables that takes its time, and every chunk of another worker is a reason for it.
            took = self._clock() - now
            self._list_at = self._clock() + LIST_SHARE * took if took > LIST_FREELY else 0.0
        while self._tasks:
            if self._planned and (self._tasks[0].what != PLAN or self._clock() - now >= TOGETHER_SECONDS):
                return self._put_plans(views)
            task = self._tasks.popleft()
            if task.table in self._aside or task in self._delivery:
                continue
            if task.work not in mine and task.table not in self._spoilt:
                continue
            try:
                if self._attempt(views, task) and not self._planned:
                    return True
            except SnapshotLost:
                self._drop_engine()
                self._listed = None
                return True
            except (OperatorError, RowError) as error:
                self._refused(task, error)
                return True
        if self._planned or self._delivery.has_read:
            return True  # they come first
        left = [table for table in views.chosen() if not views.chunks.of(table).settled()]
        admitted = views.chunks.admitted
        if self._targets and (admitted is None or not self._targets <= set(admitted.targets)):
            return False
        if not left:
            return self._rest(views.setup)
        if all(table in self._aside for table in left):
            for table in left:
                if now - self._bad[table] >= ASIDE_SECONDS:
                    raise self.problems[str(table)]
        return False

    def _rest(self, setup: Setup) -> bool:
        """Let go of everything until there is something to be read again, as long as the pipeline goes on."""
        if setup.mode == Mode.LOAD:
            self.done = True
            return True
        self._drop_engine()
        self._drop_load()
        self._control.drop()
        self._teller.flush()
        return False

    def _forget_what_is_planned_again(self, views: Views) -> None:
        for table, (generation, _) in list(self._spoilt.items()):
            plan = views.chunks.of(table).plan
            if plan is not None and plan.generation > generation:
                del self._spoilt[table]

    def _attempt(self, views: Views, task: Task) -> bool:
        """Begin a task if it is still to be done and can be now; return whether that was any work."""
        state = views.chunks.of(task.table)
        if task.part >= 0:
            return self._start_part(views, task, state)
        if task.what == PLAN:
            if state.plan is None or state.outdated:
                asked = state.after > state.plan_offset
                cause = rules.RELOADED if asked else rules.ADMITTED if state.outdated else ""
                more = self._take_unplanned(views) if is_untouched(state) else []
                return self._plan(views, [task.table, *more], state.generation + 1, cause)
            generation, cause = self._spoilt.get(task.table, (-1, ""))
            if state.plan.generation != generation or state.complete():
                self._spoilt.pop(task.table, None)  # others have planned, or finished, it
                return False
            return self._plan(views, [task.table], generation + 1, cause)
        if state.plan is None or task.table in self._spoilt:
            return False
        if task.what == HEAL:
            return state.needs_healing() and self._start_healing(views, task, state, state.plan)
        if task.what not in state.missing:
            return False
        return self._start_chunk(views, task, state, state.plan)

    def _refused(self, task: Task, error: ReplicationError) -> None:
        """Leave a task that can't be done. A part is for somebody who waits, and can ask again."""
        if task.part >= 0:
            self._give_up_part(task, str(error))
        else:
            self._set_aside(task.table, error)

    def _set_aside(self, table: TableId, error: ReplicationError) -> None:
        """Let the other tables go on, and try this one again later."""
        _log.error("%s can't be read now: %s → %s", table, error, error.remedy)
        if table not in self._bad:
            self._teller.tell(EventKind.ERROR, f"can't be read now: {error}", table=table, remedy=error.remedy)
        self._drop_engine()
        self.problems[str(table)] = error
        self._aside[table] = self._clock() + ASIDE_SECONDS
        self._bad.setdefault(table, self._clock())
        self._listed = None

    # ------------------------------------------------------------------------------------------------- planning

    def _take_unplanned(self, views: Views) -> list[TableId]:
        """Take the next tasks that are first plans too: the source is asked for many tables at once."""
        tables: list[TableId] = []
        while self._tasks and self._tasks[0].what == PLAN and len(tables) < PLANNED_AT_ONCE:
            table = self._tasks[0].table
            if table in self._aside or not is_untouched(views.chunks.of(table)):
                break
            tables.append(self._tasks.popleft().table)
        return tables

    def _plan(self, views: Views, tables: Sequence[TableId], generation: int, cause: str) -> bool:
        """Plan tables, or one of them again; of two workers that do, the first counts."""
        versions = [version for table in tables if (version := views.tables.latest(table)) is not None]
        state = views.chunks.of(tables[0])
        left_out = views.tables.left_out(tables[0])
        if left_out is not None and state.after >= left_out.known:
            return False  # capture is about to carry it again, and to say which snapshots show what it has left out
        snapshot = max(rules.fit(state, views.chunks.snapshots, views.setup, self._alive), default=None)
        if not versions or snapshot is None:
            return False
        engine = self._open(views, snapshot)
        found = engine.plan([version.table for version in versions])
        comparer = engine if isinstance(engine, Comparer) and set(found[0].physical) != {GONE} else None
        if generation and comparer and not comparer.is_current(versions[0].table):
            # What altered the table may have given it columns whose values the stream will never bring.
            raise SchemaUnsupported(
                f"source: {versions[0].id} has other columns than capture has told of so far",
                remedy="wait until capture does so, within seconds; start it if it does not run",
            )
        engine.release()
        self._planned += [
            Plan(
                table_schema=version.id.schema,
                table_name=version.id.name,
                generation=generation,
                schema_id=version.schema_id,
                chunks=planned.chunks,
                physical=planned.physical,
                cause=cause,
                at=self._micros(),
            )
            for version, planned in zip(versions, found, strict=True)
        ]
        if state.plan is not None:  # else it is one that the pipeline has got since, and was never read
            _log.warning("%s is read again from the beginning: %s", versions[0].id, cause)
            self._teller.tell(EventKind.NOTICE, f"is read again from the beginning: {cause}", table=versions[0].id)
            self.restarts += 1
        return True

    def _put_plans(self, views: Views) -> bool:
        self._put(self._planned)
        self._planned.clear()
        self._listed = None
        views.chunks.refresh()
        return True

    def _give_up(self, plan: Plan, cause: str) -> bool:
        """Set out to plan a table again, in the next generation."""
        self._spoilt[TableId(plan.table_schema, plan.table_name)] = plan.generation, cause
        self._listed = None
        return True

    def _give_up_part(self, task: Task, cause: str) -> None:
        """Let a part's target go on as if nobody had asked, and tell whoever did."""
        _log.error("%s is not reloaded in part: %s", task.table, cause)
        remedy = "ask again with `penstock reload --where`, or reload all of it"
        self._drop_engine()
        self._put([GivenUp(*task.table, task.part, cause, remedy, self._micros())])
        self._teller.tell(
            EventKind.ERROR, f"is not reloaded in part: {cause}; it goes on as it was", table=task.table, remedy=remedy
        )
        self._listed = None

    def _give_up_load(self, views: Views, plan: Plan, error: RowError) -> None:
        """Let each target that loads a table stop it: in every snapshot that meets its plan the row stays as it is."""
        table = TableId(plan.table_schema, plan.table_name)
        _log.error("%s can't be loaded: %s", table, error)
        again = LOAD_AGAIN if views.setup.mode == Mode.LOAD else RELOAD.format(table=table)
        remedy = f"{error.remedy or 'correct the row'}; then {again}"
        self._put([GivenUp(*table, plan.generation, str(error), remedy, self._micros())])
        views.chunks.refresh()
        self._listed = None

    # -------------------------------------------------------------------------------------------------- reading

    def _start_chunk(self, views: Views, task: Task, state: TableChunks, plan: Plan) -> bool:
        generation, unfit = self._unfit.get(task.table, (plan.generation, set()))
        if generation != plan.generation:
            unfit = set()
        snapshots = views.chunks.snapshots
        snapshot = rules.for_chunk(
            state, snapshots, views.setup, lambda number: self._alive(number) and number not in unfit
        )
        if snapshot is None:
            if not any(self._alive(number) for number in unfit):
                return False  # none is alive: the holder takes one
            if plan.cause.startswith(rules.REWRITTEN) and max(unfit) < state.plan_offset:
                return False  # the holder takes a newer one, as it knows of this plan
            return self._give_up(plan, f"{rules.REWRITTEN} after the snapshot was taken")
        version = views.tables.by_schema(plan.schema_id)
        if not version.table.key and state.snapshots() - {snapshot}:
            return self._give_up(plan, rules.ALONE)
        chunk = next(chunk for chunk in plan.chunks if chunk.number == task.what)
        if self._delivery.has_read and chunk.rows > TOGETHER_ROWS:
            self._make_durable(views)
        leaf = TableId(chunk.leaf_schema, chunk.leaf_name)
        engine = self._open(views, snapshot)
        if version.table.dropped:  # what has its name now is another table, of which the stream tells nothing
            self._start(views, task, plan, snapshot, iter(()), [])
            return True
        mark = engine.marks([leaf])[0]
        if mark.now in plan.physical and mark.seen != mark.now:
            # Its rows have been moved since the snapshot was taken, which would read them wrongly without a word.
            engine.release()
            self._unfit[task.table] = plan.generation, unfit | {snapshot}
            self._tasks.appendleft(task)
            return True
        if mark.now not in plan.physical:
            engine.release()
            return self._give_up(plan, f"{rules.REWRITTEN} since it was planned")
        if mark.now != GONE and self._shows_other_columns(views, snapshot, engine, version.table):
            engine.release()
            return self._give_up(plan, rules.ALTERED)
        rows: Iterator[Rows | None] = iter(()) if mark.now == GONE else engine.read(version, chunk)
        self._start(views, task, plan, snapshot, rows, [leaf])
        return True

    @staticmethod
    def _shows_other_columns(views: Views, snapshot: int, engine: Reader, table: Table) -> bool:
        """Whether a snapshot may see values in columns that a version of a table does not have.

        They would be lost: what is visible in the snapshot is not taken from the stream. In the snapshot that the
        pipeline begins with nothing is visible that has altered a table since.
        """
        first = views.chunks.snapshots[snapshot].visibility == views.setup.visibility
        return not first and isinstance(engine, Comparer) and not engine.is_current(table)

    def _start_healing(self, views: Views, task: Task, state: TableChunks, plan: Plan) -> bool:
        version = views.tables.by_schema(plan.schema_id)
        if not version.table.key:
            return self._give_up(plan, rules.ALONE)
        snapshots = views.chunks.snapshots
        number = rules.for_healing(state, snapshots, views.setup, self._alive)
        if number is None:
            return False  # the holder takes one
        newest = snapshots[number]
        views.frontiers.poll()
        if views.frontiers.position < newest.position:
            self._passing = True
            return False
        assert self._reader is not None
        engine = self._open(views, number)
        if self._shows_other_columns(views, number, engine, version.table):
            engine.release()
            return self._give_up(plan, rules.ALTERED)
        used = [snapshots[n] for n in sorted(state.snapshots())]
        rows = heal.mend(
            self._reader,
            self._topics,
            views.tables,
            version,
            used,
            newest,
            engine,
        )
        leaves = list(dict.fromkeys(TableId(chunk.leaf_schema, chunk.leaf_name) for chunk in plan.chunks))
        self._start(views, task, plan, number, rows, leaves)
        return True

    def _start_part(self, views: Views, task: Task, state: TableChunks) -> bool:
        part = state.parts.get(task.part)
        if part is None or part.settled:
            return False
        number = rules.for_part(state, part, views.chunks.snapshots, views.setup, self._alive)
        if number is None:
            return False  # the holder takes one
        newest, command = views.chunks.snapshots[number], part.issued.command
        views.frontiers.poll()
        if views.frontiers.position < newest.position:
            self._passing = True
            return False
        version = views.tables.by_schema(command.schema_id)
        views.tables.refresh()
        if views.tables.latest(task.table) is not version:
            # What has altered it may be seen by the snapshot, and then is not told to the target any more.
            self._give_up_part(task, "it was altered since the target has stopped")
            return True
        assert self._reader is not None
        engine = self._open(views, number)
        (planned,) = engine.plan([version.table])
        plan = Plan(*task.table, task.part, version.schema_id, planned.chunks, planned.physical)
        rows = heal.renew(self._reader, self._topics, views.tables, version, command, newest, engine)
        leaves = list(dict.fromkeys(TableId(chunk.leaf_schema, chunk.leaf_name) for chunk in planned.chunks))
        self._start(views, task, plan, number, rows, leaves)
        return True

    def _start(
        self,
        views: Views,
        task: Task,
        plan: Plan,
        snapshot: int,
        rows: Iterator[Rows | None],
        leaves: list[TableId],
    ) -> None:
        load = self._topics.load(task.table, views.setup.shared_topics)
        partition = Partition(load.topic, self._number)
        self._reading = Reading(task, plan, snapshot, partition, rows, leaves)
        self.table, self.chunk = str(task.table), task.what

    def _read_on(self, views: Views, reading: Reading) -> None:
        """Append the next few batches; at the end of the chunk, look whether it may count, and make it durable."""
        writer, done, size = self._load(), False, 0
        try:
            while size < STEP_BYTES:
                batch = next(reading.rows, _END)
                if batch is _END:
                    done = True
                    break
                if batch is None:
                    break
                assert isinstance(batch, Rows)
                value, number = batch
                reading.records += writer.append(reading.partition, Block(1, pack(((None, value),))))
                reading.number += number
                reading.size += len(value)
                size += len(value)
                self.rows += number
            self.bytes += size
            if done:
                self._finish(views, reading)
        except heal.StartAgain as again:
            self._abandon()
            self._begin_again(reading, f"{rules.REWRITTEN}: {again}")
        except (OperatorError, RowError) as error:
            self._abandon()
            task, latest = reading.task, views.tables.latest(reading.task.table)
            was_changed = latest is not None and latest.schema_id != reading.plan.schema_id
            if isinstance(error, SchemaUnsupported) and was_changed and task.part < 0:
                self._give_up(reading.plan, CHANGED)
            elif isinstance(error, RowError) and task.part < 0:
                self._give_up_load(views, reading.plan, error)
            else:
                self._refused(task, error)

    def _begin_again(self, reading: Reading, cause: str) -> None:
        if reading.task.part >= 0:
            self._give_up_part(reading.task, cause)
        else:
            self._give_up(reading.plan, cause)

    def _finish(self, views: Views, reading: Reading) -> None:
        assert self._engine is not None
        marks = self._engine.leave(reading.leaves)
        plan, task = reading.plan, reading.task
        wanted = set(plan.physical) if task.what == HEAL else {mark.now for mark in marks} & set(plan.physical)
        if {mark.now for mark in marks} != wanted or any(mark.seen != mark.now for mark in marks):
            self._abandon()
            self._begin_again(reading, f"{rules.REWRITTEN} while it was read")
            return
        self._reading = None
        self.table, self.chunk = "", 0
        self.problems.pop(str(task.table), None)
        self._bad.pop(task.table, None)
        if task.what == HEAL:
            self.heals += 1
        else:
            self.chunks_read += 1
        if self._delivery.add(reading):
            self._make_durable(views)

    def _make_durable(self, views: Views) -> None:
        self._delivery.make_durable(views.chunks)
        self._look_at = 0.0

    # --------------------------------------------------------------------------------------------------- helpers

    def _open(self, views: Views, snapshot: int) -> Reader:
        """Return the reader, reading in a snapshot. Raises `SnapshotLost`, and then leaves it alone for a while."""
        if self._engine is None:
            self._engine = self._make_reader()
        try:
            self._engine.open(views.chunks.snapshots[snapshot].name)
        except SnapshotLost:
            self._lost[snapshot] = self._clock() + ASIDE_SECONDS
            raise
        return self._engine

    def _alive(self, snapshot: int) -> bool:
        assert self._views is not None
        return snapshot not in self._lost and self._views.chunks.is_replayable(snapshot)

    def _abandon(self) -> None:
        """Leave a chunk half-read. What the writer holds of it unflushed must not be counted with the next one."""
        reading, self._reading = self._reading, None
        if reading is None:
            return
        self.table, self.chunk = "", 0
        self._listed = None
        self._drop_engine()
        if reading.records:
            self._drop_load()

    def _drop_load(self) -> None:
        """Leave what is not durable: it is read once more."""
        if self._delivery.drop():
            self._listed = None

    def _drop_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _micros(self) -> int:
        return int(self._now() * 1_000_000)


_END = object()


def open(pipeline: Pipeline, log: Log, number: int) -> SnapshotWorker:
    """Return the `number`-th snapshot worker of a pipeline over a log, which stays the caller's to close.

    Raises `ConfigInvalid` if the source's URL has no engine.
    """
    url = pipeline.source.url.get_secret_value()
    factory = reader_factory(url)
    targets = tuple(target.name for target in pipeline.targets)
    return SnapshotWorker(log, Topics(pipeline.pipeline), lambda: factory(url), number, targets=targets)
