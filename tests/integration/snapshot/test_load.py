"""Loads of a real source: every row of every sort of table, once, as the source writes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest

from schemas.errors import LogRewound, PermissionMissing
from schemas.frontier import Admitted, Claim
from schemas.record import decode_control, encode_control
from snapshot import loop, postgres
from snapshot.loop import SnapshotWorker
from snapshot.postgres import PostgresReader, PostgresSnapshotSource
from tests.integration.snapshot.conftest import World
from transport.topics import Topics

pytestmark = pytest.mark.versions

TYPES = """
create schema shop;
create type shop.status as enum ('new', 'it''s', 'ü');
create domain shop.positive as int check (value > 0);
create domain shop.state as shop.status;
create type shop.address as (street text, number int);
create table shop.types (
    id bigint primary key, b bool, s smallint, i int, r real, d double precision, n numeric, p numeric(12,2),
    day date, t time, tz timetz, ts timestamp, tstz timestamptz, raw bytea, tx text, vc varchar(20), ch char(6),
    na name, j json, jb jsonb, u uuid, en shop.status, dom shop.positive, dos shop.state, ad shop.address, iv interval,
    ip inet, net cidr, mac macaddr, bits varbit, arr int[], texts text[], span int4range, o oid, one "char",
    money money, x xml, ens shop.status[], point point, ts2 timestamptz(0), twice int generated always as (s + 0) stored
)
"""
ROWS = """
insert into shop.types (id) values (0);
insert into shop.types values
 (1, true, -32768, 2147483647, 'NaN', 'Infinity', 'NaN', 1.50, 'infinity', '24:00:00', '24:00:00-15:59', '-infinity',
  'infinity', '\\x00ff', E'a\\tb\\\\\\n"''ü', 'v', 'ab ', 'name', '{"a" :  1}', '{"a" : 1.50, "b": null}',
  '00000000-0000-0000-0000-000000000001', 'it''s', 1, 'ü', row('a b', null), '1 year -2 mons 3 days 04:05:06.789',
  '192.168.0.1', '10.0.0.0/8', '08:00:2b:01:02:03', '1011', '{1,null,3}', '{"a,b","c\\"d",null,""}', '[1,5)',
  4294967295, 'x', 12.34, null, '{new,it''s}', '(1,2)', '2024-01-01 12:00:00.6+02'),
 (2, false, 0, -1, '-0', 1e-320, 123456789012345678901234567890.123456789000, -0.01, '4713-01-01 BC', '00:00:00.000001',
  '12:00:00.5+05:30', '4713-01-01 00:00:00 BC', '290000-12-31 23:59:59.999999+00', '', '', '', '', '', '[]',
  '"\\u00fc"', 'ffffffff-ffff-ffff-ffff-ffffffffffff',
  'new', 2147483647, 'new', row(null, null), '-1 microsecond', '::1/64',
  'fe80::/10', 'ff:ff:ff:ff:ff:ff', '', '{}', '{}',
  'empty', 0, '', -1, null, '{}', '(-0,1e300)', '1999-12-31 23:59:59.4Z'),
 (-9223372036854775808, null, 32767, 0, 3.4028235e38, 2.2250738585072014e-308, '-Infinity', 0, '-infinity', '12:34:56',
  null, '2000-02-29 01:02:03.4', '0001-01-01 00:00:00+00 BC', decode(repeat('ab', 5000), 'hex'), repeat('long ', 5000),
  null, 'abcdef', null, null, jsonb_build_object('k', repeat('y', 20000)), null, 'ü', 5, null, null, null, '0.0.0.0/0',
  null, null, null, '[2:3]={7,8}', '{{a,b},{c,d}}', '(,)', 1, '\\377', null, null, null, null, null);
insert into shop.types (id, i, tx) select g, g, repeat('x', g % 50) from generate_series(10, 3000) g;
"""


def test_a_holder_that_waits_for_another_says_for_whom(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (PostgresSnapshotSource(world.url, "shop") for _ in range(2))
    with closing(first), closing(second):
        assert first.claim()
        assert not second.claim() and not caplog.messages
        monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + postgres.PATIENT_SECONDS)
        assert not second.claim() and not second.claim()
        (told,) = caplog.messages
        assert "another holder" in told and "application penstock holder" in told


def test_values_of_every_type_are_loaded_as_the_source_writes_them(world: World) -> None:
    world.run(*TYPES.strip().split(";\n"))
    for statement in ROWS.strip().split(";\n"):
        world.run(statement)
    world.holder(), world.capture(), world.worker(0), world.worker(1)
    world.load()
    loaded, source = world.loaded_rows("shop.types"), world.source_rows("shop.types")
    assert len(source) == 2995
    for row in source - loaded:
        near = next((other for other in loaded if other[0] == row[0]), None)
        assert near == row
    assert loaded == source


SHAPES = """
create schema shop;
create table shop.empty (id int primary key, t text);
create table shop.nothing ();
insert into shop.nothing default values;
insert into shop.nothing default values;
create table shop.computed (a int generated always as (1) stored);
insert into shop.computed default values;
create table shop.no_key (a int, b text);
insert into shop.no_key select g % 3, 'twice' from generate_series(1, 7000) g;
create table shop.base (id int primary key);
create table shop.child (more text, primary key (id)) inherits (shop.base);
insert into shop.base select generate_series(1, 10);
insert into shop.child select g, 'm' from generate_series(11, 30) g;
create table shop.parts (id int, d date not null, t text, primary key (id, d)) partition by range (d);
create table shop.parts_1 partition of shop.parts for values from ('2024-01-01') to ('2025-01-01')
 partition by list (id);
create table shop.parts_1a partition of shop.parts_1 for values in (1, 2);
create table shop.parts_1b partition of shop.parts_1 default;
create table shop.parts_2 partition of shop.parts default;
create table shop.parts_3 partition of shop.parts for values from ('2030-01-01') to ('2031-01-01');
insert into shop.parts select g, date '2024-01-01' + g, 'p' || g from generate_series(1, 5000) g
 where date '2024-01-01' + g < '2030-01-01';
create table shop.no_parts (id int, d date not null, primary key (id, d)) partition by range (d);
create table shop."Q""uote %s" ("a b" int primary key, "%s" text, "ctid "  int);
insert into shop."Q""uote %s" values (1, '%', 2);
"""


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pages a chunk, and batches of a few kilobytes."""
    monkeypatch.setattr(postgres, "CHUNK_BYTES", 16384)
    monkeypatch.setattr(postgres, "BATCH_BYTES", 4096)


@pytest.mark.usefixtures("small_chunks")
def test_tables_of_every_shape_are_loaded_whole(world: World) -> None:
    for statement in SHAPES.strip().split(";\n"):
        world.run(statement)
    world.holder(), world.capture(), world.worker(0), world.worker(1)
    world.load()
    tables = ["empty", "nothing", "computed", "no_key", "base", "child", "parts", "no_parts", 'Q"uote %s']
    for name in tables:
        assert world.loaded_rows(f"shop.{name}") == world.source_rows(f"shop.{name}"), name
    assert world.loaded_rows("shop.nothing").total() == 2
    assert world.loaded_rows("shop.base").total() == 10
    leaves = {chunk.leaf_name for chunk in world.chunks("shop.parts").plan.chunks}  # type: ignore[union-attr]
    assert leaves == {"parts_1a", "parts_1b", "parts_2", "parts_3"}
    assert len(world.chunks("shop.no_key").plan.chunks) > 5  # type: ignore[union-attr]
    assert len(world.chunks("shop.empty").plan.chunks) == 1  # type: ignore[union-attr]


@pytest.mark.usefixtures("small_chunks")
def test_rows_that_come_after_the_snapshot_are_in_the_stream_and_not_in_the_load(world: World) -> None:
    world.run("create schema shop", "create table shop.t (id int primary key, v text)")
    world.run("insert into shop.t select g, 'v' from generate_series(1, 5000) g")
    holder = world.holder()
    while holder.setup is None:
        holder.step()
    before = world.source_rows("shop.t")
    world.run(
        "insert into shop.t select g, 'late' from generate_series(5001, 9000) g", "delete from shop.t where id < 9"
    )
    world.run("vacuum shop.t")
    world.capture(), world.worker(0)
    world.load()
    assert world.loaded_rows("shop.t") == before
    world.catch_up()
    assert world.rebuilt_rows("shop.t") == world.source_rows("shop.t")


def test_a_slot_that_an_earlier_attempt_left_behind_is_made_again(world: World) -> None:
    world.run("create schema shop", "create table shop.t (id int primary key)", "insert into shop.t values (1)")
    slot = f"penstock_{world.pipeline.pipeline}"
    world.run(f"select pg_create_logical_replication_slot('{slot}', 'pgoutput')", "insert into shop.t values (2)")
    holder = world.holder()
    with pytest.raises(LogRewound, match="begun with another log"):
        while holder.setup is None:
            holder.step()
    world.remove(holder)
    topics = Topics(world.pipeline.pipeline)
    with world.log.writer("control") as control:  # the attempt was one with this log
        control.put(topics.control, encode_control(Claim("who died", 0)))
    world.holder(), world.capture(), world.worker()
    world.load()
    setup = world.setup()
    assert setup is not None and setup.slot == slot
    assert world.loaded_rows("shop.t").total() == 2


def test_a_second_holder_waits_until_the_first_is_gone(world: World) -> None:
    world.run("create schema shop", "create table shop.t (id int primary key)")
    first, second = world.holder(), world.holder()
    while first.setup is None:
        first.step()
        assert not second.step()
    world.remove(first)
    world.until(lambda: bool(second.held))
    assert second.setup == first.setup


def test_in_mode_changes_only_the_setup_is_made(source_db: str, make_world: Callable[..., World]) -> None:
    world = make_world(source_db, mode="changes")
    world.run("create schema shop", "create table shop.t (id int primary key)")
    holder, worker = world.holder(), world.worker()
    world.until(lambda: holder.done and worker.done)
    assert world.setup() is not None
    with world.log.reader() as reader:
        [told] = reader.records(world.topics.chunks, 0)  # for whom trimming waits; nothing of snapshots or tables
    assert isinstance(decode_control(told.value or b""), Admitted)


def test_a_table_without_permission_stops_no_other(
    source_db: str, make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "ASIDE_SECONDS", 0.5)
    world = make_world(source_db)
    world.run(
        "create schema shop", "create table shop.a (id int primary key)", "create table shop.b (id int primary key)"
    )
    role = f"r_{world.pipeline.pipeline}"
    world.run("insert into shop.a values (1)", "insert into shop.b values (1)", f"create role {role} login")
    world.run(f"grant usage on schema shop to {role}", f"grant select on shop.b to {role}")
    try:
        world.holder(), world.capture()
        worker = world.add(
            SnapshotWorker(
                world.log, world.topics, lambda: PostgresReader(source_db.replace("postgres@", f"{role}@")), 0
            )
        )
        with pytest.raises(PermissionMissing, match=r"shop\.a"):
            world.load()
        assert world.chunks("shop.b").complete()
        assert set(worker.problems) == {"shop.a"}
    finally:
        world.close()
        with psycopg.connect(source_db, autocommit=True) as connection:
            connection.execute(f"drop owned by {role}")
            connection.execute(f"drop role {role}")
