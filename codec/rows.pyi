from collections.abc import Sequence
from typing import NamedTuple, Protocol

from codec.layout import Layout
from schemas.record import Op

class Head(NamedTuple):
    """What can be read of a record without knowing its table."""

    schema_id: int
    op: Op
    epoch: int
    position: int
    xid: int
    ordinal: int
    commit_time: int

class Change(NamedTuple):
    """A row record; see `schemas.record`. Rows are canonical texts in the order of the columns."""

    op: Op
    epoch: int
    position: int
    xid: int
    ordinal: int
    commit_time: int
    unchanged: tuple[int, ...]
    before: tuple[str | None, ...] | None
    after: tuple[str | None, ...] | None

class _ChangeLike(Protocol):
    @property
    def op(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def xid(self) -> int: ...
    @property
    def ordinal(self) -> int: ...
    @property
    def commit_time(self) -> int: ...
    @property
    def unchanged(self) -> Sequence[int]: ...
    @property
    def before(self) -> Sequence[str | None] | None: ...
    @property
    def after(self) -> Sequence[str | None] | None: ...

def decode(layout: Layout, value: bytes | bytearray | memoryview) -> Change:
    """Return the row record in a value. Raises `DecodeError` if it is none, or one of another schema."""

def decode_batch(layout: Layout, value: bytes | bytearray | memoryview) -> list[Change]:
    """Return the row records in a batch value. Raises `DecodeError` like `decode`."""

def decode_key(layout: Layout, key: bytes | bytearray | memoryview) -> tuple[str, ...]:
    """Return the canonical texts of a record's key, in the order of `layout.key`. Raises `DecodeError`."""

def head(value: bytes | bytearray | memoryview) -> Head:
    """Return the head of a row record of any table. Raises `DecodeError`; the rows behind it are not looked at."""

def encode(layout: Layout, change: _ChangeLike) -> tuple[bytes | None, bytes]:
    """Return key and value of a row record: the reverse of `decode`.

    The key is that of the row after the change, else of the one before; there is none for a layout without key and
    for TRUNCATE. Raises `DecodeError` for a text that is not its kind's, `ValueUnsupported` like a decoder.
    """
