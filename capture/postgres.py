"""PostgreSQL as a source: its logical replication stream, decoded as it comes.

One thread reads, decodes and hands steps over. A second one, `Caretaker`, has connections and questions of its own,
and tells the server that we live while the first waits for the log; it never reads the stream.
"""

from __future__ import annotations

import contextlib
import re
import select
import threading
import time
from collections.abc import Callable

import psycopg
from psycopg import pq

from capture.caretaker import Caretaker, publications_fit
from capture.definitions import Definitions
from capture.history import require_same
from capture.partitions import same_partitions
from capture.relations import Relations, matches, reorders
from capture.source import Step
from capture.tables import TableVersions
from codec.pgoutput import BEGIN, COMMIT, KEEPALIVE, MESSAGE, RELATION, TRUNCATE, ChangeDecoder, Relation
from engines.postgres import definitions, replication
from engines.postgres.catalogue import largest
from engines.postgres.connect import connect
from engines.postgres.connect import replication as connect_for_replication
from engines.postgres.errors import is_row_too_large, translate, translated, with_column_name
from engines.postgres.problems import SHOWN, some
from engines.postgres.retention import slot_lost
from schemas.errors import (
    LOAD_AGAIN,
    LogRewound,
    PositionLost,
    PrerequisiteMissing,
    ReplicationError,
    SchemaUnsupported,
    SourceUnavailable,
    TransientError,
    ValueUnsupported,
)
from schemas.frontier import NO_COMMIT, Commit, Setup
from schemas.table import Table, TableId
from transport.log import Block, Partition
from transport.views import Registered

STEP_BYTES = 4 << 20
"""A step of whole transactions is closed when it has grown to this."""

SPILL_BYTES = 8 << 20
"""What is there of a transaction is handed over when it has grown to this; memory is bounded by it and one row."""

STEP_SECONDS = 0.02
"""How long transactions are gathered while there is no end of them, if the log is quick."""

SLOW_STEP_SECONDS = 0.1
"""The same at most: a step takes four times as long to gather as the one before it took to write, and this long while
there is much to catch up with."""

BEHIND_BYTES = 32 << 20
"""So much of the source's log, still to come, is much."""

BUSY_BYTES_A_SECOND = 10_000_000
"""The rate at which gathering pays in full. Below it the pause between steps shrinks with the square of the rate, so
that a few thousand small transactions a second go on at once, each as it comes."""

SLICE_BYTES = 256 << 10
"""Read between two looks at the clock."""

RESTART_IDENTITY = 2
"""An option of TRUNCATE, as pgoutput sends it."""

NAP_SECONDS = 0.0001
"""When the socket is dry: a reader that wakes for every message makes the server send every message by itself, which
halves the rate of both; 0.1 ms let them pile up."""

QUIET_SECONDS = 0.001
"""With nothing for this long, the kernel wakes us instead."""

SILENCE_SECONDS = 60.0
"""After half of it without a word the server is asked for one, and after all of it the connection is given up: what
stands between us may have lost it and keep our side open. PostgreSQL's own subscribers wait as long."""

CARRY_SECONDS = 0.5
CARRY_SHARE = 10
"""How often it is looked whether somebody has asked for a table that is left out, and at least how many times longer
than the last look took: one that waits for a lock on such a table holds up all others."""

STATUS_SECONDS = 1.0
"""How often the server hears of us while nothing is confirmed."""

ACQUIRE_SECONDS = 5.0
"""How long another reader of the slot has to go before that is an error: the server takes a moment to notice a client
that died, and an older capture ends when it sees that a newer one has claimed."""


class PostgresSource:
    """The committed changes of the tables that the plan has, from slot and publications that are there already.

    `heartbeat` is how many idle seconds pass before a message is written into the source's log, so that lag is
    known when nobody else writes (14 or newer; 0: never).
    """

    def __init__(
        self,
        url: str,
        setup: Setup,
        tables: TableVersions,
        *,
        heartbeat: float = 10.0,
        silence: float = SILENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._setup, self._tables = url, setup, tables
        self._heartbeat, self._silence, self._clock = heartbeat, silence, clock
        self._lock = threading.Lock()  # around everything that is done with the stream
        self._stream: pq.abc.PGconn | None = None
        self._control: psycopg.Connection | None = None
        self._caretaker: Caretaker | None = None

        self._open = False  # inside a transaction
        self._commits = 0  # since the last step
        self._spilled = False  # the last step ended in the midst of a transaction
        self._singly = 0  # so many transactions are to be a step each
        self._end_at_start = 0
        self._passed = 0  # what keepalives outside a transaction have told
        self._position = 0  # of the last step
        self._confirmed = 0
        self._gathered = 0  # bytes that came since the last step
        self._pause = 0.0
        self._gather = STEP_SECONDS
        self._handed = False  # the last step is being written
        self._step_began = self._step_given = self._heard = self._told = 0.0
        self._asked: float | None = None  # when the server was asked for a word, if it has said nothing since

    # -------------------------------------------------------------------------------------------------- starting

    def occupied(self) -> str:
        """See `Source.occupied`."""
        with translated("source", f"looking who reads slot {self._setup.slot}"):
            control = self._catalogue()
            if replication.is_standby(control):  # on which the server itself takes the slot, to bring it up to date
                raise SourceUnavailable(
                    "the source is a standby now: waiting for it to become the primary",
                    remedy="name the primary in the URL, or all with target_session_attrs=read-write",
                )
            return replication.slot_reader(control, self._setup.slot, ACQUIRE_SECONDS)

    def start(self, after: int, epoch: int, last: Commit) -> None:
        """See `Source.start`. Also raises `PrerequisiteMissing` if the publications do not hold the plan's tables."""
        with translated("source", f"streaming from slot {self._setup.slot}"):
            stream = self._stream = connect_for_replication(self._url, application=f"penstock {self._setup.slot}")
            if (system := replication.system_identity(stream)) != self._setup.system:
                raise PositionLost(
                    f"the source is another cluster (system identifier {system}, not {self._setup.system})",
                    remedy=f"correct the URL; if the source was replaced: {LOAD_AGAIN}",
                )
            control = self._catalogue()
            self._check(control, after)
            self._position = self._passed = self._confirmed = after
            self._relations = Relations(self._tables, self._setup, lambda: self._position)
            published = self._relations.to_be_published()
            prints = replication.publication_prints(control, self._setup.publications[0])
            ours = {0}.union(*(table.oids for table in published))
            prints = {(name, oid): mark for (name, oid), mark in prints.items() if oid in ours}
            publications_fit(control, self._setup, published)
            reference = replication.current_snapshot(control).xmax
            self._patiently(
                lambda: require_same(
                    self._url,
                    self._setup.slot,
                    self._setup.publications,
                    confirmed=lambda: self._check(control, after),
                    after=after,
                    last=last,
                    silence=self._silence,
                )
            )
            self._patiently(lambda: self._stream_after(stream, after))
        self._decoder = ChangeDecoder(epoch, reference)
        self._epoch, self._last = epoch, last
        self._partitions: list[Partition] = []
        self._bound: dict[int, tuple[TableId, Relation]] = {}
        self._going_on: dict[TableId, Table] = {}  # a version that has the partitions which bound rows go on with
        self._left_out = {table.id for table in self._relations.left_out()}
        self._carry_at = 0.0  # when it is looked again whether one of these is to be carried
        stream.nonblocking = 1
        self._arrival = select.poll()
        self._arrival.register(stream.socket, select.POLLIN)
        self._step_began = self._step_given = self._heard = self._told = self._clock()
        heartbeat = self._heartbeat if stream.server_version >= 140_000 else 0.0
        self._learnt = 0.0  # when it was read which tables there are
        self._definitions = Definitions(self._setup.slot, self._relations.watched)
        self._caretaker = Caretaker(
            self._url,
            self._setup,
            heartbeat,
            self._tell_if_silent,
            self._definitions,
            self._relations.to_be_published,
            prints,
        )
        self._caretaker.start()

    def _check(self, control: psycopg.Connection, after: int) -> int:
        """Return how far the slot is confirmed, if that and the log's end fit what was captured."""
        slot = self._setup.slot
        if (lost := slot_lost(control, slot)) is not None:
            raise lost
        state = replication.slot_state(control, slot)
        if state is None:
            raise SourceUnavailable(f"slot {slot} was dropped just now")
        if state.confirmed_flush is not None and state.confirmed_flush > after:
            raise LogRewound(
                f"slot {slot} was confirmed up to {replication.lsn_text(state.confirmed_flush)}, but the log ends at "
                f"{replication.lsn_text(after)}: it is not the log that was written, or has lost its end",
                remedy=f"bring the right log back; if it is gone: {LOAD_AGAIN}",
            )
        self._end_at_start = replication.wal_insert_lsn(control)
        if after > self._end_at_start:
            raise PositionLost(
                f"the source's log ends at {replication.lsn_text(self._end_at_start)}, before "
                f"{replication.lsn_text(after)}, which was captured already: it was restored to an earlier state",
                remedy=LOAD_AGAIN,
            )
        return state.confirmed_flush or 0

    def _patiently(self, stream: Callable[[], None]) -> None:
        """Begin to stream, waiting a little for another reader of the slot to go."""
        deadline = self._clock() + ACQUIRE_SECONDS
        while True:
            try:
                return stream()
            except psycopg.errors.ObjectInUse as error:
                if self._clock() > deadline:
                    raise SourceUnavailable(f"slot {self._setup.slot} is in use by another reader") from error
                time.sleep(0.05)

    def _stream_after(self, stream: pq.abc.PGconn, after: int) -> None:
        messages = stream.server_version >= 140_000
        replication.start_streaming(stream, self._setup.slot, self._setup.publications, after, messages=messages)

    # --------------------------------------------------------------------------------------------------- reading

    def poll(self, timeout: float) -> Step | None:
        """See `Source.poll`."""
        try:
            return self._poll(timeout)
        except SchemaUnsupported:
            # It will be raised again when the transactions that are complete have been handed over.
            if not self._commits or self._spilled:
                raise
            self._begin_again_singly()
            return None

    def _begin_again_singly(self) -> None:
        """Stream once more what came behind the last step, with a step for each transaction that is complete."""
        self.close()
        self._singly, self._commits, self._gathered, self._open = self._commits, 0, 0, False
        self.start(self._position, self._epoch, self._last)

    def _poll(self, timeout: float) -> Step | None:
        clock = self._clock
        now = clock()
        deadline = now + timeout
        if self._handed:
            self._handed = False
            behind = self._end() - self._position > BEHIND_BYTES
            wrote = now - self._step_given
            self._gather = SLOW_STEP_SECONDS if behind else min(SLOW_STEP_SECONDS, max(STEP_SECONDS, 4 * wrote))
        if self._caretaker is not None and self._caretaker.problem is not None:
            self._look_at_publications(self._caretaker)
        with self._lock:
            while True:
                dry = self._drain()
                now = clock()
                if not self._open:
                    self._learn(now)
                    self._define()
                    self._carry_again(now)
                step = self._due(now, dry)
                if step is not None:
                    return step
                if now - self._told >= STATUS_SECONDS:
                    self._listen(now)
                    self._tell(now)
                if now >= deadline:
                    return None
                if dry:
                    self._rest(now, deadline)

    def _drain(self) -> bool:
        """Feed the decoder what is there, up to a slice; return whether there was no more.

        The loop is run for every message. What is not needed for every one of them stands outside.
        """
        stream = self._stream
        if stream is None:
            raise SourceUnavailable("the stream is closed")
        get, feed = stream.get_copy_data, self._decoder.feed
        full = self._full()
        room, looked, dry = SLICE_BYTES, False, False
        data: memoryview | None = None
        try:
            while room > 0:
                size, data = get(1)
                if size > 0:
                    looked = False
                    room -= size
                    event = feed(data)
                    if event:
                        if event == COMMIT:
                            self._open = False
                            self._commits += 1
                            if full:
                                break
                        elif event == BEGIN:
                            self._open = True
                        else:
                            self._handle(event)
                elif size == 0:
                    if looked:
                        dry = True
                        break
                    stream.consume_input()
                    looked = True
                else:
                    raise self._ended(None)
        except psycopg.Error as error:
            raise self._ended(error) from error
        except ValueUnsupported as error:
            self._leave_out_row(error, bytes(data[25:30] if data is not None else b""))
        if room < SLICE_BYTES:
            self._heard = self._clock()
            if self._gathered == 0:
                self._step_began = self._heard
            self._gathered += SLICE_BYTES - room
        return dry

    def _look_at_publications(self, caretaker: Caretaker) -> None:
        """Look once more at what the caretaker complains of, and raise it, unless the pipeline has other tables by now:
        those that were removed are not published any more, and what was put back is loaded anew."""
        before = dict(self._tables.published)
        caretaker.problem = None
        with translated("source", "looking at the publications"):
            self._tables.choose(self._setup)
            now = self._tables.published
            moved = {oid for id in before for oid in before[id].table.oids if now.get(id) is not before[id]}
            caretaker.forget(moved)
            caretaker.check(self._catalogue())

    def _full(self) -> bool:
        """Whether the step should be closed at the next commit."""
        if self._singly or self._spilled:
            return True
        if self._gathered == 0:
            return False
        return self._decoder.pending_bytes >= STEP_BYTES or self._clock() - self._step_began >= self._gather

    def _due(self, now: float, dry: bool) -> Step | None:
        """Return what was gathered, if it is time to."""
        if self._open:
            if self._decoder.pending_bytes >= SPILL_BYTES:
                return self._step(None, now)
        elif self._commits:
            if (dry and now - self._step_given >= self._pause) or self._full():
                return self._step(max(self._decoder.position, self._passed), now)
        elif self._passed > self._position:
            return self._step(self._passed, now)
        return None

    def _step(self, position: int | None, now: float) -> Step:
        blocks, schemas = {}, {}
        for slot, (count, data, ids) in self._decoder.take().items():
            partition = self._partitions[slot]
            blocks[partition], schemas[partition] = Block(count, data), ids
        commit_time = self._decoder.commit_time if self._commits and position is not None else 0
        rate = self._gathered / max(now - self._step_given, 1e-6) / BUSY_BYTES_A_SECOND
        self._pause = self._gather * min(1.0, rate * rate)
        self._gathered = 0
        self._handed = True
        self._step_given = self._step_began = now
        transactions, last = 0, NO_COMMIT
        self._spilled = position is None
        if position is not None:
            transactions, self._commits, self._position = self._commits, 0, position
            self._singly = max(0, self._singly - transactions)
        if transactions:
            last = self._last = Commit(self._decoder.commit_lsn, self._decoder.commit_time)
        return Step(blocks, schemas, position, commit_time, self._decoder.max_xid, transactions, self._end(), last)

    def _end(self) -> int:
        """How far the source's log reaches, as far as we know."""
        return max(self._caretaker.end if self._caretaker is not None else 0, self._end_at_start, self._passed)

    def _rest(self, now: float, deadline: float) -> None:
        """Wait for more: a nap while something is going on, else until the kernel wakes us."""
        if self._open or self._commits or now - self._heard < QUIET_SECONDS:
            time.sleep(NAP_SECONDS)
        else:
            until = min(deadline, self._told + STATUS_SECONDS)
            self._arrival.poll(max(0.0, until - now) * 1000)

    def _handle(self, event: int) -> None:
        if event == KEEPALIVE:
            if not self._open:
                self._passed = max(self._passed, self._decoder.wal_end)
            if self._decoder.reply_requested:
                self._tell(self._clock())
        elif event == RELATION:
            self._bind(self._decoder.relation)
        elif event == TRUNCATE:
            self._truncate(*self._decoder.truncated)
        elif event == MESSAGE:
            _, _, prefix, content = self._decoder.message
            if prefix == definitions.PREFIX:
                for version in self._relations.tell(definitions.message_of(content)):
                    self._append(version)
                self._definitions.look_soon()

    # ------------------------------------------------------------------------------------------------- relations

    def _bind(self, relation: Relation) -> None:
        try:
            with translated("source", f"looking up {relation.schema}.{relation.name}"):
                version = self._relations.version(self._catalogue(), relation, self._decoder.xid)
        except SchemaUnsupported as error:
            id = self._relations.owner(relation.oid)
            if id is None:
                raise
            version = self._leave_out(id, error)
        if version is None:
            self._bound.pop(relation.oid, None)
            self._decoder.ignore(relation.oid)
            return
        if self._bound.get(relation.oid, (None, relation))[1][:3] != relation[:3]:
            self._definitions.look_soon()  # who has another name may have got it from another table
        self._bound[relation.oid] = version.id, relation
        if version.left_out is None:
            self._decoder.bind(relation.oid, version.layout, self._slot(version))
            before = self._going_on.setdefault(version.id, version.table)
            if not same_partitions(before, version.table) and self._relations.is_current(version):
                self._go_on_with(version)
        else:
            self._left_out.add(version.id)
            self._decoder.leave_out(relation.oid, version.layout, self._slot(version))

    def _slot(self, version: Registered) -> int:
        if version.changes not in self._partitions:
            self._partitions.append(version.changes)
        return self._partitions.index(version.changes)

    def _learn(self, now: float) -> None:
        """Let the definitions of tables that were added be looked at too, though no row of them has come yet."""
        if self._definitions.due and now - self._learnt >= CARRY_SECONDS:
            self._learnt = now
            if self._relations.refresh():
                self._definitions.look_soon()

    def _define(self) -> None:
        """Record what the catalogue says of tables, as far as the stream has passed where that was read."""
        reached, told = max(self._decoder.position, self._passed), False
        while self._definitions.found and self._definitions.found[0].position <= reached:
            found = self._definitions.found.popleft()
            if found.id in self._left_out:
                continue
            if self._relations.described(found.id) != found.described:
                self._definitions.forget(found.id)  # the rows that have come since may know better
                continue
            try:
                with translated("source", f"looking up {found.id}"):
                    version = self._relations.define(self._catalogue(), found)
            except SchemaUnsupported as error:
                version = self._leave_out(found.id, error)
            if version is not None:
                self._append(version)
                told = True
        if told:
            self._need_place()

    def _need_place(self) -> None:
        """See to it that the stream goes on, if all that it has passed is told already: a definition outside of
        transactions is told with what comes next, and nobody may write anything for hours."""
        if not self._commits and self._passed <= self._position:
            replication.emit_message(self._catalogue(), "penstock", "definition")

    def _append(self, version: Registered) -> None:
        """Record that a table is another one from here on, and let the rows that follow be of that version."""
        self._decoder.append_definition(version.layout, self._slot(version))
        self._go_on_with(version)

    def _go_on_with(self, version: Registered) -> None:
        """Let the rows that follow be of this version, or of one with the same partitions."""
        self._going_on[version.id] = version.table
        planned = self._relations.published(version.id)
        for oid, (id, relation) in list(self._bound.items()):
            # The stream describes it once more before the next row, if it is not what it was.
            if id == version.id and matches(version.table, relation, planned):
                self._decoder.bind(oid, version.layout, self._slot(version))
            elif id == version.id and reorders(version.table, relation):
                self._bind(relation)
            elif id != version.id and self._relations.owner(oid) == version.id:
                self._bind(relation)  # a table of its own until it was attached to this one

    def _truncate(self, options: int, oids: tuple[int, ...]) -> None:
        """Record that tables were emptied, or partitions of them."""
        tables: dict[TableId, list[int]] = {}
        for oid in oids:
            if oid in self._bound:
                tables.setdefault(self._bound[oid][0], []).append(oid)
        for id, leaves in tables.items():
            if id in self._left_out:
                self._decoder.append_truncate(leaves[0], False)
                continue
            with translated("source", f"looking up {id}"):
                whole = self._relations.whole(self._catalogue(), id, leaves, self._decoder.xid)
            if whole:
                self._decoder.append_truncate(leaves[0], bool(options & RESTART_IDENTITY))
            else:
                self._append(self._relations.emptied(id, leaves))

    # --------------------------------------------------------------------------------------- what can't be carried

    def leave_out(self, schema_id: int, cause: ReplicationError) -> None:
        """See `Source.leave_out`."""
        self._tables.leave_out(self._tables.by_schema(schema_id), cause)

    def _leave_out(self, id: TableId, cause: ReplicationError) -> Registered:
        """Carry no more rows of a table: in each transaction to come a record of the version that is returned stands
        for them."""
        version = self._tables.leave_out(id, cause)
        self._left_out.add(id)
        slot = self._slot(version)
        for oid, (owner, _) in self._bound.items():
            if owner == id:
                self._decoder.leave_out(oid, version.layout, slot)
        return version

    def _leave_out_row(self, error: ValueUnsupported, change: bytes) -> None:
        """Leave the table of a row out that has no form in the log: without it the table would never be right."""
        id, relation = self._bound[int.from_bytes(change[1:], "big")]
        text = with_column_name(str(error), [column.name for column in relation.columns])
        cause = SchemaUnsupported(
            f"{id}: {text} (in the transaction at {replication.lsn_text(self._decoder.commit_lsn)})",
            remedy="correct the value",
        )
        self._append(self._leave_out(id, cause))

    def _carry_again(self, now: float) -> None:
        """Carry tables again that somebody has asked to load anew, as the catalogue has them."""
        if not self._left_out or now < self._carry_at:
            return
        for id in [id for id in self._left_out if self._tables.is_asked_for(id)]:
            try:
                with translated("source", f"looking up {id}"):
                    control = self._catalogue()
                    try:
                        publications_fit(control, self._setup, [t for t in self._relations.left_out() if t.id == id])
                        version = self._relations.carry(control, id, self._decoder.max_xid)
                    except psycopg.errors.LockNotAvailable:
                        continue  # no reason to keep all other tables waiting
            except (PrerequisiteMissing, SchemaUnsupported) as error:
                self._leave_out(id, error)
                continue
            if version is None:
                continue
            self._left_out.remove(id)
            for owner, relation in list(self._bound.values()):
                if owner == id:
                    self._bind(relation)
            if version.table.dropped:
                self._append(version)
                self._need_place()
        ended = self._clock()
        self._carry_at = ended + max(CARRY_SECONDS, CARRY_SHARE * (ended - now))

    def _catalogue(self) -> psycopg.Connection:
        """Return the ordinary connection, made again if it was lost while nobody needed it."""
        if self._control is None or self._control.closed:
            self._control = connect(self._url, role="control", application=f"penstock {self._setup.slot} catalogue")
            self._control.execute("select set_config('lock_timeout', '2s', false)")
        return self._control

    # --------------------------------------------------------------------------------------------------- telling

    def confirm(self, position: int) -> None:
        """See `Source.confirm`."""
        with self._lock:
            self._confirmed = max(self._confirmed, position)
            self._tell(self._clock())

    def _tell(self, now: float) -> None:
        """Tell the server how far it may forget, and that we live."""
        if self._stream is None:
            return
        try:
            self._stream.put_copy_data(replication.standby_status(self._confirmed, reply=self._asked is not None))
            self._stream.flush()
        except psycopg.Error as error:
            raise self._ended(error) from error
        self._told = now

    def _listen(self, now: float) -> None:
        """Notice that the server says nothing any more; called when all that it has sent is read."""
        if self._asked is None or self._heard > self._asked:
            self._asked = now if now - self._heard >= self._silence / 2 else None
        elif now - self._asked >= self._silence / 2:
            raise SourceUnavailable(
                f"source: nothing was heard on the change stream for {self._silence:.0f} s, though we asked",
                remedy="look at the network between us and the source, and at what keeps connections in it",
            )

    def _tell_if_silent(self) -> None:
        """For the caretaker: the first thread may be waiting for the log. If it reads, it tells by itself."""
        if self._lock.acquire(blocking=False):
            try:
                now = self._clock()
                if now - self._told >= STATUS_SECONDS / 2:  # the next look may come just too late
                    self._tell(now)
            finally:
                self._lock.release()

    # ---------------------------------------------------------------------------------------------------- errors

    def _ended(self, error: psycopg.Error | None) -> ReplicationError:
        """Return why the stream is over: the server says little on the stream itself, more about the slot."""
        said = "the server ended the stream"
        if error is None and self._stream is not None:
            result = self._stream.get_result()
            message = (result.get_error_message() if result is not None else "") or self._stream.get_error_message()
            said = " ".join(message.split()) or said
            if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
                error = psycopg.errors.error_from_result(result)
        with contextlib.suppress(psycopg.Error):
            if (lost := slot_lost(self._catalogue(), self._setup.slot)) is not None:
                return lost
        if error is not None:
            meaning = translate(error, "source", f"streaming from slot {self._setup.slot}")
            if is_row_too_large(error):
                return self._too_large(error, meaning)
            if not isinstance(meaning, TransientError) or isinstance(meaning, SourceUnavailable):
                return meaning
            said = str(meaning)
        return SourceUnavailable(said)

    def _too_large(self, error: psycopg.Error, meaning: ReplicationError) -> SchemaUnsupported:
        """Say where a row may be that the server can't send: it tells the position only, and goes no further."""
        found = re.search(r"LSN ([0-9A-F]+/[0-9A-F]+)", error.diag.context or "")
        tables = [table for table in self._relations.planned() if table.leaves]
        with contextlib.suppress(psycopg.Error):
            large = largest(self._catalogue(), tables)
            tables = [table for table in tables if table.id in large] or tables
        of = f"in {some([table.id for table in tables])}" if len(tables) <= SHOWN else "in a table of large values"
        return SchemaUnsupported(
            f"{meaning}; it is {of}{f', at {found[1]}' if found else ''}",
            remedy=f"keep such values out of the table, or leave it out of the pipeline; then {LOAD_AGAIN}",
        )

    def close(self) -> None:
        """See `Source.close`."""
        if self._caretaker is not None:
            self._caretaker.stop()
        with contextlib.ExitStack() as stack:
            if self._lock.acquire(timeout=1.0):  # never for long in other hands
                stack.callback(self._lock.release)
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.finish()
        if self._control is not None:
            self._control.close()
