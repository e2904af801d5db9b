from typing import NamedTuple, final

from codec.layout import Layout

ROW: int
BEGIN: int
COMMIT: int
RELATION: int
KEEPALIVE: int
MESSAGE: int
TRUNCATE: int
TYPE: int
ORIGIN: int

class RelationColumn(NamedTuple):
    name: str
    is_key: bool
    type_oid: int
    type_modifier: int

class Relation(NamedTuple):
    """A table as the stream describes it before its first change, and again after each change of its definition."""

    oid: int
    schema: str
    name: str
    identity: str  # PostgreSQL's letter: d default, i index, f full, n nothing
    columns: tuple[RelationColumn, ...]

@final
class ChangeDecoder:
    """Turns the frames of PostgreSQL's replication stream (pgoutput, protocol version 1) into framed row records.

    Records gather in one buffer a slot until `take()`. Several relations may share a slot. An error leaves the
    buffers as they were before the frame, and the change keeps its ordinal: after `ValueUnsupported` the caller may
    go on with the next frame, if the row is set aside elsewhere.
    """

    def __init__(self, epoch: int, reference_xid: int) -> None:
        """Begin outside a transaction. `epoch` goes into every record. `reference_xid` is a 64-bit transaction id of
        about now, by which the 32-bit ids of the stream are widened."""

    def bind(self, relation_oid: int, layout: Layout, slot: int) -> None:
        """Append changes of this relation to `slot`, read by `layout`, from now on.

        A RELATION event un-binds its relation: bind it again, leave it out or ignore it, before the next frame.
        """

    def leave_out(self, relation_oid: int, layout: Layout, slot: int) -> None:
        """Drop changes of this relation, and let one DEFINE record with the layout's schema id stand for them in each
        transaction that has any, where the first of them was."""

    def ignore(self, relation_oid: int) -> None:
        """Drop changes of this relation; they still count in the ordinals of their transaction."""

    def feed(self, frame: bytes | bytearray | memoryview) -> int:
        """Take the payload of one CopyData message and return what it was: ROW (nothing to do) or another constant
        of this module, which says which attributes are new.

        Raises `DecodeError` for anything malformed, for a change outside a transaction and for one of a relation
        that is neither bound, left out nor ignored; `ValueUnsupported`, naming the column's index, for a value that the
        log can't carry without loss.
        """

    def append_truncate(self, relation_oid: int, restart: bool) -> None:
        """Append a TRUNCATE or RESTART record of a relation; it has no key, and takes the next ordinal.

        The decoder appends none by itself: TRUNCATE names relations that may not be chosen, or leaves of which some
        are. Raises `DecodeError` like `feed`.
        """

    def append_definition(self, layout: Layout, slot: int) -> None:
        """Append a DEFINE record to `slot`: from here on the table is what the layout's schema id says.

        Inside a transaction it belongs to that; outside to none, and counts as older than all that is still to come: it
        bears the position of the last whole transaction, and the largest id so far.
        """

    def take(self) -> dict[int, tuple[int, bytes, frozenset[int]]]:
        """Hand over and forget the records of every slot that has any: count, framed block, schema ids in it.

        May be called inside a transaction; its later records come with a later hand-over.
        """

    @property
    def epoch(self) -> int: ...
    @property
    def xid(self) -> int:
        """Of the latest transaction, 64-bit. After BEGIN."""

    @property
    def commit_lsn(self) -> int:
        """Where the latest transaction's commit record begins. After BEGIN."""

    @property
    def commit_time(self) -> int:
        """When it was committed, in microseconds since 1970. After BEGIN."""

    @property
    def end_lsn(self) -> int:
        """Where the latest transaction's commit record ends: the place to go on from. After COMMIT."""

    @property
    def relation(self) -> Relation:
        """After RELATION."""

    @property
    def wal_end(self) -> int:
        """After KEEPALIVE. Outside a transaction, all commits below it were sent."""

    @property
    def reply_requested(self) -> bool:
        """After KEEPALIVE."""

    @property
    def message(self) -> tuple[bool, int, str, bytes]:
        """Whether it belongs to a transaction, its LSN, prefix and content. After MESSAGE."""

    @property
    def truncated(self) -> tuple[int, tuple[int, ...]]:
        """Option bits (1 cascade, 2 restart identity) and relation oids. After TRUNCATE."""

    @property
    def position(self) -> int:
        """`end_lsn` of the last whole transaction, 0 before the first."""

    @property
    def max_xid(self) -> int:
        """The largest transaction id seen, 64-bit; 0 before the first."""

    @property
    def pending_bytes(self) -> int: ...
    @property
    def pending_records(self) -> int: ...
