"""The replication stream becomes exactly the records that the twin makes of it."""

import contextlib
import io
import struct

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec import frames, pgoutput
from codec.layout import Layout
from codec.pgoutput import ChangeDecoder
from schemas.errors import DecodeError, ValueUnsupported
from schemas.record import Op, key_schema, row_schema
from schemas.types import Kind
from tests.twin import pgoutput as twin
from tests.twin import records
from tests.twin.records import Shape
from tests.unit.codec.strategies import Sending, numbers, sendings, shapes, unhurried

PAIR = Shape(64, (Kind.INT32, Kind.TEXT), (0,))
KEYLESS = Shape(66, (Kind.INT32, Kind.TEXT), ())
TIME = 1700000000000000


def layout(shape: Shape) -> Layout:
    return Layout(*shape)


def started(*bound: Shape) -> ChangeDecoder:
    """A decoder inside a transaction; each shape is relation 1000, 1001, ... and slot 0, 1, ..."""
    decoder = ChangeDecoder(7, 1000)
    for i, shape in enumerate(bound):
        decoder.bind(1000 + i, layout(shape), i)
    assert decoder.feed(twin.begin(500, TIME, 1001)) == pgoutput.BEGIN
    return decoder


def insert(shape: Shape, *values: str | None, oid: int = 1000) -> bytes:
    assert len(values) == len(shape.kinds)
    return twin.change(Op.INSERT, oid, "", None, values)


@st.composite
def transactions(draw: st.DrawFn) -> tuple[Shape, list[Sending]]:
    shape = draw(shapes())
    return shape, draw(st.lists(sendings(shape), min_size=1, max_size=5))


@unhurried
@given(transactions(), numbers, numbers, st.integers(twin.FROM_1970_TO_2000, 2**62), numbers, st.booleans())
def test_records_of_random_changes_equal_the_twins_and_read_back_with_fastavro(
    transaction: tuple[Shape, list[Sending]], epoch: int, position: int, time: int, reference: int, as_view: bool
) -> None:
    shape, changes = transaction
    xid = (reference + 5) % 2**32
    full = twin.widen(xid, reference)
    decoder = ChangeDecoder(epoch, reference)
    decoder.bind(9, layout(shape), 3)
    if full >= 2**63:
        with pytest.raises(DecodeError):
            decoder.feed(twin.begin(position, time, xid))
        return
    decoder.feed(twin.begin(position, time, xid))
    expected = []
    for ordinal, change in enumerate(changes):
        frame = twin.change(change.op, 9, change.old_tag, change.old, change.new)
        assert decoder.feed(memoryview(frame) if as_view else frame) == pgoutput.ROW
        expected.append(
            twin.expected(shape, *change)._replace(
                epoch=epoch, position=position, xid=full, ordinal=ordinal, commit_time=time
            )
        )
    assert decoder.pending_records == len(changes)
    size = decoder.pending_bytes
    taken = decoder.take()
    assert taken == {
        3: (len(changes), records.frames(records.record(shape, c) for c in expected), frozenset({shape.schema_id}))
    }
    assert size == len(taken[3][1])
    assert (decoder.pending_bytes, decoder.pending_records, decoder.take()) == (0, 0, {})
    schema = fastavro.parse_schema(row_schema(shape.table()))
    keys = fastavro.parse_schema(key_schema(shape.table()))
    for record, (key, value) in zip(expected, frames.unpack(taken[3][1]), strict=True):
        assert value is not None
        stream = io.BytesIO(value[5:])
        found = fastavro.schemaless_reader(stream, schema, None)
        assert repr(found) == repr(records.natives(shape, record))  # NaN equals nothing, its name does
        assert stream.read() == b""
        assert (key is None) == (not shape.key)
        if key is not None:
            fastavro.schemaless_reader(io.BytesIO(key[5:]), keys, None)


@unhurried
@given(transactions(), st.data())
def test_cut_off_or_damaged_frames_raise_and_leave_nothing_behind(
    transaction: tuple[Shape, list[Sending]], data: st.DataObject
) -> None:
    shape, changes = transaction
    decoder = started(shape)
    for change in changes:
        frame = twin.change(change.op, 1000, change.old_tag, change.old, change.new)
        for size in range(len(frame)):
            with pytest.raises((DecodeError, ValueUnsupported)):
                decoder.feed(frame[:size])
            assert decoder.pending_bytes == 0
        with pytest.raises(DecodeError):
            decoder.feed(frame + b"\0")
        damaged = bytearray(frame)
        for _ in range(3):
            damaged[data.draw(st.integers(25, len(frame) - 1))] = data.draw(st.integers(0, 255))
        try:
            decoder.feed(damaged)
        except (DecodeError, ValueUnsupported):
            assert decoder.pending_records == 0
        decoder.take()
        if decoder.feed(twin.keepalive(1, False)) != pgoutput.KEEPALIVE:
            raise AssertionError
        decoder = started(shape)


@unhurried
@given(
    st.binary(max_size=80),
    st.sampled_from([b"", b"w" + bytes(24), b"k"]),
    st.sampled_from([b"", *map(bytes, zip(b"BCIUDRMTYO", strict=True))]),
)
def test_random_bytes_raise_nothing_but_our_errors(tail: bytes, head: bytes, kind: bytes) -> None:
    decoder = started(PAIR)
    with contextlib.suppress(DecodeError, ValueUnsupported):
        decoder.feed(head + kind + tail)


def test_a_transaction_tells_its_head_and_its_end() -> None:
    decoder = ChangeDecoder(7, 2**32 - 1)
    assert (decoder.position, decoder.max_xid) == (0, 0)
    assert decoder.feed(twin.begin(500, TIME, 3)) == pgoutput.BEGIN
    assert (decoder.xid, decoder.commit_lsn, decoder.commit_time) == (2**32 + 3, 500, TIME)
    assert decoder.position == 0
    assert decoder.feed(twin.commit(500, 508, TIME)) == pgoutput.COMMIT
    assert (decoder.end_lsn, decoder.position, decoder.max_xid) == (508, 508, 2**32 + 3)
    decoder.feed(twin.begin(600, TIME, 2**32 - 5))
    assert (decoder.xid, decoder.max_xid) == (2**32 - 5, 2**32 + 3)


def test_a_keepalive_tells_where_the_server_is() -> None:
    decoder = ChangeDecoder(7, 1)
    assert decoder.feed(twin.keepalive(12345, True)) == pgoutput.KEEPALIVE
    assert (decoder.wal_end, decoder.reply_requested) == (12345, True)


def test_a_relation_is_described_and_its_binding_forgotten() -> None:
    decoder = started(PAIR)
    frame = twin.relation(1000, "", "t", [("id", True, 23, -1), ("é", False, 1043, 14)])
    assert decoder.feed(frame) == pgoutput.RELATION
    columns = (pgoutput.RelationColumn("id", True, 23, -1), pgoutput.RelationColumn("é", False, 1043, 14))
    assert decoder.relation == pgoutput.Relation(1000, "pg_catalog", "t", "d", columns)
    with pytest.raises(DecodeError, match="1000"):
        decoder.feed(insert(PAIR, "1", "a"))
    with pytest.raises(DecodeError, match="1000"):
        decoder.append_truncate(1000, False)
    decoder.bind(1000, layout(PAIR), 0)
    decoder.feed(insert(PAIR, "1", "a"))
    assert decoder.pending_records == 1


def test_a_change_of_an_unknown_relation_is_refused() -> None:
    with pytest.raises(DecodeError, match="77"):
        started(PAIR).feed(insert(PAIR, "1", "a", oid=77))


def test_ignored_changes_are_dropped_but_counted() -> None:
    decoder = started(PAIR)
    decoder.ignore(2000)
    decoder.feed(insert(PAIR, "1", "a", oid=2000))
    decoder.feed(insert(PAIR, "1", "a"))
    ((count, block, _),) = decoder.take().values()
    change = records.Change(Op.INSERT, 7, 500, 1001, 1, TIME, after=("1", "a"))
    assert (count, block) == (1, records.frames([records.record(PAIR, change)]))


def test_many_relations_find_their_slots() -> None:
    decoder = ChangeDecoder(7, 1000)
    for oid in range(1, 3000):
        decoder.bind(oid * 64, layout(PAIR), oid % 10)
    decoder.feed(twin.begin(500, TIME, 1001))
    for oid in range(1, 3000):
        decoder.feed(insert(PAIR, str(oid), "a", oid=oid * 64))
    taken = decoder.take()
    assert {slot: count for slot, (count, _, _) in taken.items()} == {
        slot: len(range(slot or 10, 3000, 10)) for slot in range(10)
    }


def test_versions_of_a_table_in_one_slot_name_both_schemas() -> None:
    decoder = started(PAIR)
    decoder.feed(insert(PAIR, "1", "a"))
    decoder.feed(twin.relation(1000, "public", "t", [("id", True, 23, -1)]))
    newer = Shape(70, (Kind.INT32,), (0,))
    decoder.bind(1000, layout(newer), 0)
    decoder.feed(insert(newer, "2"))
    assert decoder.take()[0][2] == {64, 70}
    decoder.feed(insert(newer, "3"))
    assert decoder.take()[0][2] == {70}


def test_a_truncate_is_appended_only_where_it_is_wanted() -> None:
    decoder = started(PAIR, KEYLESS)
    assert decoder.feed(twin.truncate(3, [1000, 1001, 5])) == pgoutput.TRUNCATE
    assert decoder.truncated == (3, (1000, 1001, 5))
    assert decoder.pending_records == 0
    for op in (Op.TRUNCATE, Op.RESTART):
        decoder.append_truncate(1001, op is Op.RESTART)
    expected = [records.Change(op, 7, 500, 1001, n, TIME) for n, op in enumerate((Op.TRUNCATE, Op.RESTART))]
    framed = records.frames([(None, records.value_of(KEYLESS, change)) for change in expected])
    assert decoder.take() == {1: (2, framed, frozenset({66}))}


def test_a_definition_belongs_to_the_transaction_that_it_is_appended_in() -> None:
    decoder = started(PAIR)
    decoder.feed(insert(PAIR, "1", "a"))
    decoder.append_definition(layout(KEYLESS), 0)
    count, block, schemas = decoder.take()[0]
    row = records.Change(Op.INSERT, 7, 500, 1001, 0, TIME, after=("1", "a"))
    change = records.Change(Op.DEFINE, 7, 500, 1001, 1, TIME)
    expected = [records.record(PAIR, row), (None, records.value_of(KEYLESS, change))]
    assert (count, block, schemas) == (2, records.frames(expected), frozenset({64, 66}))


def test_one_definition_a_transaction_stands_for_what_is_left_out() -> None:
    decoder = started(PAIR)
    decoder.leave_out(2000, layout(KEYLESS), 0)
    for row in ("1", "2"):
        decoder.feed(insert(PAIR, row, "a", oid=2000))
    decoder.feed(insert(PAIR, "3", "a"))
    decoder.feed(twin.commit(500, 600, TIME))
    decoder.feed(twin.begin(700, TIME, 1002))
    decoder.append_truncate(2000, False)
    decoder.feed(insert(PAIR, "4", "a", oid=2000))
    count, block, schemas = decoder.take()[0]
    expected = [
        (None, records.value_of(KEYLESS, records.Change(Op.DEFINE, 7, 500, 1001, 0, TIME))),
        records.record(PAIR, records.Change(Op.INSERT, 7, 500, 1001, 2, TIME, after=("3", "a"))),
        (None, records.value_of(KEYLESS, records.Change(Op.DEFINE, 7, 700, 1002, 0, TIME))),
    ]
    assert (count, block, schemas) == (3, records.frames(expected), frozenset({64, 66}))
    decoder.feed(insert(PAIR, "5", "a", oid=2000))
    assert not decoder.take()


def test_a_definition_outside_of_transactions_stands_behind_the_last_one() -> None:
    decoder = started(PAIR)
    decoder.feed(twin.commit(500, 508, TIME))
    decoder.append_definition(layout(KEYLESS), 3)
    change = records.Change(Op.DEFINE, 7, 508, 1001, 0, TIME)
    assert decoder.take() == {3: (1, records.frames([(None, records.value_of(KEYLESS, change))]), frozenset({66}))}


def test_messages_come_with_their_content() -> None:
    decoder = ChangeDecoder(7, 1)
    assert decoder.feed(twin.message(True, 77, "penstock", b"\0x")) == pgoutput.MESSAGE
    assert decoder.message == (True, 77, "penstock", b"\0x")


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(twin.begin(501, TIME, 1002), id="begin inside a transaction"),
        pytest.param(twin.commit(501, 508, TIME), id="commit of another transaction"),
        pytest.param(twin.change(Op.INSERT, 1000, "", None, ("1", twin.UNCHANGED)), id="insert with unchanged value"),
        pytest.param(twin.change(Op.UPDATE, 1000, "", None, (twin.UNCHANGED, "a")), id="update with unknown key"),
        pytest.param(twin.change(Op.DELETE, 1000, "O", (twin.UNCHANGED, "a"), None), id="old row with unchanged value"),
        pytest.param(twin.change(Op.INSERT, 1000, "", None, (None, "a")), id="null key"),
        pytest.param(twin.change(Op.INSERT, 1000, "", None, ("1",)), id="too few columns"),
        pytest.param(twin.change(Op.INSERT, 1000, "", None, ("1", "a", "b")), id="too many columns"),
        pytest.param(twin.change(Op.DELETE, 1000, "", None, None), id="delete without old row"),
        pytest.param(twin.change(Op.UPDATE, 1001, "K", ("1", None), ("1", "a")), id="old key of a table without"),
        pytest.param(twin.data(b"S" + bytes(5)), id="streamed transaction"),
        pytest.param(b"x", id="unknown frame"),
        pytest.param(b"", id="empty frame"),
    ],
)
def test_what_must_not_come_is_refused(frame: bytes) -> None:
    decoder = started(PAIR, KEYLESS)
    with pytest.raises(DecodeError):
        decoder.feed(frame)
    assert decoder.pending_bytes == 0


def test_changes_outside_a_transaction_are_refused() -> None:
    decoder = ChangeDecoder(7, 1)
    decoder.bind(1000, layout(PAIR), 0)
    for frame in (insert(PAIR, "1", "a"), twin.truncate(0, [1000]), twin.commit(1, 2, TIME)):
        with pytest.raises(DecodeError):
            decoder.feed(frame)


def test_a_refused_value_leaves_a_gap_in_the_ordinals_and_names_its_column() -> None:
    shape = Shape(64, (Kind.INT32, Kind.TIMESTAMP), (0,))
    decoder = started(shape)
    with pytest.raises(ValueUnsupported, match="column 1"):
        decoder.feed(insert(shape, "1", "294277-01-01 00:00:00"))
    decoder.feed(insert(shape, "2", "infinity"))
    change = records.Change(Op.INSERT, 7, 500, 1001, 1, TIME, after=("2", "infinity"))
    assert decoder.take()[0][1] == records.frames([records.record(shape, change)])


def test_text_that_is_not_utf8_is_refused() -> None:
    decoder = started(PAIR)
    for text in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"a\xe2\x82", b"\xf5\x80\x80\x80"):
        payload = (
            b"I" + struct.pack(">IcHcIcc", 1000, b"N", 2, b"t", 1, b"1", b"t") + struct.pack(">I", len(text)) + text
        )
        with pytest.raises(ValueUnsupported, match="column 1"):
            decoder.feed(twin.data(payload))
