"""What a kind promises of a type, with the server as judge."""

from __future__ import annotations

import contextlib
import struct

import pytest

from engines.postgres import catalogue
from engines.postgres.asking import run
from engines.postgres.connect import connect
from schemas.types import Kind

pytestmark = pytest.mark.versions

SIGNATURE = 11 + 4 + 4  # signature, flags, length of the extension

TEXTS = {
    "text": "'ä\\b'",
    "varchar(9)": "'x '",
    "char(5)": "'ab'",
    "name": "'n'",
    "json": "' { \"a\" :1.0}'",
    "public.mood": "'so so'",
    "public.word": "'w'",
    "public.same_mood": "'so so'",
}
OTHERS = {
    "jsonb": (Kind.JSONB, "'{\"a\":  1}'"),
    "uuid": (Kind.UUID, "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    "bytea": (Kind.BYTES, "'\\x00ff'"),
    "date": (Kind.DATE, "'2000-01-02'"),
    "time": (Kind.TIME, "'00:00:01'"),
    "timestamp": (Kind.TIMESTAMP, "'2000-01-01 00:00:01'"),
    "timestamptz": (Kind.TIMESTAMPTZ, "'2000-01-01 00:00:01Z'"),
    "bool": (Kind.BOOL, "'t'"),
    "int2": (Kind.INT16, "'1'"),
    "int4": (Kind.INT32, "'1'"),
    "int8": (Kind.INT64, "'1'"),
    "float4": (Kind.FLOAT32, "'1'"),
    "float8": (Kind.FLOAT64, "'1'"),
    "numeric": (Kind.NUMERIC, "'1'"),
    "public.small": (Kind.INT16, "'1'"),
}
BINARY = {
    Kind.JSONB: b'\x01{"a": 1}',
    Kind.UUID: bytes.fromhex("a0eebc999c0b4ef8bb6d6bb9bd380a11"),
    Kind.BYTES: b"\x00\xff",
    Kind.DATE: struct.pack("!i", 1),
    Kind.TIME: struct.pack("!q", 1_000_000),
    Kind.TIMESTAMP: struct.pack("!q", 1_000_000),
    Kind.TIMESTAMPTZ: struct.pack("!q", 1_000_000),
    Kind.BOOL: b"\x01",
    Kind.INT16: struct.pack("!h", 1),
    Kind.INT32: struct.pack("!i", 1),
    Kind.INT64: struct.pack("!q", 1),
    Kind.FLOAT32: struct.pack("!f", 1),
    Kind.FLOAT64: struct.pack("!d", 1),
    Kind.NUMERIC: struct.pack("!hhHhh", 1, 0, 0, 0, 1),
}
AS_TEXT = [
    '"char"',
    "xml",
    "money",
    "interval",
    "timetz",
    "inet",
    "cidr",
    "macaddr",
    "bit(3)",
    "oid",
    "regclass",
    "pg_lsn",
    "point",
    "tsvector",
    "int4range",
    "int4multirange",
    "int4[]",
    "text[]",
    "public.mood[]",
    "public.pair",
]


@pytest.mark.parametrize("database", ["source_db", "target_db"])
def test_the_binary_form_of_a_kind_is_the_same_for_all_its_types(database: str, request: pytest.FixtureRequest) -> None:
    with contextlib.closing(connect(request.getfixturevalue(database), role="reader", application="t")) as conn:
        conn.execute(
            "create type public.mood as enum ('so so'); create domain public.word as varchar(5);"
            "create domain public.same_mood as public.mood; create domain public.smaller as int2 check (value < 9);"
            "create domain public.small as public.smaller; create type public.pair as (a int)"
        )
        known = [*TEXTS, *OTHERS]
        columns = ", ".join(f"c{place} {name}" for place, name in enumerate([*known, *AS_TEXT]))
        run(conn, f"create table public.t ({columns})")
        (table,) = catalogue.tables(conn, lambda id: True)
        kinds = [Kind.TEXT] * len(TEXTS) + [kind for kind, _ in OTHERS.values()]
        assert [column.kind for column in table.columns] == kinds + [Kind.OTHER] * len(AS_TEXT)
        values = [*TEXTS.values(), *(value for _, value in OTHERS.values())]
        listed = ", ".join(f"c{place}" for place in range(len(known)))
        run(conn, f"insert into public.t ({listed}) values ({', '.join(values)})")
        with conn.cursor().copy(f"copy (select {listed} from public.t) to stdout (format binary)") as copy:
            data = b"".join(bytes(block) for block in copy)
        fields = split(data)
        expected_texts = ["ä\\b", "x ", "ab   ", "n", ' { "a" :1.0}', "so so", "w", "so so"]
        assert fields[: len(TEXTS)] == [text.encode() for text in expected_texts]
        assert fields[len(TEXTS) :] == [BINARY[kind] for kind, _ in OTHERS.values()]


def split(data: bytes) -> list[bytes]:
    """Return the fields of the only row of a binary copy."""
    place = SIGNATURE
    (count,) = struct.unpack_from("!h", data, place)
    place += 2
    fields = []
    for _ in range(count):
        (size,) = struct.unpack_from("!i", data, place)
        fields.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    return fields
