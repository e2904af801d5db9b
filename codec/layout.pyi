from collections.abc import Sequence
from typing import Self

from schemas.table import Table

class Layout:
    """What the transcoder has to know of one table version: the kinds of its columns and which of them are its key.

    It never changes, compares by its content, and may be shared by any number of decoders.
    """

    def __init__(self, schema_id: int, kinds: Sequence[int], key: Sequence[int]) -> None:
        """Build from numbers of `schemas.types.Kind` and indexes into them.

        Raises `ValueError` if a kind is unknown or the key does not fit the columns.
        """

    @classmethod
    def of(cls, table: Table, schema_id: int) -> Self:
        """Return the layout of a table version whose row schema has this id."""

    @property
    def schema_id(self) -> int:
        """The id of the row schema; the key schema's is one more."""

    @property
    def kinds(self) -> tuple[int, ...]: ...
    @property
    def key(self) -> tuple[int, ...]: ...
    @property
    def binary(self) -> bool:
        """Whether all columns may travel in binary COPY: none is of `Kind.OTHER`, whose binary form nobody knows."""
