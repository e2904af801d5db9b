"""Last write per key, naively: a source that lives through a history, a target that gets what is left of it."""

from typing import NamedTuple

from codec.net import Net
from schemas.record import Op
from tests.twin.copy import text_rows
from tests.twin.records import Change, Row, Shape

Key = tuple[str | None, ...]
State = dict[Key, Row]


def key(shape: Shape, row: Row) -> Key:
    return tuple(row[i] for i in shape.key)


class Step(NamedTuple):
    """What the application wants to do; a step that does not fit the state does nothing."""

    op: Op
    row: tuple[str | None, ...]  # the new row; its key says which row is meant
    moved_from: Row | None  # update: the old key, if the key changes
    unchanged: frozenset[int]  # update: columns that keep their value, out of line


def live(shape: Shape, state: State, steps: list[Step], full: bool) -> list[Change]:
    """Let `state` live through the steps; return the changes that the source would send, in order."""
    changes: list[Change] = []
    for step in steps:
        new = key(shape, step.row)
        if step.op == Op.TRUNCATE:
            state.clear()
            changes.append(Change(Op.TRUNCATE))
        elif step.op == Op.INSERT and new not in state:
            state[new] = step.row
            changes.append(Change(Op.INSERT, after=step.row))
        elif step.op == Op.DELETE and new in state:
            changes.append(Change(Op.DELETE, before=_old(shape, state.pop(new), full)))
        elif step.op == Op.UPDATE:
            old = new if step.moved_from is None else key(shape, step.moved_from)
            if old not in state or (old != new and new in state):
                continue
            row = state.pop(old)
            kept = step.unchanged - set(shape.key)
            state[new] = tuple(row[i] if i in kept else value for i, value in enumerate(step.row))
            sent = state[new] if full else tuple(None if i in kept else value for i, value in enumerate(step.row))
            before = _old(shape, row, full) if full or old != new else None
            unchanged = () if full else tuple(sorted(kept))
            changes.append(Change(Op.UPDATE, unchanged=unchanged, before=before, after=sent))
    return changes


def _old(shape: Shape, row: Row, full: bool) -> Row:
    return row if full else tuple(value if i in shape.key else None for i, value in enumerate(row))


def carry_out(shape: Shape, net: Net, target: State) -> None:
    """Do to the target what is left, in the order that `Net` asks for."""
    width = len(shape.kinds)
    writes: list[Row] = []
    if net.truncated:
        target.clear()
    for unchanged, count, data in net.partials():
        rows = text_rows(data)
        assert len(rows) == count and unchanged and not unchanged & set(shape.key)
        for row in rows:
            base = target[row[width:]]
            assert all(row[i] is None for i in unchanged)
            writes.append(tuple(base[i] if i in unchanged else row[i] for i in range(width)))
    count, data = net.rows()
    writes += text_rows(data)
    deletes = text_rows(net.deletes()[1])
    assert net.deletes()[0] == len(deletes)
    touched = text_rows(net.touched()[1])
    keys = [key(shape, row) for row in writes] + deletes
    assert len(set(keys)) == len(keys) and sorted(keys, key=repr) == sorted(touched, key=repr)
    for gone in deletes:
        target.pop(gone, None)
    for written in writes:
        target[key(shape, written)] = written
