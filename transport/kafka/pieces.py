"""Records that are too large for one message of Kafka: several messages, which are joined where they are read.

A piece has the record's key, a part of its value, and in a header whose it is, which one and of how many.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from confluent_kafka import Message

from codec.frames import pack, pack_parts, unpack, views
from schemas.errors import IntegrityError
from transport.log import Block

PIECE_BYTES = 4 << 20
"""A value larger than this is cut. Our topics take twice as much, which is what hosted brokers allow at most."""

HEADER = "penstock.piece"

Pair = tuple[bytes | None, bytes | None]
Headers = list[tuple[str, str | bytes | None]]
Outgoing = tuple[bytes | None, bytes | None] | tuple[bytes | None, bytes | None, Headers]


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
    for key, value in views(block.data):
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


def _join(pieces: Iterator[Stretch]) -> Block:
    first = next(pieces)
    assert first.piece is not None
    [(key, _)] = unpack(first.data)
    came = 0

    def parts() -> Iterator[bytes]:
        nonlocal came
        for stretch in itertools.chain([first], pieces):
            [(_, part)] = unpack(stretch.data)
            came += 1
            yield part or b""

    frame = pack_parts(key, parts())
    return Block(1, frame if came == first.piece.of else pack([(key, b"")]), came - 1)
