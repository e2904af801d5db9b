"""COPY of PostgreSQL in both forms."""

import re
import struct

from schemas.types import Kind
from tests.twin.records import Row
from tests.twin.values import binary

ESCAPES = {"\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\v": "\\v", "\f": "\\f", "\r": "\\r"}
PLAIN = {escaped: plain for plain, escaped in ESCAPES.items()}


def text_row(values: Row) -> bytes:
    fields = ["\\N" if value is None else "".join(ESCAPES.get(c, c) for c in value) for value in values]
    return ("\t".join(fields) + "\n").encode()


def text_rows(data: bytes) -> list[tuple[str | None, ...]]:
    """Read rows in text form."""
    return [
        tuple(
            None if field == "\\N" else re.sub(r"\\.", lambda found: PLAIN[found[0]], field)
            for field in line.split("\t")
        )
        for line in data.decode().split("\n")[:-1]
    ]


def binary_row(kinds: tuple[int, ...], values: Row) -> bytes:
    out = struct.pack(">h", len(values))
    for kind, value in zip(kinds, values, strict=True):
        if value is None:
            out += struct.pack(">i", -1)
        else:
            form = value.encode() if kind == Kind.OTHER else binary(kind, value)
            out += struct.pack(">i", len(form)) + form
    return out
