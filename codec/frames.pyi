"""Framed blocks: records of the log one after the other, as bytes.

A frame is the length of the key and the length of the value, each 32 bits little-endian and 0xFFFFFFFF where there
is none, then the key, then the value. Blocks may be joined by joining their bytes. Every function raises
`DecodeError` if a block ends inside a frame.
"""

from collections.abc import Iterable

Record = tuple[bytes | None, bytes | None]

def pack(records: Iterable[Record]) -> bytes:
    """Return the block of these (key, value) pairs, in their order."""

def unpack(data: bytes | bytearray | memoryview) -> list[Record]:
    """Return the records of a block, in their order."""

def pack_parts(key: bytes | None, parts: Iterable[bytes]) -> bytes:
    """Return the block of one record whose value comes in parts, which are asked for one after the other."""

def views(block: bytes) -> list[tuple[bytes | None, memoryview | None]]:
    """Return the records of a block, in their order, without copying their values."""

def count(data: bytes | bytearray | memoryview) -> int:
    """Return how many records a block holds."""

def cut(data: bytes | bytearray | memoryview, skip: int, take: int) -> bytes:
    """Return the block of `take` records behind the first `skip`. Raises `DecodeError` if there are fewer."""

def schema_ids(data: bytes | bytearray | memoryview) -> set[int]:
    """Return the schema ids that the values of a block begin with. Records without a value have none."""
