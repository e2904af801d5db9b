"""PostgreSQL's replication stream: frames as a walsender would send them, and the records to be made of them."""

import struct
from collections.abc import Sequence

from schemas.record import Op
from tests.twin.records import Change, Row, Shape

UNCHANGED = object()
Sent = Sequence[object]  # of str, None or UNCHANGED

FROM_1970_TO_2000 = 946684800000000


def data(payload: bytes) -> bytes:
    return b"w" + struct.pack(">QQQ", 1, 2, 3) + payload


def begin(commit_lsn: int, time: int, xid: int) -> bytes:
    return data(b"B" + struct.pack(">QqI", commit_lsn, time - FROM_1970_TO_2000, xid % 2**32))


def commit(commit_lsn: int, end_lsn: int, time: int) -> bytes:
    return data(b"C\0" + struct.pack(">QQq", commit_lsn, end_lsn, time - FROM_1970_TO_2000))


def keepalive(wal_end: int, reply: bool) -> bytes:
    return b"k" + struct.pack(">QQB", wal_end, 0, reply)


def relation(oid: int, schema: str, name: str, columns: Sequence[tuple[str, bool, int, int]]) -> bytes:
    out = (
        b"R"
        + struct.pack(">I", oid)
        + schema.encode()
        + b"\0"
        + name.encode()
        + b"\0d"
        + struct.pack(">H", len(columns))
    )
    for column, is_key, type_oid, modifier in columns:
        out += struct.pack(">B", is_key) + column.encode() + b"\0" + struct.pack(">Ii", type_oid, modifier)
    return data(out)


def message(transactional: bool, lsn: int, prefix: str, content: bytes) -> bytes:
    head = struct.pack(">BQ", transactional, lsn) + prefix.encode() + b"\0"
    return data(b"M" + head + struct.pack(">I", len(content)) + content)


def truncate(options: int, oids: Sequence[int]) -> bytes:
    return data(b"T" + struct.pack(f">IB{len(oids)}I", len(oids), options, *oids))


def _tuple(values: Sent) -> bytes:
    out = struct.pack(">H", len(values))
    for value in values:
        if value is None:
            out += b"n"
        elif value is UNCHANGED:
            out += b"u"
        else:
            assert isinstance(value, str)
            out += b"t" + struct.pack(">I", len(value.encode())) + value.encode()
    return out


def change(op: int, oid: int, old_tag: str, old: Sent | None, new: Sent | None) -> bytes:
    """An insert, update or delete; `old_tag` is K, O or nothing."""
    out = {Op.INSERT: b"I", Op.UPDATE: b"U", Op.DELETE: b"D"}[Op(op)] + struct.pack(">I", oid)
    if old is not None:
        out += old_tag.encode() + _tuple(old)
    if new is not None:
        out += b"N" + _tuple(new)
    return data(out)


def expected(shape: Shape, op: int, old_tag: str, old: Sent | None, new: Sent | None) -> Change:
    """The record of a change, its head still empty."""

    def plain(values: Sent) -> Row:
        return tuple(value if isinstance(value, str) else None for value in values)

    unchanged: list[int] = []
    after: list[str | None] | None = None
    if new is not None:
        after = []
        for i, value in enumerate(new):
            if value is not UNCHANGED:
                after.append(value if isinstance(value, str) else None)
            elif old is not None and (old_tag == "O" or i in shape.key):
                kept = old[i]
                after.append(kept if isinstance(kept, str) else None)
            else:
                after.append(None)
                unchanged.append(i)
    before: Row | None = None
    if old is not None:
        before = plain(old)
        if old_tag == "K":
            before = tuple(value if i in shape.key else None for i, value in enumerate(before))
            if after is not None and all(before[i] == after[i] for i in shape.key):
                before = None
    return Change(op, unchanged=tuple(unchanged), before=before, after=after)


def widen(xid: int, reference: int) -> int:
    """The 64-bit id nearest to `reference` with these lower 32 bits."""
    base = reference - reference % 2**32 + xid % 2**32
    return min((base - 2**32, base, base + 2**32), key=lambda full: (abs(full - reference), full))
