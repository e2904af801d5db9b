"""When a target has all that is in the log."""

import pytest

from apply.target import Progress, TableProgress
from control.draining import has_all
from schemas.states import TableState
from schemas.table import TableId

HERE, BEFORE = Progress(9, 0, 100), Progress(8, 0, 99)


@pytest.mark.parametrize(
    ("state", "own", "group", "expected"),
    [
        (TableState.LIVE, BEFORE, HERE, True),
        (TableState.LIVE, HERE, BEFORE, False),
        (TableState.CATCHING_UP, HERE, BEFORE, True),
        (TableState.CATCHING_UP, BEFORE, HERE, False),
        (TableState.LOADING, BEFORE, BEFORE, True),
        (TableState.FAILED, BEFORE, HERE, True),
    ],
)
def test_what_is_loaded_has_to_come_to_the_end(
    state: TableState, own: Progress, group: Progress, expected: bool
) -> None:
    table = TableProgress(TableId("shop", "t"), 1, state=state, progress=own)
    assert has_all({table.table: table}, {1: group}, 100) is expected
