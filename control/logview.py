"""The log made readable: `penstock log`."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from codec.frames import unpack
from codec.rows import Change, decode, decode_batch, decode_key
from control.wiring import exists
from schemas.errors import ConfigInvalid, DecodeError, LogRewound
from schemas.frontier import FIRST_TABLE_SCHEMA, Setup, TableRegistered, lsn_text
from schemas.record import decode_control, schema_id_of
from schemas.table import Table
from transport.log import Log, LogReader, Partition, Range
from transport.topics import Topics
from transport.views import Registered, Tables

_WAIT_SECONDS = 0.5


class Line(NamedTuple):
    """One line of output, for people and for programs."""

    text: str
    fields: dict[str, Any]


def topics_of(log: Log, pipeline: str) -> Iterator[Line]:
    """Yield the partitions of the pipeline's topics that hold records, or held some. Raises `ConfigInvalid` if there is
    no log."""
    if not exists(log):
        raise ConfigInvalid(f"pipeline {pipeline} has no log yet", remedy="`penstock run` makes it")
    prefix = Topics(pipeline).prefix
    topics = log.topics(prefix)
    width = max((len(topic.name) - len(prefix) + 3 for topic in topics), default=0)
    for topic in topics:
        for number in range(topic.partitions):
            start, end = log.offsets(Partition(topic.name, number))
            if number and end == 0:
                continue  # most partitions of most topics: a line for each would hide the others
            short = topic.name.removeprefix(prefix)
            name = f"{short}/{number}" if topic.partitions > 1 else short
            yield Line(
                f"{name:<{width}} {start:>12,} .. {end:,}",
                {"topic": topic.name, "partition": number, "start": start, "end": end},
            )


def records_of(
    log: Log,
    pipeline: str,
    topic: str,
    number: int,
    start: int | None,
    limit: int | None,
    *,
    follow: bool,
) -> Iterator[Line]:
    """Yield the records of a partition from `start` on (negative: from the end), decoded.

    Without `follow` it ends where the log ends now. Raises `ConfigInvalid` for a topic that is not there.
    """
    topics = Topics(pipeline)
    if not exists(log):
        raise ConfigInvalid(f"pipeline {pipeline} has no log yet", remedy="`penstock run` makes it")
    found = {t.name: t for t in log.topics(topics.prefix)}
    name = topic if topic in found else topics.prefix + topic
    if name not in found or number >= found[name].partitions:
        close = difflib.get_close_matches(topic, [n.removeprefix(topics.prefix) for n in found], 5, 0.4)
        raise ConfigInvalid(
            f"there is no topic {topic} with a partition {number}",
            remedy=f"perhaps {', '.join(close)}" if close else "`penstock log` without a topic lists them",
        )
    partition = Partition(name, number)
    first, end = log.offsets(partition)
    at = first if start is None else max(first, end + start if start < 0 else start)
    left = limit if limit is not None else -1
    with log.reader() as reader:
        view = _View(Tables(reader, topics), is_load=name.startswith(f"{topics.prefix}load."))
        while left != 0:
            try:
                for offset, next_, key, value in _read(reader, partition, at, end):
                    if follow and value == b"" and next_ == end:
                        break  # its last pieces are being written
                    at = next_
                    for line in view.lines(offset, key, value):  # of a load's records each holds many rows
                        yield line
                        left -= 1
                        if left == 0:
                            return
            except LogRewound:
                first = log.offsets(partition).start
                if first <= at:
                    raise
                at = first  # trimmed while we read
                continue
            if not follow:
                return
            reader.wait({partition: end}, _WAIT_SECONDS)
            end = log.offsets(partition).end


def _read(
    reader: LogReader, partition: Partition, at: int, end: int
) -> Iterator[tuple[int, int, bytes | None, bytes | None]]:
    """Yield records, each with its first offset and the one behind its last."""
    if at >= end:
        return
    for block in reader.read(partition, Range(at, end)):
        for key, value in unpack(block.data):
            yield at, at + 1 + block.more, key, value
            at += 1 + block.more


class _View:
    def __init__(self, tables: Tables, *, is_load: bool) -> None:
        self._tables, self._is_load = tables, is_load

    def lines(self, offset: int, key: bytes | None, value: bytes | None) -> Iterator[Line]:
        if value is None:
            yield Line(f"{offset:>10} (deleted)", {"offset": offset, "value": None})
            return
        if value == b"":
            yield Line(f"{offset:>10} (pieces of a record that is not whole)", {"offset": offset, "value": ""})
            return
        try:
            schema_id = schema_id_of(value)
            if schema_id < FIRST_TABLE_SCHEMA:
                yield _control(offset, decode_control(value))
                return
            version = self._tables.by_schema(schema_id)
            changes = decode_batch(version.layout, value) if self._is_load else [decode(version.layout, value)]
            keys = decode_key(version.layout, key) if key is not None else None
        except DecodeError as error:
            yield Line(f"{offset:>10} damaged: {error}", {"offset": offset, "error": str(error)})
            return
        for change in changes:
            yield _row(offset, version, keys, change)


def _row(offset: int, version: Registered, key: tuple[str, ...] | None, change: Change) -> Line:
    names = [column.name for column in version.table.columns]
    before = _named(names, change.before)
    after = _named(names, change.after)
    unchanged = [names[i] for i in change.unchanged]
    for name in unchanged:
        if after is not None:
            after.pop(name, None)
    parts = [f"{offset:>10} {change.op.name.lower():<8} {version.table.id}"]
    if key is not None:
        parts.append("key " + ", ".join(key))
    if change.xid:
        parts.append(
            f"tx {change.xid} #{change.ordinal} at {lsn_text(change.position)} {time_text(change.commit_time)}"
        )
    if change.before is not None:
        parts.append(f"before {_values(version.table, before, change.before is not None)}")
    if after is not None:
        parts.append(_values(version.table, after, False))
    if unchanged:
        parts.append("unchanged " + ", ".join(unchanged))
    fields_ = {
        "offset": offset,
        "table": str(version.table.id),
        "schema_id": version.schema_id,
        "op": change.op.name.lower(),
        "key": list(key) if key is not None else None,
        "epoch": change.epoch,
        "position": change.position,
        "xid": change.xid,
        "ordinal": change.ordinal,
        "commit_time": change.commit_time,
        "unchanged": unchanged,
        "before": before,
        "after": after,
    }
    return Line("  ".join(parts), fields_)


def _named(names: list[str], row: tuple[str | None, ...] | None) -> dict[str, str | None] | None:
    return None if row is None else dict(zip(names, row, strict=True))


def _values(table: Table, row: dict[str, str | None] | None, before: bool) -> str:
    # A before-image of the key alone has nothing but nulls elsewhere: they say nothing.
    shown = {n: v for n, v in (row or {}).items() if v is not None or not before}
    return "{" + ", ".join(f"{n}: {'null' if v is None else v}" for n, v in shown.items()) + "}"


def _control(offset: int, entry: Any) -> Line:
    plain = _plain(entry)
    kind = type(entry).__name__
    shown = dict(plain)
    if isinstance(entry, TableRegistered):
        shown["table"] = str(Table.model_validate_json(entry.table).id)
    if isinstance(entry, Setup):
        shown["objects"] = "…"
    for name in ("at", "commit_time", "captured_at"):
        if isinstance(shown.get(name), int):
            shown[name] = time_text(shown[name])
    for name in ("after", "position"):
        if isinstance(shown.get(name), int):
            shown[name] = lsn_text(shown[name])
    text = ", ".join(f"{name} {_short(value)}" for name, value in shown.items() if value not in ("", [], None))
    return Line(f"{offset:>10} {kind}: {text}", {"offset": offset, "kind": kind, **plain})


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_short(item) for item in value[:20]) + (", …]" if len(value) > 20 else "]")
    if isinstance(value, dict):
        if {"topic", "start", "end"} <= value.keys():
            return f"{value['topic']}/{value['partition']}[{value['start']}..{value['end']})"
        return "{" + ", ".join(f"{n} {_short(v)}" for n, v in value.items() if v != "") + "}"
    return str(value)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def time_text(micros: int) -> str:
    """Return a moment in UTC; a dash for none."""
    if not micros:
        return "-"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(micros // 1_000_000)) + f".{micros % 1_000_000:06d}Z"
