"""Records: control records round-trip, schemas are what fastavro reads, and the `.avsc` files say the same."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from uuid import UUID

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

import schemas
from schemas.__main__ import documents, example_table, text
from schemas.errors import DecodeError
from schemas.frontier import (
    Chunk,
    Claim,
    Frontier,
    Manifest,
    Plan,
    Setup,
    SnapshotTaken,
    Succeeded,
    TableRegistered,
    TopicRange,
    Visibility,
)
from schemas.record import (
    Op,
    avro_name,
    control_schemas,
    decode_control,
    encode_control,
    key_schema,
    key_schema_id,
    row_schema,
    schema_id_of,
    value_schema_id,
)
from schemas.table import Column, Table, TableId
from schemas.types import Kind
from tests.unit.codec.strategies import unhurried

LONG = st.integers(-(2**63), 2**63 - 1)
NAME = st.text(max_size=20)
RECORDS = st.one_of(
    st.builds(Claim, NAME, LONG),
    st.builds(
        Frontier,
        LONG,
        LONG,
        LONG,
        LONG,
        LONG,
        LONG,
        st.lists(st.builds(TopicRange, NAME, LONG, LONG, LONG, st.lists(LONG, max_size=3).map(tuple)), max_size=3).map(
            tuple
        ),
    ),
    st.builds(SnapshotTaken, NAME, LONG, LONG, st.lists(LONG, max_size=4).map(tuple), LONG, LONG, LONG),
    st.builds(
        Plan,
        NAME,
        NAME,
        LONG,
        LONG,
        st.lists(st.builds(Chunk, LONG, NAME, NAME, NAME, NAME, LONG), max_size=3).map(tuple),
        st.lists(NAME, max_size=2).map(tuple),
        NAME,
        LONG,
    ),
    st.builds(Manifest, NAME, NAME, LONG, LONG, LONG, NAME, LONG, LONG, LONG, LONG, LONG, LONG),
    st.builds(TableRegistered, NAME, NAME, LONG, LONG, LONG),
    st.builds(Succeeded, LONG, LONG),
    st.builds(
        Setup,
        NAME,
        NAME,
        st.lists(NAME, max_size=2).map(tuple),
        LONG,
        LONG,
        LONG,
        st.lists(LONG, max_size=2).map(tuple),
        NAME,
        NAME,
        LONG,
        LONG,
        st.lists(LONG, max_size=2).map(tuple),
    ),
)


@unhurried
@given(RECORDS)
def test_a_control_record_comes_back_as_it_was_written(record: Any) -> None:
    assert decode_control(encode_control(record)) == record


@unhurried
@given(RECORDS, st.data())
def test_a_cut_control_record_is_refused(record: Any, data: st.DataObject) -> None:
    value = encode_control(record)
    with pytest.raises(DecodeError):
        decode_control(value[: data.draw(st.integers(0, len(value) - 1))])


def test_bytes_of_somebody_else_are_refused() -> None:
    for value in (b"", b"\x00\x00", b"\x01\x00\x00\x00\x02abc", b"\x00\x00\x00\x00\x3f"):
        with pytest.raises(DecodeError):
            decode_control(value)


def test_ids_of_rows_never_meet_those_of_control_records() -> None:
    ids = [i for offset in range(100) for i in (value_schema_id(offset), key_schema_id(value_schema_id(offset)))]
    assert len(set(ids)) == 200 and not set(ids) & set(control_schemas())


def test_the_schema_id_is_read_from_the_head_alone() -> None:
    assert schema_id_of(b"\x00\x00\x00\x01\x02") == 258


def test_avsc_files_say_what_the_code_does() -> None:
    folder = Path(schemas.__file__).parent
    assert {p.name for p in folder.glob("*.avsc")} == set(documents())
    for name, document in documents().items():
        assert (folder / name).read_text(encoding="utf-8") == text(document), f"run `python -m schemas`: {name}"


def test_fastavro_writes_and_reads_every_kind_of_column() -> None:
    table = example_table()
    schema = fastavro.parse_schema(row_schema(table))
    after = {
        "id": 1,
        **{
            kind.name.lower(): {
                Kind.BOOL: True,
                Kind.BYTES: b"x",
                Kind.FLOAT32: 0.5,
                Kind.FLOAT64: 0.1,
                Kind.UUID: UUID("6e0d8c0a-0000-4000-8000-000000000000"),
            }.get(kind, 7 if kind <= Kind.TIMESTAMPTZ else "text")
            for kind in Kind
        },
    }
    change = {
        "op": "insert", "epoch": 1, "position": 2, "xid": 3, "ordinal": 0, "commit_time": 5, "unchanged": [2],
        "before": None, "after": after,
    }  # fmt: skip
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, change)
    out.seek(0)
    assert fastavro.schemaless_reader(out, schema, None) == change
    fastavro.parse_schema(key_schema(table))


def test_names_outside_avro_s_alphabet_stay_apart() -> None:
    taken: set[str] = set()
    assert [avro_name(n, taken) for n in ("a b", "a.b", "1st", "", "ü")] == ["a_b", "a_b_2", "_1st", "_", "__2"]


def test_every_op_has_its_place_in_the_enum() -> None:
    table = Table(id=TableId("s", "t"), columns=(Column(name="a", kind=Kind.TEXT, source_type="text"),))
    assert row_schema(table)["fields"][0]["type"]["symbols"] == [op.name.lower() for op in sorted(Op)]


@unhurried
@given(
    st.integers(1, 30).flatmap(lambda top: st.tuples(st.just(top), st.sets(st.integers(1, top)), st.integers(1, 40)))
)
def test_a_snapshot_sees_exactly_what_ended_before_it(case: tuple[int, set[int], int]) -> None:
    top, running, xid = case
    snapshot = Visibility(min(running, default=top + 1), top + 1, tuple(sorted(running)))
    assert snapshot.sees(xid) == (xid <= top and xid not in running)


def test_a_later_snapshot_may_still_see_less() -> None:
    early = Visibility(5, 10, (5,))
    assert Visibility(5, 12, (5, 11)).sees_all_of(early)
    assert not Visibility(5, 12, (5, 7)).sees_all_of(early)
