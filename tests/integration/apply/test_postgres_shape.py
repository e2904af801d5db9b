"""What tables of a target are like is read for all of them at once."""

from __future__ import annotations

from typing import Any, Self

import psycopg
import pytest

from apply.postgres.shape import Shape, shapes_of
from schemas.table import TableId
from tests.integration.apply.conftest import Applied

pytestmark = pytest.mark.versions

STATEMENTS = (
    "create domain short as varchar(10)",
    "create domain shorter as short check (length(value) < 5)",
    "create table parent (id int primary key, name shorter not null default 'x', unique (id, name))",
    "create table child (id int generated always as identity primary key,"
    " parent int references parent on delete cascade, other int references child,"
    " twice int generated always as (id * 2) stored)",
    "create unique index on child (other) where parent > 0",
    "create unique index on child ((other + 1))",
    "create table parts (id int, at date, primary key (id, at)) partition by range (at)",
    "create table parts_1 partition of parts for values from ('2024-01-01') to ('2025-01-01')",
    "create unique index on parts_1 (at)",
    "create function act() returns trigger language plpgsql as 'begin return new; end'",
    "create trigger acts before insert on parts for each row execute function act()",
    'create table "a dropped one" (gone int, stays int)',
    'alter table "a dropped one" drop column gone',
    "create view looks as select * from parent",
)
NAMES = ("parent", "child", "parts", "a dropped one", "looks")


def shapes(applied: Applied, *names: str) -> dict[str, Shape]:
    asked = [TableId("public", name) for name in names]
    return {table.name: shape for table, shape in shapes_of(applied.connection, asked).items()}


def test_all_tables_are_looked_at_as_each_is(applied: Applied) -> None:
    for statement in STATEMENTS:
        applied.sql(statement)

    found = shapes(applied, *NAMES, "missing")

    assert found.keys() == set(NAMES)
    assert all(shapes(applied, name) == {name: found[name]} for name in NAMES)
    parent, child, parts = found["parent"], found["child"], found["parts"]
    name = parent.columns["name"]
    assert (name.written, name.base_name, name.base_typmod) == ("shorter", "varchar", 14)
    assert (name.not_null, name.has_default) == (True, True)
    assert parent.cascades and not child.cascades
    assert (list(child.references), list(parent.referenced)) == ([parent.oid], [child.oid])  # itself left out
    assert not parent.references and not child.referenced
    assert set(parent.uniques) == {frozenset({"id"}), frozenset({"id", "name"})}
    assert (child.uniques, child.others) == ((frozenset({"id"}),), (frozenset(), frozenset()))
    assert (child.columns["id"].identity, child.columns["twice"].generated) == ("a", "s")
    assert (parts.relkind, parts.uniques) == ("p", (frozenset({"id", "at"}),))
    assert parts.others == (frozenset({"at"}),)  # of a partition alone
    assert [name for name in NAMES if found[name].triggers] == ["parts"]
    assert found["a dropped one"].columns.keys() == {"stays"}
    assert found["looks"].relkind == "v"


def test_no_table_is_no_query_too_many(applied: Applied) -> None:
    assert shapes(applied) == {}
    assert shapes(applied, "missing") == {}


def test_the_queries_of_many_tables_are_those_of_one(applied: Applied) -> None:
    names = [f"t{number}" for number in range(50)]
    for name in names:
        applied.sql(f"create table {name} (id int primary key)")
    queries: list[object] = []

    class Counting(psycopg.Cursor[Any]):
        """A cursor that notes its queries."""

        def execute(self, query: Any, *values: Any, **options: Any) -> Self:
            queries.append(query)
            return super().execute(query, *values, **options)

    applied.connection.cursor_factory = Counting
    assert len(shapes(applied, *names)) == len(names)
    for_all = len(queries)
    shapes(applied, "t0")
    assert len(queries) == 2 * for_all
