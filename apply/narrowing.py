"""Versions of tables without the columns that a target does without."""

from __future__ import annotations

from collections.abc import Container

from codec.narrow import Narrow
from schemas.table import TableId
from transport.views import Registered


class Narrowed(Registered):
    """A version of a table as a target has it that does not follow changes of its definition: without the columns
    that the target's table lacks, and by the name that it has there. Raises `ValueError` if the key is among them."""

    def __init__(self, whole: Registered, name: TableId, columns: Container[str]) -> None:
        self.schema_id, self.changes, self.id = whole.schema_id, whole.changes, whole.id
        table = whole.table
        places = [place for place, column in enumerate(table.columns) if column.name in columns]
        self.narrow = Narrow(whole.layout, places)
        self.layout = self.narrow.narrow
        self.table = table.model_copy(
            update={
                "columns": tuple(table.columns[place] for place in places),
                "key": self.layout.key,
                "renamed": None if name == table.id else name,
            }
        )
