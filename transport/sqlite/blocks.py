"""How records lie in a segment: blocks as rows, not records.

The key is partition and first offset in one integer, so that one tree serves all partitions and a commit of one row
touches few pages.
"""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterator

from codec.frames import cut
from transport.log import Block
from transport.sqlite.connection import fetch_one

OFFSET_BITS = 44
OFFSET_MASK = (1 << OFFSET_BITS) - 1
ROW_BYTES = 1 << 20  # a stored row is larger only for one record

SEGMENT = """
create table block (id integer primary key, count integer not null, data blob);
create table piece (block integer not null, number integer not null, data blob not null, primary key (block, number));
create table begin (partition integer primary key, start integer not null);
create table state (sealed integer not null, beat integer not null);
insert into state values (0, 0);
"""

# The newest block at or before an offset, and those after it, as long as they are of the partition.
BLOCKS_FROM = """
select id, count, data from block
where id >= coalesce((select max(id) from block where id >= :low and id <= :from), :from) and id < :to
order by id limit :rows + 1
"""


def stored_rows(blocks: list[Block]) -> Iterator[tuple[int, bytes]]:
    """Join small blocks and cut large ones, so that a stored row is at most 1 MB, or one record."""
    batch: list[bytes] = []
    number = size = 0
    for block in blocks:
        for held, data in _cut(block.count, block.data):
            if batch and size + len(data) > ROW_BYTES:
                yield number, b"".join(batch)
                batch, number, size = [], 0, 0
            batch.append(data)
            number, size = number + held, size + len(data)
    if batch:
        yield number, batch[0] if len(batch) == 1 else b"".join(batch)


def _cut(number: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    if len(data) <= ROW_BYTES or number == 1:
        yield number, data
        return
    take = -(-number // -(-len(data) // ROW_BYTES))
    for skip in range(0, number, take):
        held = min(take, number - skip)
        yield from _cut(held, cut(data, skip, held))  # again, if sizes differ much


def join_pieces(connection: sqlite3.Connection, block: int) -> bytes:
    joined = io.BytesIO()  # hands its buffer over, where joining a list would hold everything twice
    (pieces,) = fetch_one(connection, "select count(*) from piece where block = ?", block)
    for piece in range(pieces):
        joined.write(fetch_one(connection, "select data from piece where block = ? and number = ?", block, piece)[0])
    return joined.getvalue()


def end_of(connection: sqlite3.Connection, partition: int, begin: int) -> int:
    row = fetch_one(
        connection,
        "select id, count from block where id >= ? and id < ? order by id desc limit 1",
        partition << OFFSET_BITS,
        (partition + 1) << OFFSET_BITS,
    )
    return (row[0] & OFFSET_MASK) + row[1] if row else begin
