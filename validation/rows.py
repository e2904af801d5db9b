"""Compares tables on two servers row by row, by the text of every column under fixed settings.

Both sides send their rows in key order; chunks whose digests are equal are done with, the others are compared row by
row. A table without key is compared as a multiset. Meant for two sides that stand still; nothing is written.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import psycopg

from engines.postgres.catalogue import tables as catalogue_tables
from engines.postgres.connect import connect
from engines.postgres.quoting import quote
from schemas.errors import ReplicationError
from schemas.pipeline import matches
from schemas.table import Table, TableId

_CHUNK_ROWS = 5_000
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
    columns = tuple(column.name for column in table.columns)
    primary = table.definition.primary_key
    key = [columns.index(name) for name in primary.columns] if primary else list(table.key)
    ours, theirs = _rows(source, table, key), _rows(target, table, key)
    try:
        return _by_key(table.id, columns, key, ours, theirs) if key else _by_number(table.id, columns, ours, theirs)
    except psycopg.errors.UndefinedTable:
        raise ReplicationError(f"the target has no table {table.id}") from None


def _rows(connection: psycopg.Connection, table: Table, key: list[int]) -> Iterator[Row]:
    """Yield all rows as text, in the order of the key's text: the same on both sides, whatever their collations."""
    listed = ", ".join(f"{quote(column.name)}::text" for column in table.columns)
    order = ", ".join(f'{quote(table.columns[i].name)}::text collate "C"' for i in key)
    only = "" if table.definition.partition_key else "only "
    statement = f"select {listed or 'null'} from {only}{quote(*table.id)}" + (f" order by {order}" if order else "")
    with connection.transaction(), connection.cursor("penstock_compare") as cursor:
        cursor.itersize = _CHUNK_ROWS
        cursor.execute(statement.encode())
        while rows := cursor.fetchmany(_CHUNK_ROWS):
            yield from rows


def _by_number(
    table: TableId, columns: tuple[str, ...], ours: Iterator[Row], theirs: Iterator[Row]
) -> tuple[int, list[Difference]]:
    here, there = Counter(ours), Counter(theirs)
    found = [Difference(table, (), row, None, columns, times) for row, times in (here - there).items()]
    found += [Difference(table, (), None, row, columns, times) for row, times in (there - here).items()]
    return here.total(), found[:_MOST_PRINTED]


def _by_key(
    table: TableId, columns: tuple[str, ...], key: list[int], ours: Iterator[Row], theirs: Iterator[Row]
) -> tuple[int, list[Difference]]:
    number = 0
    found: list[Difference] = []
    left: list[Row] = []  # not settled yet: the sides may be shifted against each other
    right: list[Row] = []
    while True:
        more_left, more_right = list(islice(ours, _CHUNK_ROWS)), list(islice(theirs, _CHUNK_ROWS))
        number += len(more_left)
        if not left and not right and more_left and _digest(more_left) == _digest(more_right):
            continue
        left += more_left
        right += more_right
        over = not more_left and not more_right
        left, right = _merge(table, columns, key, left, right, found, over=over)
        if over:
            return number, found[:_MOST_PRINTED]


def _merge(
    table: TableId,
    columns: tuple[str, ...],
    key: list[int],
    left: list[Row],
    right: list[Row],
    found: list[Difference],
    *,
    over: bool,
) -> tuple[list[Row], list[Row]]:
    """Settle what both lists reach, and return what is left of them."""

    def order(row: Row) -> tuple[bytes, ...]:
        return tuple((row[i] or "").encode() for i in key)

    i = j = 0
    while (i < len(left) and j < len(right)) or (over and (i < len(left) or j < len(right))):
        a = left[i] if i < len(left) else None
        b = right[j] if j < len(right) else None
        if b is None or (a is not None and order(a) < order(b)):
            assert a is not None
            found.append(Difference(table, tuple(a[k] for k in key), a, None, columns))
            i += 1
        elif a is None or order(b) < order(a):
            found.append(Difference(table, tuple(b[k] for k in key), None, b, columns))
            j += 1
        else:
            if a != b:
                found.append(Difference(table, tuple(a[k] for k in key), a, b, columns))
            i, j = i + 1, j + 1
    return left[i:], right[j:]


def _digest(rows: list[Row]) -> bytes:
    return hashlib.md5(repr(rows).encode(), usedforsecurity=False).digest()


def _text(value: str | None) -> str:
    if value is None:
        return "null"
    return repr(value) if len(value) <= 100 else repr(value[:100]) + f"… ({len(value)} characters)"
