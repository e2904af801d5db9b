"""Slots, streams and the other primitives of logical replication."""

from __future__ import annotations

import contextlib
import select
import struct
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import psycopg
from psycopg import pq
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn

from engines.postgres.asking import ask, run
from engines.postgres.connect import connect, execute, replication, rows
from engines.postgres.errors import translate, translated
from engines.postgres.publications import (
    drop_publications,
    make_publications,
    publication_names,
    publication_prints,
    publication_problems,
)
from engines.postgres.quoting import literal, quote
from schemas.errors import TransientError
from schemas.frontier import Visibility, lsn_text

__all__ = [
    "SlotCreated",
    "SlotState",
    "create_slot",
    "current_snapshot",
    "drop_publications",
    "drop_slot",
    "emit_message",
    "is_standby",
    "lsn",
    "lsn_text",
    "make_publications",
    "publication_names",
    "publication_prints",
    "publication_problems",
    "slot_reader",
    "slot_state",
    "standby_status",
    "standbys_awaited",
    "start_streaming",
    "system_identity",
    "wal_flush_lsn",
    "wal_insert_lsn",
]

WAIT_BEFORE_NAMING = 1.0
"""Seconds that the creation of a slot may take before those it waits for are named."""
NAME_EVERY = 5.0
END_WITHIN = 10.0
"""Seconds that a terminated walsender has to end."""
TELL_AGAIN = 0.5
"""Seconds after which it is told again."""

POSTGRES_EPOCH = 946_684_800  # 2000-01-01 in seconds since 1970

BLOCKING = """
select format('process %s (user %s, database %s, application %s)', l.pid, coalesce(a.usename, '?'),
              coalesce(a.datname, '?'), coalesce(nullif(a.application_name, ''), '?'))
       || coalesce(', in a transaction since ' || to_char(a.xact_start, 'YYYY-MM-DD HH24:MI:SS'), '')
       || coalesce(', ' || a.state, '')
  from pg_locks l
  left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'transactionid' and l.granted and l.mode = 'ExclusiveLock'
   and l.pid is not null and l.pid <> pg_backend_pid()
 union all
select format('prepared transaction %s (user %s, database %s) since %s', quote_literal(gid), owner, database,
              to_char(prepared, 'YYYY-MM-DD HH24:MI:SS'))
  from pg_prepared_xacts
 order by 1
"""
"""Transactions that have written and are still open. Locks are shown to every user, `backend_xid` is not."""

SLOT = """
select s.confirmed_flush_lsn::text, s.restart_lsn::text, s.active_pid, s.database,
       coalesce(to_jsonb(s) ->> 'wal_status', ''), (to_jsonb(s) ->> 'safe_wal_size')::int8,
       coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), coalesce((to_jsonb(s) ->> 'failover')::bool, false)
  from pg_replication_slots s
 where s.slot_name = %(slot)s
"""
"""Columns that an older server lacks are taken from the row as JSON, where they are just missing."""


BACKEND = """
format('process %%s of the source (application %%s%%s)', {pid}, coalesce(nullif(a.application_name, ''), '?'),
       ', from ' || host(a.client_addr))
"""
"""What a process is called for people; `a` is its row of `pg_stat_activity`, if we may see it."""

AWAITED = """
select trim(both ' "' from named)
  from unnest(string_to_array(current_setting('synchronized_standby_slots', true), ',')) named
 where trim(both ' "' from named) <> ''
   and not exists (select from pg_replication_slots s
                    where s.slot_name = trim(both ' "' from named) and s.slot_type = 'physical' and s.active)
   and exists (select from pg_replication_slots s
                where s.slot_name = %(slot)s and coalesce((to_jsonb(s) ->> 'failover')::bool, false))
"""

READER = f"""
select {BACKEND.format(pid="s.active_pid")}
  from pg_replication_slots s
  left join pg_stat_activity a on a.pid = s.active_pid
 where s.slot_name = %(slot)s and s.active_pid is not null
"""


class SlotCreated(NamedTuple):
    """A new slot. Its snapshot can be imported until anything else is done on `pgconn`, or it ends."""

    consistent_point: int
    snapshot_name: str
    pgconn: PGconn


class SlotState(NamedTuple):
    """What the server says of a slot; empty or None where its version does not tell."""

    confirmed_flush: int | None
    restart: int | None
    active_pid: int | None
    database: str
    wal_status: str  # reserved, extended, unreserved, lost (13+)
    safe_wal_size: int | None  # bytes until it may be lost; None without a limit (13+)
    invalidation_reason: str  # 17+
    failover: bool  # 17+

    @property
    def lost(self) -> bool:
        """Whether nothing can be streamed from it any more."""
        return self.wal_status == "lost" or bool(self.invalidation_reason)


def lsn(text: str) -> int:
    """Return `16/B374D848` as a number."""
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def system_identity(connection: psycopg.Connection | PGconn) -> str:
    """Return the identifier that the cluster was given when it was made; its copies have the same."""
    if isinstance(connection, psycopg.Connection):
        return str(ask(connection, "select system_identifier::text from pg_control_system()")[0][0])
    return str(execute(connection, "IDENTIFY_SYSTEM")[0][0])


def create_slot(
    url: str,
    slot: str,
    *,
    failover: bool = False,
    on_wait: Callable[[list[str]], None] = lambda waiting_for: None,
) -> SlotCreated:
    """Create a slot with an exported snapshot; the caller keeps its connection, untouched, as long as it needs that.

    The server first waits for every transaction that has written something, in any database, and does so for as
    long as they last: `on_wait` is called with a line for each, again and again. If it raises, or anything else
    goes wrong, the slot is gone again. Raise our errors.
    """
    with (
        translated("source", f"creating slot {slot}"),
        contextlib.closing(connect(url, role="control", application="penstock slot")) as control,
    ):
        pgconn = replication(url, application=f"penstock {slot}")
        try:
            result = _create_slot(pgconn, control, slot, failover, on_wait)
        except BaseException:
            pid = pgconn.backend_pid
            pgconn.finish()
            # It does not notice that its client left while it waits.
            _terminate(control, pid)
            drop_slot(control, slot)
            raise
        _, consistent_point, snapshot, _ = result
        assert consistent_point and snapshot
        return SlotCreated(lsn(consistent_point), snapshot, pgconn)


def _create_slot(
    pgconn: PGconn,
    control: psycopg.Connection,
    slot: str,
    failover: bool,
    on_wait: Callable[[list[str]], None],
) -> tuple[str | None, ...]:
    options = "EXPORT_SNAPSHOT"
    if pgconn.server_version >= 150_000:
        options = "(SNAPSHOT 'export')"
    if failover and pgconn.server_version >= 170_000:
        options = "(SNAPSHOT 'export', FAILOVER)"
    pgconn.send_query(f"CREATE_REPLICATION_SLOT {quote(slot)} LOGICAL pgoutput {options}".encode())
    pgconn.flush()
    arrival = select.poll()
    arrival.register(pgconn.socket, select.POLLIN)
    ask_next = time.monotonic() + WAIT_BEFORE_NAMING
    while pgconn.is_busy():
        if arrival.poll(max(0.0, ask_next - time.monotonic()) * 1000):
            pgconn.consume_input()
        else:
            on_wait([line for (line,) in ask(control, BLOCKING)])
            ask_next = time.monotonic() + NAME_EVERY
    result = pgconn.get_result()
    while pgconn.get_result() is not None:
        pass
    if result is None:
        raise psycopg.OperationalError(pgconn.get_error_message())
    return rows(result)[0]


def drop_slot(conn: psycopg.Connection, slot: str) -> None:
    """Drop a slot, ending whoever streams from it; nothing happens if there is none. Raise our errors."""
    deadline = time.monotonic() + END_WITHIN
    with translated("source", f"dropping slot {slot}"):
        while (state := slot_state(conn, slot)) is not None:
            if state.active_pid is not None:
                _terminate(conn, state.active_pid)
            try:
                run(conn, "select pg_drop_replication_slot(%(slot)s)", slot=slot)
            except psycopg.errors.UndefinedObject:
                return
            except psycopg.errors.ObjectInUse as exc:  # somebody took it again
                if time.monotonic() > deadline:
                    raise translate(exc, "source", f"dropping slot {slot}") from exc


def _terminate(conn: psycopg.Connection, pid: int) -> None:
    """End a session and wait until it is gone."""
    began = told = time.monotonic()
    run(conn, "select pg_terminate_backend(%(pid)s)", pid=pid)
    while ask(conn, "select from pg_stat_activity where pid = %(pid)s", pid=pid):
        now = time.monotonic()
        if now - told > TELL_AGAIN:
            # One whose client reads nothing any more waits to tell it that this is the end, until it is told twice.
            told = now
            run(conn, "select pg_terminate_backend(%(pid)s)", pid=pid)
        if now - began > END_WITHIN:
            raise TransientError(f"source: process {pid} does not end {END_WITHIN:.0f} s after it was told to")
        # Without a way to be told (14+ has one): look again.
        run(conn, "select pg_sleep(0.02)")


def slot_state(conn: psycopg.Connection, slot: str) -> SlotState | None:
    """Return how a slot is, None if there is none."""
    found = ask(conn, SLOT, slot=slot)
    if not found:
        return None
    confirmed, restart, pid, database, status, safe, reason, failover = found[0]
    return SlotState(
        confirmed_flush=lsn(confirmed) if confirmed else None,
        restart=lsn(restart) if restart else None,
        active_pid=pid,
        database=database or "",
        wal_status=status,
        safe_wal_size=safe,
        invalidation_reason=reason,
        failover=failover,
    )


def slot_reader(conn: psycopg.Connection, slot: str, patience: float) -> str:
    """Return who streams from a slot, for people; empty if nobody does. One that reads has so many seconds to go: the
    server takes a moment to notice a client that died."""
    deadline = time.monotonic() + patience
    while (found := ask(conn, READER, slot=slot)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return str(found[0][0]) if found else ""


def is_standby(conn: psycopg.Connection) -> bool:
    """Return whether the server only follows another one."""
    return bool(ask(conn, "select pg_is_in_recovery()")[0][0])


def standbys_awaited(conn: psycopg.Connection, slot: str) -> list[str]:
    """Return the slots of standbys that do not stream, while the source sends a slot for fail-over nothing before they
    have it (`synchronized_standby_slots`, 17+). It says so in its own log only."""
    return [name for (name,) in ask(conn, AWAITED, slot=slot)]


def wal_insert_lsn(conn: psycopg.Connection) -> int:
    """Return the end of the write-ahead log. On an idle server no stream may ever reach it."""
    return lsn(ask(conn, "select pg_current_wal_insert_lsn()::text")[0][0])


def wal_flush_lsn(conn: psycopg.Connection) -> int:
    """Return how far the write-ahead log is on disk."""
    return lsn(ask(conn, "select pg_current_wal_flush_lsn()::text")[0][0])


def emit_message(conn: psycopg.Connection, prefix: str, content: str) -> int:
    """Put a message into the stream, in a transaction of its own, and return its position when it is on disk.

    No standby is waited for. Whatever committed before is on disk as well.
    """
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise ValueError("a message needs a transaction of its own")
    with conn.transaction():
        run(conn, "set local synchronous_commit = local")
        emitted = ask(
            conn,
            "select pg_logical_emit_message(true, %(prefix)s, %(content)s)::text",
            prefix=prefix,
            content=content,
        )
    return lsn(emitted[0][0])


def current_snapshot(conn: psycopg.Connection) -> Visibility:
    """Return what the transaction's snapshot sees (without a transaction: what a new one would)."""
    function = "pg_current_snapshot()" if conn.info.server_version >= 130_000 else "txid_current_snapshot()"
    xmin, xmax, xip = ask(conn, f"select {function}::text")[0][0].split(":")
    return Visibility(int(xmin), int(xmax), tuple(int(xid) for xid in xip.split(",") if xid))


def start_streaming(pgconn: PGconn, slot: str, publications: Sequence[str], position: int, *, messages: bool) -> None:
    """Begin to stream committed transactions after `position`; `messages` needs 14 or newer.

    A position before the slot's confirmed one silently counts as that, one beyond the log's end is waited for:
    check both first. Raise the driver's error, to be translated.
    """
    names = literal(",".join(quote(name) for name in publications))
    options = f"proto_version '1', publication_names {names}{', messages ' + literal('true') if messages else ''}"
    result = pgconn.exec_(f"START_REPLICATION SLOT {quote(slot)} LOGICAL {lsn_text(position)} ({options})".encode())
    if result.status != pq.ExecStatus.COPY_BOTH:
        raise psycopg.errors.error_from_result(result)


def standby_status(position: int, *, reply: bool = False, at: float | None = None) -> bytes:
    """Return the message that confirms everything up to `position`; with `reply` the server answers at once."""
    clock = int(((time.time() if at is None else at) - POSTGRES_EPOCH) * 1_000_000)
    return struct.pack("!cQQQqB", b"r", position, position, position, clock, reply)
