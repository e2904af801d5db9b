"""Compares tables on two servers row by row, by the text of every column under fixed settings.

Each side digests its rows by buckets of keys; buckets whose digests are equal are done with, of the others every row is
fetched. A table without key is compared as a multiset. Meant for two sides that stand still; nothing is written.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import psycopg

from engines.postgres.catalogue import tables as catalogue_tables
from engines.postgres.connect import connect
from engines.postgres.quoting import quote
from schemas.errors import SchemaUnsupported
from schemas.pipeline import matches
from schemas.table import Table, TableId

_BUCKET_ROWS = 2_000
_AT_ONCE = 5_000
_MOST_PRINTED = 1_000

Row = tuple[str | None, ...]


class Difference(NamedTuple):
    """One row that the sides do not have alike; None: a side does not have it."""

    table: TableId
    key: Row
    source: Row | None
    target: Row | None
    columns: tuple[str, ...]
    times: int = 1  # how often, for tables without key

    def __str__(self) -> str:
        if self.source is None:
            return f"{self.table}: only the target has {self._shown(self.target)}{self._often()}"
        if self.target is None:
            return f"{self.table}: only the source has {self._shown(self.source)}{self._often()}"
        differing = [
            f"{name}: {_text(a)} at the source, {_text(b)} at the target"
            for name, a, b in zip(self.columns, self.source, self.target, strict=True)
            if a != b
        ]
        return f"{self.table}: row {', '.join(map(_text, self.key))} differs: {'; '.join(differing)}"

    def _shown(self, row: Row | None) -> str:
        return ", ".join(f"{name} {_text(value)}" for name, value in zip(self.columns, row or (), strict=False))

    def _often(self) -> str:
        return f" ({self.times} times)" if self.times > 1 else ""


class Compared(NamedTuple):
    """What was compared, and what was found."""

    rows: dict[TableId, int]  # of the source
    differences: list[Difference]


def compare(source_url: str, target_url: str, tables: Sequence[str] | Iterable[TableId] = ("*.*",)) -> list[Difference]:
    """Return every difference between the tables of two databases, at most a thousand of each table.

    `tables` are patterns or names; the source's catalogue says which tables those are, and what their columns and
    keys are called. Columns that the target computes itself are not compared.
    """
    return compare_counted(source_url, target_url, tables).differences


def compare_counted(source_url: str, target_url: str, tables: Sequence[str] | Iterable[TableId] = ("*.*",)) -> Compared:
    """As `compare`, with the number of rows of each table."""
    wanted = list(tables)
    patterns = tuple(str(item) for item in wanted) or ("*.*",)
    with (
        contextlib.closing(connect(source_url, role="reader", application="penstock compare")) as source,
        contextlib.closing(connect(target_url, role="reader", application="penstock compare")) as target,
    ):
        found = catalogue_tables(source, lambda table: matches(table, patterns))
        rows: dict[TableId, int] = {}
        differences: list[Difference] = []
        for table in found:
            number, differing = _compare(source, target, table)
            rows[table.id] = number
            differences += differing
        return Compared(rows, differences)


def _compare(source: psycopg.Connection, target: psycopg.Connection, table: Table) -> tuple[int, list[Difference]]:
    """Compare digests of buckets first, then the rows of those buckets that differ."""
    columns = tuple(column.name for column in table.columns)
    primary = table.definition.primary_key
    key = [columns.index(name) for name in primary.columns] if primary else list(table.key)
    buckets = max(1, table.rows // _BUCKET_ROWS)
    with ThreadPoolExecutor(1) as other:
        asked = other.submit(_digests, target, table, key, buckets)
        here = _digests(source, table, key, buckets)
        try:
            there = asked.result()
        except psycopg.errors.UndefinedTable:
            raise SchemaUnsupported(
                f"the target has no table {table.id}", remedy="is it the right database, and is the load over?"
            ) from None
    number = sum(rows for rows, _ in here.values())
    differing = sorted(bucket for bucket in here.keys() | there.keys() if here.get(bucket) != there.get(bucket))
    if not differing:
        return number, []
    ours, theirs = (Counter(_rows(connection, table, key, buckets, differing)) for connection in (source, target))
    return number, list(islice(_pair(table.id, columns, key, ours - theirs, theirs - ours), _MOST_PRINTED))


def _parts(table: Table, key: list[int], buckets: int) -> tuple[str, str, str]:
    """Return SQL for the bucket, the row as text and what to select from. A row's bucket is decided by its key, so
    that a row that differs is in the same one on both sides; without a key by all of it."""
    texts = [f"{quote(column.name)}::text" for column in table.columns]
    row = f"row({', '.join(texts)})::text" if texts else "''"
    of = f"row({', '.join(texts[i] for i in key)})::text" if key else row
    only = "" if table.definition.partition_key else "only "
    return f'hashtext({of} collate "C") % {buckets}', row, f"{only}{quote(*table.id)}"


def _digests(connection: psycopg.Connection, table: Table, key: list[int], buckets: int) -> dict[int, tuple[int, int]]:
    """Return how many rows each bucket has, and the sum of their hashes: in whatever order they come. PostgreSQL keeps
    its hashes the same over versions, because partitions depend on them."""
    bucket, row, name = _parts(table, key, buckets)
    statement = (
        f'select {bucket}, count(*), sum(hashtextextended({row} collate "C", 0)::numeric) from {name} group by 1'
    )
    return {number: (rows, int(digest)) for number, rows, digest in connection.execute(statement.encode()).fetchall()}


def _rows(
    connection: psycopg.Connection, table: Table, key: list[int], buckets: int, wanted: list[int]
) -> Iterator[Row]:
    bucket, _, name = _parts(table, key, buckets)
    texts = ", ".join(f"{quote(column.name)}::text" for column in table.columns)
    # Without parameters, so that a percent sign is nothing but that.
    statement = f"select {texts} from {name} where {bucket} in ({', '.join(map(str, wanted))})"
    with connection.transaction(), connection.cursor("penstock_compare") as cursor:
        cursor.itersize = _AT_ONCE
        yield from cursor.execute(statement.encode())


def _pair(
    table: TableId, columns: tuple[str, ...], key: list[int], ours: Counter[Row], theirs: Counter[Row]
) -> Iterator[Difference]:
    """Yield what only one side has; rows with the same key on both sides as one difference."""
    by_key = {tuple(row[i] for i in key): row for row in theirs} if key else {}
    for row, times in sorted(ours.items(), key=repr):
        found = by_key.pop(tuple(row[i] for i in key), None)
        yield Difference(table, tuple(row[i] for i in key), row, found, columns, times)
    left = sorted(by_key.values(), key=repr) if key else sorted(theirs, key=repr)
    for row in left:
        yield Difference(table, tuple(row[i] for i in key), None, row, columns, theirs[row])


def _text(value: str | None) -> str:
    if value is None:
        return "null"
    return repr(value) if len(value) <= 100 else repr(value[:100]) + f"… ({len(value)} characters)"
