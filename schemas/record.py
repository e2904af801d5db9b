"""Records of the log: the row record, its two framings, and the control records, all in Confluent's wire format.

A record's value is byte 0, a 4-byte big-endian schema id, Avro binary. Two framings of one row schema:

* `row`: one row record a value, keyed by the columns of `Table.key`: changes;
* `batch`: an array of the same row records in one value, about 1,000 rows or 900 kB: loads.

A row record is a short head that is readable without decoding values, then the rows:

    op            enum   what happened
    epoch         long   of the capture that wrote it (0 in loads)
    position      long   of the transaction's commit at the source (0 in loads)
    xid           long   transaction id, 64-bit
    ordinal       long   of the change in its transaction, from 0
    commit_time   long   microseconds since 1970, at the source
    unchanged     array  indexes of columns of `after` that the source did not send: they keep their value
    before        null | row   the old row as far as the source gives it: for `Identity.KEY` the key columns only,
                               and only if they changed or the row was deleted; every other column is null there
    after         null | row   the new row; null for deletes and truncates

and a row is the columns in table order, each a union with null first. Columns have names of Avro's alphabet;
the real name stands in the attribute `name`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import IntEnum
from typing import Any, get_args, get_origin, get_type_hints

import fastavro

from schemas.errors import DecodeError
from schemas.events import Event
from schemas.frontier import (
    FIRST_TABLE_SCHEMA,
    Admitted,
    Carried,
    Chosen,
    Claim,
    Command,
    ControlRecord,
    Freed,
    Frontier,
    GivenUp,
    Manifest,
    Plan,
    Setup,
    SnapshotTaken,
    Succeeded,
    TableRegistered,
    Trimmed,
    Unneeded,
)
from schemas.table import Table
from schemas.types import AVRO

NAMESPACE = "penstock"


class Op(IntEnum):
    """What happened to a row. The numbers are the symbols' places in the Avro enum: never reorder."""

    INSERT = 0
    UPDATE = 1
    DELETE = 2
    TRUNCATE = 3
    READ = 4  # by a load
    DEFINE = 5  # nothing to a row: from here on the table is what the schema id says
    RESTART = 6  # a truncate after which the table's own sequences begin anew


def avro_name(name: str, taken: set[str]) -> str:
    """Return `name` in Avro's alphabet, distinct from all in `taken`, and add it there."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    if not plain or plain[0].isdigit():
        plain = "_" + plain
    candidate, n = plain, 2
    while candidate in taken:
        candidate, n = f"{plain}_{n}", n + 1
    taken.add(candidate)
    return candidate


def _columns(table: Table, indexes: range | tuple[int, ...], nullable: bool) -> list[dict[str, Any]]:
    taken: set[str] = set()
    names = [avro_name(column.name, taken) for column in table.columns]
    out: list[dict[str, Any]] = []
    for i in indexes:
        column = table.columns[i]
        carried = {**AVRO[column.kind], "source_type": column.source_type}
        if list(carried) == ["type", "source_type"]:
            carried = {"type": carried["type"], "source_type": column.source_type}
        out.append({"name": names[i], "type": ["null", carried] if nullable else carried, "column": column.name})
    return out


def row_schema(table: Table) -> dict[str, Any]:
    """Return the Avro schema of a row record of this version of the table."""
    row = {"type": "record", "name": "Row", "fields": _columns(table, range(len(table.columns)), True)}
    return {
        "type": "record",
        "name": "Change",
        "namespace": NAMESPACE,
        "table": str(table.id),
        "fields": [
            {"name": "op", "type": {"type": "enum", "name": "Op", "symbols": [op.name.lower() for op in Op]}},
            {"name": "epoch", "type": "long"},
            {"name": "position", "type": "long"},
            {"name": "xid", "type": "long"},
            {"name": "ordinal", "type": "long"},
            {"name": "commit_time", "type": "long"},
            {"name": "unchanged", "type": {"type": "array", "items": "int"}},
            {"name": "before", "type": ["null", row]},
            {"name": "after", "type": ["null", "Row"]},
        ],
    }


def batch_schema(table: Table) -> dict[str, Any]:
    """Return the Avro schema of a batch: an array of row records."""
    return {
        "type": "record",
        "name": "Batch",
        "namespace": NAMESPACE,
        "fields": [{"name": "rows", "type": {"type": "array", "items": row_schema(table)}}],
    }


def key_schema(table: Table) -> dict[str, Any]:
    """Return the Avro schema of a record's key: the key columns, which are never null."""
    return {
        "type": "record",
        "name": "Key",
        "namespace": NAMESPACE,
        "table": str(table.id),
        "fields": _columns(table, table.key, False),
    }


def value_schema_id(offset: int) -> int:
    """Return the id of the row schema that the record at `offset` of `p.tables` registered."""
    return FIRST_TABLE_SCHEMA + 2 * offset


def key_schema_id(value_id: int) -> int:
    """Return the id of the key schema that goes with a row schema. Batches share the id of their row schema:
    they have topics of their own."""
    return value_id + 1


# ------------------------------------------------------------------------------------------- control records

_CONTROL: dict[int, type[Any]] = {
    1: Claim,
    2: Frontier,
    3: SnapshotTaken,
    4: Plan,
    5: Manifest,
    6: TableRegistered,
    7: Setup,
    8: Trimmed,
    9: Admitted,
    10: Freed,
    11: Command,
    12: Event,
    13: Unneeded,
    14: Chosen,
    15: Carried,
    16: GivenUp,
    17: Succeeded,
}
_IDS = {kind: number for number, kind in _CONTROL.items()}
_PRIMITIVE = {int: "long", str: "string", bool: "boolean"}


def _avro_type(hint: Any) -> Any:
    if hint in _PRIMITIVE:
        return _PRIMITIVE[hint]
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _avro_type(get_args(hint)[0])}
    return control_schema(hint)


def control_schema(kind: type[Any]) -> dict[str, Any]:
    """Return the Avro schema of a control record, derived from its dataclass. `control.avsc` holds them all for
    everyone else; a test keeps it equal to this."""
    hints = get_type_hints(kind)
    return {
        "type": "record",
        "name": kind.__name__,
        "namespace": NAMESPACE,
        "fields": [{"name": f.name, "type": _avro_type(hints[f.name])} for f in fields(kind)],
    }


_PARSED = {number: fastavro.parse_schema(control_schema(kind)) for number, kind in _CONTROL.items()}


def control_schemas() -> dict[int, dict[str, Any]]:
    """Return every control record's schema by its id."""
    return {number: control_schema(kind) for number, kind in _CONTROL.items()}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _maker(kind: Any) -> Callable[[Any], Any] | None:
    """Return what turns Avro's plain value into one of this type; None if it is one already.

    Found once for each type: a target that catches up decodes very many frontiers.
    """
    if get_origin(kind) is tuple:
        make = _maker(get_args(kind)[0])
        return tuple if make is None else lambda values: tuple(map(make, values))
    if not is_dataclass(kind):
        return None
    hints = get_type_hints(kind)
    makers = [(f.name, make) for f in fields(kind) if (make := _maker(hints[f.name])) is not None]

    def build(plain: dict[str, Any]) -> Any:
        for name, make in makers:
            plain[name] = make(plain[name])
        return kind(**plain)  # type: ignore[operator]

    return build


_MAKERS = {number: _maker(kind) for number, kind in _CONTROL.items()}


def encode_control(record: ControlRecord | TableRegistered | Succeeded | Setup | Trimmed | Event) -> bytes:
    """Return a control record as a value of the log."""
    number = _IDS[type(record)]
    out = io.BytesIO()
    out.write(b"\x00" + number.to_bytes(4, "big"))
    fastavro.schemaless_writer(out, _PARSED[number], _plain(record))
    return out.getvalue()


def schema_id_of(value: bytes) -> int:
    """Return the schema id that a value begins with. Raises `DecodeError` if it has none."""
    if len(value) < 5 or value[0] != 0:
        raise DecodeError("a record without magic byte and schema id")
    return int.from_bytes(value[1:5], "big")


def is_control(value: bytes, kind: type[Any]) -> bool:
    """Whether a value is a control record of that kind, without decoding it."""
    return schema_id_of(value) == _IDS[kind]


def decode_control(value: bytes) -> Any:
    """Return the control record in a value. Raises `DecodeError` if the bytes are none."""
    number = schema_id_of(value)
    make = _MAKERS.get(number)
    if make is None:
        raise DecodeError(f"schema id {number} is no control record's")
    try:
        plain = fastavro.schemaless_reader(io.BytesIO(value[5:]), _PARSED[number], None)
        return make(plain)
    except (EOFError, IndexError, ValueError, KeyError, TypeError, UnicodeDecodeError, OverflowError) as error:
        raise DecodeError(f"a damaged {_CONTROL[number].__name__} record: {error}") from error
