"""The source's side of the matrix: tables of every type, and the changes that are made to them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import psycopg

from apply.postgres.merge import DIRECT
from engines.postgres.quoting import literal, quote
from tests.matrix.cases import CASES, Case

ROW, BATCH = "row", "batch"

PAUSE = "pause"
INSERT, UPDATE, KEY_CHANGE, UNCHANGED, DELETE = "insert", "update", "key change", "unchanged", "delete"
LOAD = "load"
OPERATIONS = (INSERT, UPDATE, KEY_CHANGE, UNCHANGED, DELETE)
SPAN = 100_000
"""Numbers of rows that belong to one operation in one of the two sizes."""
EACH = 1_000
"""Numbers of rows that have the same value."""

LONG = "case when copy = 1 then repeat(md5(({n})::text), 80) end"
"""Stored out of line, because the column's storage is `external`; a few rows of a table are enough."""


class Step(NamedTuple):
    operation: str
    size: str

    @property
    def first(self) -> int:
        """The first number of its rows."""
        place = [LOAD, *OPERATIONS].index(self.operation)
        return (2 * place + (self.size == BATCH)) * SPAN


STEPS = [Step(operation, size) for operation in OPERATIONS for size in (ROW, BATCH)]
ALL_STEPS = [Step(LOAD, BATCH), *STEPS]


class Subject(NamedTuple):
    """A case with the names of its tables: `value` has the type as a column, `array` has arrays of it as well, `key`
    has it in the primary key, `bare` has no key at all."""

    case: Case
    number: int

    @property
    def kinds(self) -> list[str]:
        return ["value", *(["array"] if self.case.array else []), *(["key"] if self.case.key else []), "bare"]

    @property
    def rows(self) -> int:
        """How many rows with a value there are to choose from; each of them has an array as well."""
        return max(len(self.case.values), 5)

    def copies(self, size: str) -> int:
        """How often each value comes in a transaction: few changes of a table go to the target as statements of their
        own, more than `DIRECT` through a stage."""
        return 1 if size == ROW else DIRECT // self.rows + 1

    def table(self, kind: str) -> str:
        return f"m.{kind}_{self.number}"

    @property
    def values(self) -> str:
        """The table that the values are taken from; it is not of the pipeline."""
        return f"given.values_{self.number}"


def make(url: str, cases: Iterable[Case] = CASES) -> list[Subject]:
    """Make the tables of the cases, and the rows that are loaded."""
    subjects = [Subject(case, number) for number, case in enumerate(cases)]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create schema m; create schema given; create table m.marks (number int primary key)")
        for subject in subjects:
            case = subject.case
            assert 2 <= len(case.values) <= DIRECT // 2
            if case.extension:
                connection.execute(f"create extension if not exists {quote(case.extension)}".encode())
            if case.setup:
                connection.execute(case.setup.encode())
            connection.execute(_tables(subject).encode())
        with connection.transaction():
            for subject in subjects:
                connection.execute(_loaded(subject).encode())
    return subjects


def change(url: str, subjects: Iterable[Subject], step: Step) -> None:
    """Make the changes of a step, of all tables in one transaction."""
    with psycopg.connect(url) as connection:
        for subject in subjects:
            for kind in subject.kinds:
                for statement in _changes(subject, kind, step):
                    connection.execute(statement.encode())


def _tables(subject: Subject) -> str:
    case = subject.case
    bare = case.bare
    array = f"{bare}[]" if case.array else "text"
    listed = arrays(case)
    rows = [
        f"({place}, {literal(case.values[place % len(case.values)])}::{bare},"
        f" {literal(listed[place % len(listed)])}::{array})"
        for place in range(subject.rows)
    ]
    made = [
        f"create table {subject.values} (i int primary key, v {case.type}, a {array})",
        f"insert into {subject.values} values {', '.join(rows)}",
        f"insert into {subject.values} values ({subject.rows}, null, null)",
    ]
    of = {
        "value": f"(n int primary key, v {case.type}, long text, s int)",
        "array": f"(n int primary key, v {case.type}, a {bare}[], long text, s int)",
        "key": f"(v {case.type}, n int, long text, s int, primary key (v, n))",
        "bare": f"(v {case.type}, n int, long text, s int)",
    }
    for kind in subject.kinds:
        table = subject.table(kind)
        made += [f"create table {table} {of[kind]}", f"alter table {table} alter column long set storage external"]
    if case.array:
        made.append(f"alter table {subject.table('array')} alter column a set storage external")
    made.append(f"alter table {subject.table('bare')} replica identity full")
    return "; ".join(made)


def arrays(case: Case) -> list[str]:
    """Return arrays of the values: as they are, two-dimensional, with lower bounds and nulls, empty, long."""
    comma = case.delimiter
    one, other, *_ = elements = [element(value) for value in case.values]
    listed = comma.join(elements)
    return [
        f"{{{listed}{comma}NULL}}",
        f"{{{{{one}}}{comma}{{{other}}}}}",
        f"[-1:0]={{NULL{comma}{other}}}",
        "{}",
        "{" + comma.join([listed] * (1 + 5_000 // len(listed))) + "}",
    ]


def element(value: str | None) -> str:
    """Return a value as it stands in the text of an array."""
    return "NULL" if value is None else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _loaded(subject: Subject) -> str:
    """Return what fills the tables before the load: its own rows, and those that the changes are made to."""
    steps = [step for step in ALL_STEPS if step.operation != INSERT]
    return "; ".join(_rows(subject, kind, step) for step in steps for kind in subject.kinds)


def _rows(subject: Subject, kind: str, step: Step) -> str:
    """Return what inserts the rows of a step, each value so often as its size says."""
    number = f"{step.first} + i * {EACH} + copy" if kind != "bare" else str(step.first)
    rows = f"{subject.values} cross join generate_series(1, {subject.copies(step.size)}) copy"
    # Of a bare table every row is there twice: a change is of one of them.
    if kind == "bare":
        rows += " cross join generate_series(1, 2)"
    columns, chosen = "v, n, long", f"v, {number}, {LONG.format(n=number)}"
    if kind == "array":
        columns, chosen = columns + ", a", chosen + ", a"
    where = " where v is distinct from null" if kind == "key" else ""
    return f"insert into {subject.table(kind)} ({columns}) select {chosen} from {rows}{where}"


def _changes(subject: Subject, kind: str, step: Step) -> Sequence[str]:
    table = subject.table(kind)
    ours = f"n between {step.first} and {step.first + SPAN - 1}"
    count = subject.rows + (kind != "key")
    place = f"(n - {step.first}) / {EACH}"
    following = f"from {subject.values} o where {ours} and o.i = ({place} + 1) % {count}"
    if step.operation == INSERT:
        return [_rows(subject, kind, step)]
    if kind == "bare":
        return _bare_changes(subject, step)
    if step.operation == UPDATE:
        if kind == "key":
            return [f"update {table} set long = null where {ours}"]
        if kind == "array":
            return [f"update {table} t set v = o.v, a = o.a, long = null {following}"]
        return [f"update {table} t set v = o.v, long = null {following}"]
    if step.operation == KEY_CHANGE:
        if kind == "key":
            # Half of them with another long value, half with the one that only the target has.
            return [f"update {table} t set v = o.v, long = case when n % 2 = 0 then long else 'new' end {following}"]
        return [f"update {table} set n = n + {SPAN // 2} where {ours}"]
    if step.operation == UNCHANGED:
        if kind == "value":
            return [f"update {table} t set v = o.v {following}"]
        return [f"update {table} set s = n where {ours}"]
    return [f"delete from {table} where {ours} and n % 3 > 0"]


def _bare_changes(subject: Subject, step: Step) -> Sequence[str]:
    """Return changes of one of each two equal rows."""
    table = subject.table("bare")
    one = (
        f"ctid in (select distinct on (format('%s', v) collate \"C\", v is distinct from null, r) ctid from"
        f" (select ctid, v, row_number() over (partition by format('%s', v) collate \"C\", v is distinct from null)"
        f" % {subject.copies(step.size)} as r from {table} where n = {step.first}) of_these)"
    )
    if step.operation == DELETE:
        return [f"delete from {table} where {one}"]
    if step.operation == UPDATE:
        value = f"(select v from {subject.values} where i = 0)"
        return [f"update {table} set v = {value}, long = null where {one}"]
    return [f"update {table} set s = 1 where {one}"]


def available(urls: Sequence[str], cases: Iterable[Case] = CASES) -> list[Case]:
    """Return the cases that all of the servers have."""
    connections = [psycopg.connect(url, autocommit=True) for url in urls]
    try:
        return [case for case in cases if all(_has(connection, case) for connection in connections)]
    finally:
        for connection in connections:
            connection.close()


def _has(connection: psycopg.Connection, case: Case) -> bool:
    if connection.info.server_version < case.since * 10_000:
        return False
    try:
        connection.execute((case.asks or "select").encode())
        if case.extension:
            query = "select from pg_available_extensions where name = %s"
            return connection.execute(query, [case.extension]).rowcount == 1
    except psycopg.Error:
        return False
    return True
