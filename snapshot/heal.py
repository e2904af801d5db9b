"""Healing: what makes a table that was read in several snapshots equal to what one snapshot shows.

A row may have been read twice or not at all, because an update moved it between two snapshots. Replay can't mend
that: an update may leave out columns that the target would need. So every key, old or new, of every change that
some of the snapshots did not see is read again in one newer snapshot, and replaces what the target has for it.
Rows that nobody changed since are the same in all of the snapshots.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from codec.copy import encode_batch
from codec.frames import unpack
from codec.rows import decode, head
from schemas.frontier import Command, SnapshotTaken, TopicRange, Visibility
from schemas.record import Op
from schemas.table import Table, TableId
from snapshot.reader import Reader, Rows
from transport.log import LogReader, Partition, Range
from transport.topics import Topics
from transport.views import Frontiers, Registered, Tables

KEYS_AT_ONCE = 200_000
"""Distinct keys that are in memory at a time. More of them make several rounds, in which a key may come again."""

_BATCH_KEYS = 1_000
_READ_KEYS = 5_000

Key = tuple[str, ...]


class _Since(NamedTuple):
    """Which changes are looked for: those that some of the snapshots do not see, and all from a place in the frontiers
    on."""

    snapshots: Sequence[Visibility]
    place: int = sys.maxsize

    @property
    def floor(self) -> int:
        """What has a smaller transaction id is seen by all of them."""
        return min(snapshot.xmin for snapshot in self.snapshots)

    def is_lost(self, frontiers: Frontiers) -> bool:
        """Whether the log may have forgotten some of them."""
        trimmed = frontiers.trimmed
        return trimmed is not None and (trimmed.max_xid >= self.floor or trimmed.offset > self.place)


class StartAgain(Exception):
    """The table can't be healed, and must be read anew; the message is the cause."""


def mend(
    reader: LogReader,
    topics: Topics,
    tables: Tables,
    version: Registered,
    used: Sequence[SnapshotTaken],
    newest: SnapshotTaken,
    rows: Reader,
) -> Iterator[Rows | None]:
    """Yield what replaces the stale rows of a table: in each round a delete of every key, then the rows that the
    snapshot open in `rows`, which must be `newest`, has for them. None is a breath between two pieces of work.

    To be called when capture has passed the position of `newest`. Raises `StartAgain` if keys don't tell what has
    changed, or the log does not any more.
    """
    since = _Since([taken.visibility for taken in used])
    yield from _mend(reader, topics, tables, version, since, newest, rows, ())


def renew(
    reader: LogReader,
    topics: Topics,
    tables: Tables,
    version: Registered,
    command: Command,
    newest: SnapshotTaken,
    rows: Reader,
) -> Iterator[Rows | None]:
    """Yield what makes a table, that has stopped on a target, equal to what `newest` shows of all keys that were
    changed since it stopped, and of all rows that fulfil the command's condition, here or there.

    So the table stands for `newest` when it has that, if it was equal where it stopped but for such rows. The target
    may have applied what `newest` does not show, as a commit is decoded before others see it: it is going to be applied
    once more, and its keys are read as well. To be called, and raises, as `mend`.
    """
    width = len(version.table.key)
    named = [command.keys[at : at + width] for at in range(0, len(command.keys), width)]
    since = _Since([newest.visibility], command.place)
    yield from _mend(reader, topics, tables, version, since, newest, rows, named)
    yield from rows.read_where(version, command.where)


def _mend(
    reader: LogReader,
    topics: Topics,
    tables: Tables,
    version: Registered,
    since: _Since,
    newest: SnapshotTaken,
    rows: Reader,
    named: Iterable[Key],
) -> Iterator[Rows | None]:
    keys: dict[Key, None] = dict.fromkeys(named)
    frontiers = Frontiers(reader, topics)
    for some in _changed(reader, frontiers, tables, version.table, since, newest.position):
        if some is None:
            yield None
            continue
        keys.update(dict.fromkeys(some))
        if len(keys) >= KEYS_AT_ONCE:
            yield from _replace(version, list(keys), rows)
            keys.clear()
    yield from _replace(version, list(keys), rows)


def _replace(version: Registered, keys: list[Key], rows: Reader) -> Iterator[Rows]:
    width, places = len(version.table.columns), version.table.key
    for start in range(0, len(keys), _BATCH_KEYS):
        gone: list[tuple[int, tuple[str | None, ...], None]] = []
        for key in keys[start : start + _BATCH_KEYS]:
            row: list[str | None] = [None] * width
            for place, value in zip(places, key, strict=True):
                row[place] = value
            gone.append((Op.DELETE, tuple(row), None))
        yield Rows(encode_batch(version.layout, gone), len(gone))
    for start in range(0, len(keys), _READ_KEYS):
        yield from rows.read_keys(version, keys[start : start + _READ_KEYS])


def _changed(
    reader: LogReader,
    frontiers: Frontiers,
    tables: Tables,
    table: Table,
    since: _Since,
    position: int,
) -> Iterator[list[Key] | None]:
    """Yield the old and new keys of every change that is looked for, up to a position."""
    floor = since.floor
    while frontiers.position < position:
        found = frontiers.poll()
        if since.is_lost(frontiers):
            raise StartAgain("the log was trimmed")
        for offset, frontier in found:
            if frontier.max_xid < floor and offset < since.place:
                continue  # the largest id so far: all that has come up to here is seen by all of them
            for named in frontier.ranges:
                versions = _versions(tables, table.id, named)
                if versions:
                    seen = since.snapshots if offset < since.place else ()
                    yield from _keys(reader, named, versions, table, seen)
            if frontier.position >= position:
                return
        yield None


def _versions(tables: Tables, table: TableId, named: TopicRange) -> dict[int, Registered]:
    """Return those of a range's schemas that are versions of the table; a topic may be shared by many."""
    versions = {schema: tables.by_schema(schema) for schema in named.schemas}
    return {schema: version for schema, version in versions.items() if version.table.id == table}


def _keys(
    reader: LogReader,
    named: TopicRange,
    versions: dict[int, Registered],
    table: Table,
    seen: Sequence[Visibility],
) -> Iterator[list[Key]]:
    """Yield the keys of a range, but for those of changes that all of some snapshots see."""
    for block in reader.read(Partition(named.topic, named.partition), Range(named.start, named.end)):
        keys: list[Key] = []
        for _, value in unpack(block.data):
            if value is None:
                continue
            about = head(value)
            version = versions.get(about.schema_id)
            if version is None or (seen and all(snapshot.sees(about.xid) for snapshot in seen)):
                continue
            if about.op in {Op.TRUNCATE, Op.RESTART}:
                raise StartAgain("it was truncated")
            if version.left_out is not None:
                raise StartAgain("rows of it were left out")
            change = decode(version.layout, value)
            places = _places(version.table, table)
            keys += [key for row in (change.before, change.after) if (key := _key(row, places)) is not None]
        yield keys


def _places(version: Table, table: Table) -> tuple[int, ...]:
    """Return where the key columns of `table` are in the rows of another version of it."""
    if version is table or (version.key == table.key and version.columns == table.columns):
        return table.key
    numbers = {column.number or column.name: place for place, column in enumerate(version.columns)}
    wanted = [table.columns[place].number or table.columns[place].name for place in table.key]
    places = tuple(numbers.get(number, -1) for number in wanted)
    if set(places) != set(version.key):
        raise StartAgain("its key was changed")
    return places


def _key(row: Sequence[str | None] | None, places: Iterable[int]) -> Key | None:
    if row is None:
        return None
    key = tuple(value for place in places if (value := row[place]) is not None)
    # Keys hold no nulls; an old row that is given without them does not tell a key.
    return key if len(key) == len(tuple(places)) else None
