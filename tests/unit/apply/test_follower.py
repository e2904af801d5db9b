"""Which versions of a table are for a target that has come to another one."""

from __future__ import annotations

from apply.follower import is_of_the_one_before
from apply.target import TableProgress
from schemas.frontier import TableRegistered
from schemas.states import TableState
from schemas.table import Definition, Identity, Table, TableId
from transport.views import Registered

A = TableId("public", "a")


def version(schema_id: int, *, dropped: bool) -> Registered:
    table = Table(id=A, columns=(), key=(), identity=Identity.FULL, definition=Definition(), dropped=dropped)
    return Registered(schema_id, TableRegistered(table.model_dump_json(), "p.changes.public.a", 0, 0))


def test_the_end_of_a_table_is_not_that_of_the_one_that_was_made_again() -> None:
    loaded = TableProgress(A, 0, TableState.LIVE, schema_id=10_005)
    assert is_of_the_one_before(version(10_004, dropped=True), loaded)
    assert not is_of_the_one_before(version(10_006, dropped=True), loaded)
    assert not is_of_the_one_before(version(10_004, dropped=False), loaded)  # it has got its old shape back
