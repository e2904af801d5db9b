from collections.abc import Collection
from typing import final

from codec.layout import Layout
from schemas.record import Op

@final
class Net:
    """What is left to do of many changes of one table: the last write per key.

    Changes must be added in commit order. Results are rows for `COPY ... FROM STDIN`, without header and trailer:
    inserts alone in the order in which they came, all else about in that of their keys, so that what the target looks
    up one after the other lies side by side. The form is binary if that was asked for and `layout.binary` allows it.
    Each key is in exactly one of `rows`, `partials` and `deletes`. Carry them out so that a partial row's
    columns are read from the target, under its origin key, before any row is deleted or written, and deletes come
    before writes: two keys with different text may be equal to the target (1.0 and 1.00).

    A layout without key has no last write: see `insert_only`, `rows` and `changes`.
    """

    def __init__(self, layout: Layout, *, binary: bool) -> None: ...
    def add(
        self,
        data: bytes | bytearray | memoryview,
        visibility: tuple[int, int, Collection[int]] | None = None,
        epoch: int | None = None,
    ) -> int:
        """Take the changes of a framed block and return how many were taken.

        Records of other schemas are passed over (topics may be shared), and so are those of transactions that a
        snapshot with `visibility` (xmin, xmax, xip) already shows. Rows are kept as they stand in `data` and read
        only by the methods below, which therefore raise `DecodeError` too. Raises `GapDetected` for a change of
        another epoch than `epoch`, `OrderViolated` for an update that needs a value of a row deleted before it,
        `DecodeError`. After an error the object is of no use.
        """

    def add_batch(self, value: bytes | bytearray | memoryview) -> int:
        """Take the records of a batch value, which have no keys of their own, and return how many there are."""

    def rows(self) -> tuple[int, bytes]:
        """Return count and COPY rows of all rows that are known whole.

        Of a layout without key: all inserts, in their order. Raises `ValueError` there if there are other changes.
        """

    def deletes(self) -> tuple[int, bytes]:
        """Return count and COPY rows, of the key columns only, of the keys under which no row remains."""

    def touched(self) -> tuple[int, bytes]:
        """Return count and COPY rows, of the key columns only, of every key that any change had, old or new."""

    def partials(self) -> list[tuple[frozenset[int], int, bytes]]:
        """Return rows of which the target alone has some values: unchanged columns, count, COPY rows.

        Each COPY row has all columns, the unchanged ones as null, then the columns of the origin key: the one under
        which the target had the row before these changes.
        """

    def changes(self) -> list[tuple[Op, tuple[str | None, ...] | None, tuple[str | None, ...] | None]]:
        """Return the changes of a layout without key in their order: operation, row before, row after, in canonical
        text. Raises `ValueError` if the layout has a key."""

    @property
    def layout(self) -> Layout: ...
    @property
    def binary(self) -> bool:
        """Whether the results are in binary form."""

    @property
    def ordered(self) -> bool:
        """Whether the layout has no key, so that changes keep their order and nothing is folded."""

    @property
    def records(self) -> int:
        """Records taken; those before a TRUNCATE count too."""

    @property
    def inserts(self) -> int:
        """INSERT and READ records taken."""

    @property
    def updates(self) -> int: ...
    @property
    def deletions(self) -> int:
        """DELETE records taken."""

    @property
    def insert_only(self) -> bool:
        """Whether there are only INSERT and READ records, no two of one key, since the start or the last TRUNCATE."""

    @property
    def truncated(self) -> bool:
        """Whether there was a TRUNCATE: the target's table is to be emptied before all else."""

    @property
    def restarted(self) -> bool:
        """Whether one of them was a RESTART: the table's own sequences are to begin anew."""

    @property
    def pending_bytes(self) -> int:
        """About how much memory the changes take."""

def keyed(
    layout: Layout,
    data: bytes | bytearray | memoryview,
    visibility: tuple[int, int, Collection[int]] | None = None,
) -> tuple[bytes | None, list[tuple[bytes, bytes | None, bytes]]]:
    """Return those records of a framed block that `Net.add` would take: the last TRUNCATE, if there is one, and all
    behind it in order, each as the key, the one before the change if it had another, and the value.

    Keys are the key's columns without a schema id, so those of different versions of a table are equal if their
    columns' values are. Of a layout without key the whole row stands for one.
    """
