"""An application that does anything to its rows and its tables, by a seed.

It knows its tables by the catalogue, as its own open transaction sees it; what the server refuses it takes back, and
goes on. So one seed does the same again on any server, but for statements that had to wait for somebody else's lock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import psycopg
from psycopg.rows import tuple_row

from engines.postgres.quoting import literal, quote

SCHEMAS = ("app", "beside")
"""The first one's tables are chosen; some move to the other one later, and are followed there."""

MOST_TABLES = 10

NAMES = ("note", "Größe", "a b", 'say "x"', "select", "100%", "x.y", "amount", "Note")

TYPES: dict[str, Callable[[random.Random], str]] = {
    "integer": lambda r: str(r.randint(-99, 99)),
    "bigint": lambda r: str(r.randint(-(10**12), 10**12)),
    "numeric(12,2)": lambda r: f"{r.randint(-(10**6), 10**6) / 100:.2f}",
    "double precision": lambda r: r.choice(["'NaN'", "'-0'", "1e300", str(r.random())]),
    "text": lambda r: literal(r.choice(["", "\\", "\t|\n", "🐘", "null"]) + str(r.randrange(99))),
    "character varying(40)": lambda r: literal(f"v{r.randrange(999)}"),
    "boolean": lambda r: r.choice(["true", "false"]),
    "timestamp with time zone": lambda r: r.choice(
        ["'infinity'", "'4000-01-01 bc'", f"'2024-01-{r.randint(1, 28)} 12:00+02'"]
    ),
    "date": lambda r: f"'2024-02-{r.randint(1, 28)}'",
    "jsonb": lambda r: literal(f'{{"n": {r.randrange(99)}, "s": "\\"\\\\"}}'),
    "integer[]": lambda r: f"'{{{r.randrange(9)},null,{r.randrange(9)}}}'",
    "bytea": lambda r: f"'\\x{r.randrange(256):02x}00'",
    "app.mood": lambda r: r.choice(["'happy'", "'sad'"]),
}

WIDER = {
    "integer": "bigint",
    "character varying(40)": "character varying(80)",
    "date": "timestamp without time zone",
    "numeric(12,2)": "numeric(20,2)",
}
"""Types that hold what another one holds, so that the same value stands there."""
NARROWER = {wide: narrow for narrow, wide in WIDER.items()}

REFUSED = (
    psycopg.errors.IntegrityError,
    psycopg.errors.DataError,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.InvalidTableDefinition,
    psycopg.errors.InvalidObjectDefinition,
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.DependentObjectsStillExist,
    psycopg.errors.DatatypeMismatch,
    psycopg.errors.DuplicateColumn,
    psycopg.errors.DuplicateTable,
    psycopg.errors.ObjectNotInPrerequisiteState,
)
"""What the server may well say to somebody who does anything."""

TABLES = """
select c.oid::int8, n.nspname, c.relname, c.relkind = 'p', c.relreplident = 'f'
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where n.nspname = any(%s) and c.relkind in ('r', 'p') and not c.relispartition
order by c.oid
"""

COLUMNS = """
select a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
from pg_attribute a
where a.attrelid = %s::int8::oid and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""

KEY = """
select i.indexrelid::regclass::text, c.conname, array(
    select a.attname from unnest(i.indkey::int2[]) k (number)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number)
from pg_index i
join pg_constraint c on c.conindid = i.indexrelid and c.contype = 'p'
where i.indrelid = %s::int8::oid
"""


LAST_PARTITION = """
select n.nspname, c.relname
from pg_inherits i
join pg_class c on c.oid = i.inhrelid
join pg_namespace n on n.oid = c.relnamespace
where i.inhparent = %s::int8::oid and pg_get_expr(c.relpartbound, c.oid) like '%%MAXVALUE)'
"""


MADE_LATER = "select d.objoid::int8 from pg_description d where d.description = 'made later'"


class Column(NamedTuple):
    name: str
    type: str
    not_null: bool


class Table(NamedTuple):
    """A table as the catalogue has it now."""

    oid: int
    schema: str
    name: str
    partitioned: bool
    full: bool
    columns: tuple[Column, ...]
    constraint: str  # of the primary key; empty without
    key: tuple[str, ...]

    @property
    def quoted(self) -> str:
        return quote(self.schema, self.name)

    @property
    def free(self) -> list[Column]:
        """The columns that are not of the key."""
        return [column for column in self.columns if column.name not in self.key]


class Application:
    """Two connections, whose transactions interleave; all that they do follows from the seed."""

    def __init__(self, url: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self._connections = [psycopg.connect(url, autocommit=True, row_factory=tuple_row) for _ in range(2)]
        self._now = self._connections[0]  # whose turn it is
        self._mine: set[int] = set()  # what is made as a table, by oid: what was a partition once is not followed
        self._first: set[int] = set()  # those of them that are made at first
        self._busy: dict[int, int] = {}  # steps that an open transaction still has, by connection
        self._numbered = 0
        self._key = 1000
        self.altered = 0
        self.said: list[str] = []
        for connection in self._connections:
            connection.execute("set lock_timeout = '300ms'")

    def make(self) -> None:
        """Make the tables that there are at first: of each kind at least one."""
        connection, r = self._connections[0], self.rng
        for schema in SCHEMAS:
            connection.execute(f"create schema {quote(schema)}".encode())
        connection.execute("create type app.mood as enum ('happy', 'sad')")
        for number, kind in enumerate(["keyed", "keyed", "pair", "full", "keyless", "partitioned"]):
            name = r.choice(["t{}", "T {}", 'say "{}"']).format(number)
            columns = [f"{quote(n)} {r.choice(list(TYPES))}" for n in r.sample(NAMES, r.randint(1, 4))]
            key = {"pair": ", primary key (id, part)", "keyless": "", "full": ", primary key (id)"}
            columns = ["id integer not null", "part text not null default 'p'", "large text", *columns]
            text = f"create table {quote('app', name)} ({', '.join(columns)}{key.get(kind, ', primary key (id)')})"
            if kind == "partitioned":
                connection.execute(f"{text} partition by range (id)".encode())
                for place, (low, high) in enumerate([("minvalue", "100"), ("100", "2000"), ("2000", "maxvalue")]):
                    connection.execute(
                        f"create table {quote('app', f'{name}_{place}')} partition of {quote('app', name)}"
                        f" for values from ({low}) to ({high})".encode()
                    )
            else:
                connection.execute(text.encode())
            if kind in {"full", "keyless"}:
                connection.execute(f"alter table {quote('app', name)} replica identity full".encode())
            for table in self._tables(connection):
                if table.name == name:
                    self._do(connection, self._insert(table, range(r.choice([0, 50, 400]))))
        self._mine = {table.oid for table in self._tables(connection)}
        self._first = set(self._mine)
        connection.execute("create table beside.anchor (id integer primary key)")  # so that there always is one

    def tables(self) -> list[Table]:
        """Return what there is of the tables that were made."""
        return self._tables(self._connections[0])

    def step(self) -> None:
        """Do one thing more: in a transaction that is open, or that is opened by it; or end one."""
        r = self.rng
        place = r.randrange(len(self._connections))
        connection = self._connections[place]
        left = self._busy.get(place)
        if left is None:
            connection.execute("begin")
            self._busy[place] = r.choice([0, 0, 0, 1, 3])
        self._work(connection)
        if not self._busy[place]:
            del self._busy[place]
            self._end(connection)
        else:
            self._busy[place] -= 1

    def settle(self) -> None:
        """End what is open."""
        for place in list(self._busy):
            del self._busy[place]
            self._end(self._connections[place])

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    # ------------------------------------------------------------------------------------------------ statements

    def _end(self, connection: psycopg.Connection) -> None:
        back = self.rng.random() < 0.15
        self.said.append("rollback" if back else "commit")
        connection.execute("rollback" if back else "commit")

    def _work(self, connection: psycopg.Connection) -> None:
        r, self._now = self.rng, connection
        tables = self._tables(connection)
        if not tables:
            return
        table = r.choice(tables)
        if r.random() < 0.7:
            self._do(connection, r.choice([self._some_inserts, self._update, self._delete, self._move])(table))
            return
        what = r.choices(
            [
                self._add,
                self._drop,
                self._rename_column,
                self._exchange_columns,
                self._widen,
                self._details,
                self._other_key,
                self._identity,
                self._rename,
                self._exchange,
                self._empty,
                self._label,
                self._partition,
                self._rewrite,
                self._compute,
                self._random_default,
                self._drop_table,
                self._create,
            ],
            [8, 5, 5, 2, 4, 4, 2, 2, 3, 2, 2, 2, 3, 1, 1, 1, 0.3, 3],
        )[0]
        if self._do(connection, what(table)):
            self.altered += 1
            self._mine.update(oid for (oid,) in connection.execute(MADE_LATER).fetchall())

    def _do(self, connection: psycopg.Connection, statements: list[str]) -> bool:
        """Run statements, all or none; return whether any was."""
        if not statements:
            return False
        self.said += statements
        try:
            with connection.transaction():
                for statement in statements:
                    connection.execute(statement.encode())
        except REFUSED as error:
            self.said.append(f"-- {type(error).__name__}: {str(error).splitlines()[0]}")
            return False
        return True

    def _tables(self, connection: psycopg.Connection) -> list[Table]:
        found = []
        for oid, schema, name, partitioned, full in connection.execute(TABLES, [list(SCHEMAS)]).fetchall():
            columns = tuple(Column(*row) for row in connection.execute(COLUMNS, [oid]).fetchall())
            key = connection.execute(KEY, [oid]).fetchone()
            constraint, of = (key[1], tuple(key[2])) if key else ("", ())
            if self._mine and oid not in self._mine:
                continue
            found.append(Table(oid, schema, name, partitioned, full, columns, constraint, of))
        return found

    def _value(self, type: str) -> str:
        known = type if type in TYPES else NARROWER[type]
        return "null" if self.rng.random() < 0.2 else TYPES[known](self.rng)

    def _new_name(self, table: Table) -> str:
        self._numbered += 1
        taken = {column.name for column in table.columns}
        fresh = [name for name in NAMES if name not in taken]
        return self.rng.choice(fresh) if fresh and self.rng.random() < 0.5 else f"c{self._numbered}"

    # ------------------------------------------------------------------------------------------------------ rows

    def _insert(self, table: Table, keys: range) -> list[str]:
        """Insert rows with these keys, all of them alike but for the key, some with a value that is stored apart."""
        names = {column.name for column in table.columns}
        values = {c.name: self._value(c.type) for c in table.columns if c.name not in {"id", "large"}}
        values = {name: value for name, value in values.items() if value != "null" or name != "part"}
        if "large" in names:
            values["large"] = "repeat(md5(g::text), 200)" if self.rng.random() < 0.3 else "g::text"
        if "id" not in names:
            return []
        columns = ", ".join(map(quote, ["id", *values]))
        select = ", ".join(["g", *values.values()])
        span = f"generate_series({keys.start}, {keys.stop - 1}) g"
        return [f"insert into {table.quoted} ({columns}) select {select} from {span}"] if keys else []

    def _some_inserts(self, table: Table) -> list[str]:
        count = self.rng.randint(1, 20)
        self._key += count
        return self._insert(table, range(self._key - count, self._key))

    def _some(self) -> str:
        modulus = self.rng.randint(2, 40)
        return f"id % {modulus} = {self.rng.randrange(modulus)}"

    def _update(self, table: Table) -> list[str]:
        free = table.free
        if not free or "id" not in {column.name for column in table.columns}:
            return []
        chosen = self.rng.sample(free, min(len(free), self.rng.randint(1, 2)))
        sets = ", ".join(f"{quote(column.name)} = {self._value(column.type)}" for column in chosen)
        return [f"update {table.quoted} set {sets} where {self._some()}"]

    def _delete(self, table: Table) -> list[str]:
        return [f"delete from {table.quoted} where {self._some()}"] if self._has_id(table) else []

    def _move(self, table: Table) -> list[str]:
        """Give rows other keys, some of them to another partition."""
        if not self._has_id(table):
            return []
        by = self.rng.choice([1, 3000, -3000])
        return [f"update {table.quoted} set id = id + {by} where {self._some()} and id between 0 and 5000"]

    @staticmethod
    def _has_id(table: Table) -> bool:
        return any(column.name == "id" for column in table.columns)

    # ------------------------------------------------------------------------------------------------ definitions

    def _add(self, table: Table) -> list[str]:
        type = self.rng.choice(list(TYPES))
        default = TYPES[type](self.rng) if self.rng.random() < 0.6 else ""
        details = f" default {default}{self.rng.choice(['', ' not null'])}" if default else ""
        return [f"alter table {table.quoted} add column {quote(self._new_name(table))} {type}{details}"]

    def _free(self, table: Table) -> list[str]:
        return [column.name for column in table.free if column.name not in {"id", "large"}]

    def _drop(self, table: Table) -> list[str]:
        free = self._free(table)
        return [f"alter table {table.quoted} drop column {quote(self.rng.choice(free))}"] if free else []

    def _rename_column(self, table: Table) -> list[str]:
        names = [name for column in table.columns if (name := column.name) not in {"id", "large"}]
        if not names:
            return []
        old, new = self.rng.choice(names), self._new_name(table)
        return [f"alter table {table.quoted} rename column {quote(old)} to {quote(new)}"]

    def _exchange_columns(self, table: Table) -> list[str]:
        free = self._free(table)
        if len(free) < 2:
            return []
        one, other = self.rng.sample(free, 2)
        rename = f"alter table {table.quoted} rename column"
        steps = [(one, "between"), (other, one), ("between", other)]
        return [f"{rename} {quote(old)} to {quote(new)}" for old, new in steps]

    def _widen(self, table: Table) -> list[str]:
        wider = [(c.name, to) for c in table.free for known, to in WIDER.items() if c.type == known and c.name != "id"]
        if not wider:
            return []
        name, type = self.rng.choice(wider)
        return [f"alter table {table.quoted} alter column {quote(name)} type {type}"]

    def _details(self, table: Table) -> list[str]:
        if not table.free:
            return []
        column = self.rng.choice(table.free)
        alter = f"alter table {table.quoted} alter column {quote(column.name)}"
        if column.not_null:
            return [f"{alter} drop not null"]
        value = self._value(column.type)
        return [f"{alter} set default {value}", *([f"{alter} set not null"] if self.rng.random() < 0.3 else [])]

    def _other_key(self, table: Table) -> list[str]:
        if not table.constraint or table.partitioned or not self._has_id(table):
            return []
        candidates = [column.name for column in table.free if column.not_null]
        also = self.rng.sample(candidates, min(len(candidates), self.rng.randint(0, 1)))
        drop = f"alter table {table.quoted} drop constraint {quote(table.constraint)}"
        return [f"{drop}, add primary key ({', '.join(map(quote, ['id', *also]))})"]

    def _identity(self, table: Table) -> list[str]:
        if not table.constraint:
            return []
        return [f"alter table {table.quoted} replica identity {'default' if table.full else 'full'}"]

    def _rename(self, table: Table) -> list[str]:
        self._numbered += 1
        if self.rng.random() < 0.3 and not table.partitioned:
            other = SCHEMAS[table.schema == SCHEMAS[0]]
            return [f"alter table {table.quoted} set schema {quote(other)}"]
        return [f"alter table {table.quoted} rename to {quote(f'r{self._numbered}')}"]

    def _exchange(self, table: Table) -> list[str]:
        # A new table that gets the name of one that is copied is not taken over by itself.
        first = [other for other in self._tables(self._now) if other.oid in self._first]
        others = [other for other in first if other.schema == table.schema and other.oid != table.oid]
        if not others or table not in first:
            return []
        other = self.rng.choice(others)
        between = quote(table.schema, "between")
        return [
            f"alter table {table.quoted} rename to between",
            f"alter table {other.quoted} rename to {quote(table.name)}",
            f"alter table {between} rename to {quote(other.name)}",
        ]

    def _empty(self, table: Table) -> list[str]:
        return [f"truncate {table.quoted}"]

    def _label(self, table: Table) -> list[str]:
        self._numbered += 1
        return [f"alter type app.mood add value 'm{self._numbered}' before 'sad'"]

    def _partition(self, table: Table) -> list[str]:
        """Let the last partition go, with its rows, or come again."""
        if not table.partitioned:
            return []
        self._numbered += 1
        last = self._now.execute(LAST_PARTITION, [table.oid]).fetchone()
        gone = quote(*last) if last else ""
        if self.rng.random() < 0.5:
            statements = [f"alter table {table.quoted} detach partition {gone}"]
        else:
            statements = [f"drop table {gone}"]
        new = quote(table.schema, f"p{self._numbered}")
        bounds = "for values from (2000) to (maxvalue)"
        return [*(statements if gone else []), f"create table {new} partition of {table.quoted} {bounds}"]

    def _rewrite(self, table: Table) -> list[str]:
        return [f"alter table {table.quoted} alter column {name} type text" for name in self._an_integer(table)]

    def _compute(self, table: Table) -> list[str]:
        return [
            f"alter table {table.quoted} alter column {name} type bigint using {name}::bigint * 2"
            for name in self._an_integer(table)
        ]

    def _an_integer(self, table: Table) -> list[str]:
        """Choose a column of integers, if there is any."""
        integers = [column.name for column in table.free if column.type == "integer" and column.name != "id"]
        return [quote(self.rng.choice(integers))] if integers else []

    def _random_default(self, table: Table) -> list[str]:
        name = quote(self._new_name(table))
        return [f"alter table {table.quoted} add column {name} double precision default random()"]

    def _drop_table(self, table: Table) -> list[str]:
        return [f"drop table {table.quoted}"]

    def _create(self, table: Table) -> list[str]:
        """Make one more table, out of another one's rows or with none; it comes over by itself."""
        if len(self._mine) >= MOST_TABLES:
            return []
        self._numbered += 1
        new = quote(table.schema, f"n{self._numbered}")
        if self._has_id(table) and self.rng.random() < 0.5:
            made = [f"create table {new} as select * from {table.quoted}", f"alter table {new} add primary key (id)"]
        else:
            made = [f"create table {new} (id integer primary key, large text, note text)"]
        return [*made, f"comment on table {new} is 'made later'"]
