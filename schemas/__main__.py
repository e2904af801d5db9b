"""Write the `.avsc` files: `python -m schemas`. They are for readers in other languages; a test keeps them true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.record import batch_schema, control_schemas, key_schema, row_schema
from schemas.table import Column, Table, TableId
from schemas.types import Kind


def example_table() -> Table:
    """Return a table with a column of every kind, the key first: its schemas show how each is carried."""
    columns = [Column(name="id", kind=Kind.INT64, source_type="bigint", nullable=False)]
    columns += [Column(name=kind.name.lower(), kind=kind, source_type="…") for kind in Kind]
    return Table(id=TableId("public", "example"), columns=tuple(columns), key=(0,))


def documents() -> dict[str, Any]:
    """Return what each `.avsc` file holds: the control records by schema id, and a row, batch and key by example."""
    table = example_table()
    return {
        "control.avsc": [{"schema_id": number, **schema} for number, schema in control_schemas().items()],
        "row.example.avsc": row_schema(table),
        "batch.example.avsc": batch_schema(table),
        "key.example.avsc": key_schema(table),
    }


def text(document: Any) -> str:
    """Return a document as its file has it."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, document in documents().items():
        (Path(__file__).parent / name).write_text(text(document), encoding="utf-8")
