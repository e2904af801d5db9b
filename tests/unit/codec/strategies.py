"""Random tables, values in canonical text, and changes."""

from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from schemas.record import Op
from schemas.types import Kind
from tests.twin import values as twin
from tests.twin.pgoutput import UNCHANGED, Sent
from tests.twin.records import Row, Shape

# A machine that is busy with other tests is no reason to fail.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# NUL is the one character that PostgreSQL's text can't hold.
letters = st.one_of(st.integers(1, 0x7F), st.integers(0x80, 0xD7FF), st.integers(0xE000, 0x10FFFF)).map(chr)
words = st.one_of(
    st.lists(letters, max_size=12).map("".join),
    st.text(st.sampled_from("ab\\\b\t\n\v\f\rNé日😀"), max_size=200),
)


def _numeric(sign: str, whole: str, fraction: str) -> str:
    whole = whole.lstrip("0") or "0"
    text = f"{whole}.{fraction}" if fraction else whole
    return sign + text if text.strip("0.") else text


digits = st.text(st.sampled_from("0123456789"), max_size=40)
numerics = st.one_of(
    st.builds(_numeric, st.sampled_from(["", "-"]), digits, digits),
    st.builds(
        _numeric,
        st.just(""),
        st.sampled_from(["1" + "0" * 30, "9999", "10000", ""]),
        st.sampled_from(["", "0000", "00001"]),
    ),
    st.sampled_from(["NaN", "Infinity", "-Infinity"]),
)
first_day, last_day = twin.days_of("4714-11-24 BC"), twin.days_of("294276-12-31")
days = st.one_of(
    st.integers(first_day, last_day), st.integers(-800000, 100000), st.integers(last_day - 20000, last_day)
)
clocks = st.one_of(st.integers(0, twin.DAY - 1), st.integers(0, 86399).map(lambda s: s * 1000000))
moments = st.builds(lambda day, clock: day * twin.DAY + clock, days, clocks)
infinite = st.sampled_from(["infinity", "-infinity"])

VALUES: dict[Kind, st.SearchStrategy[str]] = {
    Kind.BOOL: st.sampled_from(["t", "f"]),
    Kind.INT16: st.integers(-(2**15), 2**15 - 1).map(str),
    Kind.INT32: st.integers(-(2**31), 2**31 - 1).map(str),
    Kind.INT64: st.integers(-(2**63), 2**63 - 1).map(str),
    Kind.FLOAT32: st.floats(width=32).map(lambda v: twin.float_text(v, True)),
    Kind.FLOAT64: st.floats().map(lambda v: twin.float_text(v, False)),
    Kind.DATE: st.one_of(days.map(twin.date_text), infinite),
    Kind.TIME: st.one_of(clocks.map(twin.clock_text), st.just("24:00:00")),
    Kind.TIMESTAMP: st.one_of(moments.map(lambda m: twin.timestamp_text(m, "")), infinite),
    Kind.TIMESTAMPTZ: st.one_of(moments.map(lambda m: twin.timestamp_text(m, "+00")), infinite),
    Kind.BYTES: st.binary(max_size=40).map(lambda data: "\\x" + data.hex()),
    Kind.TEXT: words,
    Kind.JSONB: st.sampled_from(['{"a": 1}', "null", '["\\n"]', '"é"']),
    Kind.UUID: st.uuids().map(str),
    Kind.NUMERIC: numerics,
    Kind.OTHER: words,
}
assert set(VALUES) == set(Kind)

numbers = st.integers(0, 2**63 - 1)


@st.composite
def shapes(draw: st.DrawFn, keyed: bool | None = None, most: int = 8) -> Shape:
    kinds = draw(st.lists(st.sampled_from(list(Kind)), min_size=1, max_size=most))
    least = 1 if keyed else 0
    key = set() if keyed is False else draw(st.sets(st.integers(0, len(kinds) - 1), min_size=least, max_size=3))
    return Shape(draw(st.integers(64, 2**31)), tuple(map(int, kinds)), tuple(sorted(key)))


def rows(shape: Shape) -> st.SearchStrategy[tuple[str | None, ...]]:
    columns: list[st.SearchStrategy[str | None]] = []
    for i, kind in enumerate(shape.kinds):
        value = VALUES[Kind(kind)]
        columns.append(value if i in shape.key else st.one_of(st.none(), value))
    return st.tuples(*columns)


class Sending(NamedTuple):
    """One change as pgoutput sends it."""

    op: Op
    old_tag: str
    old: Sent | None
    new: Sent | None


@st.composite
def sendings(draw: st.DrawFn, shape: Shape) -> Sending:
    op = draw(st.sampled_from([Op.INSERT, Op.UPDATE, Op.DELETE]))
    row = draw(rows(shape))
    if op == Op.INSERT:
        return Sending(op, "", None, row)
    tag = draw(st.sampled_from(["K", "O"])) if shape.key else "O"
    old: Row = draw(rows(shape))
    if draw(st.booleans()):
        old = tuple(row[i] if i in shape.key else value for i, value in enumerate(old))
    if tag == "K":
        old = tuple(value if i in shape.key else None for i, value in enumerate(old))
    if op == Op.DELETE:
        return Sending(op, tag, old, None)
    if tag == "K" and draw(st.booleans()):
        tag = ""
    fixed = () if tag else shape.key
    new = tuple(UNCHANGED if i not in fixed and draw(st.integers(0, 3)) == 0 else value for i, value in enumerate(row))
    return Sending(op, tag, old if tag else None, new)
