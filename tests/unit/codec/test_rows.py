"""Records one at a time, and the values in them."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec import rows
from codec.copy import HEADER, CopyDecoder, encode_batch, load_rows
from codec.layout import Layout
from schemas.errors import DecodeError, ValueUnsupported
from schemas.record import Op
from schemas.types import Kind
from tests.twin import records, values
from tests.twin.records import Change, Shape
from tests.unit.codec.strategies import VALUES, numbers, shapes, unhurried
from tests.unit.codec.strategies import rows as random_rows


@st.composite
def changes(draw: st.DrawFn) -> tuple[Shape, Change]:
    shape = draw(shapes())
    op = draw(st.sampled_from(list(Op)))
    epoch, position, xid, ordinal, time = (draw(numbers) for _ in range(5))
    before = draw(st.one_of(st.none(), random_rows(shape)))
    after = None if op in (Op.DELETE, Op.TRUNCATE) else draw(random_rows(shape))
    unchanged = tuple(sorted(draw(st.sets(st.integers(0, len(shape.kinds) - 1)))))
    return shape, Change(op, epoch, position, xid, ordinal, time, unchanged, before, after)


@unhurried
@given(changes())
def test_changes_are_encoded_as_the_twin_does_and_come_back(case: tuple[Shape, Change]) -> None:
    shape, change = case
    layout = Layout(*shape)
    key, value = rows.encode(layout, change)
    assert (key, value) == records.record(shape, change)
    assert tuple(rows.decode(layout, value)) == tuple(change)
    assert rows.head(value) == (shape.schema_id, *change[:6])
    assert list(map(tuple, rows.decode_batch(layout, records.batch(shape, [change, change])))) == [tuple(change)] * 2
    if key is not None:
        row = change.before if change.after is None else change.after
        assert row is not None
        assert rows.decode_key(layout, key) == tuple(row[i] for i in shape.key)


@unhurried
@given(changes())
def test_records_that_are_cut_off_are_refused(case: tuple[Shape, Change]) -> None:
    shape, change = case
    layout = Layout(*shape)
    key, value = rows.encode(layout, change)
    for size in range(len(value)):
        with pytest.raises(DecodeError):
            rows.decode(layout, value[:size])
    with pytest.raises(DecodeError):
        rows.decode(layout, value + b"\0")
    for size in range(len(key or b"")):
        with pytest.raises(DecodeError):
            rows.decode_key(layout, (key or b"")[:size])


@unhurried
@given(shapes(), st.binary(max_size=80))
def test_random_bytes_raise_nothing_but_our_errors(shape: Shape, noise: bytes) -> None:
    layout = Layout(*shape)
    prefix = records.prefix(shape.schema_id)
    for attempt in (
        lambda: rows.decode(layout, prefix + noise),
        lambda: rows.decode(layout, prefix + b"\0\0\0\0\0\0\0\0\x02" + noise),
        lambda: rows.decode_batch(layout, prefix + noise),
        lambda: rows.decode_key(layout, records.prefix(shape.schema_id + 1) + noise),
        lambda: rows.head(prefix + noise),
        lambda: rows.head(noise),
    ):
        try:
            attempt()
        except DecodeError:
            continue


def test_a_record_of_another_schema_is_refused() -> None:
    shape = Shape(64, (Kind.INT32,), (0,))
    key, value = records.record(shape, Change(Op.INSERT, after=("1",)))
    assert key is not None
    other = Layout(66, (Kind.INT32,), (0,))
    for attempt in (lambda: rows.decode(other, value), lambda: rows.decode_key(other, key)):
        with pytest.raises(DecodeError, match="schema"):
            attempt()


def test_integers_have_at_most_ten_bytes() -> None:
    with pytest.raises(DecodeError, match="64 bits"):
        rows.head(records.prefix(64) + b"\xff" * 10 + b"\1")
    with pytest.raises(DecodeError, match="64 bits"):
        rows.head(records.prefix(64) + b"\xff" * 9 + b"\2")


def test_unchanged_columns_may_come_in_several_blocks_with_their_size() -> None:
    layout = Layout(64, (Kind.INT32,) * 3, (0,))
    head = records.prefix(64) + b"\x02\0\0\0\0\0"
    rest = b"\0\x02\x02\x02\0\0"
    assert rows.decode(layout, head + b"\x01\x02\x02\x02\x04\0" + rest).unchanged == (1, 2)
    for wrong in (b"\x02\x06\0", b"\x04\x02\x02\0", b"\x08\0\2\4\0\0", b"\x02\x01\0"):
        with pytest.raises(DecodeError):
            rows.decode(layout, head + wrong + rest)


# ------------------------------------------------------------------------------------------------------ values


def through(kind: Kind, text: str) -> str | None:
    """The canonical text of a value that was read from text."""
    layout = Layout(64, (kind,), ())
    _, value = rows.encode(layout, Change(Op.READ, after=(text,)))
    after = rows.decode(layout, value).after
    assert after is not None
    return after[0]


def from_binary(kind: Kind, data: bytes) -> str | None:
    """The canonical text of a value that was read in PostgreSQL's binary form."""
    layout = Layout(64, (kind,), ())
    decoder = CopyDecoder(layout, binary=True)
    decoder.feed(HEADER + struct.pack(">hi", 1, len(data)) + data)
    after = rows.decode_batch(layout, decoder.take())[0].after
    assert after is not None
    return after[0]


def to_binary(kind: Kind, text: str) -> bytes:
    layout = Layout(64, (kind,), ())
    return load_rows(layout, encode_batch(layout, [(Op.READ, None, (text,))]), binary=True)[6:]


@unhurried
@given(st.data(), st.sampled_from([kind for kind in Kind if kind != Kind.OTHER]))
def test_every_kinds_canonical_text_survives_both_forms(data: st.DataObject, kind: Kind) -> None:
    text = data.draw(VALUES[kind])
    assert through(kind, text) == text
    binary = values.binary(kind, text)
    assert to_binary(kind, text) == binary
    assert from_binary(kind, binary) == text


@pytest.mark.parametrize(
    ("kind", "text", "canonical"),
    [
        (Kind.TIMESTAMPTZ, "2024-01-01 00:30:00+01", "2023-12-31 23:30:00+00"),
        (Kind.TIMESTAMPTZ, "2024-01-01 00:00:00-03:30", "2024-01-01 03:30:00+00"),
        (Kind.TIMESTAMPTZ, "0001-01-01 00:00:00+00:19:32", "0001-12-31 23:40:28+00 BC"),
        (Kind.TIMESTAMP, "2024-01-01 00:00:00.5", "2024-01-01 00:00:00.5"),
        (Kind.TIMESTAMP, "294247-01-10 04:00:54.775806", "294247-01-10 04:00:54.775806"),
        (Kind.DATE, "5874897-12-31", "5874897-12-31"),
        (Kind.DATE, "0001-02-29 BC", "0001-02-29 BC"),
        (Kind.FLOAT64, "0.30000000000000004", "0.30000000000000004"),
        (Kind.FLOAT64, "100000000000000", "100000000000000"),
        (Kind.FLOAT64, "1000000000000000", "1e+15"),
        (Kind.FLOAT64, "0.00001", "1e-05"),
        (Kind.FLOAT64, "1e23", "1e+23"),
        (Kind.FLOAT64, "2.2250738585072011e-308", "2.225073858507201e-308"),
        (Kind.FLOAT64, "9007199254740993", "9.007199254740992e+15"),
        (Kind.FLOAT64, "0.1000000000000000055511151231257827021181583404541015625", "0.1"),
        (Kind.FLOAT32, "1000000", "1e+06"),
        (Kind.FLOAT32, "16777217", "1.6777216e+07"),
        # A double next to the text lies half-way between two floats; the text itself lies above.
        (Kind.FLOAT32, "16777217.0000000001", "1.6777218e+07"),
        (Kind.FLOAT32, "16777216.9999999999", "1.6777216e+07"),
        (Kind.FLOAT32, "1e-45", "1e-45"),
        (Kind.FLOAT32, "-0", "-0"),
        (Kind.NUMERIC, "0.00", "0.00"),
        (Kind.UUID, "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        (Kind.BYTES, "\\xDEAD", "\\xdead"),
    ],
)
def test_texts_become_canonical(kind: Kind, text: str, canonical: str) -> None:
    assert through(kind, text) == canonical


@unhurried
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 25))
def test_decimal_texts_of_any_length_are_rounded_to_the_nearest_double(number: float, places: int) -> None:
    text = f"{number:.{places}e}"
    if abs(float(text)) == float("inf"):
        with pytest.raises(DecodeError):
            through(Kind.FLOAT64, text)
    else:
        assert through(Kind.FLOAT64, text) == values.float_text(float(text), False)


@unhurried
@given(st.integers(-(2**63), 2**63 - 1), st.integers(-40, 19))
def test_decimal_texts_are_rounded_to_the_nearest_float(mantissa: int, exponent: int) -> None:
    text = f"{mantissa}e{exponent}"
    expected = values.nearest_single(text) if mantissa else 0.0
    assert through(Kind.FLOAT32, text) == values.float_text(expected, True)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (Kind.BOOL, ["", "true", "1"]),
        (Kind.INT16, ["", "-", "+1", "1.0", "32768", "-32769", " 1", "1x"]),
        (Kind.INT64, ["9223372036854775808", "-9223372036854775809", "99999999999999999999"]),
        (Kind.FLOAT64, ["", ".", "-", "1e", "e5", "nan", "inf", "1e400", "0x10", "1 ", "1_0", "1e+", "--1"]),
        (Kind.FLOAT32, ["1e39", "x"]),
        (Kind.DATE, ["", "24-01-01", "2024-13-01", "2024-00-01", "2023-02-29", "2024-04-31", "2024-1-1", "0000-01-01"]),
        (Kind.DATE, ["2024-01-01x", "2024-01-01 AD", "20240101", "123456789-01-01", " BC", "2024/01/01"]),
        (
            Kind.TIME,
            ["", "24:00:00.000001", "25:00:00", "12:60:00", "12:00:60", "12:00", "12:00:00."],
        ),
        (
            Kind.TIMESTAMP,
            ["2024-01-01", "2024-01-01 00:00:00+00", "2024-01-01T00:00:00", "2024-01-01 "],
        ),
        (
            Kind.TIMESTAMPTZ,
            ["2024-01-01 00:00:00", "2024-01-01 00:00:00+", "2024-01-01 00:00:00+0", "2024-01-01 00:00:00+00:"],
        ),
        (Kind.BYTES, ["", "\\x0", "\\xgg", "abc", "x00"]),
        (Kind.UUID, ["", "a0eebc999c0b4ef8bb6d6bb9bd380a11", "g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
        (Kind.NUMERIC, ["", "-", ".", "1.", ".5", "1e5", "+1", "nan", "1.2.3", "--1"]),
    ],
)
def test_texts_that_are_not_of_their_kind_are_refused(kind: Kind, texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(DecodeError):
            through(kind, text)


@pytest.mark.parametrize("zone", ["", "+00"])
def test_moments_at_the_end_of_64_bits_and_beyond_are_told_from_the_infinities(zone: str) -> None:
    kind = Kind.TIMESTAMPTZ if zone else Kind.TIMESTAMP
    texts = [f"294247-01-10 04:00:54.7758{last:02}{zone}" for last in range(5, 10)]
    texts += [f"294276-12-31 23:59:59.999999{zone}", f"4714-11-24 00:00:00{zone} BC", "infinity", "-infinity"]
    seen = set()
    for text in texts:
        assert through(kind, text) == from_binary(kind, values.binary(kind, text)) == text
        seen.add(values.native(kind, text))
    assert len(seen) == len(texts)


@pytest.mark.parametrize("text", ["294277-01-01 00:00:00", "4714-11-23 23:59:59.999999 BC"])
def test_moments_that_postgres_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(ValueUnsupported, match="column 0"):
        through(Kind.TIMESTAMP, text)
    micros = values.timestamp_micros(text) - values.FROM_1970_TO_2000 * values.DAY
    with pytest.raises(ValueUnsupported, match="column 0"):
        from_binary(Kind.TIMESTAMP, struct.pack(">q", micros))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Kind.BOOL, b"\2"),
        (Kind.BOOL, b""),
        (Kind.INT16, bytes(4)),
        (Kind.INT32, bytes(8)),
        (Kind.INT64, bytes(4)),
        (Kind.FLOAT32, bytes(8)),
        (Kind.FLOAT64, bytes(4)),
        (Kind.DATE, bytes(8)),
        (Kind.TIME, bytes(4)),
        (Kind.TIME, struct.pack(">q", values.DAY + 1)),
        (Kind.TIMESTAMP, bytes(4)),
        (Kind.UUID, bytes(15)),
        (Kind.JSONB, b""),
        (Kind.JSONB, b"\2{}"),
        (Kind.NUMERIC, bytes(7)),
        (Kind.NUMERIC, struct.pack(">hhHH", 1, 0, 0, 0)),
        (Kind.NUMERIC, struct.pack(">hhHH", -1, 0, 0, 0)),
        (Kind.NUMERIC, struct.pack(">hhHHH", 1, 0, 0, 0, 10000)),
        (Kind.NUMERIC, struct.pack(">hhHH", 0, 0, 1, 0)),
        (Kind.NUMERIC, struct.pack(">hhHH", 0, 0, 0, 16384)),
    ],
)
def test_binary_values_that_are_not_of_their_kind_are_refused(kind: Kind, data: bytes) -> None:
    with pytest.raises(DecodeError):
        from_binary(kind, data)


def test_every_nan_is_the_same() -> None:
    assert from_binary(Kind.FLOAT64, b"\xff\xf8\0\0\0\0\0\1") == "NaN"
    assert to_binary(Kind.FLOAT64, "NaN") == b"\x7f\xf8\0\0\0\0\0\0"
    assert from_binary(Kind.FLOAT32, b"\xff\xc0\0\1") == "NaN"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (struct.pack(">hhHH4H", 4, 1, 0x4000, 3, 0, 5, 1200, 0), "-5.120"),  # zero groups at both ends
        (struct.pack(">hhHH", 0, 5, 0x4000, 2), "0.00"),  # no negative zero
        (struct.pack(">hhHHH", 1, -3, 0, 12, 7), "0.000000000007"),
        (struct.pack(">hhHHH", 1, 2, 0, 0, 1), "100000000"),
        (struct.pack(">hhHHH", 1, -1, 0, 2, 1234), "0.12"),  # digits beyond the display scale
    ],
)
def test_a_numeric_in_an_unusual_form_gets_the_usual_text(data: bytes, text: str) -> None:
    assert from_binary(Kind.NUMERIC, data) == text


def test_the_longest_numerics_survive() -> None:
    for text in ("9" * 131072 + "." + "9" * 16383, "0." + "0" * 16382 + "1", "-1" + "0" * 131071):
        assert through(Kind.NUMERIC, text) == text
        assert from_binary(Kind.NUMERIC, to_binary(Kind.NUMERIC, text)) == text
    with pytest.raises(ValueUnsupported):
        to_binary(Kind.NUMERIC, "0." + "0" * 16384)


def test_a_random_numeric_weight_does_not_write_beyond_its_buffer() -> None:
    for weight in (-32768, -5, 0, 32767):
        for scale in (0, 1, 16383):
            assert from_binary(Kind.NUMERIC, struct.pack(">hhHHH", 1, weight, 0, scale, 1)) is not None
