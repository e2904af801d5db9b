"""Conditions that people write in SQL, and the rows of a table that fulfil them."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from engines.postgres.asking import ask, one_moment
from engines.postgres.quoting import quote
from engines.postgres.types import exact_text_of, text_of
from schemas.errors import ConfigInvalid
from schemas.table import Table, TableId

_AT_ONCE = 5_000


def is_partitioned(connection: psycopg.Connection, table: TableId) -> bool:
    """Whether there is such a table, and it has partitions."""
    query = "select relkind = 'p' from pg_class where oid = to_regclass(%(name)s)"
    found = ask(connection, query, name=quote(*table))
    return bool(found and found[0][0])


def rows_where(connection: psycopg.Connection, table: TableId, condition: str) -> str:
    """Return the end of a query, for the rows of a table that fulfil a condition."""
    only = "" if is_partitioned(connection, table) else "only "
    # On lines of its own, so that a comment ends with it.
    return f"from {only}{quote(*table)} where (\n{condition}\n)"


def require_condition(connection: psycopg.Connection, table: TableId, condition: str, where: str) -> None:
    """Raise `ConfigInvalid` unless this is one condition, and nothing else, on the rows of a table.

    PostgreSQL itself says so, without a row being read: what would close the brackets and open others is not
    understood in both of these places, and more statements than one in neither.
    """
    if not condition.strip() or "\0" in condition:
        raise ConfigInvalid("the condition is empty", remedy="write one as it would stand behind WHERE")
    rows = rows_where(connection, table, condition)
    try:
        with one_moment(connection):
            for query in (f"select {rows}", f"select case when (\n{condition}\n) then 1 end {rows}"):
                connection.execute(f"{query} limit 0".encode(), prepare=True)
    except psycopg.Error as error:
        raise ConfigInvalid(
            f"{where}: this is no condition on rows of {table}: {error.diag.message_primary or error}",
            remedy="write it as it would stand behind WHERE, valid on source and target alike, functions and types that"
            " are not PostgreSQL's own with their schema",
        ) from error


def keys_where(connection: psycopg.Connection, table: Table, condition: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield of each row that fulfils a condition a text to tell it from others, and the columns of its key; in the
    order of these texts, byte by byte, which is the same on every server."""
    texts = [text_of(quote(table.columns[place].name)) for place in table.key]
    exact = " || ',' || ".join(
        f"pg_catalog.quote_literal({exact_text_of(quote(table.columns[place].name))})" for place in table.key
    )
    rows = rows_where(connection, table.name, condition)
    with one_moment(connection), connection.cursor("penstock_keys") as cursor:
        cursor.itersize = _AT_ONCE
        query = f'select ({exact}) collate "C" as exact, {", ".join(texts)} {rows} order by 1'
        for exact_text, *key in cursor.execute(query.encode()):
            yield exact_text, tuple(key)
