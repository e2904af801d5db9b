"""Logical types: how a value is carried in a row record, and what its canonical text is.

A type with one obvious machine form is carried in it; every other type travels as canonical text, which is
lossless by definition: the text that the source itself writes, and reads back, under fixed settings. The names
are engine-neutral; an engine's own type name travels beside them in the table definition.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class Kind(IntEnum):
    """The carried form of a column. The numbers are shared with the compiled transcoder: never renumber.

    Carried as               canonical text
    BOOL      boolean        t | f
    INT16/32  int            decimal
    INT64     long           decimal
    FLOAT32   float          shortest text that reads back equal; NaN, Infinity, -Infinity
    FLOAT64   double         the same
    DATE      int            days since 1970-01-01; INT32 extremes: ±infinity; ISO text, years BC with suffix
    TIME      long           microseconds since midnight, 24:00:00 included
    TIMESTAMP long           microseconds since 1970-01-01 without zone; INT64 extremes: ±infinity; a moment after
                             294247-01-10 04:00:54.775806, which 64 bits can't hold, less 2^64 and plus 2
    TIMESTAMPTZ long         the same, UTC
    BYTES     bytes          \\x and hexadecimal digits
    TEXT      string         itself; enumerations and JSON kept as text included
    JSONB     string         the source's own text of the parsed value
    UUID      string         lower-case, with hyphens
    NUMERIC   string         decimal with the source's scale; NaN, Infinity, -Infinity
    OTHER     string         whatever the source writes for the type when cast to text
    """

    BOOL = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    FLOAT32 = 5
    FLOAT64 = 6
    DATE = 7
    TIME = 8
    TIMESTAMP = 9
    TIMESTAMPTZ = 10
    BYTES = 11
    TEXT = 12
    JSONB = 13
    UUID = 14
    NUMERIC = 15
    OTHER = 16


AVRO: dict[Kind, dict[str, Any]] = {
    Kind.BOOL: {"type": "boolean"},
    Kind.INT16: {"type": "int"},
    Kind.INT32: {"type": "int"},
    Kind.INT64: {"type": "long"},
    Kind.FLOAT32: {"type": "float"},
    Kind.FLOAT64: {"type": "double"},
    # Penstock's own logical names where Avro's standard ones can't say ±infinity or 24:00:00: a reader that knows
    # only the standard ones then gets the plain integer instead of an exception.
    Kind.DATE: {"type": "int", "logicalType": "penstock.date"},
    Kind.TIME: {"type": "long", "logicalType": "penstock.time-micros"},
    Kind.TIMESTAMP: {"type": "long", "logicalType": "penstock.local-timestamp-micros"},
    Kind.TIMESTAMPTZ: {"type": "long", "logicalType": "penstock.timestamp-micros"},
    Kind.BYTES: {"type": "bytes"},
    Kind.TEXT: {"type": "string"},
    Kind.JSONB: {"type": "string", "logicalType": "penstock.json"},
    Kind.UUID: {"type": "string", "logicalType": "uuid"},
    Kind.NUMERIC: {"type": "string", "logicalType": "penstock.numeric"},
    Kind.OTHER: {"type": "string", "logicalType": "penstock.text"},
}
