"""COPY in either form becomes the same batch, and a batch the COPY that PostgreSQL would read."""

import contextlib
import io
from collections.abc import Callable

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.copy import HEADER, TRAILER, CopyDecoder, encode_batch, load_rows
from codec.layout import Layout
from schemas.errors import DecodeError, ValueUnsupported
from schemas.record import Op, batch_schema
from schemas.types import Kind
from tests.twin import copy as twin
from tests.twin import records
from tests.twin.records import Change, Shape
from tests.unit.codec.strategies import rows, shapes, unhurried

Rows = list[tuple[str | None, ...]]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Shape, Rows]:
    shape = draw(shapes())
    return shape, draw(st.lists(rows(shape), max_size=5))


def batch(shape: Shape, content: Rows) -> bytes:
    return records.batch(shape, [Change(Op.READ, after=row) for row in content])


def decoded(shape: Shape, messages: list[bytes], binary: bool) -> bytes:
    decoder = CopyDecoder(Layout(*shape), binary=binary)
    for message in messages:
        decoder.feed(message)
    return decoder.take()


@unhurried
@given(tables())
def test_both_forms_become_the_twins_batch(table: tuple[Shape, Rows]) -> None:
    shape, content = table
    expected = batch(shape, content)
    lines = [twin.text_row(row) for row in content]
    packed = [twin.binary_row(shape.kinds, row) for row in content]
    assert decoded(shape, lines, False) == expected
    assert decoded(shape, [HEADER, *packed, TRAILER], True) == expected
    assert decoded(shape, [HEADER + b"".join(packed) + TRAILER], True) == expected
    assert encode_batch(Layout(*shape), [(Op.READ, None, row) for row in content]) == expected
    stream = io.BytesIO(expected[5:])
    found = fastavro.schemaless_reader(stream, fastavro.parse_schema(batch_schema(shape.table())), None)
    assert isinstance(found, dict) and len(found["rows"]) == len(content)
    assert stream.read() == b""


@unhurried
@given(tables())
def test_a_batch_becomes_the_copy_that_it_came_from(table: tuple[Shape, Rows]) -> None:
    shape, content = table
    value = batch(shape, content)
    layout = Layout(*shape)
    text = b"".join(map(twin.text_row, content))
    assert load_rows(layout, value, binary=False) == text
    packed = b"".join(twin.binary_row(shape.kinds, row) for row in content)
    assert layout.binary == (Kind.OTHER not in shape.kinds)
    assert load_rows(layout, value, binary=True) == (packed if layout.binary else text)


@unhurried
@given(tables(), st.data())
def test_cut_off_and_damaged_copies_and_batches_raise_nothing_but_our_errors(
    table: tuple[Shape, Rows], data: st.DataObject
) -> None:
    shape, content = table
    layout = Layout(*shape)
    value = batch(shape, content)
    for size in range(len(value)):
        for binary in (True, False):
            with pytest.raises(DecodeError):
                load_rows(layout, value[:size], binary=binary)
    for row in content:
        packed, line = twin.binary_row(shape.kinds, row), twin.text_row(row)
        for size in range(1, len(packed)):
            with pytest.raises(DecodeError):
                decoded(shape, [HEADER, packed[:size]], True)
        for size in range(1, len(line)):
            with pytest.raises(DecodeError):
                decoded(shape, [line[:size]], False)
    for whole, binary in ((value, True), (value, False)):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[data.draw(st.integers(5, len(whole) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(DecodeError, ValueUnsupported):
            load_rows(layout, damaged, binary=binary)


@unhurried
@given(shapes(), st.binary(max_size=100), st.booleans())
def test_random_bytes_raise_nothing_but_our_errors(shape: Shape, noise: bytes, binary: bool) -> None:
    layout = Layout(*shape)
    attempts: list[Callable[[], bytes]] = [
        lambda: decoded(shape, [HEADER, len(shape.kinds).to_bytes(2, "big") + noise], True),
        lambda: decoded(shape, [noise, noise + b"\n"], False),
        lambda: load_rows(
            layout, records.prefix(shape.schema_id) + b"\x02\x08\0\0\0\0\0\0\0\x02" + noise, binary=binary
        ),
        lambda: load_rows(layout, records.prefix(shape.schema_id) + noise, binary=binary),
    ]
    for attempt in attempts:
        with contextlib.suppress(DecodeError, ValueUnsupported):
            attempt()


PAIR = Shape(64, (Kind.INT32, Kind.TEXT), (0,))


def test_rows_wait_until_they_are_taken() -> None:
    decoder = CopyDecoder(Layout(*PAIR), binary=False)
    assert decoder.take() == records.batch(PAIR, [])
    size = decoder.feed(b"1\ta\n2\tb\n")
    assert (decoder.rows, decoder.pending_rows, decoder.pending_bytes) == (2, 2, size)
    assert decoder.take() == batch(PAIR, [("1", "a"), ("2", "b")])
    assert (decoder.rows, decoder.pending_rows, decoder.pending_bytes) == (2, 0, 0)
    decoder.feed(memoryview(b"3\t\\N\n"))
    assert decoder.take() == batch(PAIR, [("3", None)])
    assert decoder.rows == 3


def test_a_binary_copy_is_finished_by_its_trailer() -> None:
    decoder = CopyDecoder(Layout(*PAIR), binary=True)
    finished = []
    for message in (HEADER, TRAILER):
        decoder.feed(message)
        finished.append(decoder.finished)
    assert finished == [False, True]
    with pytest.raises(DecodeError, match="trailer"):
        decoder.feed(TRAILER)


@pytest.mark.parametrize(
    "data", [b"1\n", b"1\ta\tb\n", b"1\ta", b"1\ta\\\n", b"1\t\\x\n", b"\\.\n", b"x\ta\n", b"\ta\n"]
)
def test_a_text_row_that_is_not_one_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decoded(PAIR, [data], False)


@pytest.mark.parametrize(
    "data", [HEADER[:18], b"x" * 19, HEADER[:11] + b"\0\0\0\1" + bytes(4), HEADER + b"\0\1\0\0\0\4\0\0\0\1", TRAILER]
)
def test_a_binary_copy_that_is_not_one_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decoded(PAIR, [data], True)


def test_a_row_that_fails_leaves_those_before_it() -> None:
    decoder = CopyDecoder(Layout(*PAIR), binary=False)
    with pytest.raises(DecodeError):
        decoder.feed(b"1\ta\nx\tb\n")
    assert decoder.take() == batch(PAIR, [("1", "a")])


def test_a_load_takes_rows_only() -> None:
    layout = Layout(*PAIR)
    for change in (Change(Op.DELETE, before=("1", "a")), Change(Op.UPDATE, unchanged=(1,), after=("1", None))):
        with pytest.raises(DecodeError):
            load_rows(layout, records.batch(PAIR, [change]), binary=True)


def test_a_table_without_columns_has_rows_all_the_same() -> None:
    shape = Shape(64, (), ())
    value = batch(shape, [(), ()])
    assert decoded(shape, [b"\n", b"\n"], False) == value
    assert decoded(shape, [HEADER, b"\0\0", b"\0\0", TRAILER], True) == value
    assert load_rows(Layout(*shape), value, binary=True) == b"\0\0\0\0"
    assert load_rows(Layout(*shape), value, binary=False) == b"\n\n"


def test_arrays_may_come_in_several_blocks_with_their_size() -> None:
    row = records.body(PAIR, Change(Op.READ, after=("1", "a")))
    one = b"\x01" + bytes([2 * len(row)]) + row  # a count of -1, the size of the block
    assert load_rows(Layout(*PAIR), records.prefix(64) + one + b"\x02" + row + b"\0", binary=False) == b"1\ta\n1\ta\n"
