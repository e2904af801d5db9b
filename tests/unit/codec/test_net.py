"""Last write per key: a target that gets what is left of a history ends where the source does."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.layout import Layout
from codec.net import Net
from schemas.errors import DecodeError, GapDetected, OrderViolated, ValueUnsupported
from schemas.record import Op
from schemas.types import Kind
from tests.twin import copy, net, records
from tests.twin.net import State, Step
from tests.twin.records import Change, Shape
from tests.unit.codec.strategies import unhurried

SHAPES = [
    Shape(64, (Kind.INT32, Kind.TEXT, Kind.NUMERIC, Kind.TEXT), (0,)),
    Shape(64, (Kind.TEXT, Kind.TEXT, Kind.INT16, Kind.DATE), (0, 2)),
    Shape(64, (Kind.TEXT, Kind.BOOL, Kind.UUID), (2,)),
    Shape(64, (Kind.OTHER, Kind.OTHER, Kind.TEXT), (1,)),
]
FEW: dict[Kind, list[str]] = {
    Kind.INT32: ["1", "2", "3"],
    Kind.INT16: ["1", "-2"],
    Kind.TEXT: ["a", "b\t\\", "c" * 100],
    Kind.OTHER: ["x", "y\n", "z"],
    Kind.NUMERIC: ["1.0", "1.00", "NaN"],
    Kind.DATE: ["2024-01-01", "infinity"],
    Kind.BOOL: ["t", "f"],
    Kind.UUID: [f"{i}0000000-0000-0000-0000-000000000000" for i in range(3)],
}


def few_rows(shape: Shape) -> st.SearchStrategy[tuple[str | None, ...]]:
    columns: list[st.SearchStrategy[str | None]] = []
    for i, kind in enumerate(shape.kinds):
        some = st.sampled_from(FEW[Kind(kind)])
        columns.append(some if i in shape.key else st.one_of(st.none(), some))
    return st.tuples(*columns)


def steps(shape: Shape) -> st.SearchStrategy[list[Step]]:
    ops = [Op.INSERT, Op.UPDATE, Op.UPDATE, Op.UPDATE, Op.DELETE] * 3 + [Op.TRUNCATE]
    row = few_rows(shape)
    columns = st.frozensets(st.integers(0, len(shape.kinds) - 1))
    return st.lists(st.builds(Step, st.sampled_from(ops), row, st.one_of(st.none(), row), columns), max_size=25)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Shape, State, State, list[Change]]:
    """A shape, the target, the source behind it, and the changes in between."""
    shape = draw(st.sampled_from(SHAPES))
    target: State = {net.key(shape, row): row for row in draw(st.lists(few_rows(shape), max_size=5))}
    source = dict(target)
    changes = net.live(shape, source, draw(steps(shape)), draw(st.booleans()))
    return shape, target, source, changes


def block(shape: Shape, changes: list[Change]) -> bytes:
    return records.frames(records.record(shape, change) for change in changes)


@unhurried
@given(histories(), st.integers(0, 25))
def test_a_target_that_gets_what_is_left_ends_where_the_source_does(
    history: tuple[Shape, State, State, list[Change]], cut: int
) -> None:
    shape, target, source, changes = history
    left = Net(Layout(*shape), binary=False)
    assert left.add(block(shape, changes[:cut])) == len(changes[:cut])
    assert left.add(memoryview(block(shape, changes[cut:]))) == len(changes[cut:])
    assert left.records == len(changes)
    assert [left.inserts, left.updates, left.deletions] == [
        sum(change.op == op for change in changes) for op in (Op.INSERT, Op.UPDATE, Op.DELETE)
    ]
    assert left.truncated == any(change.op == Op.TRUNCATE for change in changes)
    last = max((i + 1 for i, change in enumerate(changes) if change.op == Op.TRUNCATE), default=0)
    assert left.insert_only == all(change.op == Op.INSERT for change in changes[last:])
    net.carry_out(shape, left, target)
    assert target == source


@unhurried
@given(histories())
def test_changes_in_a_batch_fold_in_the_same_way(history: tuple[Shape, State, State, list[Change]]) -> None:
    shape, target, source, changes = history
    left = Net(Layout(*shape), binary=False)
    assert left.add_batch(records.batch(shape, changes)) == len(changes)
    net.carry_out(shape, left, target)
    assert target == source


@unhurried
@given(histories())
def test_the_binary_form_says_the_same(history: tuple[Shape, State, State, list[Change]]) -> None:
    shape, _, _, changes = history
    text, binary = (Net(Layout(*shape), binary=form) for form in (False, True))
    for one in (text, binary):
        one.add(block(shape, changes))
    assert binary.binary == (Kind.OTHER not in shape.kinds)
    keys = tuple(shape.kinds[i] for i in shape.key)

    def packed(kinds: tuple[int, ...], data: bytes) -> bytes:
        return b"".join(copy.binary_row(kinds, row) for row in copy.text_rows(data)) if binary.binary else data

    for method, kinds in ((Net.rows, shape.kinds), (Net.deletes, keys), (Net.touched, keys)):
        count, data = method(text)
        assert method(binary) == (count, packed(kinds, data))
    assert binary.partials() == [(group, n, packed(shape.kinds + keys, data)) for group, n, data in text.partials()]


@unhurried
@given(histories(), st.permutations(range(5)), st.integers(0, 5), st.integers(0, 5))
def test_transactions_that_a_snapshot_shows_are_passed_over(
    history: tuple[Shape, State, State, list[Change]], order: list[int], shown: int, tail: int
) -> None:
    shape, target, source, changes = history
    xids = [100 + i for i in order]
    stamped = [change._replace(xid=xids[5 * i // len(changes)], epoch=7) for i, change in enumerate(changes)]
    hidden = frozenset(xids[shown:])
    visibility = (min(hidden, default=105), 105, hidden)
    early, late = Net(Layout(*shape), binary=False), Net(Layout(*shape), binary=False)
    early.add(block(shape, [change for change in stamped if change.xid not in hidden]))
    net.carry_out(shape, early, target)
    taken = late.add(block(shape, stamped), visibility, 7)
    assert taken == late.records == sum(change.xid in hidden for change in stamped)
    net.carry_out(shape, late, target)
    assert target == source
    if stamped:
        with pytest.raises(GapDetected):
            Net(Layout(*shape), binary=False).add(block(shape, stamped), epoch=8)


@unhurried
@given(histories(), st.data())
def test_damaged_blocks_raise_nothing_but_our_errors(
    history: tuple[Shape, State, State, list[Change]], data: st.DataObject
) -> None:
    shape, _, _, changes = history
    whole = block(shape, changes)
    batch = records.batch(shape, changes)
    for size in data.draw(st.lists(st.integers(0, len(whole)), max_size=5)):
        with contextlib.suppress(DecodeError, OrderViolated):
            Net(Layout(*shape), binary=True).add(whole[:size])
    for form in (whole, batch):
        damaged = bytearray(form)
        for _ in range(3 if form else 0):
            damaged[data.draw(st.integers(0, len(form) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(DecodeError, OrderViolated, ValueUnsupported):
            left = Net(Layout(*shape), binary=True)
            (left.add if form is whole else left.add_batch)(bytes(damaged))
            for method in (left.rows, left.deletes, left.touched, left.partials):
                with contextlib.suppress(DecodeError, ValueUnsupported):
                    method()


PAIR = SHAPES[0]
ROW = ("1", "a", "1.0", None)


def added(*changes: Change, shape: Shape = PAIR) -> Net:
    left = Net(Layout(*shape), binary=False)
    left.add(block(shape, list(changes)))
    return left


def test_two_rows_swap_their_keys_by_way_of_a_third() -> None:
    def move(old: str, new: str) -> Change:
        return Change(Op.UPDATE, unchanged=(1,), before=(old, None, None, None), after=(new, None, "0", None))

    left = added(move("1", "9"), move("2", "1"), move("9", "2"))
    assert left.partials() == [(frozenset({1}), 2, b"1\t\\N\t0\t\\N\t2\n2\t\\N\t0\t\\N\t1\n")]
    assert left.deletes() == (1, b"9\n")
    assert left.rows() == (0, b"")


def test_a_later_update_fills_what_an_earlier_left_open() -> None:
    first = Change(Op.UPDATE, unchanged=(1, 3), after=("1", None, "1.0", None))
    second = Change(Op.UPDATE, unchanged=(2, 3), after=("1", "b", None, None))
    assert added(first, second).partials() == [(frozenset({3}), 1, b"1\tb\t1.0\t\\N\t1\n")]
    third = Change(Op.UPDATE, unchanged=(1, 2), after=("1", None, None, "d"))
    assert added(first, second, third).rows() == (1, b"1\tb\t1.0\td\n")


def test_inserts_alone_may_be_copied_straight() -> None:
    assert added().insert_only
    assert added(Change(Op.INSERT, after=ROW), Change(Op.READ, after=("2", *ROW[1:]))).insert_only
    assert not added(Change(Op.INSERT, after=ROW), Change(Op.INSERT, after=ROW)).insert_only
    assert not added(Change(Op.DELETE, before=ROW)).insert_only


@pytest.mark.parametrize(
    ("shape", "ordered"),
    [
        (
            Shape(64, (Kind.INT64,), (0,)),
            [("-9000000000",), ("-65",), ("-1",), ("0",), ("7",), ("64",), ("9000000000",)],
        ),
        (Shape(64, (Kind.TEXT,), (0,)), [("",), ("a",), ("customer 000001",), ("customer 000010",), ("customer 1",)]),
        (Shape(64, (Kind.INT32, Kind.DATE), (0, 1)), [("-2", "2024-02-29"), ("1", "1999-12-31"), ("1", "2024-01-01")]),
        (Shape(64, (Kind.BOOL, Kind.INT16), (0, 1)), [("t", "-3"), ("f", "2"), ("t", "11")]),
    ],
    ids=["integer", "text", "two columns", "a kind without order"],
)
def test_what_the_target_looks_up_is_in_the_order_of_its_keys(shape: Shape, ordered: list[tuple[str, ...]]) -> None:
    mixed = ordered[1::2] + ordered[::-2]
    updates = [Change(Op.UPDATE, after=row) for row in mixed]
    assert copy.text_rows(added(*updates, shape=shape).rows()[1]) == ordered
    deletes = [Change(Op.DELETE, before=row) for row in mixed]
    assert copy.text_rows(added(*deletes, shape=shape).deletes()[1]) == ordered
    inserts = [Change(Op.INSERT, after=row) for row in mixed]
    assert copy.text_rows(added(*inserts, shape=shape).rows()[1]) == mixed


def test_the_order_is_found_anew_after_more_changes() -> None:
    left = added(*[Change(Op.UPDATE, after=(key, *ROW[1:])) for key in ("3", "1")])
    assert [row[0] for row in copy.text_rows(left.rows()[1])] == ["1", "3"]
    left.add(block(PAIR, [Change(Op.UPDATE, after=("2", *ROW[1:]))]))
    assert [row[0] for row in copy.text_rows(left.rows()[1])] == ["1", "2", "3"]
    more = [Change(Op.TRUNCATE), *(Change(Op.INSERT, after=(key, *ROW[1:])) for key in ("9", "8", "7"))]
    left.add(block(PAIR, more))
    assert [row[0] for row in copy.text_rows(left.rows()[1])] == ["9", "8", "7"]


def test_records_of_other_tables_in_a_shared_topic_are_passed_over() -> None:
    other = PAIR._replace(schema_id=80)
    mixed = block(other, [Change(Op.DELETE, before=ROW)]) + block(PAIR, [Change(Op.INSERT, after=ROW)])
    left = Net(Layout(*PAIR), binary=False)
    assert left.add(mixed) == 1
    assert left.rows() == (1, b"1\ta\t1.0\t\\N\n")


def test_a_definition_does_nothing_to_rows() -> None:
    left = added(Change(Op.INSERT, after=ROW), Change(Op.DEFINE), Change(Op.INSERT, after=("2", *ROW[1:])))
    assert left.insert_only and left.records == 3
    assert left.rows()[0] == 2


@pytest.mark.parametrize("before", [Change(Op.DELETE, before=ROW), Change(Op.TRUNCATE)])
def test_an_update_that_needs_a_value_that_is_gone_is_out_of_order(before: Change) -> None:
    with pytest.raises(OrderViolated):
        added(before, Change(Op.UPDATE, unchanged=(1,), after=ROW))


@pytest.mark.parametrize(
    "change",
    [
        Change(Op.INSERT, before=ROW),
        Change(Op.UPDATE, before=ROW),
        Change(Op.DELETE, before=ROW, after=ROW),
        Change(Op.INSERT, unchanged=(1,), after=ROW),
    ],
)
def test_a_change_that_contradicts_its_operation_is_refused(change: Change) -> None:
    with pytest.raises(DecodeError):
        added(change)


def test_keys_must_be_there_and_belong_to_the_schema() -> None:
    value = records.value_of(PAIR, Change(Op.INSERT, after=ROW))
    for key in (None, b"", records.prefix(64) + b"\2"):
        with pytest.raises(DecodeError):
            Net(Layout(*PAIR), binary=False).add(records.frames([(key, value)]))


def test_many_keys_are_told_apart() -> None:
    shape = Shape(64, (Kind.INT32, Kind.TEXT), (0,))
    numbers = [*range(5000), *range(0, 5000, 2)]
    left = added(*[Change(Op.INSERT, after=(str(i), str(n))) for n, i in enumerate(numbers)], shape=shape)
    last = {str(i): str(n) for n, i in enumerate(numbers)}
    assert sorted(copy.text_rows(left.rows()[1])) == sorted(last.items())
    assert left.pending_bytes > 0


KEYLESS = Shape(64, (Kind.INT32, Kind.TEXT), ())


def test_a_table_without_key_keeps_the_order_of_its_changes() -> None:
    changes = [
        Change(Op.INSERT, after=("1", "a")),
        Change(Op.UPDATE, before=("1", "a"), after=("1", None)),
        Change(Op.DELETE, before=("1", None)),
    ]
    left = added(*changes, shape=KEYLESS)
    assert left.ordered and not left.insert_only
    assert left.changes() == [(change.op, change.before, change.after) for change in changes]
    with pytest.raises(ValueError, match="order"):
        left.rows()
    assert left.deletes() == left.touched() == (0, b"")


def test_inserts_into_a_table_without_key_may_be_copied_straight() -> None:
    left = added(*[Change(Op.INSERT, after=("1", "a"))] * 2, shape=KEYLESS)
    assert left.insert_only
    assert left.rows() == (2, b"1\ta\n1\ta\n")
    with pytest.raises(ValueError, match="folded"):
        added().changes()


def test_a_truncate_forgets_what_came_before_it() -> None:
    for shape in (PAIR, KEYLESS):
        row = ROW[: len(shape.kinds)]
        left = added(Change(Op.DELETE, before=row), Change(Op.TRUNCATE), Change(Op.INSERT, after=row), shape=shape)
        assert left.truncated and left.insert_only and not left.restarted
        assert left.rows()[0] == 1
        assert left.records == 3
        left = added(Change(Op.RESTART), Change(Op.TRUNCATE), Change(Op.INSERT, after=row), shape=shape)
        assert left.truncated and left.insert_only and left.restarted
        assert left.records == 3
