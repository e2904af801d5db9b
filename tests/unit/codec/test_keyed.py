"""What changes touch: their keys, old and new, of which nothing else is decoded."""

import pytest

from codec.frames import pack
from codec.layout import Layout
from codec.net import keyed
from codec.rows import Change, encode
from schemas.errors import DecodeError
from schemas.record import Op
from schemas.types import Kind

Row = tuple[str | None, ...]
SHAPE_KINDS = (Kind.INT64, Kind.TEXT)


def test_what_changes_touch_is_told_without_their_version() -> None:
    layout, later = Layout(101, SHAPE_KINDS, [0]), Layout(201, SHAPE_KINDS, [0])

    def record(of: Layout, op: Op, before: Row | None, after: Row | None, xid: int = 1) -> tuple[bytes | None, bytes]:
        return encode(of, Change(op, 1, 2, xid, 3, 4, (), before, after))

    first = record(layout, Op.INSERT, None, ("1", "a"))
    moved = record(layout, Op.UPDATE, ("1", None), ("2", "a"))
    gone = record(layout, Op.DELETE, ("2", None), None, xid=9)
    (truncate, found), other = (
        keyed(layout, pack([first, record(later, Op.INSERT, None, ("5", "x")), moved, gone])),
        keyed(later, pack([record(later, Op.INSERT, None, ("1", "x"))])),
    )
    one, two = other[1][0][0], found[1][0]
    assert truncate is None
    assert found == [(one, None, first[1]), (two, one, moved[1]), (two, None, gone[1])]
    assert [change for *_, change in keyed(layout, pack([first, gone]), (9, 9, ()))[1]] == [gone[1]]
    for op in (Op.TRUNCATE, Op.RESTART):
        emptied = record(layout, op, None, None)
        assert keyed(layout, pack([first, emptied, moved])) == (emptied[1], [(two, one, moved[1])])


def test_of_a_table_without_key_changes_touch_whole_rows() -> None:
    layout = Layout(101, SHAPE_KINDS, [])
    a, b = ("1", "a"), ("1", "b")
    made = [
        encode(layout, Change(op, 1, 2, 3, 4, 5, (), before, after))
        for op, before, after in ((Op.INSERT, None, a), (Op.UPDATE, a, b), (Op.UPDATE, b, b), (Op.DELETE, b, None))
    ]
    (first, second, third, last) = keyed(layout, pack(made))[1]
    assert first[1] is None and second[1] == first[0] and second[0] != first[0]
    assert third[:2] == (second[0], None) and last[:2] == (second[0], None)


def test_a_damaged_block_has_no_keys() -> None:
    layout = Layout(101, SHAPE_KINDS, [0])
    data = pack([encode(layout, Change(Op.UPDATE, 1, 2, 3, 4, 5, (), ("1", None), ("2", "a")))])
    for end in range(1, len(data)):
        with pytest.raises(DecodeError):
            keyed(layout, data[:end])
