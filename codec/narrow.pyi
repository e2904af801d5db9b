from collections.abc import Iterable
from typing import final

from codec.layout import Layout

@final
class Narrow:
    """Leaves columns of records out: for a target that does not have all that the source has."""

    def __init__(self, layout: Layout, places: Iterable[int]) -> None:
        """Keep the columns at these places, in their order. Raises `ValueError` without one that the key needs."""

    def block(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return a framed block with the same records, those of `layout` with the kept columns alone, as `narrow` says;
        keys and records of other schemas are as they were. Raises `DecodeError`."""

    def batch(self, value: bytes | bytearray | memoryview) -> bytes:
        """Return a batch value with the kept columns of its rows alone. Raises `DecodeError`."""

    @property
    def layout(self) -> Layout: ...
    @property
    def narrow(self) -> Layout:
        """How the records are that come out; the schema id is the same."""
