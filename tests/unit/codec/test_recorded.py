"""What a real PostgreSQL sent, recorded by `tests/unit/codec/record.py`."""

import base64
import json
from typing import Any

import pytest

from codec import frames, pgoutput, rows
from codec.copy import CopyDecoder, encode_batch, load_rows
from codec.layout import Layout
from codec.pgoutput import ChangeDecoder
from codec.rows import Change
from schemas.record import Op
from schemas.types import Kind
from tests.unit.codec.record import FILE

TYPED = Layout(64, [Kind.INT64, *list(Kind)[:3], *list(Kind)[4:]], [0])
LAYOUTS = {
    "typed": TYPED,
    "whole": Layout(66, [Kind.INT32, Kind.TEXT, Kind.TEXT], [0]),
    "keyless": Layout(68, [Kind.INT32, Kind.TEXT], []),
    "longkey": Layout(70, [Kind.TEXT, Kind.INT32, Kind.TEXT], [0]),
}
WIDER = Layout(72, [Kind.INT32, Kind.TEXT, Kind.INT32], [])


@pytest.fixture(scope="module")
def recording() -> Any:
    return json.loads(FILE.read_text())


def streamed(recording: Any) -> tuple[dict[str, list[Change]], list[Any]]:
    """Every change by table, and every other thing that the stream says."""
    decoder = ChangeDecoder(7, 700)
    names = {oid: name for name, oid in recording["oids"].items()}
    slots = {name: slot for slot, name in enumerate(LAYOUTS)}
    changes: dict[str, list[Change]] = {name: [] for name in LAYOUTS}
    events: list[Any] = []
    layouts = dict(LAYOUTS)
    for encoded in recording["frames"]:
        event = decoder.feed(base64.b64decode(encoded))
        if event == pgoutput.RELATION:
            relation = decoder.relation
            assert names[relation.oid] == relation.name
            if relation.name in layouts:
                if len(relation.columns) != len(layouts[relation.name].kinds):
                    layouts[relation.name] = WIDER
                decoder.bind(relation.oid, layouts[relation.name], slots[relation.name])
            else:
                decoder.ignore(relation.oid)
        elif event == pgoutput.MESSAGE:
            events.append((decoder.message[0], decoder.message[3]))
        elif event == pgoutput.TRUNCATE:
            events.append({names[oid] for oid in decoder.truncated[1]})
        elif event == pgoutput.COMMIT:
            assert decoder.position == decoder.end_lsn > decoder.commit_lsn
        for slot, (_, block, ids) in decoder.take().items():
            name = list(LAYOUTS)[slot]
            assert ids == {layouts[name].schema_id}
            changes[name] += [rows.decode(layouts[name], value or b"") for _, value in frames.unpack(block)]
    return changes, events


def test_the_stream_brings_the_rows_that_the_server_prints(recording: Any) -> None:
    changes, events = streamed(recording)
    typed = changes["typed"]
    assert [change.after for change in typed[:6]] == [tuple(row) for row in recording["texts"]]
    assert [change.op for change in typed[6:]] == [Op.UPDATE, Op.UPDATE, Op.DELETE]
    assert typed[6].before is None and typed[6].unchanged == ()
    assert typed[7].before == ("6", *[None] * 15) and typed[7].after is not None and typed[7].after[0] == "60"
    assert typed[8].before == ("5", *[None] * 15) and typed[8].after is None
    assert [change.ordinal for change in typed] == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert len({change.position for change in typed[:6]}) == 1
    assert events == [(True, b"inside"), {"longkey", "ignored"}, (False, b"outside"), (True, b"the-end")]


def test_values_stored_out_of_line_are_unchanged_or_come_from_the_old_row(recording: Any) -> None:
    changes, _ = streamed(recording)
    plain = [(change.op, change.unchanged, change.before, change.after) for change in changes["longkey"]]
    assert plain == [
        (Op.INSERT, (), None, ("k1", "1", "x" * 3000)),
        (Op.INSERT, (), None, ("k2", "2", "short")),
        (Op.UPDATE, (2,), None, ("k1", "10", None)),
        (Op.UPDATE, (2,), ("k1", None, None), ("k3", "10", None)),
        (Op.DELETE, (), ("k2", None, None), None),
    ]
    long = "y" * 3000
    plain = [(change.op, change.unchanged, change.before, change.after) for change in changes["whole"]]
    assert plain == [
        (Op.INSERT, (), None, ("1", long, "a")),
        (Op.UPDATE, (), ("1", long, "a"), ("1", long, "b")),
        (Op.UPDATE, (), ("1", long, "b"), ("2", long, "b")),
        (Op.DELETE, (), ("2", long, "b"), None),
    ]


def test_a_table_without_key_and_its_new_column(recording: Any) -> None:
    changes, _ = streamed(recording)
    assert [(change.op, change.before, change.after) for change in changes["keyless"]] == [
        (Op.INSERT, None, ("1", "a")),
        (Op.INSERT, None, ("1", "a")),
        (Op.INSERT, None, ("2", None)),
        (Op.UPDATE, ("2", None), ("2", "c")),
        (Op.DELETE, ("1", "a"), None),
        (Op.INSERT, None, ("3", "d", "4")),
    ]


def test_both_forms_of_copy_bring_the_same_rows(recording: Any) -> None:
    expected = encode_batch(TYPED, [(Op.READ, None, row) for row in recording["texts"]])
    for form, messages in recording["copy"].items():
        decoder = CopyDecoder(TYPED, binary=form == "binary")
        for message in messages:
            decoder.feed(base64.b64decode(message))
        assert decoder.take() == expected
    text = b"".join(base64.b64decode(message) for message in recording["copy"]["text"])
    assert load_rows(TYPED, expected, binary=False) == text


def test_the_binary_form_is_what_the_server_wrote(recording: Any) -> None:
    """A layout without the column that only has a text form."""
    layout = Layout(64, TYPED.kinds[:-1], [0])
    packed = load_rows(
        layout, encode_batch(layout, [(Op.READ, None, row[:-1]) for row in recording["texts"]]), binary=True
    )
    sent = b"".join(base64.b64decode(message) for message in recording["copy"]["binary"])[19:]
    at = 0
    for row in recording["texts"]:
        last = row[-1]
        size = len(last.encode()) if last is not None else 0
        length = packed_length(packed, at)
        assert sent[2:length] == packed[at + 2 : at + length]
        sent = sent[length + 4 + size :]
        at += length
    assert sent == b"\xff\xff"


def packed_length(packed: bytes, start: int) -> int:
    """The length of the binary COPY row that starts there."""
    at = start + 2
    for _ in range(int.from_bytes(packed[start : start + 2], "big")):
        size = int.from_bytes(packed[at : at + 4], "big", signed=True)
        at += 4 + max(size, 0)
    return at - start
