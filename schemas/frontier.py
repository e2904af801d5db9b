"""What capture and snapshot write into the log besides rows: claims, frontiers, snapshots, plans, manifests.

Each is a record in Avro with a fixed schema of its own in `control.avsc`, framed like every record: byte 0, a
schema id (below `FIRST_TABLE_SCHEMA`), Avro binary. Positions are the source's own, as 64-bit integers whose order
is commit order; offsets are places in the log, always the next to read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

FIRST_TABLE_SCHEMA = 64
"""Ids of row schemas begin here; those below are the control records'."""


def lsn_text(position: int) -> str:
    """Return a position as PostgreSQL writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


class Visibility(NamedTuple):
    """What a snapshot sees: every committed transaction below `xmax` that is not in `xip`.

    PostgreSQL's `pg_current_snapshot()`; ids are 64-bit. An LSN comparison would be wrong: a commit is in the
    write-ahead log, and decoded, before it is visible to others.
    """

    xmin: int
    xmax: int
    xip: tuple[int, ...] = ()

    def sees(self, xid: int) -> bool:
        """Whether the snapshot shows the effects of `xid`, given that it committed."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.xip)

    def sees_all_of(self, other: Visibility) -> bool:
        """Whether everything that `other` shows is shown here too."""
        return self.xmax >= other.xmax and not any(other.sees(xid) for xid in self.xip)


class Commit(NamedTuple):
    """A transaction's commit at the source: where, and when by the source's clock. No two histories share one."""

    position: int
    time: int


NO_COMMIT = Commit(0, 0)


@dataclass(frozen=True, slots=True)
class Claim:
    """A capture begins: the offset of this record in `p.frontier` is its epoch. In `p.control`: a setup begins."""

    holder: str  # who, for people: host and process id
    at: int  # microseconds since 1970, as are all times here


@dataclass(frozen=True, slots=True)
class TopicRange:
    """Offsets `[start, end)` of one partition that belong to a step, and the row schemas found in them."""

    topic: str
    partition: int
    start: int
    end: int
    schemas: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Frontier:
    """The next consistent step: whole transactions of the source, and where their records are.

    Valid only if `epoch` is the offset of the latest claim before it in the topic.
    """

    epoch: int
    after: int  # the position it continues from
    position: int  # the position it reaches: the end of a commit
    commit_time: int  # of the last transaction in it, at the source; 0 if it holds none
    captured_at: int
    max_xid: int  # the largest transaction id seen so far, 64-bit
    ranges: tuple[TopicRange, ...] = ()
    last_commit: int = 0  # where the last transaction so far was committed, in whichever frontier it is; 0: none yet
    last_commit_time: int = 0  # and when: a source that has both has the history that was captured

    @property
    def last(self) -> Commit:
        return Commit(self.last_commit, self.last_commit_time)


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """A snapshot that chunks may be read in. Its offset in `p.chunks` is its id, and the order of taking.

    `position` is that of a message emitted after it was taken: chunks are final, and a table may join its group,
    only when capture has passed it. It was taken behind what stands before `known`, and perhaps not behind what stands
    between that and this: whoever took it may have stalled before he said so.
    """

    name: str  # to import it by, as long as its holder lives
    xmin: int
    xmax: int
    xip: tuple[int, ...]
    position: int
    known: int  # the next offset of `p.chunks` that its holder had not read when he took it
    at: int

    @property
    def visibility(self) -> Visibility:
        return Visibility(self.xmin, self.xmax, self.xip)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a table: `[lower, upper)` in whatever the engine divides by; empty: without that bound."""

    number: int
    leaf_schema: str
    leaf_name: str
    lower: str
    upper: str
    rows: int  # estimate


@dataclass(frozen=True, slots=True)
class Plan:
    """How a table is divided. The first plan of a generation counts; a higher generation starts the table again."""

    table_schema: str
    table_name: str
    generation: int
    schema_id: int
    chunks: tuple[Chunk, ...]
    physical: tuple[str, ...]  # what must not change while chunks are read: PostgreSQL's filenode of each leaf
    cause: str = ""  # why the generation before was given up
    at: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """A chunk is final: where its rows are, and in which snapshot they were read. The first manifest counts.

    Chunk number `HEAL` replaces every key changed since the oldest snapshot by what the newest one shows.
    """

    table_schema: str
    table_name: str
    generation: int
    chunk: int
    snapshot: int  # offset of the SnapshotTaken in `p.chunks`
    topic: str
    partition: int
    start: int
    end: int
    rows: int
    bytes: int
    at: int = 0


HEAL = -1


@dataclass(frozen=True, slots=True)
class Admitted:
    """The targets that there are from here on. In `p.chunks`; the last one counts.

    A target that is new when the log has been trimmed can't be loaded from it: then `trimmed` goes up, to the offset
    behind the last `Trimmed` in `p.control`, and every table that was planned before is to be planned and read again,
    for those who do not have it. Only in snapshots that show all up to `max_xid`: the log tells of the rest.
    """

    targets: tuple[str, ...]
    trimmed: int = 0
    max_xid: int = -1
    at: int = 0


@dataclass(frozen=True, slots=True)
class Freed:
    """Of a load partition all before `end` is about to go. In `p.chunks`, before it goes.

    A manifest behind this that begins before `end` does not count: whoever wrote it was slow, and its chunk is read
    again. One that stood there before does, and whoever frees looks for such once more.
    """

    topic: str
    partition: int
    end: int
    at: int


@dataclass(frozen=True, slots=True)
class Unneeded:
    """No target needs the frontiers up to this transaction id any more. In `p.chunks`, before they are forgotten.

    It counts only if no command to load a table anew stands between `known`, up to where whoever says so had read, and
    this: he did not know who is going to need what. A snapshot that is taken behind it shows all up to `max_xid`, or no
    table is read in it: the log does not tell the rest.
    """

    max_xid: int
    known: int  # the next offset of `p.chunks` that he had not read when he asked the targets
    at: int


class CommandKind(StrEnum):
    """What can be asked for a table while everything else runs."""

    PAUSE = "pause"  # stop where it stands; its group goes on
    RESUME = "resume"  # go on from where it was paused, or failed
    RELOAD = "reload"  # load it anew, all of it or the rows that `where` names
    SKIP = "skip"  # leave it as it is, for good


@dataclass(frozen=True, slots=True)
class Command:
    """Somebody asks for something. In `p.chunks`, so that everybody sees it in one order with plans and chunks.

    Each target carries it out once: it stores the offset of the last command for a table beside the table's state.
    """

    kind: str  # a CommandKind
    table_schema: str
    table_name: str
    target: str  # empty: all
    where: str  # of a reload: a condition in SQL; empty: the whole table
    by: str  # who, for people
    at: int
    # Of a reload with a condition, which is for one target, and for a table that has stopped there:
    place: int = -1  # the offset in `p.frontier` where it has stopped
    schema_id: int = 0  # the version that it has there
    keys: tuple[str, ...] = ()  # of rows that fulfil the condition there alone: their columns, one row after the other


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The rows of a generation can't be read to their end. In `p.chunks`.

    If it is that of a part which was to be loaded anew, its target goes on as if nobody had asked. If it is that of a
    plan, every target that loads the table stops it, until somebody asks to load it anew.
    """

    table_schema: str
    table_name: str
    generation: int
    cause: str
    remedy: str
    at: int


@dataclass(frozen=True, slots=True)
class Name:
    """A table by its name."""

    table_schema: str
    table_name: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """The tables that the pipeline has from here on. In `p.chunks`; the last one counts, before there is one the setup.

    One that stands behind another one which its author did not know does not count: he has to look again.

    Those that were added are published, and registered; whatever a snapshot that is taken behind this does not show of
    them is in the stream. They are to be loaded as by a command, also where a target has them from an earlier time.
    """

    tables: tuple[int, ...]  # schema ids, of the versions that the tables were published with
    added: tuple[Name, ...]
    patterns: tuple[str, ...]  # of the file that a person had taken over last: a table made later has to fit them
    by: str  # who, for people
    known: int  # the next offset of `p.chunks` that he had not read when he looked what the pipeline has
    at: int


@dataclass(frozen=True, slots=True)
class Carried:
    """Capture carries a table again that it has left out. In `p.chunks`, before the version that it carries is
    registered.

    The table is only read in snapshots that are taken behind this, and show all up to `max_xid`: all that was left out
    had begun by then.
    """

    table_schema: str
    table_name: str
    max_xid: int
    at: int


ControlRecord = (
    Claim
    | Frontier
    | SnapshotTaken
    | Plan
    | Manifest
    | Admitted
    | Freed
    | Unneeded
    | Command
    | GivenUp
    | Chosen
    | Carried
)


@dataclass(frozen=True, slots=True)
class TableRegistered:
    """A version of a table; value of `p.tables`, its key the table's id. The schema id of its rows is derived from the
    record's offset.

    Captures register what the stream tells; without an epoch it is somebody who gives the pipeline its tables. That
    one counts only if he knew all versions of the table that there were: he may have stalled after he looked at it.
    """

    table: str  # schemas.table.Table as JSON
    topic: str  # where its changes go
    partition: int
    at: int = 0
    epoch: int = -1  # of the capture that has registered it
    known: int = 0  # the next offset of `p.tables` that its author had not read when he looked at the table


@dataclass(frozen=True, slots=True)
class Succeeded:
    """A capture begins to register versions; in `p.tables`, once it has claimed. What captures of earlier epochs
    register behind this does not count: they had stalled, and did not know that there was another one."""

    epoch: int
    at: int = 0


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The frontiers begin at `offset` from here on: those before it may be gone, and the rows that they name, and
    chunks that all targets have. In `p.control`, before anything is forgotten; of several the farthest counts.

    At `offset` is a valid frontier; the rest says how things stood before it. If it is the first of all, or where
    they began before, only chunks are forgotten.
    """

    offset: int
    epoch: int  # in force at `offset`
    position: int
    commit_time: int
    max_xid: int  # the largest of what is forgotten: only a snapshot that shows all up to it can be replayed on
    at: int


@dataclass(frozen=True, slots=True)
class Setup:
    """The source is prepared: slot and publications exist. In `p.control`, behind the claim of who prepared it.

    It counts only if nobody else has claimed in between, and prepared the source in another way; and only the first.
    """

    system: str  # identity of the source
    slot: str
    publications: tuple[str, ...]
    position: int  # where the stream begins
    xmin: int
    xmax: int
    xip: tuple[int, ...]
    objects: str  # schemas.table.Objects as JSON
    mode: str
    shared_topics: int  # 0: one topic a table
    at: int = 0
    tables: tuple[int, ...] = field(default=())  # schema ids of the tables chosen at the start
    patterns: tuple[str, ...] = field(default=())  # by which they were chosen
    epoch: int = -1  # the offset of the claim

    @property
    def visibility(self) -> Visibility:
        """What the slot's own snapshot sees: the stream holds the rest."""
        return Visibility(self.xmin, self.xmax, self.xip)
