"""Deliberate mistakes: each takes one rule of the protocol away, and the simulation must find that out.

A mistake is switched on for the rest of the process. It replaces as little as it can of the real loops, or of what they
stand on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import apply.commands
import apply.replay
import control.trimmer
import snapshot.heal
from apply.cohort import Beginning
from apply.dead_letters import Letter, Tray, Waiting
from apply.follower import Follower
from apply.portions import PortionReader
from apply.standing import Standing
from apply.target import Batch, GroupMove, TableMove
from capture.loop import Capture
from capture.source import Step
from capture.tables import TableVersions
from codec.frames import pack, unpack
from codec.rows import Change, decode
from control.trimmer import Trimmer
from schemas.errors import Superseded
from schemas.frontier import Claim, CommandKind, Visibility
from schemas.record import decode_control, schema_id_of
from schemas.states import STOPPED, TableState
from schemas.table import TableId
from snapshot.loop import SnapshotWorker
from snapshot.reader import Mark
from tests.simulation import log, target
from tests.simulation.source import SimulatedReader, SimulatedSnapshotSource, SimulatedSource
from tests.simulation.world import World
from transport.log import Block, Partition, Range
from transport.memory import MemoryLog
from transport.views import Chunks, Frontiers, TableChunks, ValidFrontier

MISTAKES: dict[str, Callable[[], None]] = {}
RARE: set[str] = set()
"""Mistakes that only a search of many thousand histories finds: too long for every run of the tests."""

_Any = Any


def mistake(make: Callable[[], None]) -> Callable[[], None]:
    MISTAKES[make.__name__.replace("_", "-")] = make
    return make


def rare_mistake(make: Callable[[], None]) -> Callable[[], None]:
    RARE.add(make.__name__.replace("_", "-"))
    return mistake(make)


# ---------------------------------------------------------------------------------------------------- frontiers


@mistake
def epoch_not_checked() -> None:
    """Every frontier counts, whoever claimed before it."""

    def poll(self: _Any, limit: int = 1000, *, fresh: bool = True) -> list[ValidFrontier]:
        found = []
        for record in self._records(limit, fresh):
            entry = decode_control(record.value)
            self.next = record.offset + 1
            if isinstance(entry, Claim):
                self.epoch = record.offset
            else:
                self.last = ValidFrontier(record.offset, entry)
                found.append(self.last)
        return found

    Frontiers.poll = poll  # type: ignore[method-assign]


@mistake
def looks_before_it_claims() -> None:
    """Capture reads the last valid frontier, and claims then."""
    claim, look = Capture._claim, Capture._look

    def look_first(self: _Any) -> bool:
        self._frontiers.to_end()
        self._do = partial(claim_then, self)
        return True

    def claim_then(self: _Any) -> bool:
        claim(self)
        # What it looks at now is what it saw before.
        self._frontiers.epoch, self._frontiers.to_end = self.epoch, lambda: self._frontiers.last
        return look(self)

    Capture._claim = look_first  # type: ignore[method-assign]


@mistake
def no_look_back() -> None:
    """Capture does not see that another has claimed since, and confirms."""
    seal = Capture._seal

    def blind(self: _Any, step: Step, position: int) -> None:
        before = self._own
        try:
            seal(self, step, position)
        except Superseded:
            self._appended.clear()
            self._schemas.clear()
            self._later = None
            self.position = position
            self.max_xid = max(self.max_xid, step.max_xid)
        self._own = max(self._own, before)

    Capture._seal = blind  # type: ignore[method-assign]


@rare_mistake
def versions_are_not_claimed() -> None:
    """What a capture registers counts, though another has claimed since."""
    TableVersions.succeed = lambda self, epoch: None  # type: ignore[method-assign]


@mistake
def confirms_before_it_seals() -> None:
    """The source may forget what the log does not hold yet."""
    seal = Capture._seal

    def early(self: _Any, step: Step, position: int) -> None:
        self._source.confirm(position)
        seal(self, step, position)

    Capture._seal = early  # type: ignore[method-assign]


@mistake
def frontier_before_its_records() -> None:
    """The frontier is in the log before the records that it names."""
    append = log._Writer.append
    waiting: defaultdict[Any, list[tuple[Partition, Block]]] = defaultdict(list)

    def keep(self: _Any, partition: Partition, block: Block) -> int:
        if ".changes." in partition.topic:
            waiting[self].append((partition, block))
            return block.count
        return append(self, partition, block)

    def seal(self: _Any, partition: Partition, make: _Any, key: bytes | None = None) -> int:
        memory: MemoryLog = self._writer._log
        held = waiting.pop(self, [])
        ranges: dict[Partition, Range] = {}
        for place, block in held:
            start = ranges.get(place) or Range(memory.offsets(place).end, memory.offsets(place).end)
            ranges[place] = Range(start.start, start.end + block.count)
        offset: int = self._do("seal early", lambda: self._writer.put(partition, make(ranges), key))
        for place, block in held:
            append(self, place, block)
        self._do("flush late", self._writer.flush)
        return offset

    log._Writer.append = keep  # type: ignore[method-assign]
    log._Writer.seal = seal  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------------------------- the hand-over


@mistake
def snapshot_sees_its_xmin() -> None:
    """`<=` for `<`: the oldest transaction that a snapshot does not see counts as seen."""

    def visibility(self: _Any, schema_id: int) -> tuple[int, int, frozenset[int]] | None:
        seen = real(self, schema_id)
        return None if seen is None else (seen[0] + 1, seen[1], seen[2])

    real = PortionReader._visibility
    PortionReader._visibility = visibility  # type: ignore[method-assign]


@mistake
def running_transactions_count_as_seen() -> None:
    """What was running when the snapshot was taken counts as seen."""

    def visibility(self: _Any, schema_id: int) -> tuple[int, int, frozenset[int]] | None:
        seen = real(self, schema_id)
        return None if seen is None else (seen[0], seen[1], frozenset())

    real = PortionReader._visibility
    PortionReader._visibility = visibility  # type: ignore[method-assign]


@mistake
def chunk_forgotten() -> None:
    """A table is complete though its last chunk is not."""
    missing = vars(TableChunks)["missing"].fget
    assert missing is not None
    TableChunks.missing = property(lambda self: [n for n in missing(self) if n != 2])  # type: ignore[assignment, method-assign]


@mistake
def blind_second_snapshot() -> None:
    """A snapshot need not show what earlier ones showed."""
    Visibility.sees_all_of = lambda self, other: True  # type: ignore[method-assign]


@mistake
def snapshot_not_announced() -> None:
    """Chunks are final, and tables join, before capture has passed a message that came after the snapshot."""
    SimulatedSnapshotSource.announce = lambda self: 0  # type: ignore[method-assign]


@mistake
def join_before_the_message() -> None:
    """A table joins its group before capture has passed the message of its snapshot, and chunks are final at once."""
    Follower._join_position = lambda self, table: 0  # type: ignore[method-assign]
    look = SnapshotWorker._look

    def early(self: _Any, views: _Any) -> bool:
        for number, taken in list(views.chunks.snapshots.items()):
            views.chunks.snapshots[number] = replace(taken, position=0)
        return look(self, views)

    SnapshotWorker._look = early  # type: ignore[method-assign]


@mistake
def replay_begins_too_late() -> None:
    """A loaded table replays from a later frontier than the first that may hold what it lacks."""
    init = Beginning.__init__

    def late(self: _Any, reader: _Any, topics: _Any, position: int, xmin: int) -> None:
        init(self, reader, topics, position, xmin + 2)

    Beginning.__init__ = late  # type: ignore[method-assign]


@mistake
def never_healed() -> None:
    """Chunks of several snapshots are taken for one."""
    TableChunks.needs_healing = lambda self: False  # type: ignore[method-assign]


@mistake
def healing_forgets_old_keys() -> None:
    """Healing reads the new key of a change again, and forgets the old one."""

    def forgetful(layout: _Any, value: bytes) -> Change:
        change = decode(layout, value)
        return change._replace(before=None) if change.after is not None else change

    snapshot.heal.decode = forgetful  # type: ignore[attr-defined, assignment]


@mistake
def rewritten_tables_are_read_on() -> None:
    """Nobody asks whether a table is still the same file."""
    SimulatedReader._mark = lambda self, name: Mark("1", "1")  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------------------------- apply


@mistake
def no_compare_and_set() -> None:
    """Whoever writes, writes, wherever the target stands."""
    target.SimulatedTarget._compare = staticmethod(lambda equal, what: None)  # type: ignore[method-assign]


@rare_mistake
def members_not_compared() -> None:
    """Of a group only the place is compared, not who its members are."""
    target._at = lambda progress: (progress.offset, progress.epoch)


@mistake
def progress_after_the_commit() -> None:
    """Rows are committed first, and progress after them."""
    write = target.SimulatedTarget.write

    def twice(self: _Any, batch: Batch) -> None:
        pieces = list(batch.pieces)
        if pieces:
            groups = [GroupMove(move.group, move.after, move.after) for move in batch.groups]
            tables = [TableMove(move.after, move.after) for move in batch.tables]
            write(self, Batch(groups, tables, pieces))
        write(self, Batch(batch.groups, batch.tables))

    target.SimulatedTarget.write = twice  # type: ignore[method-assign]


@mistake
def key_change_without_its_delete() -> None:
    """An update that changed the key does not say so."""
    encode = SimulatedSource._encode

    def silent(self: _Any, version: _Any, change: _Any, xid: int, ordinal: int) -> tuple[bytes | None, bytes]:
        return encode(self, version, change._replace(old_key=None), xid, ordinal)

    SimulatedSource._encode = silent  # type: ignore[method-assign]


@mistake
def tables_left_out_stay_in_their_groups() -> None:
    """A table that the file no longer has for a target counts as applied as far as its group is."""
    Follower._leave_out = lambda self: None  # type: ignore[method-assign]


@mistake
def chunks_of_an_old_generation_stay() -> None:
    """A table that begins again is not emptied."""

    def restart(self: _Any, piece: _Any, move: TableMove) -> None:
        with self._transaction("restart") as transaction:
            self._moved(transaction, move)

    target.SimulatedTarget.restart = restart  # type: ignore[method-assign]


# -------------------------------------------------------------------------------------------------- commands


@mistake
def stopped_tables_go_on_where_they_were_live_last() -> None:
    """A table that was live is stopped at the place where it joined its group, not at its group's."""
    real = apply.commands.obeyed
    apply.commands.obeyed = lambda issued, before, place: real(issued, before, before.progress)


@rare_mistake
def commands_for_live_tables_are_not_told_to_their_groups() -> None:
    """Who does not know that a table has left its group moves the group all the same."""
    move = Standing.group_move
    Standing.group_move = lambda self, group, progress, *, other_members=False: move(  # type: ignore[method-assign]
        self, group, progress, other_members=other_members and progress != self.groups[group]
    )


@mistake
def paused_tables_hold_nothing() -> None:
    """The log forgets what follows the place where a table was paused."""
    needed = control.trimmer.needed_from

    def blind(answers: _Any, *rest: _Any) -> int:
        left = [
            replace(a, tables={t: held for t, held in a.tables.items() if held.state is not TableState.PAUSED})
            for a in answers
        ]
        return needed(left, *rest)

    control.trimmer.needed_from = blind  # type: ignore[assignment]


@mistake
def commands_are_forgotten_by_who_takes_over() -> None:
    """Which commands were carried out is not stored with the states that they made."""
    obeyed = apply.commands.obeyed
    apply.commands.obeyed = lambda issued, before, place: replace(obeyed(issued, before, place), command=before.command)
    apply.commands.is_due = lambda issued, progress, target: (
        issued.is_for(target) and (progress.state in STOPPED) is (issued.command.kind == CommandKind.RESUME)
    )


@rare_mistake
def reloads_keep_their_generation() -> None:
    """A target that is to load a table anew waits in the generation that it has, whose chunks others may still load."""
    reloaded = apply.commands._reloaded
    apply.commands._reloaded = lambda issued, table: replace(reloaded(issued, table), generation=table.generation)


@mistake
def plans_of_who_has_not_seen_the_command_count() -> None:
    """A command to load a table anew takes no generation of its own."""
    take = Chunks._take_command

    def no_generation(self: _Any, offset: int, command: _Any) -> None:
        take(self, offset, command)
        if command.kind == CommandKind.RELOAD:
            self.tables[self.commands[-1].table].generation -= 1

    Chunks._take_command = no_generation  # type: ignore[method-assign]


@mistake
def only_the_part_is_read_anew() -> None:
    """What was changed since a table stopped is left out, if the rows are not of the part that is wanted."""
    since = snapshot.heal._Since
    snapshot.heal._Since = lambda snapshots, place=None: since(snapshots)  # type: ignore[assignment, misc]


@mistake
def forgets_what_a_reload_needs() -> None:
    """The trimmer does not ask whether somebody wants a table anew who has not heard of it yet."""
    control.trimmer.to_be_loaded = lambda answers, chunks: {}


# ---------------------------------------------------------------------------------------------- dead letters


@mistake
def later_changes_of_blocked_keys_are_applied() -> None:
    """What comes under a key that has a letter does not wait."""
    divide = Tray.divide

    def blind(self: _Any, *arguments: _Any) -> bytes:
        waiting, self.waiting = self.waiting, Waiting()
        try:
            return divide(self, *arguments)
        finally:
            self.waiting = waiting

    Tray.divide = blind  # type: ignore[method-assign, assignment]


@mistake
def only_the_new_key_is_blocked() -> None:
    """A letter that moves a row blocks where it goes to, not where it comes from."""

    def add(self: Waiting, letter: Letter) -> None:
        self.keys.add(letter.key)
        self.letters += 1
        self.schema_ids.add(letter.schema_id)

    Waiting.add = add  # type: ignore[method-assign]


@mistake
def letters_outside_of_the_transaction() -> None:
    """Letters are stored when the progress that passes them is committed."""
    write, store = target.SimulatedTarget.write, target.Held.store

    def later(self: _Any, batch: Batch) -> None:
        trays: list[tuple[TableId, Tray]] = []
        keep = lambda held, tray: trays.append((held.progress.table, tray))  # noqa: E731
        target.Held.store = keep  # type: ignore[method-assign]
        try:
            write(self, batch)
        finally:
            target.Held.store = store  # type: ignore[method-assign]
        if trays:
            with self._transaction("store letters") as transaction:
                for table, tray in trays:
                    store(transaction.table(table), tray)

    target.SimulatedTarget.write = later  # type: ignore[method-assign]


@mistake
def letters_outlive_a_truncation() -> None:
    """A table that is emptied keeps the letters of its rows."""

    def keep(self: Tray) -> None:
        self.waiting = Waiting()

    Tray._empty = keep  # type: ignore[method-assign]


@mistake
def letters_are_replayed_key_by_key() -> None:
    """What a change has moved from one key to another is replayed apart from what was there before."""

    def apart(letters: _Any) -> list[list[Letter]]:
        found: defaultdict[bytes, list[Letter]] = defaultdict(list)
        for letter in letters:
            found[letter.key].append(letter)
        return list(found.values())

    apply.replay.bundled = apart


@mistake
def tables_that_come_back_keep_what_they_have() -> None:
    """A table that was taken out of the pipeline goes on from there when it is added again."""
    take = Chunks._take_command

    def only_commands(self: _Any, offset: int, command: _Any) -> None:
        if command.by != "":
            take(self, offset, command)

    Chunks._take_command = only_commands  # type: ignore[method-assign]


@mistake
def added_tables_do_not_wait_for_who_writes() -> None:
    """Of a transaction that wrote to a table before it was published, the stream has only the rest."""
    World.waits_for_writers = False


# -------------------------------------------------------------------------------------------------- trimming


@mistake
def trims_what_a_target_still_needs() -> None:
    """The fastest target decides what goes, and a table that is not live holds nothing."""

    def needed(answers: _Any, chosen: _Any, chunks: _Any, mode: _Any) -> int:
        return max((place.offset for answer in answers for place in answer.groups.values()), default=0)

    control.trimmer.needed_from = needed


@mistake
def trims_before_it_says_so() -> None:
    """What is not needed goes first, and is announced then."""
    announce = Trimmer._announce

    def late(self: _Any, last: ValidFrontier) -> None:
        for partition, end in self._ends.items():
            self._log.trim(partition, end)
        self._log.trim(self._topics.frontier, last.offset)
        announce(self, last)

    Trimmer._announce = late  # type: ignore[method-assign]


@mistake
def trims_chunks_that_a_target_still_needs() -> None:
    """Under pressure a final chunk goes, whoever has loaded it."""
    control.trimmer._loads = lambda progress, load: False


@mistake
def late_chunks_become_final() -> None:
    """A manifest counts though its rows were freed before it came."""
    Chunks.is_freed = lambda self, manifest: False  # type: ignore[method-assign]


@mistake
def late_target_is_loaded_from_what_is_left() -> None:
    """A target that is added when the log has been trimmed takes the load that is there."""
    Chunks._admit = lambda self, admitted: setattr(self, "admitted", admitted)  # type: ignore[method-assign]


@mistake
def left_out_without_a_record() -> None:
    """Rows that can't be carried are dropped."""
    encode = SimulatedSource._next

    def silent(self: _Any) -> Step | None:
        step = encode(self)
        if step is None:
            return None
        gone = {n for ids in step.schemas.values() for n in ids if _is_left_out(self._tables, n)}
        blocks, schemas = {}, {}
        for partition, block in step.blocks.items():
            kept = [pair for pair in unpack(block.data) if schema_id_of(pair[1] or b"") not in gone]
            if kept:
                blocks[partition] = Block(len(kept), pack(kept))
                schemas[partition] = step.schemas[partition] - gone
        return replace(step, blocks=blocks, schemas=schemas)

    SimulatedSource._next = silent  # type: ignore[method-assign]


@rare_mistake
def left_out_but_healed() -> None:
    """A healing passes over the records that stand for rows which were left out."""
    versions = snapshot.heal._versions

    def carried(tables: _Any, table: TableId, named: _Any) -> dict[int, _Any]:
        return {n: version for n, version in versions(tables, table, named).items() if version.left_out is None}

    snapshot.heal._versions = carried


def _is_left_out(tables: _Any, schema_id: int) -> bool:
    return any(
        version.schema_id == schema_id and version.left_out is not None
        for id in tables.names()
        for version in tables.of(id)
    )


# --------------------------------------------------------------------------------- what the simulation has found before


@rare_mistake
def task_forgotten_when_the_log_fails() -> None:
    """A worker does not list again what it had begun, or was about to begin, when the log failed."""
    step = SnapshotWorker.step

    def forgetful(self: _Any) -> bool:
        before = self._again_at
        worked = step(self)
        if self._again_at != before:
            self._listed = (self._views.chunks.next, self._views.membership.poll())
        return worked

    SnapshotWorker.step = forgetful  # type: ignore[method-assign]
