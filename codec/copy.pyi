from collections.abc import Iterable, Sequence
from typing import final

from codec.layout import Layout

HEADER: bytes
"""What a binary COPY begins with."""

TRAILER: bytes
"""What a binary COPY ends with."""

@final
class CopyDecoder:
    """Turns the data of `COPY ... TO STDOUT` into batches of READ records.

    Columns must come in the order of the layout. In binary form every column is in its type's own binary form, but
    those of `Kind.OTHER` are text: the query casts them.
    """

    def __init__(self, layout: Layout, *, binary: bool) -> None: ...
    def feed(self, data: bytes | bytearray | memoryview) -> int:
        """Take the payload of one CopyData message, which is header, rows, trailer or several of them, and return
        how many bytes wait to be taken.

        Raises `DecodeError` for anything malformed, above all for another number of columns; `ValueUnsupported`,
        naming the column's index, for a value that the log can't carry without loss. The row that failed leaves
        nothing behind, nor do those behind it in the same message.
        """

    def take(self) -> bytes:
        """Hand over and forget the waiting rows, as one batch value; it holds no rows if none wait."""

    @property
    def layout(self) -> Layout: ...
    @property
    def binary(self) -> bool: ...
    @property
    def rows(self) -> int:
        """All rows so far."""

    @property
    def pending_rows(self) -> int: ...
    @property
    def pending_bytes(self) -> int: ...
    @property
    def finished(self) -> bool:
        """Whether the trailer of a binary COPY has come; text has none."""

def load_rows(layout: Layout, value: bytes | bytearray | memoryview, *, binary: bool) -> bytes:
    """Return the rows of a batch value for `COPY ... FROM STDIN`, without header and trailer.

    The form is text where `layout.binary` is false, whatever was asked for. Each record must have a row after its
    change, and no unchanged columns. Raises `DecodeError`, or `ValueUnsupported` for a value that PostgreSQL can't
    hold.
    """

def encode_batch(
    layout: Layout, rows: Iterable[tuple[int, Sequence[str | None] | None, Sequence[str | None] | None]]
) -> bytes:
    """Return a batch value of (operation, row before, row after), the rows in canonical text. Not for the hot path."""
