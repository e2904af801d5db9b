"""Publications, slots, messages and streams of a real server."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.pq.abc import PGconn

from engines.postgres import catalogue
from engines.postgres.asking import run
from engines.postgres.connect import connect, replication
from engines.postgres.errors import translated
from engines.postgres.quoting import quote
from engines.postgres.replication import (
    create_slot,
    current_snapshot,
    drop_publications,
    drop_slot,
    emit_message,
    make_publications,
    publication_names,
    publication_problems,
    slot_state,
    standby_status,
    start_streaming,
    system_identity,
    wal_flush_lsn,
    wal_insert_lsn,
)
from schemas.errors import (
    ConfigInvalid,
    PositionLost,
    SchemaUnsupported,
    SnapshotLost,
    SourceUnavailable,
    TransientError,
    ValueUnsupported,
)
from schemas.table import Table, TableId
from tests.integration.postgres.rich import IDENTITIES

pytestmark = pytest.mark.versions


@pytest.fixture(params=["source", "target"])
def url(request: pytest.FixtureRequest, source_db: str, target_db: str) -> str:
    """An empty database of either server."""
    return source_db if request.param == "source" else target_db


@pytest.fixture
def conn(url: str) -> Iterator[psycopg.Connection]:
    with contextlib.closing(connect(url, role="control", application="test")) as connection:
        yield connection


@pytest.fixture
def slot(url: str, request: pytest.FixtureRequest) -> str:
    """A slot's name of this database alone: slots are the server's."""
    return "penstock_" + url.rpartition("/")[2].partition("?")[0][-20:]


def tables(conn: psycopg.Connection) -> list[Table]:
    return [t for t in catalogue.tables(conn, lambda id: True) if not t.definition.unlogged]


def receive(pgconn: PGconn) -> bytes:
    """Return the next message of a stream; it may have come with the answer that began it."""
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    while True:
        size, payload = pgconn.get_copy_data(1)
        if size > 0:
            return bytes(payload)
        assert poll.poll(10_000)
        pgconn.consume_input()


def test_keyless_tables_are_published_without_updates_and_deletes(conn: psycopg.Connection) -> None:
    conn.execute(IDENTITIES)
    chosen = tables(conn)
    assert publication_problems(conn, "p", chosen) == ["publication p is missing", "publication p_keyless is missing"]
    make_publications(conn, "p", chosen)
    assert publication_problems(conn, "p", chosen) == []
    # The application's own changes go on, whatever the identity: the server refuses them before it looks for rows.
    for table in chosen:
        name, column = quote(*table.id), quote(table.columns[0].name)
        run(conn, f"update {name} set {column} = {column}")
        run(conn, f"delete from {name}")
    published = conn.execute("select tablename from pg_publication_tables where pubname = 'p_keyless'").fetchall()
    assert {name for (name,) in published} == {
        "no_key",
        "deferrable_key",
        "index_gone",
        "nothing",
        "generated_key",
        "part_bad_1",
        "part_bad_2",
    }
    conn.execute("create table i.part_3 partition of i.part (primary key (b)) for values in (3)")
    assert publication_problems(conn, "p", tables(conn)) == []
    drop_publications(conn, "p")
    drop_publications(conn, "p")
    assert len(publication_problems(conn, "p", [])) == 2


def test_unlogged_tables_are_refused_by_name(conn: psycopg.Connection) -> None:
    conn.execute("create unlogged table public.fleeting (a int primary key)")
    with pytest.raises(SchemaUnsupported, match=r"public\.fleeting: unlogged") as refused:
        make_publications(conn, "p", catalogue.tables(conn, lambda id: True))
    assert "set logged" in refused.value.remedy


def test_publications_that_differ_are_told_and_mended(conn: psycopg.Connection) -> None:
    conn.execute("create table public.a (a int primary key, b int); create table public.b (a int primary key)")
    both = tables(conn)
    make_publications(conn, "p", [])
    assert publication_problems(conn, "p", []) == []
    assert publication_problems(conn, "p", both) == ["publication p lacks public.a, public.b"]
    make_publications(conn, "p", both)
    assert publication_problems(conn, "p", both) == []
    assert publication_problems(conn, "p", both[:1]) == []  # others are ignored
    conn.execute("alter publication p set (publish = 'insert')")
    assert "must publish" in publication_problems(conn, "p", both)[0]
    make_publications(conn, "p", both)
    assert publication_problems(conn, "p", both) == []


@pytest.mark.versions(where=lambda versions: min(versions) >= 15)
def test_publications_of_parts_of_tables_are_told_and_mended(conn: psycopg.Connection) -> None:
    conn.execute("create table public.a (a int primary key, b int); create table public.b (a int primary key)")
    both = tables(conn)
    make_publications(conn, "p", both)
    conn.execute("alter publication p set table public.a (a), public.b where (a > 1)")
    assert publication_problems(conn, "p", both) == [
        "publication p leaves out rows of public.b",
        "publication p leaves out columns of public.a",
    ]
    make_publications(conn, "p", both)
    assert publication_problems(conn, "p", both) == []


def test_a_waiting_slot_names_the_transaction_it_waits_for(url: str, conn: psycopg.Connection, slot: str) -> None:
    seen: list[list[str]] = []
    with contextlib.closing(connect(url, role="writer", application="blocker", autocommit=False)) as blocker:
        blocker.execute("create table public.t (a int)")
        pid = blocker.info.backend_pid

        def on_wait(lines: list[str]) -> None:
            seen.append(lines)
            blocker.commit()

        created = create_slot(url, slot, on_wait=on_wait)
    try:
        named = [line for line in seen[0] if f"process {pid} " in line]
        assert named
        assert "application blocker" in named[0]
        assert "idle in transaction" in named[0]
        with contextlib.closing(connect(url, role="reader", application="holder", autocommit=False)) as holder:
            holder.execute("set transaction isolation level repeatable read, read only")
            with translated("source"):
                run(holder, f"set transaction snapshot '{created.snapshot_name}'")
            assert holder.execute("select count(*) from public.t").fetchall() == [(0,)]
            visibility = current_snapshot(holder)
            assert visibility.xmin <= visibility.xmax
            assert current_snapshot(conn).sees_all_of(visibility)
            created.pgconn.finish()
            conn.execute("insert into public.t values (1)")
            assert holder.execute("select count(*) from public.t").fetchall() == [(0,)]
    finally:
        created.pgconn.finish()
        drop_slot(conn, slot)


def test_a_creation_that_is_given_up_leaves_no_slot(url: str, conn: psycopg.Connection, slot: str) -> None:
    class GiveUp(Exception):
        pass

    def on_wait(lines: list[str]) -> None:
        raise GiveUp

    with contextlib.closing(connect(url, role="writer", application="blocker", autocommit=False)) as blocker:
        blocker.execute("create table public.t (a int)")
        with pytest.raises(GiveUp):
            create_slot(url, slot, on_wait=on_wait)
        assert slot_state(conn, slot) is None
        blocker.rollback()
    assert slot_state(conn, slot) is None


def test_a_slot_is_known_streamed_from_and_dropped_under_its_stream(
    url: str, conn: psycopg.Connection, slot: str
) -> None:
    conn.execute("create table public.t (a int primary key)")
    make_publications(conn, slot, tables(conn))
    created = create_slot(url, slot, failover=True)
    created.pgconn.finish()
    state = slot_state(conn, slot)
    assert state is not None
    assert state.confirmed_flush == created.consistent_point
    assert not state.lost
    assert state.failover == (conn.info.server_version >= 170_000)
    message = emit_message(conn, "penstock", "snapshot")
    assert created.consistent_point < message <= wal_flush_lsn(conn) <= wal_insert_lsn(conn)
    with contextlib.closing(connect(url, role="control", application="t", autocommit=False)) as busy:
        busy.execute("select 1")
        with pytest.raises(ValueError, match="of its own"):
            emit_message(busy, "penstock", "x")
    stream, other = replication(url), replication(url)
    try:
        assert system_identity(stream) == system_identity(conn)
        start_streaming(stream, slot, publication_names(slot), 0, messages=True)
        assert receive(stream)[:1] in {b"w", b"k"}
        stream.put_copy_data(standby_status(message))
        stream.flush()
        active = slot_state(conn, slot)
        assert active is not None
        assert active.active_pid == stream.backend_pid
        with pytest.raises(TransientError), translated("source"):
            start_streaming(other, slot, publication_names(slot), 0, messages=True)
        drop_slot(conn, slot)
        assert slot_state(conn, slot) is None
        drop_slot(conn, slot)
        with pytest.raises(PositionLost), translated("source"):
            start_streaming(other, slot, publication_names(slot), 0, messages=True)
    finally:
        stream.finish()
        other.finish()
        drop_slot(conn, slot)


def test_lost_snapshots_broken_connections_and_bad_values_are_told_apart(url: str) -> None:
    with contextlib.closing(connect(url, role="reader", application="t")) as conn:
        for statement, expected in (
            ("set transaction snapshot '00000003-00000002-9'", SnapshotLost),
            ("set transaction snapshot 'nonsense'", SnapshotLost),
            ("select 'secret'::int", ValueUnsupported),
        ):
            conn.execute("begin isolation level repeatable read")
            with pytest.raises(expected) as caught, translated("source", "trying"):
                conn.execute(statement)
            conn.rollback()
            assert "secret" not in str(caught.value)
        with pytest.raises(SourceUnavailable), translated("source"):
            conn.execute("select pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(SourceUnavailable), translated("source"):
            conn.execute("select 1")
    with pytest.raises(ConfigInvalid), translated("source"):
        connect(url.rpartition("/")[0] + "/there_is_none", role="reader", application="t")
    with pytest.raises(SourceUnavailable), translated("source"):
        connect("postgresql://postgres@127.0.0.1:1/x", role="reader", application="t")


def test_settings_of_database_and_role_do_not_count(url: str, conn: psycopg.Connection) -> None:
    database = url.rpartition("/")[2].partition("?")[0]
    for setting in (
        "datestyle = 'German'",
        "intervalstyle = 'sql_standard'",
        "timezone = 'Asia/Tokyo'",
        "bytea_output = 'escape'",
        "extra_float_digits = 0",
        "search_path = 'public'",
        "statement_timeout = '10ms'",
        "default_transaction_isolation = 'serializable'",
        "idle_in_transaction_session_timeout = '10ms'",
        "quote_all_identifiers = on",
        "row_security = on",
    ):
        run(conn, f'alter database "{database}" set {setting}')
    query = (
        "select '2024-02-01 12:00Z'::timestamptz::text, '-1 day 2 hours'::interval::text, '\\x00'::bytea::text,"
        " (0.1::float8 + 0.2::float8)::text, current_setting('search_path'), current_setting('statement_timeout'),"
        " current_setting('transaction_isolation'), current_setting('row_security')"
    )
    with contextlib.closing(connect(url, role="reader", application="t")) as reader:
        assert reader.execute(query).fetchall() == [
            (
                "2024-02-01 12:00:00+00",
                "-1 days +02:00:00",
                "\\x00",
                "0.30000000000000004",
                "pg_catalog",
                "0",
                "read committed",
                "off",
            )
        ]
    with_options = f"{url}{'&' if '?' in url else '?'}options=-c%20work_mem%3D7MB%20-c%20datestyle%3DSQL"
    with contextlib.closing(connect(with_options, role="writer", application="t")) as writer:
        assert writer.execute("select current_setting('work_mem'), current_setting('datestyle')").fetchall()[0] in {
            ("7MB", "ISO, MDY"),
            ("7MB", "ISO, DMY"),
        }


def test_a_table_id_is_quoted_wherever_it_goes(conn: psycopg.Connection) -> None:
    conn.execute('create schema "a.b"; create table "a.b"."c""d%s" (a int primary key)')
    (table,) = tables(conn)
    assert table.id == TableId("a.b", 'c"d%s')
    make_publications(conn, "p", [table])
    assert publication_problems(conn, "p", [table]) == []
