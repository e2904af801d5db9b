"""What may be changed of a dead letter, and what of it is shown."""

import pytest

from codec.rows import Change
from control.letters import _edited
from schemas.errors import ConfigInvalid
from schemas.record import Op
from tests.unit.apply.source import make_table

TABLE = make_table("t", [("id", "bigint"), ("body", "text"), ("total", "numeric")])
UPDATE = Change(Op.UPDATE, 1, 2, 3, 0, 5, (1,), None, ("7", None, "-1"))


def test_a_value_that_was_unchanged_is_sent_once_it_is_edited() -> None:
    changed = _edited(TABLE, UPDATE, {"body": "new", "total": None})
    assert (changed.after, changed.unchanged) == (("7", "new", None), ())
    assert _edited(TABLE, UPDATE, {"total": "1"}).unchanged == (1,)


@pytest.mark.parametrize(
    ("change", "column", "words"),
    [
        (UPDATE, "totl", "no column 'totl'"),
        (UPDATE, "id", "of the key"),
        (UPDATE._replace(op=Op.DELETE, before=("7", None, None), after=None), "body", "a delete has no row"),
    ],
)
def test_what_can_not_be_edited_is_refused(change: Change, column: str, words: str) -> None:
    with pytest.raises(ConfigInvalid, match=words) as refused:
        _edited(TABLE, change, {column: "1"})
    assert refused.value.remedy


def test_rows_of_a_table_without_key_can_not_be_edited() -> None:
    with pytest.raises(ConfigInvalid, match="known by all their values"):
        _edited(TABLE.model_copy(update={"key": ()}), UPDATE, {"body": "new"})
