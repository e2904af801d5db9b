"""Records that are too large for one message of Kafka: several messages, which are joined where they are read.

A piece has the record's key, a part of its value, and in a header whose it is, which one and of how many.
"""

from __future__ import annotations

import io
import itertools
import os
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from confluent_kafka import Message

from codec.frames import pack, unpack
from schemas.errors import IntegrityError
from transport.log import Block

PIECE_BYTES = 4 << 20
"""A value larger than this is cut. Our topics take twice as much, which is what hosted brokers allow at most."""

HEADER = "penstock.piece"

Pair = tuple[bytes | None, bytes | None]
Headers = list[tuple[str, str | bytes | None]]
Outgoing = tuple[bytes | None, bytes | None] | tuple[bytes | None, bytes | None, Headers]


_SIZES = struct.Struct("<II")  # of a record's key and value, as a `Block` is framed
_NONE = 0xFFFFFFFF


class Piece(NamedTuple):
    """What the header says, as `record/number/of`."""

    record: str  # distinct from those of all others
    number: int  # from 1
    of: int


class Stretch(NamedTuple):
    """Records `[start, end)` of a partition, framed as a `Block` is; or one piece of a record."""

    start: int
    end: int
    data: bytes
    piece: Piece | None = None


def bundles(block: Block) -> Iterator[tuple[list[Outgoing], int]]:
    """Yield the messages of a block's records, with their size: small ones together, each piece of a large one alone.

    Of a large value no more than a piece is copied. Raises `IntegrityError` if the block holds fewer or more records.
    """
    if len(block.data) <= PIECE_BYTES:
        records = unpack(block.data)
        _require(block, len(records))
        if records:
            yield list(records), len(block.data)
        return
    small: list[Outgoing] = []
    held = count = 0
    for key, value in _views(block.data):
        count += 1
        if value is None or len(value) <= PIECE_BYTES:
            small.append((key, None if value is None else bytes(value)))
            held += len(value or b"")
            continue
        if small:
            yield small, held
            small, held = [], 0
        name, of = os.urandom(8).hex(), -(-len(value) // PIECE_BYTES)
        for number in range(1, of + 1):
            part = bytes(value[(number - 1) * PIECE_BYTES : number * PIECE_BYTES])
            yield [(key, part, [(HEADER, f"{name}/{number}/{of}".encode())])], len(part)
    if small:
        yield small, held
    _require(block, count)


def _views(data: bytes) -> Iterator[tuple[bytes | None, memoryview | None]]:
    """Yield the records of a block without copying their values."""
    view, at = memoryview(data), 0
    while at < len(view):
        key_size, value_size = _SIZES.unpack_from(view, at)
        middle = at + _SIZES.size + (0 if key_size == _NONE else key_size)
        key = None if key_size == _NONE else bytes(view[at + _SIZES.size : middle])
        at = middle + (0 if value_size == _NONE else value_size)
        yield key, None if value_size == _NONE else view[middle:at]


def _require(block: Block, count: int) -> None:
    if count != block.count:
        raise IntegrityError(f"a block of {block.count} records holds {count}")


def piece_of(message: Message) -> Piece | None:
    """Return what a message says of itself; None if it is a whole record."""
    headers = message.headers()
    said = dict(headers).get(HEADER) if headers else None
    if not isinstance(said, bytes):
        return None
    record, number, of = said.decode().split("/")
    return Piece(record, int(number), int(of))


def joined(stretches: Iterable[Stretch]) -> Iterator[Block]:
    """Join pieces to records. What is there of a record whose other pieces are not becomes an empty value."""
    for record, found in itertools.groupby(stretches, lambda stretch: stretch.piece and stretch.piece.record):
        if record is None:
            for stretch in found:
                yield Block(stretch.end - stretch.start, stretch.data)
        else:
            yield _join(found)


def _join(pieces: Iterable[Stretch]) -> Block:
    frame = io.BytesIO()  # hands its buffer over, where joining a list would hold everything twice
    came = of = before = 0
    for stretch in pieces:
        assert stretch.piece is not None
        [(key, part)] = unpack(stretch.data)
        if not came:
            before = frame.write(pack([(key, b"")]))
        frame.write(part or b"")
        came, of = came + 1, stretch.piece.of
    if came < of:
        frame.truncate(before)
    size = frame.seek(0, io.SEEK_END) - before
    frame.seek(4)
    frame.write(size.to_bytes(4, "little"))
    return Block(1, frame.getvalue(), came - 1)
