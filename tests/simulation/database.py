"""A simulated source database: MVCC, transaction ids, a write-ahead log with asynchronous commits, exported snapshots.

It has just what the protocol rests on, and the cruelties of the real one: a commit is in the log, and decoded, before
it is visible to others; a crash takes back commits that were not flushed, though a snapshot may have seen them, and
gives their transaction ids out again; a row that is updated moves, so that reading in two snapshots may see it twice
or never;
a rewritten or truncated table is read wrong in an old snapshot without a word.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.frontier import Visibility
from schemas.table import Identity
from tests.simulation.faults import Session

KEYS = 6
"""Few keys, so that transactions meet on the same rows."""

Value = tuple[str, str]  # a small column, and a large one that an update may leave unsent
State = dict[str, dict[int, Value]]


class Shape(NamedTuple):
    """What kind of table it is. Without a key, the key below is a row's identity that nobody outside knows."""

    name: str
    keyed: bool = True
    identity: Identity = Identity.KEY


class Change(NamedTuple):
    """One row change as the write-ahead log has it."""

    table: str
    op: str  # i u d, t: truncate
    key: int
    old_key: int | None  # of an update that changed it
    value: tuple[str, str | None] | None  # None in the second place: unchanged, not sent
    before: Value | None  # the old row, for Identity.FULL
    published: bool = True  # whether the table was published when it was made


@dataclass
class Version:
    """A row version: visible from `born` to `dead`."""

    place: int
    key: int
    value: Value
    born: int
    dead: int | None = None


@dataclass
class Database:
    """One source with its tables, its running transactions and one replication slot."""

    rng: random.Random
    shapes: tuple[Shape, ...]
    next_xid: int = 1
    running: dict[int, list[Change]] = field(default_factory=dict)
    invisible: set[int] = field(default_factory=set)  # holds changes, not visible to new snapshots yet
    committed: set[int] = field(default_factory=set)
    log: list[tuple[int, list[Change]]] = field(default_factory=list)  # commits in order; a position is a length of it
    flushed: int = 0
    confirmed: int | None = None  # of the slot; None: there is no slot
    saved: int = 0  # what was confirmed and outlasts a crash
    streaming: Session | None = None  # who reads the slot
    claimed: Session | None = None  # who is the holder
    exported: dict[str, Visibility] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    judge: Callable[[int], None] = lambda position: None  # is told what is about to be confirmed

    def __post_init__(self) -> None:
        self.tables = tuple(shape.name for shape in self.shapes)
        self.shape = {shape.name: shape for shape in self.shapes}
        self.versions: dict[str, list[Version]] = {t: [] for t in self.tables}
        self.locks: dict[tuple[str, int], int] = {}
        self.states: list[State] = [{t: {} for t in self.tables}]  # after each commit of the log
        self.filenodes: dict[str, list[tuple[int, int]]] = {t: [(0, 1)] for t in self.tables}  # since which transaction
        self.silent: set[str] = set()  # tables that are not published
        self.unfit: set[str] = set()  # tables whose rows have no form in the log now
        self.crashes = 0
        self.exports = 0
        self.slots = 0
        self.settled = False

    # ------------------------------------------------------------------ what the application does

    def work(self) -> None:
        """Make one random step of the application, or of the writer of the log."""
        r = self.rng
        if r.random() < 0.2:
            self.flushed = len(self.log)
            return
        if len(self.running) < 3 and r.random() < 0.35:
            self.running[self.next_xid] = []
            self.next_xid += 1
            return
        late = sorted(self.invisible - set(self.running))
        if late and r.random() < 0.4:
            self._end(r.choice(late))
            return
        if not self.running:
            return
        xid = r.choice(sorted(self.running))
        if self.running[xid] and r.random() < 0.3:
            if r.random() < 0.15:
                del self.running[xid]
                self._undo(xid)
                self._end(xid)
            else:
                self._commit(xid)
            return
        self.invisible.add(xid)
        table = r.choice(self.tables)
        if r.random() > 0.1 or not self._swap(xid, table):
            self._change(xid, table, r.randrange(KEYS))

    def go_on(self) -> None:
        """Let the application work while somebody's call is under way."""
        while not self.settled and self.rng.random() < 0.2:
            self.work()

    def settle(self) -> None:
        """End the application: every transaction commits, everything is flushed and visible."""
        for xid in sorted(self.running):
            self._commit(xid)
        self.invisible.clear()
        self.locks.clear()
        self.flushed = len(self.log)
        self.settled = True

    def crash(self) -> None:
        """Lose what was not flushed, every connection and every snapshot; its transaction ids are given out again."""
        self.crashes += 1
        for xid in [*self.running, *(x for x, _ in self.log[self.flushed :])]:
            self._undo(xid)
            self.committed.discard(xid)
        del self.log[self.flushed :], self.states[self.flushed + 1 :]
        self.running, self.invisible, self.locks = {}, set(), {}
        self.next_xid = max((x for x, _ in self.log), default=0) + 1
        if self.confirmed is not None:
            self.confirmed = self.saved
        for session in list(self.sessions):
            session.end()
        self.exported.clear()

    def rewrite(self, table: str) -> None:
        """Rewrite a table, as VACUUM FULL does: old snapshots then read wrong rows without a word."""
        if any(name == table for name, _ in self.locks):
            return
        xid = self._alone([])
        self.filenodes[table].append((xid, self.filenode(table) + 1))
        rows = list(self._latest(table).values())
        # What VACUUM FULL would keep, a rewriting ALTER does not: rows are born again.
        self.versions[table] = [Version(place, v.key, v.value, xid) for place, v in enumerate(rows)]

    def truncate(self, table: str) -> None:
        """Empty a table, as TRUNCATE does: old snapshots then see nothing in it."""
        if any(name == table for name, _ in self.locks):
            return
        xid = self._alone([self._sent(Change(table, "t", 0, None, None, None))])
        self.filenodes[table].append((xid, self.filenode(table) + 1))
        self.versions[table] = []

    def _sent(self, change: Change) -> Change:
        return change._replace(published=change.table not in self.silent)

    def _alone(self, changes: list[Change]) -> int:
        """Commit and flush a transaction that begins and ends at once."""
        xid, self.next_xid = self.next_xid, self.next_xid + 1
        self._log(xid, changes)
        self.committed.add(xid)
        self.flushed = len(self.log)
        return xid

    def _change(self, xid: int, table: str, key: int) -> None:
        r = self.rng
        if self.locks.get((table, key), xid) != xid:
            return
        shape = self.shape[table]
        mine = self._latest(table, xid)
        row, changes = mine.get(key), self.running[xid]
        self.locks[table, key] = xid
        if row is None:
            # Few values where there is no key, so that there are equal rows.
            value = (f"a{r.randrange(3)}", "b") if not shape.keyed else (f"a{r.randrange(99)}", f"b{r.randrange(99)}")
            changes.append(self._sent(Change(table, "i", key, None, value, None)))
            self._put(table, key, value, xid)
        elif shape.identity is Identity.NOTHING:
            return  # the source refuses updates and deletes of a table whose publication has them; so ours has none
        elif r.random() < 0.3:
            row.dead = xid
            before = row.value if shape.identity is Identity.FULL else None
            changes.append(self._sent(Change(table, "d", key, None, None, before)))
        else:
            free = self._free(xid, table) if shape.keyed and r.random() < 0.2 else []
            self._update(xid, shape, row, r.choice(free) if free else key)

    def _swap(self, xid: int, table: str) -> bool:
        """Let two rows exchange their keys, by way of one that is free, as a constraint that is checked at once wants
        it; return whether there were such rows."""
        shape = self.shape[table]
        if not shape.keyed:
            return False
        free = self._free(xid, table)
        mine = [key for key in sorted(self._latest(table, xid)) if self.locks.get((table, key), xid) == xid]
        if not free or len(mine) < 2:
            return False
        spare, (one, other) = self.rng.choice(free), self.rng.sample(mine, 2)
        for old, new in ((one, spare), (other, one), (spare, other)):
            self._update(xid, shape, self._latest(table, xid)[old], new)
        return True

    def _free(self, xid: int, table: str) -> list[int]:
        """The keys that a transaction may give to a row."""
        used = self._latest(table, xid)
        return [key for key in range(KEYS) if key not in used and self.locks.get((table, key), xid) == xid]

    def _update(self, xid: int, shape: Shape, row: Version, new: int) -> None:
        r, table, full = self.rng, shape.name, shape.identity is Identity.FULL
        self.locks[table, row.key] = self.locks[table, new] = xid
        keeps = r.random() < 0.5
        value = (f"a{r.randrange(99 if shape.keyed else 3)}", row.value[1] if keeps else f"b{r.randrange(99)}")
        row.dead = xid
        self._put(table, new, value, xid)
        sent = (value[0], None if keeps and not full else value[1])
        old_key = row.key if new != row.key else None
        self.running[xid].append(self._sent(Change(table, "u", new, old_key, sent, row.value if full else None)))

    def _latest(self, table: str, xid: int | None = None) -> dict[int, Version]:
        """The rows that a writer may see: committed, or its own."""
        counts = {*self.committed, xid}
        return {v.key: v for v in self.versions[table] if v.born in counts and (v.dead is None or v.dead not in counts)}

    def _put(self, table: str, key: int, value: Value, xid: int) -> None:
        used = {v.place for v in self.versions[table]}
        place = self.rng.choice([p for p in range(max(used, default=0) + 3) if p not in used])
        self.versions[table].append(Version(place, key, value, xid))

    def _commit(self, xid: int) -> None:
        self._log(xid, self.running.pop(xid))
        self.committed.add(xid)  # in the log now; visible to others, and its locks free, only later

    def _log(self, xid: int, changes: list[Change]) -> None:
        state = self.states[-1]
        touched = {change.table for change in changes}
        state = {table: dict(rows) if table in touched else rows for table, rows in state.items()}
        for change in changes:
            rows = state[change.table]
            if change.op == "t":
                rows.clear()
            elif change.op == "d":
                del rows[change.key]
            else:
                assert change.value is not None
                was = rows.pop(change.key if change.old_key is None else change.old_key, None)
                small, large = change.value
                if large is None:
                    assert was is not None
                    large = was[1]
                rows[change.key] = (small, large)
        self.log.append((xid, changes))
        self.states.append(state)

    def _end(self, xid: int) -> None:
        self.invisible.discard(xid)
        self.locks = {k: x for k, x in self.locks.items() if x != xid}

    def _undo(self, xid: int) -> None:
        for table in self.tables:
            self.versions[table] = [v for v in self.versions[table] if v.born != xid]
            for version in self.versions[table]:
                if version.dead == xid:
                    version.dead = None

    # ------------------------------------------------------------------ what Penstock asks of it

    def emit(self) -> int:
        """Write a logical message in a transaction of its own, flushed, and return its position."""
        self._alone([])
        return self.flushed

    def snapshot(self) -> Visibility:
        """Return what a transaction that begins now sees."""
        return self._seen(self.invisible | set(self.running))

    def create_slot(self) -> Visibility:
        """Make the slot and return its snapshot: exactly the commits before its position, visible to others or not."""
        self.confirmed = self.saved = self.emit()
        self.slots += 1
        return self._seen(set(self.running))

    def _seen(self, busy: set[int]) -> Visibility:
        return Visibility(min(busy, default=self.next_xid), self.next_xid, tuple(sorted(busy)))

    def drop_slot(self) -> None:
        """Drop the slot, if there is one; who reads it is cut off."""
        if self.streaming is not None:
            self.streaming.end()
        self.confirmed = None

    def confirm(self, position: int) -> None:
        """Let the slot forget what is before a position."""
        assert self.confirmed is not None
        self.judge(position)
        self.confirmed = max(self.confirmed, position)
        if self.rng.random() < 0.5:
            self.saved = self.confirmed

    def export(self, seen: Visibility) -> str:
        """Make a snapshot importable until the next crash, or until `forget`."""
        self.exports += 1
        name = f"snapshot-{self.exports}"
        self.exported[name] = seen
        return name

    def forget(self, name: str) -> None:
        """End the transaction that holds a snapshot."""
        self.exported.pop(name, None)

    def read(self, table: str, seen: Visibility, low: int, high: int) -> list[tuple[int, Value]]:
        """Return the rows at places `[low, high)` that a snapshot sees; a key may come twice only if it was moved."""

        def visible(xid: int | None) -> bool:
            return xid is not None and xid in self.committed and seen.sees(xid)

        return [
            (v.key, v.value)
            for v in self.versions[table]
            if low <= v.place < high and visible(v.born) and not visible(v.dead)
        ]

    def filenode(self, table: str, seen: Visibility | None = None) -> int:
        """Return which file a table is in: now, or as the catalogue in a snapshot says."""
        return max(node for xid, node in self.filenodes[table] if seen is None or seen.sees(xid))

    def highest_place(self, table: str) -> int:
        """Return the last place in use: how large the table is."""
        return max((v.place for v in self.versions[table]), default=0)
