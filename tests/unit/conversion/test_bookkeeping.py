"""The tables in which targets remember: what their statements name, and that every database gets the same."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from apply.postgres import state
from conversion.__main__ import PRODUCTS, text
from conversion.bookkeeping import TABLES, create_statements
from conversion.stored import bookkeeping_statements, path_of

STATEMENTS = {name: value for name, value in vars(state).items() if name.isupper() and isinstance(value, str)}
OF_SQL = {
    *(
        "and",
        "as",
        "by",
        "case",
        "clock_timestamp",
        "conflict",
        "delete",
        "do",
        "else",
        "end",
        "exists",
        "false",
        "for",
    ),
    *("from", "in", "insert", "into", "is", "not", "nothing", "null", "of", "on", "or", "order", "penstock", "select"),
    *(
        "share",
        "text",
        "then",
        "to_regclass",
        "true",
        "unnest",
        "update",
        "values",
        "when",
        "where",
        "integer",
        "bigint",
    ),
    *("set", "returning", "name"),
    *("join", "using", "bytea", "count", "group", "extract", "epoch", "boolean", "oid", "int8"),
    *("age", "xmin", "xid", "txid_current_snapshot", "txid_snapshot_xmin"),
    *("c", "n", "p", "t", "w"),  # what the statements name themselves
    *("old_frontier", "old_epoch", "old_roster", "old_generation", "old_state", "old_command"),
}


def columns_of(table: str) -> set[str]:
    return set(TABLES.tables[f"penstock.{table}"].columns.keys())


def table_of(statement: str) -> str:
    return str(re.findall(r"penstock\.(\w+)", statement)[0])


@pytest.mark.parametrize("name", [name for name, text in STATEMENTS.items() if "penstock.{" not in text])
def test_statements_name_only_columns_that_are_there(name: str) -> None:
    tables = {str(found) for found in re.findall(r"penstock\.(\w+)", STATEMENTS[name])}
    words = set(re.findall(r"(?<![%\w])[a-z_]\w*", re.sub(r"'[^']*'", "", STATEMENTS[name]))) - OF_SQL
    assert words <= tables.union(*map(columns_of, tables))


@pytest.mark.parametrize("name", [name for name in STATEMENTS if name.startswith("ADD_")])
def test_a_new_row_has_every_column_that_has_no_default(name: str) -> None:
    table = TABLES.tables["penstock." + table_of(STATEMENTS[name])]
    named = re.findall(r"\w+", STATEMENTS[name].partition("(")[2].partition(")")[0])
    assert sorted(named) == sorted(
        column.name
        for column in table.columns
        if column.server_default is None and column is not table.autoincrement_column
    )


def test_what_is_kept_of_a_pipeline_is_forgotten_with_it() -> None:
    assert all("pipeline" in table.primary_key.columns for table in TABLES.tables.values())


def test_every_database_gets_the_same_tables() -> None:
    made = {product: create_statements(product) for product in ("postgresql", "mysql")}
    columns = [[re.findall(r"^\t(\w+) ", text, re.MULTILINE) for text in texts] for texts in made.values()]
    assert columns[0] == columns[1]
    assert [len(texts) for texts in made.values()] == [6, 6]
    assert "clock_timestamp()" in made["postgresql"][1]
    assert not re.search("clock_timestamp|fillfactor|TEXT[^,]* PRIMARY", "".join(made["mysql"]))
    keys = re.compile(r"(pipeline|table_schema|table_name) VARCHAR\(64\)")  # MySQL has no keys of unlimited text
    assert len(keys.findall("".join(made["mysql"]))) == 11


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_stored_statements_are_those_of_the_tables(product: str) -> None:
    assert path_of(product).read_text(encoding="utf-8") == text(product), "python -m conversion writes them anew"
    assert bookkeeping_statements(product) == [statement.strip() for statement in create_statements(product)]


def test_no_service_waits_for_sqlalchemy() -> None:
    code = "import sys, apply.loop, apply.postgres.target, control.wiring; sys.exit('sqlalchemy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
