"""Records of the log: rows, changes, keys, batches and framed blocks."""

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from schemas.record import Op, avro_name
from schemas.table import Column, Table, TableId
from schemas.types import Kind
from tests.twin.values import avro, long, native

Row = Sequence[str | None]


class Shape(NamedTuple):
    """What is needed to know of a table."""

    schema_id: int
    kinds: tuple[int, ...]
    key: tuple[int, ...]

    def table(self) -> Table:
        columns = tuple(Column(name=f"c{i}", kind=Kind(kind), source_type="x") for i, kind in enumerate(self.kinds))
        return Table(id=TableId("public", "t"), columns=columns, key=self.key)


class Change(NamedTuple):
    op: int
    epoch: int = 0
    position: int = 0
    xid: int = 0
    ordinal: int = 0
    commit_time: int = 0
    unchanged: tuple[int, ...] = ()
    before: Row | None = None
    after: Row | None = None


def row(shape: Shape, values: Row) -> bytes:
    assert len(values) == len(shape.kinds)
    return b"".join(
        b"\0" if value is None else b"\x02" + avro(kind, value) for kind, value in zip(shape.kinds, values, strict=True)
    )


def body(shape: Shape, change: Change) -> bytes:
    """A row record without prefix."""
    head = b"".join(map(long, change[:6]))
    unchanged = long(len(change.unchanged)) + b"".join(map(long, change.unchanged)) if change.unchanged else b""
    rows = b"".join(b"\0" if r is None else b"\x02" + row(shape, r) for r in (change.before, change.after))
    return head + unchanged + b"\0" + rows


def prefix(schema_id: int) -> bytes:
    return struct.pack(">BI", 0, schema_id)


def value_of(shape: Shape, change: Change) -> bytes:
    return prefix(shape.schema_id) + body(shape, change)


def key_of(shape: Shape, values: Row | None) -> bytes | None:
    if not shape.key or values is None:
        return None
    out = prefix(shape.schema_id + 1)
    for i in shape.key:
        value = values[i]
        assert value is not None
        out += avro(shape.kinds[i], value)
    return out


def record(shape: Shape, change: Change) -> tuple[bytes | None, bytes]:
    return key_of(shape, change.before if change.after is None else change.after), value_of(shape, change)


def batch(shape: Shape, changes: Sequence[Change]) -> bytes:
    rows = b"".join(body(shape, change) for change in changes)
    return prefix(shape.schema_id) + (long(len(changes)) + rows if changes else b"") + b"\0"


def frames(records: Iterable[tuple[bytes | None, bytes | None]]) -> bytes:
    out = b""
    for parts in records:
        out += b"".join(struct.pack("<I", 0xFFFFFFFF if part is None else len(part)) for part in parts)
        out += b"".join(part or b"" for part in parts)
    return out


def natives(shape: Shape, change: Change) -> dict[str, Any]:
    """What an Avro reader makes of a change, given `schemas.record.row_schema`."""
    taken: set[str] = set()
    names = [avro_name(f"c{i}", taken) for i in range(len(shape.kinds))]

    def values(r: Row | None) -> dict[str, Any] | None:
        if r is None:
            return None
        return {
            name: None if value is None else UUID(value) if kind == Kind.UUID else native(kind, value)
            for name, kind, value in zip(names, shape.kinds, r, strict=True)
        }

    return {
        "op": Op(change.op).name.lower(),
        **{name: getattr(change, name) for name in ("epoch", "position", "xid", "ordinal", "commit_time")},
        "unchanged": list(change.unchanged),
        "before": values(change.before),
        "after": values(change.after),
    }
