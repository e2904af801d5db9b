"""What the catalogue says of real tables, and that a target can be made of it that says the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from conversion.ddl import after_load, create_table, foreign_keys, in_order, objects_statements, sequence_value
from conversion.loss import all_losses
from engines.postgres import catalogue
from engines.postgres.asking import ask, run
from engines.postgres.connect import connect, major
from engines.postgres.objects import objects, objects_of_each
from engines.postgres.types import text_of
from schemas.table import Identity, Leaf, Objects, Table, TableId
from schemas.types import Kind
from tests.integration.postgres.rich import IDENTITIES, RICH

pytestmark = pytest.mark.versions


@pytest.fixture(params=["source", "target"])
def conn(request: pytest.FixtureRequest, source_db: str, target_db: str) -> Iterator[psycopg.Connection]:
    """A connection to an empty database of either server."""
    url = source_db if request.param == "source" else target_db
    with contextlib.closing(connect(url, role="control", application="t")) as connection:
        yield connection


def everything(id: TableId) -> bool:
    return True


def by_name(conn: psycopg.Connection) -> dict[str, Table]:
    return {table.id.name: table for table in catalogue.tables(conn, everything)}


def comparable(table: Table) -> Table:
    """Return the table without what differs between two servers on purpose: oids, transactions and sizes."""
    columns = tuple(column.model_copy(update={"type_oid": 0, "number": 0}) for column in table.columns)
    details = tuple(column.model_copy(update={"written": 0}) for column in table.definition.columns)
    leaves = tuple(Leaf(id=leaf.id) for leaf in table.leaves)
    unlike = {"oid": 0, "attached": 0}
    partitions = tuple(partition.model_copy(update=unlike) for partition in table.definition.partitions)
    definition = table.definition.model_copy(update={"columns": details, "partitions": partitions})
    return table.model_copy(
        update={"columns": columns, "leaves": leaves, "definition": definition, "oid": 0, "toast": 0}
    )


def make(conn: psycopg.Connection, tables: list[Table], objects: Objects) -> None:
    version = major(conn)
    for statement in objects_statements(objects, tables, version=version) * 2:  # a second time changes nothing
        run(conn, statement)
    for table in in_order(tables):
        for statement in create_table(table, objects, version=version):
            run(conn, statement)
    for table in tables:
        for statement in after_load(table, version=version):
            run(conn, statement)
    for table in tables:
        for statement in foreign_keys(table, version=version):
            run(conn, statement)


def test_identities_are_what_the_stream_will_tell(conn: psycopg.Connection) -> None:
    conn.execute(IDENTITIES)
    found = {
        name: (table.identity, [table.columns[place].name for place in table.key])
        for name, table in by_name(conn).items()
    }
    assert found == {
        "by_default": (Identity.KEY, ["a"]),
        "two": (Identity.KEY, ["b", "a"]),
        "no_key": (Identity.NOTHING, []),
        "deferrable_key": (Identity.NOTHING, []),
        "full_key": (Identity.FULL, ["b"]),
        "full_none": (Identity.FULL, []),
        "full_deferrable": (Identity.FULL, []),
        "by_index": (Identity.KEY, ["b"]),
        "index_gone": (Identity.NOTHING, []),
        "nothing": (Identity.NOTHING, []),
        "generated_key": (Identity.NOTHING, []),
        "unlogged": (Identity.KEY, ["a"]),
        "part": (Identity.KEY, ["b"]),
        "part_bad": (Identity.NOTHING, []),
        "part_mixed": (Identity.KEY, ["b"]),
        "part_none": (Identity.KEY, ["a"]),
    }
    assert by_name(conn)["unlogged"].definition.unlogged


def test_tables_are_ordinary_ones_and_roots_with_their_leaves(conn: psycopg.Connection) -> None:
    conn.execute(RICH)
    conn.execute(
        "create view shop.v as select 1; create temp table tt (a int); create schema penstock;"
        " create table penstock.progress (a int); create foreign data wrapper w;"
        " create server s foreign data wrapper w;"
        " create foreign table shop.f (a int) server s"
    )
    tables = catalogue.tables(conn, everything)
    names = [str(table.id) for table in tables]
    assert names == [
        'shop.Q"uote',
        "shop.base",
        "shop.a_child",
        "shop.counted",
        "shop.customers",
        "shop.empty",
        "shop.orders",
        "shop.parts",
        "shop.refers",
    ]
    parts = next(table for table in tables if table.id.name == "parts")
    assert [str(leaf.id) for leaf in parts.leaves] == ["shop.parts_1a", "We ird.parts_2"]
    assert [str(partition.parent) for partition in parts.definition.partitions] == [
        "shop.parts",
        "shop.parts_1",
        "shop.parts",
    ]
    customers = next(table for table in tables if table.id.name == "customers")
    assert {column.name: column.kind for column in customers.columns} == {
        "id": Kind.INT32,
        "name": Kind.TEXT,
        "flag": Kind.OTHER,
        "status": Kind.TEXT,
        "address": Kind.OTHER,
        "quantity": Kind.INT32,
        "statuses": Kind.OTHER,
        "span": Kind.OTHER,
        "ip": Kind.OTHER,
        "amount": Kind.NUMERIC,
        "created": Kind.TIMESTAMPTZ,
        "code": Kind.TEXT,
        "title": Kind.TEXT,
    }
    assert [column.nullable for column in customers.columns][:3] == [False, False, True]
    assert customers.columns[-1].number == 14
    chosen = catalogue.tables(conn, lambda id: id.name == "a_child")
    assert [table.definition.inherits for table in chosen] == [()]


def test_a_target_made_of_the_definitions_says_the_same(source_db: str, target_db: str) -> None:
    with (
        contextlib.closing(connect(source_db, role="control", application="t")) as source,
        contextlib.closing(connect(target_db, role="control", application="t")) as target,
    ):
        source.execute(RICH)
        source.execute("insert into shop.customers (name, quantity) values ('a', 1)")
        tables = catalogue.tables(source, everything)
        objects = catalogue.objects(source, tables)
        bytes_lost = ["column flag"] if major(target) < 16 else []
        assert [loss.what for loss in all_losses(tables, objects, major(target))] == bytes_lost
        make(target, tables, objects)
        made = catalogue.tables(target, everything)
        assert [comparable(table) for table in made] == [comparable(table) for table in tables]
        assert catalogue.objects(target, made) == objects
        for value in catalogue.sequence_values(source, tables):
            run(target, sequence_value(*value))
        assert catalogue.sequence_values(target, made) == catalogue.sequence_values(source, tables)
        assert (TableId("shop", "customers_id_seq"), 1, True) in catalogue.sequence_values(target, made)


@pytest.mark.versions(where=lambda versions: versions.source < 18 and versions.target == 18)
def test_newer_words_come_through_and_leave_an_older_target_able_to_follow(target_db: str, source_db: str) -> None:
    with (
        contextlib.closing(connect(target_db, role="control", application="t")) as newer,
        contextlib.closing(connect(source_db, role="control", application="t")) as older,
    ):
        newer.execute(
            "create table public.t (a int primary key, v int generated always as (a + 1) virtual, n int,"
            ' c "char", constraint e check (n > 0) not enforced);'
            " insert into public.t (a) values (1);"
            " alter table public.t add constraint nn not null n not valid"
        )
        (table,) = catalogue.tables(newer, everything)
        assert [column.name for column in table.columns] == ["a", "n", "c"]
        assert table.columns[1].nullable
        assert table.definition.columns[1].generated_virtual
        objects = catalogue.objects(newer, [table])
        newer.execute("drop table public.t")
        make(newer, [table], objects)
        (again,) = catalogue.tables(newer, everything)
        assert comparable(again) == comparable(table)
        bytes_lost = {"column c"} if major(older) < 16 else set()
        assert {loss.what for loss in all_losses([table], objects, major(older))} == {
            "column v",
            "e",
            "nn",
        } | bytes_lost
        make(older, [table], objects)
        (older_table,) = catalogue.tables(older, everything)
        assert older_table.definition.columns[1].generated
        assert not older_table.definition.checks


def test_the_oddest_types_are_made_in_order(source_db: str, target_db: str) -> None:
    with (
        contextlib.closing(connect(source_db, role="control", application="t")) as source,
        contextlib.closing(connect(target_db, role="control", application="t")) as target,
    ):
        source.execute(
            "create type public.z_label as enum ('a');"
            "create domain public.y_labels as public.z_label[] check (cardinality(value) < 3);"
            "create type public.x_pair as (l public.y_labels, n numeric(3,1));"
            "create domain public.w_pair as public.x_pair;"
            "create type public.a_range as range (subtype = numeric, multirange_type_name = public.several);"
            "create table public.t (m public.several, p public.w_pair[] default array[]::public.w_pair[])"
        )
        tables = catalogue.tables(source, everything)
        objects = catalogue.objects(source, tables)
        assert [id.name for id, _ in objects.types] == ["z_label", "y_labels", "x_pair", "w_pair", "a_range"]
        make(target, tables, objects)
        assert catalogue.objects(target, catalogue.tables(target, everything)) == objects


# The wheel's servers have only `vector`, those of other versions all that comes with PostgreSQL.
@pytest.mark.versions(where=lambda versions: versions.target in {15, 17})
def test_an_extension_is_named_with_its_schema_and_its_types_are_not_made(target_db: str) -> None:
    with contextlib.closing(connect(target_db, role="control", application="t")) as conn:
        conn.execute("create extension citext schema public; create table public.t (v public.citext[])")
        tables = catalogue.tables(conn, everything)
        objects = catalogue.objects(conn, tables)
        assert (objects.extensions, objects.types) == (("citext schema public",), ())
        conn.execute("drop table public.t; drop extension citext")
        make(conn, tables, objects)
        assert [comparable(table) for table in catalogue.tables(conn, everything)] == [comparable(tables[0])]


def test_what_each_table_rests_on_is_asked_for_many_at_once(
    conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.execute(
        "create schema a; create schema b; create type b.mood as enum ('x');"
        " create table a.plain (i int); create table a.root (i int) partition by list (i);"
        " create table b.part partition of a.root for values in (1); create table b.serial (i serial);"
        " create table b.typed (m b.mood[])"
    )
    tables = catalogue.tables(conn, everything)
    one_by_one = {table.id: objects(conn, [table]) for table in tables}
    for at_once in (2, 100):
        monkeypatch.setattr("engines.postgres.objects.ASKED_AT_ONCE", at_once)
        assert objects_of_each(conn, tables) == one_by_one


def test_sizes_and_places_of_tables(conn: psycopg.Connection) -> None:
    conn.execute(
        "create table public.t (a int primary key, b text); insert into public.t select generate_series(1, 5000)"
    )
    (unknown,) = catalogue.tables(conn, everything)
    conn.execute("vacuum analyze public.t")
    (table,) = catalogue.tables(conn, everything)
    oid = table.leaves[0].oid
    assert unknown.leaves[0].pages == table.leaves[0].pages == catalogue.pages(conn, [oid])[oid] > 10
    assert unknown.rows > 1000
    assert table.rows == 5000
    assert catalogue.estimate(conn, [table.id, TableId("public", "gone")]) == {table.id: 5000}
    before = catalogue.filenodes(conn, [oid, 1])
    assert before[1] == ""
    conn.execute("vacuum full public.t")
    assert catalogue.filenodes(conn, [oid])[oid] not in {"", before[oid]}


def test_text_is_what_the_output_function_writes_and_composites_of_nulls_are_not_null(
    conn: psycopg.Connection,
) -> None:
    conn.execute("create type public.t2 as (a int, b int)")
    conn.execute("create table public.t (ip inet, pair public.t2, none int[])")
    conn.execute("insert into public.t values ('10.0.0.1', row(null, null), null)")
    columns = ", ".join(text_of(name) for name in ("ip", "pair", "none"))
    rows = ask(conn, f"select {columns} from public.t")
    assert rows == [("10.0.0.1", "(,)", None)]
