"""Records without some of their columns are those that the twin makes of the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.layout import Layout
from codec.narrow import Narrow
from schemas.errors import DecodeError
from schemas.record import Op
from schemas.types import Kind
from tests.twin import records
from tests.twin.records import Change, Row, Shape
from tests.unit.codec.strategies import unhurried

THREE = Shape(64, (Kind.INT32, Kind.TEXT, Kind.BOOL, Kind.NUMERIC), (2, 0))
CHANGES = [
    Change(Op.INSERT, 7, 500, 11, 0, 1, after=("1", "a", "t", "1.0")),
    Change(Op.UPDATE, 7, 500, 11, 1, 1, (1, 3), ("1", None, "f", None), ("2", None, "t", None)),
    Change(Op.UPDATE, 7, 500, 11, 2, 1, (3,), None, ("2", None, "t", None)),
    Change(Op.DELETE, 7, 500, 12, 0, 2, before=("1", None, "t", None)),
    Change(Op.TRUNCATE, 7, 500, 12, 1, 2),
    Change(Op.DEFINE, 7, 500, 12, 2, 2),
]


def narrowed(change: Change, places: list[int]) -> Change:
    def row(whole: Row | None) -> Row | None:
        return None if whole is None else tuple(whole[place] for place in places)

    unchanged = tuple(places.index(place) for place in change.unchanged if place in places)
    return change._replace(unchanged=unchanged, before=row(change.before), after=row(change.after))


def shape_of(places: list[int]) -> Shape:
    return Shape(64, tuple(THREE.kinds[place] for place in places), tuple(places.index(place) for place in THREE.key))


@unhurried
@given(st.sets(st.sampled_from([1, 3])))
def test_what_is_kept_is_as_if_there_had_been_nothing_else(others: set[int]) -> None:
    places = sorted({0, 2} | others)
    narrow = Narrow(Layout(*THREE), places)
    assert narrow.narrow == Layout(*shape_of(places))
    foreign = (None, b"\0\0\0\0\x50anything")
    block = records.frames([*(records.record(THREE, change) for change in CHANGES), foreign, (b"k", None)])
    expected = [records.record(shape_of(places), narrowed(change, places)) for change in CHANGES]
    assert narrow.block(block) == records.frames([*expected, foreign, (b"k", None)])
    loaded = [Change(Op.READ, after=("1", "a", "t", None)), Change(Op.READ, after=("2", None, "f", "2"))]
    wanted = records.batch(shape_of(places), [narrowed(change, places) for change in loaded])
    assert narrow.batch(records.batch(THREE, loaded)) == wanted
    assert narrow.batch(records.batch(THREE, [])) == records.batch(shape_of(places), [])


def test_a_key_keeps_its_columns() -> None:
    with pytest.raises(ValueError, match="key"):
        Narrow(Layout(*THREE), [0, 1])
    with pytest.raises(ValueError, match="fit"):
        Narrow(Layout(*THREE), [0, 2, 4])


def test_damaged_records_are_refused_wherever_they_are_cut() -> None:
    narrow = Narrow(Layout(*THREE), [0, 2])
    key, value = records.record(THREE, CHANGES[1])
    for end in range(5, len(value)):
        with pytest.raises(DecodeError):
            narrow.block(records.frames([(key, value[:end])]))
    batch = records.batch(THREE, [Change(Op.READ, after=("1", "a", "t", None))])
    for end in range(len(batch)):
        with pytest.raises(DecodeError):
            narrow.batch(batch[:end])
    with pytest.raises(DecodeError):
        narrow.block(records.frames([(key, value + b"\0")]))
