"""The holder: sets the source up on the first start, and keeps snapshots alive until every table is read.

It does nothing else, so that nothing else can end it: a snapshot lives no longer than the connection that holds it.
Killed at any point it may simply be started again. Before `Setup` is in the log nothing of the earlier attempt
counts; after it, a snapshot that died with its holder is replaced by a new one, and the workers go on in that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from codec.frames import pack
from schemas.errors import (
    LOAD_AGAIN,
    ConfigInvalid,
    IntegrityError,
    LogRewound,
    SchemaUnsupported,
    SnapshotLost,
    TransientError,
)
from schemas.frontier import Admitted, Claim, Setup, SnapshotTaken, TableRegistered
from schemas.pipeline import Mode, Pipeline
from schemas.record import encode_control, value_schema_id
from schemas.table import Table, TableId
from snapshot import rules
from snapshot.reader import Held, SnapshotSource, snapshot_source_factory
from transport.log import Block, Log, LogReader, LogWriter, Topic
from transport.topics import Topics
from transport.views import Chunks, Tables, read_setup, trims

PING_SECONDS = 5.0
SHARE_ABOVE = 500
"""Tables; with more of them a log that pays for topics gets shared ones."""

MOST_HELD = 4
RETIRE_SECONDS = 60.0
"""How long a snapshot that a newer one followed stays though no table depends on it: workers may be reading in it."""

JUDGE_SHARE = 10
"""How many times longer than a look at all tables the pause after it is."""

TOLD = 5
"""Names of tables in a message."""

_AGAIN_SECONDS = 0.2
_CLAIM_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Holder:
    """The holder of one pipeline, as a machine of small steps.

    `done` says that there is nothing left to do, for good: as long as a pipeline follows changes, somebody may ask for
    a table to be loaded anew, and so for a snapshot. After an exception the holder is over, and so are its
    snapshots: `close` it and make another.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        log: Log,
        source: SnapshotSource,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._pipeline, self._log, self._source = pipeline, log, source
        self._clock, self._now, self._sleep = clock, now, sleep
        self._topics = Topics(pipeline.pipeline)
        self._stack = contextlib.ExitStack()
        self._claimed = False
        self._writer: LogWriter | None = None
        self._reader: LogReader | None = None
        self._chunks: Chunks | None = None
        self._tables: Tables | None = None
        self._held: dict[int, Held] = {}
        self._since: dict[int, float] = {}
        self._ping_at = 0.0
        self._again_at = 0.0
        self._changed = True  # whether something is held that was not when it was last decided, or the reverse
        self._wants = False
        self._judge_at = 0.0
        self._targets = tuple(target.name for target in pipeline.targets)

        self.setup: Setup | None = None
        self.done = False
        self.snapshots_taken = 0
        self.snapshots_refused = 0  # because they did not yet show all that an earlier one did

    @property
    def held(self) -> tuple[int, ...]:
        """The snapshots that are alive here, by their offsets in `p.chunks`."""
        return tuple(self._held)

    @property
    def held_seconds(self) -> float:
        """For how long the oldest of them has kept the source from cleaning up."""
        return self._clock() - min(self._since.values(), default=self._clock())

    def step(self) -> bool:
        """Do one piece of work and say whether there was any.

        Raises `SourceUnavailable` when the claim is lost with its connection, `ConfigInvalid` if the pipeline
        chooses no table, and whatever source and log raise.
        """
        if self.done:
            return False
        if not self._claimed:
            self._claimed = self._source.claim()
            return self._claimed
        if self._reader is None:
            self._log.create_topics(self._topics.fixed())
            self._reader = self._stack.enter_context(self._log.reader())
            self._writer = self._stack.enter_context(self._log.writer("control"))
            self._chunks = Chunks(self._reader, self._topics)
            self._tables = Tables(self._reader, self._topics)
            return True
        if self.setup is None:
            # Only behind the claim: another holder may have set everything up while we waited for it.
            self.setup = read_setup(self._reader, self._topics) or self._set_up(self._reader)
            rules.require_mode(self.setup, self._pipeline.mode)
            self._tell_what_stays(self.setup)
            return True
        return self._hold(self.setup)

    def wait(self, timeout: float) -> None:
        """Wait until there may be something to do, at most `timeout` seconds."""
        if self.done:
            return
        if not self._claimed:
            self._sleep(min(timeout, _CLAIM_SECONDS))
        elif self._reader is not None and self._chunks is not None:
            now = self._clock()
            due = [self._ping_at - now, timeout]
            due += [self._again_at - now] if self._wants else []
            due += [self._judge_at - now] if self._changed else []
            self._reader.wait({self._topics.chunks: self._chunks.next}, max(0.0, min(due)))

    def close(self) -> None:
        """Let go of every snapshot, the claim and the log; never raises."""
        for number in list(self._held):
            self._drop(number)
        self._source.close()
        with contextlib.suppress(Exception):
            self._stack.close()

    # -------------------------------------------------------------------------------------------------- setting up

    def _set_up(self, reader: LogReader) -> Setup:
        """Register the tables, make the stream begin, publish its snapshot, and last of all the setup itself: it is
        what all others wait for, so what comes before it may be done again.

        Whoever stalls may have lost the source's claim, and his slot, without knowing. So there is one in the log
        too, made before anything is prepared: a setup counts only if no other claim is between it and its own.
        """
        assert self._writer is not None and self._chunks is not None
        # In this order: whoever prepares the source with this log claims in it before.
        if self._source.is_prepared() and not self._log.offsets(self._topics.control).end:
            raise LogRewound(
                f"the source is set up for a pipeline {self._pipeline.pipeline} already, but this log is new: that one"
                " was begun with another log, and may be running",
                remedy="go on with the log it was begun with (`state` and `log` in the pipeline file), or give this one"
                f" another name (`pipeline`); if that log is gone: {LOAD_AGAIN}",
            )
        known = self._log.offsets(self._topics.tables).end
        there: list[TableId] = []

        def chooses(table: TableId) -> bool:
            there.append(table)
            return self._pipeline.chooses(table)

        # Of those targets that take only some of the tables.
        choices = sorted({target.tables for target in self._pipeline.targets if target.tables})
        objects, wanted = self._source.catalogue(chooses, choices)
        self._pipeline.require_matches(there)
        for pattern in self._pipeline.awaited(there):
            _log.warning("%s: what is made later, and fits, is taken over", pattern)
        if not wanted:
            raise ConfigInvalid(
                "the pipeline chooses none of the source's tables", remedy="look at `tables` in the pipeline file"
            )
        shared = self._log.shared_topics or 0
        if len(wanted) <= SHARE_ABOVE:
            shared = 0
        topics = {self._topics.changes(table.id, shared).topic: 1 for table in wanted}
        topics |= {self._topics.load(table.id, shared).topic: rules.LOAD_PARTITIONS for table in wanted}
        self._log.create_topics([Topic(name, partitions) for name, partitions in topics.items()])
        schemas = self._register(wanted, shared, known)

        claim = Claim(f"{socket.gethostname()}:{os.getpid()}", self._micros())
        epoch = self._writer.put(self._topics.control, encode_control(claim))
        if (there_already := read_setup(reader, self._topics)) is not None:
            return there_already
        load = self._pipeline.mode != Mode.CHANGES
        try:
            prepared = self._source.prepare(wanted, hold=load)
        except SchemaUnsupported:
            self._check_unaltered(wanted)
            raise
        try:
            self._check_unaltered(wanted)
        except BaseException:
            if prepared.snapshot is not None:
                prepared.snapshot.close()
            raise
        if load:
            assert prepared.snapshot is not None
            self._publish(prepared.snapshot, self._chunks.next)
        seen = prepared.visibility
        setup = Setup(
            system=prepared.system,
            slot=prepared.slot,
            publications=prepared.publications,
            position=prepared.position,
            xmin=seen.xmin,
            xmax=seen.xmax,
            xip=tuple(seen.xip),
            objects=objects.model_dump_json(),
            mode=self._pipeline.mode.value,
            shared_topics=shared,
            at=self._micros(),
            tables=schemas,
            patterns=self._pipeline.tables,
            epoch=epoch,
        )
        self._source.ping()
        self._writer.put(self._topics.control, encode_control(setup))
        if read_setup(reader, self._topics) != setup:
            raise TransientError("another holder has begun to set the source up")
        return setup

    def _tell_what_stays(self, setup: Setup) -> None:
        """Which tables a pipeline has is settled with its setup, whatever the file says later."""
        assert self._tables is not None and self._chunks is not None
        self._chunks.refresh()
        stay = [
            str(table) for table in rules.chosen(setup, self._tables, self._chunks) if not self._pipeline.chooses(table)
        ]
        if stay:
            shown = ", ".join(stay[:TOLD]) + (f" and {len(stay) - TOLD} more" if len(stay) > TOLD else "")
            _log.warning(
                "still copied, as the pipeline was begun with them, though `tables` no longer chooses them: %s; to"
                " leave them out, exclude them in the `tables` of each target",
                shown,
            )

    def _register(self, tables: list[Table], shared: int, known: int) -> tuple[int, ...]:
        """Write the tables' first versions, in one go, and return the ids of their row schemas."""
        assert self._writer is not None and self._tables is not None
        records = []
        for table in tables:
            changes = self._topics.changes(table.id, shared)
            entry = TableRegistered(table.model_dump_json(), changes.topic, changes.number, self._micros(), known=known)
            records.append((str(table.id).encode(), encode_control(entry)))
        self._writer.append(self._topics.tables, Block(len(records), pack(records)))
        start, end = self._writer.flush()[self._topics.tables]
        if end - start != len(records):
            raise IntegrityError(f"{len(records)} tables registered, found at {start}..{end}")
        schemas = tuple(value_schema_id(offset) for offset in range(start, end))
        self._tables.refresh()
        for table, schema_id in zip(tables, schemas, strict=True):
            latest = self._tables.latest(table.id)
            if latest is None or latest.schema_id < schema_id:
                raise TransientError("another holder has begun to set the source up")
        return schemas

    def _check_unaltered(self, before: list[Table]) -> None:
        """Raise `TransientError`, to begin again, if a table is not what was registered.

        To make the slot may take as long as somebody's transaction. What a column got meanwhile for the rows that
        are there, the stream does not tell, and the load would leave out.
        """
        _, after = self._source.catalogue(self._pipeline.chooses)
        now = {table.id: table for table in after}
        for table in before:
            if table.id not in now or not table.same_rows_as(now[table.id]):
                raise TransientError(f"{table.id} was altered while the change stream was set up: beginning again")

    # ----------------------------------------------------------------------------------------------------- holding

    def _hold(self, setup: Setup) -> bool:
        assert self._chunks is not None and self._tables is not None
        self._changed |= self._chunks.refresh()
        if self._chunks.admitted is None or self._chunks.admitted.targets != self._targets:
            self._admit(self._chunks.admitted or Admitted(()))
            return True
        if setup.mode == Mode.CHANGES:
            self.done = True
            return True
        if self._clock() >= self._ping_at:
            self._ping()
        # What there is to decide changes with the log or with what is held; only then is every table looked at.
        began = self._clock()
        if self._changed and began >= self._judge_at:
            self._changed = False
            if rules.all_complete(setup, self._tables, self._chunks):
                for number in list(self._held):
                    self._drop(number)
                self._changed = self._wants = False
                self.done = setup.mode == Mode.LOAD
                return self.done
            self._wants = self._wanted(setup)
            self._retire(setup)
            # With very many tables that takes its time, and each of them brings news.
            self._judge_at = self._clock() + JUDGE_SHARE * (self._clock() - began)
        if self._wants and self._clock() >= self._again_at:
            return self._take(setup)
        return False

    def _admit(self, before: Admitted) -> None:
        """Tell who the targets are. One that is new when the log has been trimmed needs another load; if an earlier
        one already needed that, and nothing was trimmed since, it is the same one.

        A trimmer looks who the targets are once more when it has said what it trims; so does this, the other way
        round, when it has told: one of the two sees the other.
        """
        assert self._writer is not None and self._reader is not None
        added = not set(self._targets) <= set(before.targets)
        admitted = Admitted(self._targets, before.trimmed, before.max_xid, self._micros())
        told = False
        while True:
            found = list(trims(self._reader, self._topics))
            if added and found and found[-1][0] > admitted.trimmed:
                max_xid = max(trimmed.max_xid for _, trimmed in found)
                admitted = replace(admitted, trimmed=found[-1][0], max_xid=max_xid)
            elif told:
                return
            self._source.ping()
            self._writer.put(self._topics.chunks, encode_control(admitted))
            told = True

    def _wanted(self, setup: Setup) -> bool:
        """Whether some table can't go on in the snapshots that are alive here."""
        assert self._chunks is not None and self._tables is not None
        for schema_id in self._chunks.tables_of(setup):
            table = self._tables.by_schema(schema_id)
            chunks = self._chunks.of(table.table.id)
            if rules.wants_newer(chunks, bool(table.table.key), self._chunks.snapshots, setup, self._serves):
                return True
        return False

    def _serves(self, snapshot: int) -> bool:
        assert self._chunks is not None
        return snapshot in self._held and self._chunks.is_replayable(snapshot)

    def _take(self, setup: Setup) -> bool:
        """Take a snapshot; publish it if it shows everything that the stream leaves out and earlier ones showed.

        A commit is in the source's log, and decoded, before others see it: a snapshot taken right then may lack
        what an earlier one had, and it takes no more than to wait until the commit is through.
        """
        assert self._chunks is not None and self._tables is not None
        known = self._chunks.next
        held = self._source.take()
        used = {n for table in rules.chosen(setup, self._tables, self._chunks) for n in self._chunks.of(table).used()}
        earlier = [setup.visibility, *(self._chunks.snapshots[number].visibility for number in used)]
        sees_all = all(held.visibility.sees_all_of(visibility) for visibility in earlier)
        if not sees_all or held.visibility.xmin <= self._chunks.shown_by_all:
            held.close()
            self.snapshots_refused += 1
            self._again_at = self._clock() + _AGAIN_SECONDS
            return False
        self._publish(held, known)
        self._wants = False
        return True

    def _publish(self, held: Held, known: int) -> None:
        """Announce a snapshot at the source, then in the log; from here on workers read in it. It was taken when
        `p.chunks` was read up to `known`."""
        assert self._writer is not None
        try:
            position = self._source.announce()
            xmin, xmax, xip = held.visibility
            taken = SnapshotTaken(held.name, xmin, xmax, tuple(xip), position, known, self._micros())
            number = self._writer.put(self._topics.chunks, encode_control(taken))
        except BaseException:
            held.close()
            raise
        self._held[number], self._since[number] = held, self._clock()
        self._changed = True
        self.snapshots_taken += 1

    def _ping(self) -> None:
        self._source.ping()
        for number, held in list(self._held.items()):
            try:
                held.ping()
            except SnapshotLost:
                self._drop(number)
        if len(self._held) > 1:
            self._changed = True  # an old one may have come of age
        self._ping_at = self._clock() + PING_SECONDS

    def _retire(self, setup: Setup) -> None:
        """Let go of snapshots that newer ones have followed: each keeps the source from cleaning up."""
        assert self._chunks is not None and self._tables is not None
        old = sorted(self._held)[:-1]
        if not old:
            return
        depended = {
            number
            for table in rules.chosen(setup, self._tables, self._chunks)
            if (chunks := self._chunks.of(table)).missing
            for number in chunks.snapshots()
        }
        for number in old:
            idle = number not in depended and self._clock() - self._since[number] > RETIRE_SECONDS
            if idle or len(self._held) > MOST_HELD:
                self._drop(number)

    def _drop(self, number: int) -> None:
        self._changed = True
        self._held.pop(number).close()
        self._since.pop(number, None)

    def _micros(self) -> int:
        return int(self._now() * 1_000_000)


def open(pipeline: Pipeline, log: Log) -> Holder:
    """Return the holder of a pipeline over a log, which stays the caller's to close.

    Raises `ConfigInvalid` if the source's URL has no engine.
    """
    url = pipeline.source.url.get_secret_value()
    return Holder(pipeline, log, snapshot_source_factory(url)(url, pipeline.pipeline))
