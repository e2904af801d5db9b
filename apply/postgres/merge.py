"""Net changes of one table, carried out as set work: `COPY` into session tables, then a few statements.

What is done depends on the table as it is on the target:

* only inserts: `COPY` straight into the table;
* a few changes: one prepared statement each, all in one round trip;
* else, if no constraint but the key can refuse a row: deletes by key, then `merge` (before PostgreSQL 17 `update`
  and an `insert` of what is missing, because only from then on `merge` says what it did);
* with further unique or exclusion constraints the same is tried first, for it writes least. If rows have exchanged
  unique values on the way, it fails, and is done again by deleting every key that was touched, and inserting;
* a table without key, but with full old rows: one row for each change, in order.

The source's changes must fit exactly: an update or delete that finds no row tells that one was lost before, and is
an error, never an insert that heals in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import pq

from apply.postgres.session import QUEUED, Session, StatementFailed
from apply.postgres.shape import Shape
from apply.target import Change, TableRefused
from codec.net import Net
from engines.postgres.quoting import quote
from engines.postgres.types import exact_text_of
from schemas.errors import RELOAD, IntegrityError, PermissionMissing, RowError
from schemas.record import Op
from schemas.types import Kind
from transport.views import Registered

DIRECT = 48
"""Up to so many changes of a table go as statements of their own: beyond, `COPY` and a merge cost less."""

LOOKED_UP_BYTES = 64 << 20
"""Up to so much staged data is looked up row by row, which the session's settings see to: left alone the planner
reads the whole table to hash it, which costs a third more even if one row in twenty is staged."""

STAGES = 64
"""Session tables that are kept: at each commit the server goes through all of them."""

MOST_COLUMNS = 1600
"""As many as a table can have, a stage too."""

MERGE_SAYS_SINCE = 170000

ALLOW_HASHING = "set local enable_hashjoin = on"

ROLE_REMEDY = (
    "grant set on parameter session_replication_role to the target's user;"
    " before PostgreSQL 15: alter role … set session_replication_role = replica, as a superuser"
)

COLLISIONS = (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation)
_NO_EQUALITY = frozenset({114, 142, 600, 601, 602, 603, 604, 628, 718, 194})
_EQUAL_THOUGH_UNLIKE = frozenset({Kind.OTHER, Kind.TEXT, Kind.NUMERIC, Kind.FLOAT32, Kind.FLOAT64, Kind.JSONB})
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}

Values = list[bytes | None]


class Stages:
    """The session's tables that rows are staged in; each is emptied at the end of a transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kept: dict[str, bool] = {}  # by name: whether it has rows of this transaction
        self._fresh: list[str] = []  # made in this transaction

    def take(self, name: str, columns: str) -> str:
        """Return the stage's quoted name; it exists, and is empty. `columns` is the query that it is shaped by."""
        stage = quote("pg_temp", name)
        filled = self._kept.pop(name, None)
        if filled is None:
            self._session.run(f"create temporary table {stage} on commit delete rows as {columns} with no data")
            self._fresh.append(name)
        elif filled:
            self._session.run(f"truncate {stage}")
        self._kept[name] = True
        return stage

    def ended(self, *, committed: bool) -> None:
        """Note the end of a transaction."""
        if not committed:
            for name in self._fresh:
                self._kept.pop(name, None)
        self._fresh.clear()
        self._kept = dict.fromkeys(self._kept, False)

    def rolled_back(self, made_before: int) -> None:
        """Note that the transaction went back to where so many stages had been made."""
        for name in self._fresh[made_before:]:
            self._kept.pop(name, None)
        del self._fresh[made_before:]

    @property
    def made(self) -> int:
        return len(self._fresh)

    def trim(self) -> None:
        """Drop the stages that were not used for longest, between transactions.

        All in one: each transaction that touches one of them makes the server empty all that there are.
        """
        if surplus := list(self._kept)[:-STAGES]:
            self._session.run(f"drop table {', '.join(quote('pg_temp', name) for name in surplus)}")
            for name in surplus:
                del self._kept[name]


@dataclass(frozen=True, slots=True)
class Folded:
    """Everything that a net has to say, asked for once."""

    rows: tuple[int, bytes]
    deletes: tuple[int, bytes]
    partials: list[tuple[frozenset[int], int, bytes]]

    @staticmethod
    def of(net: Net) -> Folded:
        return Folded(net.rows(), net.deletes(), net.partials())

    @property
    def partial(self) -> int:
        return sum(count for _, count, _ in self.partials)

    @property
    def remaining(self) -> int:
        """How many keys have a row in the end."""
        return self.rows[0] + self.partial

    @property
    def all(self) -> int:
        return self.remaining + self.deletes[0]


class Writer:
    """How rows of one version of a table are written to the table as it is on the target."""

    def __init__(self, session: Session, stages: Stages, version: Registered, shape: Shape) -> None:
        self.session, self.stages = session, stages
        self.version, self.shape = version, shape
        table = version.table
        columns = [shape.columns[column.name] for column in table.columns]
        self.id = table.id
        self.places = table.key
        self.names = [quote(column.name) for column in table.columns]
        self.listed = ", ".join(self.names)
        self.key = [self.names[place] for place in table.key]
        self.origins = [quote(f"penstock origin {place}") for place in table.key]
        self.rest = [place for place in range(len(self.names)) if place not in table.key]
        self.name = quote(*table.name)
        self.target = shape.only + self.name
        # No stage can have the columns of the table and those of the key once more.
        self.widest = len(self.names) + len(self.key) > MOST_COLUMNS
        self.binary = version.layout.binary and shape.takes_binary(table) and not self.widest
        self.casts = [column.cast for column in columns]
        self._key_columns = [columns[place] for place in table.key]
        self.collides = shape.may_collide(frozenset(table.columns[place].name for place in table.key))
        # An identity column that is always generated is taken when a row is inserted, but can't be set.
        self.fixed = any(columns[place].identity == "a" for place in self.rest)
        # Whether nothing else looks at rows on the way: else deletes come before writes, children before parents.
        self.alone = session.replica or not (shape.references or shape.referenced)
        self.merges = session.version >= MERGE_SAYS_SINCE
        self._indexed = any(unique <= {table.columns[place].name for place in table.key} for unique in shape.uniques)

    def require_harmless(self) -> None:
        """Refuse a table whose triggers or cascading keys would act again on what the source's did already."""
        if not self.session.replica and (self.shape.triggers or self.shape.cascades):
            what = "triggers" if self.shape.triggers else "foreign keys that cascade"
            raise TableRefused(
                self.id,
                PermissionMissing(
                    f"the target's table {self.id} has {what}, which would act a second time", remedy=ROLE_REMEDY
                ),
            )

    def copy(self, parts: Iterable[bytes], binary: bool) -> int:
        """Write new rows straight into the table, and return how many."""
        if not self.names:
            # No list of columns may be empty, and of each row there is nothing but its beginning or its end.
            rows = sum(map(len, parts)) // (2 if binary else 1)
            return self.run(f"insert into {self.name} select from generate_series(1, {rows})")
        return self.session.copy(f"copy {self.name} ({self.listed}) from stdin", parts, binary=binary, label=self.id)

    @property
    def insert(self) -> str:
        """The statement that inserts one row of parameters.

        They are not cast: assignment to the column is what finds their types, and refuses what is too long.
        """
        if not self.names:
            return f"insert into {self.name} default values"
        values = ", ".join(f"${at}" for at in range(1, len(self.names) + 1))
        return f"insert into {self.name} ({self.listed}) overriding system value values ({values})"

    def stage(self, what: str, columns: Sequence[str]) -> str:
        """Return an empty stage with these columns; `origins` stand for those of the key once more."""
        again = dict(zip(self.origins, self.key, strict=True))
        chosen = ", ".join(f"{again[name]} as {name}" if name in again else name for name in columns)
        return self.stages.take(
            f"penstock_{what}_{self.shape.oid}_{self.version.schema_id}", f"select {chosen} from {self.target}"
        )

    def fill(self, stage: str, columns: Sequence[str], data: bytes, binary: bool) -> None:
        if not self._indexed or len(data) > LOOKED_UP_BYTES:
            self.session.queue(ALLOW_HASHING)
        listed = ", ".join(columns)
        self.session.copy(f"copy {stage} ({listed}) from stdin", [data], binary=binary, label=self.id)

    def run(self, sql: str) -> int:
        return self.session.run(sql, self.id)

    def given_key(self, first: int) -> str:
        """Return the condition that the key is that of the parameters from `first` on.

        A parameter is cast to its type without a length: by a cast a longer value would be cut, so it is refused.
        """
        return " and ".join(
            column.equal(name, f"${at}::{column.cast}")
            for at, (name, column) in enumerate(zip(self.key, self._key_columns, strict=True), first)
        )

    def same_key(self, names: Sequence[str]) -> str:
        """Return the condition that the key of `t` is that of `s` in columns of these names."""
        return " and ".join(
            column.equal(f"t.{name}", f"s.{other}")
            for name, other, column in zip(self.key, names, self._key_columns, strict=True)
        )

    def merge(self, source: str) -> str:
        """Return the statement that makes the target's rows those of `source`, and gives back what it did to each."""
        sets = self._sets()
        return (
            f"merge into {self.target} as t using {source} as s on {self.same_key(self.key)}"
            f" when matched then {f'update set {sets}' if sets else 'do nothing'}"
            f" when not matched then insert ({self.listed}) overriding system value values ({self._values()})"
            " returning merge_action()"
        )

    def update(self, source: str) -> str:
        """Return the statement that touches every row of `source` that is there, and makes it the same."""
        if sets := self._sets():
            return f"update {self.target} as t set {sets} from {source} as s where {self.same_key(self.key)}"
        return f"select from {self.target} as t join {source} as s on {self.same_key(self.key)}"

    def insert_missing(self, source: str) -> str:
        there = f"select from {self.target} as t where {self.same_key(self.key)}"
        return (
            f"insert into {self.name} ({self.listed}) overriding system value"
            f" select {self._values()} from {source} as s where not exists ({there})"
        )

    def _sets(self) -> str:
        return ", ".join(f"{self.names[place]} = s.{self.names[place]}" for place in self.rest)

    def _values(self) -> str:
        return ", ".join(f"s.{name}" for name in self.names)

    def delete_from(self, stage: str) -> str:
        return f"delete from {self.target} as t using {stage} as s where {self.same_key(self.key)}"


class Work:
    """The changes of one table in one piece."""

    def __init__(self, writer: Writer, change: Change) -> None:
        self.writer, self.change, self._net = writer, change, change.net
        self._session = writer.session
        self._plain = not writer.key or (change.net.insert_only and change.exact)
        try:
            self._folded = Folded((0, b""), (0, b""), []) if self._plain else Folded.of(change.net)
        except RowError as error:
            raise TableRefused(writer.id, error) from error
        self._small = not change.net.binary and (change.net.records if self._plain else self._folded.all) <= DIRECT
        self._gone = 0  # rows that were deleted
        self._changed = 0  # partial rows that were changed in place
        self._written = 0  # rows that were merged
        self._made = 0  # those of them that were not there
        self._moved = 0  # partial rows whose key has changed, completed in a stage
        self._stage: str | None = None  # of rows to merge

    @property
    def waits(self) -> bool:
        """Whether statements must be waited for one by one."""
        return not self._small or self.writer.collides

    # ------------------------------------------------------------------------------------------------- order

    def run(self) -> None:
        """Do everything."""
        if self.writer.fixed and not self._plain:
            self._replace()
        elif self.writer.collides and not self._plain:
            self._try_in_place()
        else:
            self.first_half()
            self.second_half()

    def clear(self) -> None:
        """Delete every key that is touched."""
        self._delete_staged(self._net.touched()[1])

    def first_half(self) -> None:
        """Change in place and delete: what comes before any row is written."""
        if not self._plain:
            if self._folded.partials:
                if self._small and not self._any_moves():
                    self._change_each()
                else:
                    self._change_staged()
            if self._folded.deletes[0]:
                self._delete()

    def second_half(self) -> None:
        """Write what is there in the end."""
        if not self.writer.key and not self._net.insert_only:
            self._in_order()
        elif self._plain:
            self._insert()
        else:
            if self._folded.rows[0] or self._moved:
                self._merge()
            self._session.then(self._check)

    def _try_in_place(self) -> None:
        """Write the changes in place where that goes; otherwise delete every touched key, and insert."""
        session, stages = self._session, self.writer.stages
        made = stages.made
        session.queue("savepoint before_merge")
        try:
            self.first_half()
            self.second_half()
            session.queue("release before_merge")
            session.flush()
        except StatementFailed as failed:
            if failed.label != self.writer.id or not isinstance(failed.error, COLLISIONS):
                raise
            session.run("rollback to before_merge")
            stages.rolled_back(made)
            Work(self.writer, self.change)._replace()

    # ------------------------------------------------------------------------------------------ partial rows

    def _any_moves(self) -> bool:
        """Whether the key of a partial row has changed."""
        return any(self._moves(row) for _, _, data in self._folded.partials for row in texts(data))

    def _moves(self, row: Values) -> bool:
        return [row[place] for place in self.writer.places] != row[len(self.writer.names) :]

    def _change_each(self) -> None:
        for unchanged, _, data in self._folded.partials:
            self._change_rows(unchanged, texts(data))

    def _change_rows(self, unchanged: frozenset[int], rows: Iterable[Values]) -> None:
        """Change rows in place, each by a statement of its own."""
        writer = self.writer
        places = [place for place in writer.rest if place not in unchanged]
        sets = ", ".join(f"{writer.names[place]} = ${at}::{writer.casts[place]}" for at, place in enumerate(places, 1))
        where = writer.given_key(len(places) + 1)
        sql = (
            f"update {writer.target} set {sets} where {where}" if sets else f"select from {writer.target} where {where}"
        )
        for row in rows:
            values = [*(row[place] for place in places), *row[len(writer.names) :]]
            self._session.queue(sql, values, self._count_changed, writer.id)

    def _complete_rows(self, unchanged: frozenset[int], rows: list[Values]) -> None:
        """Put rows to those that are written, with what only the target has of each, each by a statement of its own."""
        writer = self.writer
        if not rows:
            return
        if self._stage is None:
            self._stage = writer.stage("rows", writer.names)
        places = [place for place in range(len(writer.names)) if place not in unchanged]
        given = {place: f"${at}::{writer.casts[place]}" for at, place in enumerate(places, 1)}
        chosen = ", ".join(given.get(place, f"t.{name}") for place, name in enumerate(writer.names))
        sql = (
            f"insert into {self._stage} ({writer.listed}) select {chosen} from {writer.target} as t"
            f" where {writer.given_key(len(places) + 1)}"
        )
        for row in rows:
            values = [*(row[place] for place in places), *row[len(writer.names) :]]
            self._session.queue(sql, values, self._one_row, writer.id)
        self._session.flush()
        self._moved += len(rows)

    def _change_staged(self) -> None:
        writer = self.writer
        # Keys that are equal to the server may still be different ones, 1.0 and 1.00.
        same = " and ".join(
            f"{exact_text_of(f's.{name}')} = {exact_text_of(f's.{origin}')}"
            for name, origin in zip(writer.key, writer.origins, strict=True)
        )
        for unchanged, count, data in self._folded.partials:
            if writer.widest:
                rows = texts(data)
                self._change_rows(unchanged, (row for row in rows if not self._moves(row)))
                self._complete_rows(unchanged, [row for row in rows if self._moves(row)])
                continue
            stage = self._stage_partials(data)
            moved = writer.run(f"select from {stage} as s where not ({same})")
            if moved:
                self._complete(stage, unchanged, f"not ({same})", moved)
            if moved == count:
                continue
            places = [place for place in writer.rest if place not in unchanged]
            sets = ", ".join(f"{writer.names[place]} = s.{writer.names[place]}" for place in places)
            if sets:
                sql = f"update {writer.target} as t set {sets} from {stage} as s where {self._at_origin()} and {same}"
            else:
                sql = f"select from {writer.target} as t join {stage} as s on {self._at_origin()} and {same}"
            self._changed += writer.run(sql)

    def _stage_partials(self, data: bytes) -> str:
        columns = [*self.writer.names, *self.writer.origins]
        stage = self.writer.stage("partial", columns)
        self.writer.fill(stage, columns, data, self._net.binary)
        return stage

    def _at_origin(self) -> str:
        return self.writer.same_key(self.writer.origins)

    def _complete(self, stage: str, unchanged: frozenset[int], where: str, wanted: int) -> None:
        """Fetch what only the target has of staged rows, and put them to those that are written."""
        writer = self.writer
        sets = ", ".join(f"{writer.names[place]} = t.{writer.names[place]}" for place in sorted(unchanged))
        found = writer.run(
            f"update {stage} as s set {sets} from {writer.target} as t where {self._at_origin()} and {where}"
        )
        if found != wanted:
            self._refuse(wanted - found)
        if self._stage is None:
            self._stage = writer.stage("rows", writer.names)
        writer.run(
            f"insert into {self._stage} ({writer.listed}) select {writer.listed} from {stage} as s where {where}"
        )
        self._moved += wanted

    # --------------------------------------------------------------------------------------------- whole rows

    def _insert(self) -> None:
        writer = self.writer
        count, data = self._net.rows()
        if not self._net.binary and count <= DIRECT and writer.names:
            for row in texts(data):
                self._session.queue(writer.insert, row, label=writer.id)
        elif count:
            writer.copy([data], self._net.binary)

    def _delete(self) -> None:
        writer = self.writer
        if self._small:
            sql = f"delete from {writer.target} where {writer.given_key(1)}"
            for row in texts(self._folded.deletes[1]):
                self._session.queue(sql, row, self._count_gone, writer.id)
        else:
            self._delete_staged(self._folded.deletes[1])

    def _delete_staged(self, data: bytes) -> None:
        writer = self.writer
        stage = writer.stage("keys", writer.key)
        writer.fill(stage, writer.key, data, self._net.binary)
        self._gone += writer.run(writer.delete_from(stage))

    def _merge(self) -> None:
        writer = self.writer
        count, data = self._folded.rows
        self._written = count + self._moved
        if self._small and self._stage is None:
            given = ", ".join(
                f"${at}::{writer.casts[place]} as {name}" for at, (place, name) in enumerate(enumerate(writer.names), 1)
            )
            given = f"(select {given})"
            merge, update, insert = (make(given) for make in (writer.merge, writer.update, writer.insert_missing))
            for row in texts(data):
                if writer.merges:
                    self._session.queue(merge, row, self._count_action, writer.id)
                else:
                    self._session.queue(update, row, label=writer.id)
                    self._session.queue(insert, row, self._count_made, writer.id)
            return
        stage = self._stage or writer.stage("rows", writer.names)
        if count:
            writer.fill(stage, writer.names, data, self._net.binary)
        if writer.merges:
            result = self._session.query(
                f"with done as ({writer.merge(stage)}) select count(*) from done where merge_action = 'INSERT'",
                writer.id,
            )
            self._made = int(result.get_value(0, 0) or b"0")
        elif writer.run(writer.update(stage)) < self._written:
            self._made = writer.run(writer.insert_missing(stage))

    def _replace(self) -> None:
        """Delete every key that was touched, then insert what is there in the end: nothing collides on the way."""
        writer = self.writer
        if not writer.alone:
            raise TableRefused(
                writer.id,
                PermissionMissing(
                    f"rows of {writer.id} must be deleted and inserted again, but foreign keys are in the way",
                    remedy=ROLE_REMEDY,
                ),
            )
        for unchanged, count, data in self._folded.partials:
            if writer.widest:
                self._complete_rows(unchanged, texts(data))
            else:
                self._complete(self._stage_partials(data), unchanged, "true", count)
        self._delete_staged(self._net.touched()[1])
        if self._stage is not None:
            writer.run(
                f"insert into {writer.name} ({writer.listed}) overriding system value"
                f" select {writer.listed} from {self._stage}"
            )
        if self._folded.rows[0]:
            writer.copy([self._folded.rows[1]], self._net.binary)
        self._written = self._made = self._folded.remaining
        self._check()

    # ------------------------------------------------------------------------------------------- without key

    def _in_order(self) -> None:
        """Carry out changes of a table without key one by one, each on exactly one of the rows that are equal."""
        writer = self.writer
        # Partitions count their rows each from the beginning, so a place is a partition and a row in it.
        of_root = writer.shape.relkind == "p"
        for op, before, after in self._net.changes():
            if before is None:
                assert after is not None
                self._session.queue(writer.insert, _encoded(after), self._one_row, writer.id)
                continue
            if after is not None and not writer.names:
                continue  # of columns that the target makes by itself
            in_place = op is not Op.DELETE and not writer.fixed
            first = len(writer.names) + 1 if in_place else 1
            given = [value for value in before if value is not None]
            where = self._equal(before, first)
            place = f"(select ctid from {writer.target} where {where} limit 1)"
            if of_root:
                row = f"select tableoid, ctid from {writer.target} where {where} limit 1"
                found = f"(tableoid, ctid) = ({row})"
            else:
                found = f"ctid = {place}"
            if not in_place:
                sql = f"delete from {writer.target} where {found}"
                self._session.queue(sql, _encoded(given), self._one_row, writer.id)
                if after is not None:
                    self._session.queue(writer.insert, _encoded(after), self._one_row, writer.id)
            else:
                assert after is not None
                sets = ", ".join(f"{name} = ${at}" for at, name in enumerate(writer.names, 1))
                sql = f"update {writer.target} set {sets} where {found}"
                self._session.queue(sql, _encoded([*after, *given]), self._one_row, writer.id)
            if self._session.queued >= QUEUED:
                self._session.flush()

    def _equal(self, row: Sequence[str | None], first: int) -> str:
        """Return the condition that a row is this one; the parameters from `first` on are its values but the nulls.

        Equality can use an index, but some types have none, and to others unlike values are equal: the text counts.
        """
        writer = self.writer
        found: list[str] = []
        at = first
        for place, value in enumerate(row):
            column = writer.version.table.columns[place]
            target = writer.shape.columns[column.name]
            name = writer.names[place]
            if value is None:
                # Of a composite value whose parts are all null "is null" is true, but it is not null.
                found.append(f"{name} is {'not distinct from ' if column.kind is Kind.OTHER else ''}null")
                continue
            if column.kind is not Kind.OTHER and target.base not in _NO_EQUALITY:
                found.append(target.equal(name, f"${at}::text::{target.cast}"))
            if column.kind in _EQUAL_THOUGH_UNLIKE:
                found.append(f"{exact_text_of(name)} = ${at}::text")
            at += 1
        return " and ".join(found) or "true"

    def _one_row(self, result: pq.abc.PGresult) -> None:
        if result.command_tuples != 1:
            self._refuse(1)

    # ------------------------------------------------------------------------------------------------ counts

    def _count_changed(self, result: pq.abc.PGresult) -> None:
        self._changed += result.command_tuples or 0

    def _count_gone(self, result: pq.abc.PGresult) -> None:
        self._gone += result.command_tuples or 0

    def _count_action(self, result: pq.abc.PGresult) -> None:
        if result.ntuples and result.get_value(0, 0) == b"INSERT":
            self._made += 1

    def _count_made(self, result: pq.abc.PGresult) -> None:
        self._made += result.command_tuples or 0

    def _check(self) -> None:
        """Compare how many rows there were with how many there must have been: those that are left in the end, less
        those that were inserted, plus those that were deleted."""
        if not self.change.exact or self._net.truncated:
            return
        there = self._gone + self._changed + self._written - self._made
        wanted = self._folded.remaining - self._net.inserts + self._net.deletions
        if there != wanted:
            self._refuse(wanted - there)

    def _refuse(self, missing: int) -> None:
        table = self.writer.id
        what = f"{missing} rows are missing" if missing > 0 else f"{-missing} rows are there that should not be"
        raise TableRefused(
            table,
            IntegrityError(
                f"the target's table {table} is not what the source's was: {what}",
                remedy=f"find out who else writes to it, then {RELOAD.format(table=table)}",
            ),
        )


def texts(data: bytes) -> list[Values]:
    """Return the values of `COPY` rows in text form."""
    rows: list[Values] = []
    for line in data.split(b"\n")[:-1]:
        row: Values = []
        for field in line.split(b"\t"):
            if field == b"\\N":
                row.append(None)
            elif b"\\" in field:
                row.append(_ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), field))
            else:
                row.append(field)
        rows.append(row)
    return rows


def _encoded(row: Sequence[str | None]) -> Values:
    return [None if value is None else value.encode() for value in row]
