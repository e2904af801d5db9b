"""Which table a relation of PostgreSQL's stream belongs to, and which version of it its rows are.

The stream names physical tables, and describes each before its first change and again after every change of its
columns, as it was when the change was made. The plan names tables: an ordinary one, or a partitioned root whose
rows lie in leaves, which may have their columns in another order. A table keeps the id that it was chosen by, whatever
the source calls it later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import psycopg
from psycopg.rows import tuple_row

from capture.definitions import Found, Watched
from capture.partitions import grown, marks, renamed_leaf, same_partitions
from capture.rows import COMPUTED, SILENCE, UNKNOWN, Said, details_by_number, since
from capture.tables import TableVersions
from codec.pgoutput import Relation, RelationColumn
from engines.postgres import catalogue, definitions, replication
from engines.postgres import catalogue_queries as queries
from engines.postgres.asking import ask
from engines.postgres.definitions import Message, Told
from engines.postgres.errors import NAMES_REMEDY
from engines.postgres.objects import objects
from engines.postgres.types import kind_of
from schemas.errors import SchemaUnsupported, SourceUnavailable
from schemas.frontier import Setup
from schemas.table import Column, ColumnDetails, Definition, Identity, SetupObjects, Since, Table, TableId
from schemas.types import Kind
from transport.views import Registered

ROOT = """
select r.oid::int8, n.nspname, r.relname
  from pg_class c
  join pg_class r on r.oid = case when c.relispartition then pg_partition_root(c.oid)::oid else c.oid end
  join pg_namespace n on n.oid = r.relnamespace
 where c.oid = %(oid)s::int8::oid
"""

ATTACHED = """
select c.oid::int8,
       (select array_agg(i.xmin::text::int8)
          from pg_partition_ancestors(c.oid) a (oid)
          join pg_inherits i on i.inhrelid = a.oid)
  from pg_class c
 where c.oid = any (%(oids)s::int8[]::oid[]) and c.relispartition
"""
"""Which of these are partitions, with the 32-bit ids of the transactions that made them, and those above them, so."""

TYPES = "select format_type(%(oid)s::int8::oid, %(modifier)s)"


VISIBLE_SECONDS = 2.0


def matches(table: Table, relation: Relation, planned: Identity) -> bool:
    """Whether rows of the relation can be recorded with this version: same name, same columns in the same order, same
    key.

    Of a table that is published without updates and deletes (`planned` is nothing) the key does not matter.
    """
    if table.dropped or table.left_out is not None or len(table.columns) != len(relation.columns):
        return False
    name = TableId(relation.schema, relation.name)
    if not any(leaf.oid == relation.oid and leaf.id == name for leaf in table.leaves):
        return False
    for column, sent in zip(table.columns, relation.columns, strict=True):
        if (column.name, column.type_oid, column.type_modifier) != (sent.name, sent.type_oid, sent.type_modifier):
            return False
    identity = _identity(relation, planned)
    if identity is not table.identity:
        return False
    # With FULL the stream flags every column; which of them are the key was known when the version was made.
    return identity is not Identity.KEY or _flagged(relation) == table.key


def reorders(table: Table, relation: Relation) -> bool:
    """Whether the relation is a leaf of this version that has its columns in another order."""
    if all(leaf.oid != relation.oid for leaf in table.leaves):
        return False
    sent = [(column.name, column.type_oid, column.type_modifier) for column in relation.columns]
    return sent != _shapes(table) and sorted(sent) == sorted(_shapes(table))


def _flagged(relation: Relation) -> tuple[int, ...]:
    return tuple(i for i, column in enumerate(relation.columns) if column.is_key)


def _identity(relation: Relation, planned: Identity) -> Identity:
    if planned is Identity.NOTHING:
        return Identity.NOTHING
    if relation.identity == "f":
        return Identity.FULL
    return Identity.KEY if _flagged(relation) else Identity.NOTHING


class Relations:
    """Finds the version for each relation, and registers one where the log knows none.

    `connection` is asked about relations that the plan does not know, and for what the stream does not tell. Where
    it can't be told what has become of a table's rows, the version says so, and it is for each target to stop there.
    `passed` tells the position that the stream has come to: at first, where the last frontier is.
    """

    def __init__(self, tables: TableVersions, setup: Setup, passed: Callable[[], int]) -> None:
        self._tables, self._setup, self._passed = tables, setup, passed
        self._owners: dict[int, TableId] = {}  # by oid of a table, root or leaf
        self._read_until = 0  # so many versions
        objects = SetupObjects.model_validate_json(setup.objects)
        self._labels = dict(objects.labels)  # of enumerations, as the log tells them
        self._told: dict[int, tuple[tuple[int, str, int, int, int], ...]] = {}  # columns, by the event trigger
        self._said: dict[TableId, Said] = {}
        self._described: dict[TableId, int] = {}
        self._read()
        self._take_back_what_nobody_knows()

    def planned(self) -> list[Table]:
        """Return the latest version of every table that there is, and is not left out, with the identity that it was
        published by."""
        latest = [self._tables.of(id)[-1].table for id in self._tables.names()]
        return [
            table.model_copy(update={"identity": self.published(table.id)})
            for table in latest
            if not table.dropped and table.left_out is None
        ]

    def to_be_published(self) -> list[Table]:
        """Return those of the planned tables that are the pipeline's: what is about to be added is not yet, and what
        was removed is not for long."""
        return [table for table in self.planned() if table.id in self._tables.published]

    def left_out(self) -> list[Table]:
        """Return the latest version of every table whose rows are not carried."""
        latest = [self._tables.of(id)[-1] for id in self._tables.names()]
        return [version.table for version in latest if version.left_out is not None]

    def watched(self) -> Mapping[TableId, Watched]:
        """Return the tables whose definitions are to be looked at."""
        return {
            table.id: Watched(table, self._described.get(table.id, 0))
            for table in self.planned()
            if self._owners.get(table.oid) == table.id
        }

    def published(self, table: TableId) -> Identity:
        """Return what the publication that a table is in tells of its old rows."""
        return (self._tables.published.get(table) or self._tables.of(table)[-1]).table.identity

    def owner(self, oid: int) -> TableId | None:
        """Return which table a relation belongs to, if that is known."""
        return self._owners.get(oid)

    def carry(self, connection: psycopg.Connection, id: TableId, max_xid: int) -> Registered | None:
        """Return the version of a table, as the catalogue has it, that is carried again from here on; None if that
        can't be read now, as when it is locked. `max_xid` is the largest of what the stream has brought. Raises
        `SchemaUnsupported` if it is none that can be carried."""
        self._read()
        last = self._tables.of(id)[-1]
        if last.left_out is None:
            return last  # somebody else has seen to it
        begun = max(max_xid, replication.current_snapshot(connection).xmax - 1)
        if definitions.names(connection, [last.table.oid]):
            try:
                fresh = _today(connection, last.table)
            except SourceUnavailable:
                return None  # no reason to keep all other tables waiting
            if fresh is None:
                return None
            named = {"id": id, "renamed": fresh.id if fresh.id != id else None, "objects": objects(connection, [fresh])}
            table = self._as_planned(fresh.model_copy(update=named))
        else:
            table = last.table.model_copy(update={"dropped": True, "left_out": None})
        return self._settle(self._tables.carry(table, begun))

    def described(self, table: TableId) -> int:
        """Return how often the stream has described a table, or a part of it."""
        return self._described.get(table, 0)

    def version(self, connection: psycopg.Connection, relation: Relation, xid: int) -> Registered | None:
        """Return the version that the relation's rows are recorded with; None for a table that was not chosen. `xid` is
        the transaction that the relation was described in. Raises what makes a table one that can't be carried."""
        id = self._owners.get(relation.oid)
        if id not in self._tables.published:
            self._read()  # tables are added while everything runs
            id = self._owners.get(relation.oid) or self._adopt(connection, relation, xid)
        if id is None:
            return None
        self._described[id] = self._described.get(id, 0) + 1
        if (last := self._tables.of(id)[-1]).left_out is not None:
            return last
        _require_names(id, relation)
        if (fitting := self._fitting(id, relation)) is not None:
            return fitting
        self._read()  # a table that was removed may have been put back as it is now
        if (fitting := self._fitting(id, relation)) is not None:
            return fitting
        _await(connection, xid)
        return self._register(self._changed(connection, self._last(id), relation, self.published(id)))

    def _fitting(self, id: TableId, relation: Relation) -> Registered | None:
        """Return the latest version that fits: after a restart relations come again as they were then, and leaves of
        one root may differ in the order of their columns.

        It has the partitions that the table has by now: with a row of one that has not, targets would drop what has
        come since. Only a leaf that is none any more has rows of older versions.
        """
        planned, versions = self.published(id), self._tables.of(id)
        gone = all(leaf.oid != relation.oid for leaf in versions[-1].table.leaves)
        return next(
            (v for v in reversed(versions) if matches(v.table, relation, planned) and (gone or self.is_current(v))),
            None,
        )

    def is_current(self, version: Registered) -> bool:
        """Whether a version has the partitions that its table has by now."""
        return same_partitions(version.table, self._last(version.id))

    def tell(self, message: Message) -> list[Registered]:
        """Take note of what the event trigger has said, and return versions that begin with it: of tables whose rows
        are not what they were, while all that the stream would tell of them is."""
        began = []
        for told in message.tables:
            if (id := self._owners.get(told.oid)) is None:
                continue
            self._told[told.oid] = told.columns
            said = self._said.get(id, Said())
            said = self._said[id] = Said(
                cast=said.cast and not message.using,
                bare=said.bare and not message.filling,
                computed=said.computed or (message.rewriting and message.using),
            )
            last = self._last(id)
            if said.computed and not message.rewriting and told.oid == last.oid and last.left_out is None:
                shapes = [(name, type, modifier) for _, name, type, modifier, _ in told.columns]
                if shapes == _shapes(last):
                    since = Since(rewritten=True, refused=f"{last.name} {COMPUTED}")
                    began.append(self._register(_as_written(last, told).model_copy(update={"since": since})))
        return began

    def define(self, connection: psycopg.Connection, found: Found) -> Registered | None:
        """Return the version that a table is from here on, by what the catalogue says; None if that is no news."""
        last = self._last(found.id)
        if found.table is None:
            return None if last.dropped else self._register(last.model_copy(update={"dropped": True, "since": Since()}))
        table = self._as_planned(found.table)
        labels = table.objects.labels if table.objects else ()
        if _essence(table) == _essence(last) and all(self._labels.get(type) == now for type, now in labels):
            return None
        return self._register(table.model_copy(update={"since": self._since(connection, last, table)}))

    def emptied(self, id: TableId, leaves: Iterable[int]) -> Registered:
        """Return a version that begins with some of the table's partitions being emptied."""
        last = self._last(id)
        names = {leaf.oid: leaf.id for leaf in last.leaves}
        since = Since(emptied=tuple(sorted(names[oid] for oid in leaves)))
        return self._register(last.model_copy(update={"since": since}))

    def whole(self, connection: psycopg.Connection, table: TableId, truncated: Iterable[int], xid: int) -> bool:
        """Whether all of a table is empty after the transaction `xid` truncated these leaves.

        What counts is which leaves there were then: those of the last version, unless they were attached by a later
        transaction (what is carried again, or chosen while everything runs, is known as the catalogue has it). One that
        is no partition any more may have been one: its rows go when that is told.
        """
        missing = {leaf.oid for leaf in self._last(table).leaves} - set(truncated)
        if not missing:
            return True
        planned = {leaf.oid for leaf in self._tables.of(table)[0].table.leaves}
        attached = ask(connection, ATTACHED, oids=list(missing))
        return missing == {oid for oid, made in attached if oid not in planned and any(_later(by, xid) for by in made)}

    # ------------------------------------------------------------------------------------------------- versions

    def refresh(self) -> bool:
        """Read which tables there are by now; return whether there are versions that were not known."""
        before = self._read_until
        self._read()
        return self._read_until != before

    def _read(self) -> None:
        self._tables.refresh()
        self._tables.choose(self._setup)
        # In the order of the log: a table that was attached to another one is that one's from there on.
        for version in self._tables.in_order(self._read_until):
            self._own(version.table)
            self._read_until += 1

    def _take_back_what_nobody_knows(self) -> None:
        """Let the last version of each table be one that a frontier has named, if need be by registering it once more.

        A capture that dies may leave a version behind that no frontier names. Were it taken for the last one, what the
        catalogue says would be no news, and targets would not hear of it before the table's next row.
        """
        for id in self._tables.names():
            versions = [version.table for version in self._tables.of(id)]
            known = next(table for table in reversed(versions) if _is_known(table, self._passed()))
            if known is not versions[-1]:
                self._register(known.model_copy(update={"since": Since()}))

    def _own(self, table: Table) -> None:
        ours = self._tables.published
        for oid in table.oids:
            # A version that came to nothing, as that of a setup which began again, may be about a table that is the
            # pipeline's by another name.
            if table.id in ours or self._owners.get(oid) not in ours:
                self._owners[oid] = table.id
        self._labels |= dict(table.objects.labels) if table.objects else {}

    def _last(self, id: TableId) -> Table:
        return self._tables.of(id)[-1].table

    def _as_planned(self, table: Table) -> Table:
        """Return a table as the catalogue has it, with the identity that it was published by."""
        nothing = self.published(table.id) is Identity.NOTHING
        return table.model_copy(update={"identity": Identity.NOTHING, "key": ()}) if nothing else table

    def _register(self, table: Table) -> Registered:
        since = (table.since or Since()).model_copy(update={"passed": self._passed()})
        table = table.model_copy(update={"since": since})
        return self._settle(self._tables.register(table, self._tables.of(table.id)[-1].changes))

    def _settle(self, version: Registered) -> Registered:
        """Let a version that was registered be the one that all which follows is compared with."""
        self._own(version.table)
        self._said.pop(version.id, None)
        return version

    def _since(self, connection: psycopg.Connection, last: Table, table: Table) -> Since:
        return since(connection, last, table, self._said.get(table.id, SILENCE), self._owners)

    def _adopt(self, connection: psycopg.Connection, relation: Relation, xid: int) -> TableId | None:
        """Find out whether an unknown relation is a partition that was added to one of our tables.

        Registers a version that has the partition, so that targets learn of it. A partition that is gone again, or
        was detached, is none: the source's own table does not have its rows any more either.
        """
        _await(connection, xid)
        with connection.cursor(row_factory=tuple_row) as cursor:
            root = cursor.execute(ROOT, {"oid": relation.oid}).fetchone()
        id = self._owners.get(root[0]) if root is not None and root[0] != relation.oid else None
        if id is None:
            return None
        last = self._last(id)
        if last.left_out is not None:
            self._owners[relation.oid] = id
            return id
        fresh = _today(connection, last)
        if fresh is None:
            return None
        if all(leaf.oid != relation.oid for leaf in fresh.leaves):
            return None
        after = grown(last, fresh, relation.oid, TableId(relation.schema, relation.name))
        self._register(after.model_copy(update={"since": self._since(connection, last, after)}))
        return id

    def _changed(self, connection: psycopg.Connection, old: Table, relation: Relation, planned: Identity) -> Table:
        """Return the version of a table as the relation shows it, with what the catalogue of today adds to that."""
        fresh = _today(connection, old) or old
        numbers = {name: number for number, name, *_ in self._told.get(relation.oid, ())}
        if list(numbers) != [column.name for column in relation.columns]:
            last = max((column.number for column in old.columns), default=0)
            gone = definitions.dropped_behind(connection, relation.oid, last)
            numbers = numbers_of(relation.columns, old.columns, fresh.columns, gone)
        if relation.oid != old.oid:
            # A partition numbers its columns by itself, and may have them in another order; their names are the root's.
            sent_shapes = sorted((sent.name, sent.type_oid, sent.type_modifier) for sent in relation.columns)
            same = next((table for table in (fresh, old) if sorted(_shapes(table)) == sent_shapes), None)
            numbers = {column.name: column.number for column in same.columns} if same else numbers
        known = {_shape(column): column for table in (fresh, old) for column in table.columns}
        columns = tuple(
            found.model_copy(update={"number": numbers.get(sent.name, 0)})
            if (found := known.get((sent.name, sent.type_oid, sent.type_modifier)))
            else _column(connection, sent.name, sent.type_oid, sent.type_modifier, numbers.get(sent.name, 0))
            for sent in relation.columns
        )
        identity = _identity(relation, planned)
        key: tuple[int, ...] = _flagged(relation) if identity is Identity.KEY else ()
        if identity is Identity.FULL:
            places = {column.name: i for i, column in enumerate(columns)}
            for table in (fresh, old):
                names = [table.columns[i].name for i in table.key]
                if names and all(name in places for name in names):
                    key = tuple(sorted(places[name] for name in names))
                    break
        name = TableId(relation.schema, relation.name)
        old = renamed_leaf(old, fresh, relation.oid, name)
        current = _is_current(fresh, columns) and (identity is not Identity.KEY or _has_key(fresh, columns, key))
        renamed = old.renamed
        if relation.oid == old.oid:
            renamed = name if name != old.id else None
        changed = old.model_copy(
            update={
                "columns": columns,
                "key": key,
                "identity": identity,
                "definition": _definition(fresh, old, columns, current=current),
                "renamed": renamed,
                "objects": objects(connection, [fresh]) if fresh is not old else old.objects,
            }
        )
        now = {leaf.oid: {"node": leaf.node, "toast": leaf.toast} for leaf in fresh.leaves}
        seen = changed.model_copy(
            update={"leaves": tuple(leaf.model_copy(update=now.get(leaf.oid, {})) for leaf in old.leaves)}
        )
        since = self._since(connection, old, seen)
        if (
            identity is Identity.FULL
            and not key
            and not since.refused
            and (unknown := _gone_again(old, fresh, columns))
        ):
            # Only by all their values such rows are found.
            since = since.model_copy(update={"refused": UNKNOWN.format(column=unknown), "column": unknown})
        # Where the catalogue has gone on, what rewrote the rows may be still to come in the stream, and then they must
        # not seem untouched: as long as that is not certain, they lie where they lay.
        return (seen if current else changed).model_copy(update={"since": since})


def _require_names(id: TableId, relation: Relation) -> None:
    """Raise `SchemaUnsupported` if the relation, or a column, has a name that nobody knows the characters of."""
    for name in (relation.schema, relation.name, *(column.name for column in relation.columns)):
        if any("\ud800" <= character <= "\udfff" for character in name):
            shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise SchemaUnsupported(f"{id}: the name {shown} is not UTF-8", remedy=NAMES_REMEDY)


def _is_known(table: Table, passed: int) -> bool:
    """Whether a frontier has named a version: it is the first one, or its capture has written a frontier since."""
    return table.since is None or table.since.passed < passed


def _gone_again(old: Table, fresh: Table, columns: Iterable[Column]) -> str:
    """Return a column that has come since the last version, and is gone from the catalogue by now, alone or with its
    table: nobody can tell what older rows held in it. Empty if there is none."""
    known = details_by_number(old).keys() | details_by_number(fresh).keys()
    return next((column.name for column in columns if column.number and column.number not in known), "")


def _as_written(table: Table, told: Told) -> Table:
    """Return a version with the transactions that wrote its columns last, as the event trigger has said."""
    written = {number: by for number, *_, by in told.columns}
    columns = tuple(
        detail.model_copy(update={"written": written.get(detail.number, detail.written)})
        for detail in table.definition.columns
    )
    return table.model_copy(update={"definition": table.definition.model_copy(update={"columns": columns})})


def _later(short: int, xid: int) -> bool:
    """Whether a 32-bit transaction id is after a full one, in the half circle of ids around it."""
    return 0 < (short - xid) % (1 << 32) < 1 << 31


def _shape(column: Column) -> tuple[str, int, int]:
    return column.name, column.type_oid, column.type_modifier


def _shapes(table: Table) -> list[tuple[str, int, int]]:
    return [_shape(column) for column in table.columns]


def _essence(table: Table) -> object:
    """Return what a target's table may be another one by: versions that are equal in this need not be told apart."""
    definition = table.definition
    columns = {
        (c.name, c.source_type, c.nullable, c.default, c.identity, c.generated, c.generated_virtual, c.collation)
        for c in definition.columns
    }
    return (
        table.name,
        table.dropped,
        table.columns,
        table.key,
        table.identity,
        {(leaf.id, leaf.oid) for leaf in table.leaves},
        columns,
        {(c.name, c.definition) for c in definition.restrictions},
        marks(table),
        {(c.number, c.written) for c in definition.columns},  # so that what is compared later is not older than need be
    )


def _await(connection: psycopg.Connection, xid: int) -> None:
    """Return when the catalogue shows what a transaction has done to it: a commit is decoded before others see it. Not
    for ever: one that waits for a standby may do so for long."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not replication.current_snapshot(connection).sees(xid) and time.monotonic() < deadline:
        time.sleep(0.005)


def _today(connection: psycopg.Connection, table: Table) -> Table | None:
    """Return the table as the catalogue has it now, by the name that it has now; None if it is gone.

    Raises `SourceUnavailable` if somebody holds it in a lock, as for a change that takes long: what it is to be known
    by would be a guess.
    """
    try:
        name = definitions.names(connection, [table.oid]).get(table.oid)
        return next(iter(catalogue.tables(connection, lambda id: id == name)), None) if name else None
    except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
        raise SourceUnavailable(
            f"{table.id} is locked, so that nothing can be learnt of how it was altered",
            remedy="capture goes on when the lock is given up: pg_locks tells who holds it",
        ) from error


def _column(connection: psycopg.Connection, name: str, type_oid: int, modifier: int, number: int) -> Column:
    """Return a column by what the stream says of it. A type that was dropped since has no name any more: its values
    are text, and no target can have a column for them."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        base = cursor.execute(queries.BASES, {"oids": [type_oid]}).fetchone()
        written = cursor.execute(TYPES, {"oid": type_oid, "modifier": modifier}).fetchone()
    return Column(
        name=name,
        kind=kind_of(base[1], base[2]) if base else Kind.OTHER,
        source_type=written[0] if written else "???",
        type_oid=type_oid,
        type_modifier=modifier,
        number=number,
    )


def numbers_of(
    sent: Sequence[RelationColumn], before: Sequence[Column], now: Sequence[Column], gone: Iterable[int]
) -> dict[str, int]:
    """Return the numbers of a relation's columns, by name; none if they are not certain.

    The relation was described somewhere between two versions, whose columns are known by number; of those in `gone`,
    which came and went in between, nothing else is known. Columns are described in the order of their numbers, and one
    that is in both versions was there all the time. It is certain if there is only one way to understand that.
    """
    ours, theirs = ({column.number: column for column in columns} for columns in (before, now))
    known = sorted({*ours, *theirs, *gone})

    def may_be(column: RelationColumn, number: int) -> bool:
        versions = [columns[number] for columns in (ours, theirs) if number in columns]
        return not versions or (
            column.name in {version.name for version in versions}
            and (column.type_oid, column.type_modifier) in {(v.type_oid, v.type_modifier) for v in versions}
        )

    # In how many ways the columns from one on may be the numbers from one on: none, one, or more.
    ways = [[0] * (len(known) + 1) for _ in range(len(sent) + 1)]
    ways[len(sent)][len(known)] = 1
    for place in reversed(range(len(known))):
        number = known[place]
        for i in range(len(sent) + 1):
            found = 0 if number in ours and number in theirs else ways[i][place + 1]
            if i < len(sent) and may_be(sent[i], number):
                found += ways[i + 1][place + 1]
            ways[i][place] = min(found, 2)
    if ways[0][0] != 1:
        return {}
    numbers, i = {}, 0
    for place, number in enumerate(known):
        if i < len(sent) and may_be(sent[i], number) and ways[i + 1][place + 1]:
            numbers[sent[i].name] = number
            i += 1
    return numbers


def _is_current(fresh: Table, columns: Iterable[Column]) -> bool:
    """Whether the catalogue of today is that of the moment when the stream described these columns, as far as they
    tell."""
    return {_shape(column) for column in fresh.columns} == {_shape(column) for column in columns}


def _has_key(fresh: Table, columns: Sequence[Column], key: Iterable[int]) -> bool:
    """Whether the catalogue of today has the key that the stream has flagged."""
    return {fresh.columns[place].name for place in fresh.key} == {columns[place].name for place in key}


def _definition(fresh: Table, old: Table, columns: tuple[Column, ...], *, current: bool) -> Definition:
    """Return what today's catalogue says, unless it has gone on already: then only the columns are brought along.

    Whether nulls may be in a new column is told when its rows have come, not before: see `capture.definitions`.
    """
    there, now = details_by_number(old), details_by_number(fresh)
    details = []
    for column in columns:
        detail = there.get(column.number)
        if detail is None and (detail := now.get(column.number)) is not None:
            detail = detail.model_copy(update={"nullable": True})
        detail = detail or ColumnDetails(name=column.name, source_type=column.source_type, number=column.number)
        written = now[column.number].written if current and column.number in now else detail.written
        shown = {"name": column.name, "source_type": column.source_type, "written": written}
        details.append(detail.model_copy(update=shown))
    carried, numbers = {column.name for column in columns}, {column.number for column in columns if column.number}
    generated = tuple(d for d in old.definition.columns if d.generated)
    definition = fresh.definition if current else old.definition
    return definition.model_copy(
        update={
            "columns": (*details, *(d for d in generated if d.name not in carried and d.number not in numbers)),
            "partitions": old.definition.partitions,
        }
    )
