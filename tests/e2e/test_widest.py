"""A table of as many columns as there can be."""

from __future__ import annotations

import psycopg

from tests.e2e.conftest import Project

COLUMNS = 1600
NUMBERS = [f"c{place}" for place in range(COLUMNS - 2)]
TABLE = f"create table shop.widest (id int primary key, long text, {', '.join(f'{name} int' for name in NUMBERS)})"
ROWS = f"""
insert into shop.widest select n, repeat(n::text, 3000), {", ".join("n" for _ in NUMBERS)}
  from generate_series(%s::int, %s::int) n
"""
CHANGES = (
    "update shop.widest set c7 = -1, c1590 = null where id between %s and %s",
    "update shop.widest set id = -id where id between %s and %s and id %% 5 = 0",
    "delete from shop.widest where id between %s and %s and id %% 7 = 0",
)


def test_a_table_of_1600_columns_is_loaded_and_followed(simple: Project) -> None:
    with psycopg.connect(simple.source, autocommit=True) as connection:
        connection.execute("create schema shop")
        connection.execute(TABLE.encode())
        connection.execute("alter table shop.widest alter long set storage external")
        connection.execute(ROWS.encode(), [1, 260])
        simple.write()
        simple.succeed("run", str(simple.file), "--until-caught-up")
        for first, last in ((101, 105), (201, 255)):  # a few changes, and many
            for change in CHANGES:
                connection.execute(change.encode(), [first, last])
            connection.execute(ROWS.encode(), [first + 1000, last + 1000])
            simple.succeed("run", str(simple.file), "--until-caught-up")
            assert simple.differences() == []
