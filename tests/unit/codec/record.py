"""Record what a real PostgreSQL 16 sends: `python -m tests.unit.codec.record` writes `tests/data/postgres-16.json`.

The recording holds every frame of a replication stream, a COPY in both forms, and the texts that the server itself
prints for the rows.
"""

import base64
import json
import time
from pathlib import Path

import psycopg
from psycopg import pq

from control.servers.postgres import PostgresServer

FILE = Path(__file__).parents[2] / "data" / "postgres-16.json"
COLUMNS = {
    "id": "bigint primary key",
    "flag": "boolean",
    "small": "smallint",
    "middle": "integer",
    "single": "real",
    "double": "double precision",
    "day": "date",
    "clock": "time",
    "moment": "timestamp",
    "instant": "timestamptz",
    "raw": "bytea",
    "words": "text",
    "document": "jsonb",
    "identity": "uuid",
    "amount": "numeric",
    "span": "interval",
}
ROWS = [
    """1, true, -32768, 2147483647, 0.1, 0.1, '2024-02-29', '12:34:56.789', '2024-02-29 12:34:56.789',
       '2024-02-29 12:34:56.789+02', '\\x00ff5c',
       E'tab\\t line\\n back\\\\slash \\b\\f\\r\\v', '{"a": [1, 2.50, null]}',
       '01234567-89ab-cdef-0123-456789abcdef', 1234.5600, '1 day 02:03:04'""",
    "2, false" + ", null" * 14,
    """3, null, 32767, -2147483648, 'NaN', '-Infinity', 'infinity', '24:00:00', '-infinity', 'infinity', '', '', 'null',
       '00000000-0000-0000-0000-000000000000', 'NaN', '-1 year'""",
    """4, true, 0, 0, '-0', '-0', '0044-03-15 BC', '00:00:00', '0044-03-15 12:00:00 BC', '0001-01-01 00:00:00+00',
       '\\x', 'Zürich 日本 😀', '"x"', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '-0.000', '00:00:00'""",
    """5, true, 1, 1, 3.4028235e38, 1.7976931348623157e308, '12345-06-07', '23:59:59.999999',
       '12345-06-07 23:59:59.999999', '1969-12-31 23:59:59.999999+00', '\\xdeadbeef', '\\N', '[]',
       'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 123456789012345678901234567890.00001, '1 mon'""",
    """6, true, 1, 1, 1e-45, 5e-324, '0001-12-31 BC', '00:00:00.000001', '1970-01-01 00:00:00.1',
       '2000-01-01 00:00:00+00', '\\x20', '\\.', '{}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
       100000000, '00:00:00.000001'""",
]
OPTIONS = "-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex -c timezone=UTC"
SETUP = [
    f"create table typed ({', '.join(f'{name} {kind}' for name, kind in COLUMNS.items())})",
    "create table whole (id int primary key, body text, note text)",
    "alter table whole replica identity full",
    "alter table whole alter body set storage external",
    "create table keyless (a int, b text)",
    "alter table keyless replica identity full",
    "create table longkey (k text primary key, v int, big text)",
    "alter table longkey alter big set storage external",
    "create table ignored (id int primary key)",
    "create publication everything for all tables",
]
CHANGES = [
    [f"insert into typed values ({row})" for row in ROWS],
    [
        "insert into longkey values ('k1', 1, repeat('x', 3000)), ('k2', 2, 'short')",
        "update longkey set v = 10 where k = 'k1'",
        "update longkey set k = 'k3' where k = 'k1'",
        "delete from longkey where k = 'k2'",
    ],
    [
        "insert into whole values (1, repeat('y', 3000), 'a')",
        "update whole set note = 'b'",
        "update whole set id = 2",
        "delete from whole",
    ],
    [
        "insert into keyless values (1, 'a'), (1, 'a'), (2, null)",
        "update keyless set b = 'c' where a = 2",
        "delete from keyless where ctid = '(0,1)'",
    ],
    ["insert into ignored values (1)", "select pg_logical_emit_message(true, 'penstock', 'inside')"],
    [
        "update typed set middle = 7 where id = 6",
        "update typed set id = 60 where id = 6",
        "delete from typed where id = 5",
    ],
    ["truncate longkey, ignored"],
    ["alter table keyless add c int", "insert into keyless values (3, 'd', 4)"],
    ["select pg_logical_emit_message(false, 'penstock', 'outside')", "insert into ignored values (2)"],
]


def _stream(url: str, last_message: bytes) -> list[bytes]:
    """Return all frames of the slot's stream up to the message."""
    connection = pq.PGconn.connect(
        f"{url}?replication=database&options={OPTIONS.replace(' ', '%20').replace('=', '%3D')}".encode()
    )
    result = connection.exec_(
        b"START_REPLICATION SLOT recording LOGICAL 0/0 "
        b"(proto_version '1', publication_names 'everything', messages 'true')"
    )
    if result.status != pq.ExecStatus.COPY_BOTH:
        raise RuntimeError(result.error_message.decode())
    frames: list[bytes] = []
    connection.nonblocking = 1
    until = time.monotonic() + 30
    while time.monotonic() < until:
        connection.consume_input()
        size, data = connection.get_copy_data(1)
        if size == 0:
            time.sleep(0.01)
            continue
        frames.append(bytes(data))
        if last_message in frames[-1]:
            connection.finish()
            return frames
    raise RuntimeError("the stream did not come to its end")


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def record() -> None:
    """Write the recording."""
    with PostgresServer(16) as server:
        url = server.url()
        with psycopg.connect(url, autocommit=True, options=OPTIONS) as connection:
            for statement in SETUP:
                connection.execute(statement.encode())
            connection.execute("select pg_create_logical_replication_slot('recording', 'pgoutput')")
            for transaction in CHANGES[:1]:
                with connection.transaction():
                    for statement in transaction:
                        connection.execute(statement.encode())
            texts = connection.execute(
                (
                    "select "
                    + ", ".join(_text(name, kind) for name, kind in COLUMNS.items())
                    + " from typed order by id"
                ).encode()
            ).fetchall()
            names = [f"{name}::text" if name == "span" else name for name in COLUMNS]
            query = f"copy (select {', '.join(names)} from typed order by id) to stdout"
            copies = {}
            for form in ("text", "binary"):
                with connection.cursor().copy(f"{query} (format {form})".encode()) as copy:
                    copies[form] = [_encoded(bytes(data)) for data in copy]
            for transaction in CHANGES[1:]:
                with connection.transaction():
                    for statement in transaction:
                        connection.execute(statement.encode())
            connection.execute("select pg_logical_emit_message(true, 'penstock', 'the-end')")
            oids: dict[str, int] = dict(
                connection.execute(
                    "select relname::text, oid::int from pg_class"
                    " where relkind = 'r' and relnamespace = 'public'::regnamespace"
                ).fetchall()
            )
        frames = [_encoded(frame) for frame in _stream(url, b"the-end")]
    recording = {"oids": oids, "texts": texts, "copy": copies, "frames": frames}
    FILE.write_text(json.dumps(recording, indent=0, ensure_ascii=False) + "\n")


def _text(name: str, kind: str) -> str:
    return f"case {name} when true then 't' when false then 'f' end" if kind == "boolean" else f"{name}::text"


if __name__ == "__main__":
    record()
