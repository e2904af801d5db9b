"""When a target is done."""

from __future__ import annotations

from dataclasses import replace

from apply.target import Progress, TableProgress
from control.status import caught_up
from schemas.states import TableState
from schemas.table import TableId

A, B, C = (TableId("public", name) for name in "abc")
LIVE = TableProgress(A, 0, TableState.LIVE, tied=True)
GROUPS = {0: Progress(9, 0, 100), 1: Progress(9, 0, 100)}


def done(*tables: TableProgress, goal: int | None = None) -> bool:
    return caught_up({table.table: table for table in tables}, GROUPS, goal)


def test_all_that_lives_is_waited_for_with_its_foreign_keys() -> None:
    assert done(LIVE) and done(LIVE, goal=100)
    assert not done() and not done(LIVE, goal=101)
    assert not done(LIVE, replace(LIVE, table=B, tied=False))
    assert not done(LIVE, replace(LIVE, table=B, state=TableState.CATCHING_UP))


def test_foreign_keys_to_a_table_that_has_failed_are_not_waited_for() -> None:
    failed = replace(LIVE, table=B, state=TableState.FAILED)
    untied = replace(LIVE, table=C, tied=False)
    assert done(failed, untied, goal=100)
    assert not done(failed, replace(untied, group=1))
