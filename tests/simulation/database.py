"""A simulated source database: MVCC, transaction ids, a write-ahead log with asynchronous commits, exported snapshots.

It has just what the protocol rests on, and the cruelties of the real one: a commit is in the log, and decoded, before it
is visible to others; a crash takes back commits that were not flushed, though a snapshot may have seen them, and gives
their transaction ids out again; a row that is updated moves, so that reading in two snapshots may see it twice or never.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.frontier import Visibility

KEYS = 6
"""Few keys, so that transactions meet on the same rows."""

Value = tuple[str, str]  # a small column, and a large one that an update may leave unsent


class Change(NamedTuple):
    """One row change as the write-ahead log has it."""

    table: str
    op: str  # i u d
    key: int
    old_key: int | None  # of an update that changed it
    value: tuple[str, str | None] | None  # None in the second place: unchanged, not sent
    published: bool  # whether its table was in the publication at that moment


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
    tables: tuple[str, ...]
    next_xid: int = 1
    running: dict[int, list[Change]] = field(default_factory=dict)
    invisible: set[int] = field(default_factory=set)  # holds changes, not visible to new snapshots yet
    committed: set[int] = field(default_factory=set)
    log: list[tuple[int, list[Change]]] = field(default_factory=list)  # commits in order; a position is a length of it
    flushed: int = 0
    confirmed: int | None = None  # of the slot; None: there is no slot
    exported: dict[str, Visibility] = field(default_factory=dict)
    incarnation: int = 0  # goes up with every crash: connections of earlier ones are gone

    def __post_init__(self) -> None:
        self.versions: dict[str, list[Version]] = {t: [] for t in self.tables}
        self.locks: dict[tuple[str, int], int] = {}
        self.base: dict[str, dict[int, Value]] = {t: {} for t in self.tables}
        self.filenode: dict[str, int] = {t: 1 for t in self.tables}
        self.exports = 0

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
        self._change(xid, r.choice(self.tables), r.randrange(KEYS))

    def settle(self) -> None:
        """End the application: every transaction commits, everything is flushed and visible."""
        for xid in sorted(self.running):
            self._commit(xid)
        self.invisible.clear()
        self.locks.clear()
        self.flushed = len(self.log)

    def crash(self) -> None:
        """Lose what was not flushed, every connection and every snapshot; its transaction ids are given out again."""
        for xid in [*self.running, *(x for x, _ in self.log[self.flushed :])]:
            self._undo(xid)
            self.committed.discard(xid)
        del self.log[self.flushed :]
        self.running, self.invisible, self.locks, self.exported = {}, set(), {}, {}
        self.next_xid = max((x for x, _ in self.log), default=0) + 1
        self.incarnation += 1

    def rewrite(self, table: str) -> None:
        """Rewrite a table, as VACUUM FULL does: old snapshots then read wrong rows without a word."""
        if any(change.table == table for changes in self.running.values() for change in changes):
            return
        self.filenode[table] += 1
        self.versions[table] = [
            Version(place, v.key, v.value, v.born) for place, v in enumerate(self._latest(table).values())
        ]
        for version in self.versions[table]:
            version.born = self.next_xid  # what VACUUM FULL would keep, a rewriting ALTER does not
        self.committed.add(self.next_xid)
        self.next_xid += 1

    def _change(self, xid: int, table: str, key: int) -> None:
        r = self.rng
        if self.locks.get((table, key), xid) != xid:
            return
        self.locks[table, key] = xid
        mine = self._latest(table, xid)
        row, changes = mine.get(key), self.running[xid]
        if row is None:
            value = (f"a{r.randrange(99)}", f"b{r.randrange(99)}")
            changes.append(Change(table, "i", key, None, value, True))
            self._put(table, key, value, xid)
        elif r.random() < 0.3:
            row.dead = xid
            changes.append(Change(table, "d", key, None, None, True))
        else:
            new = key
            if r.random() < 0.2:
                free = [k for k in range(KEYS) if k not in mine and self.locks.get((table, k), xid) == xid]
                if free:
                    new = r.choice(free)
                    self.locks[table, new] = xid
            keeps = r.random() < 0.5
            value = (f"a{r.randrange(99)}", row.value[1] if keeps else f"b{r.randrange(99)}")
            row.dead = xid
            self._put(table, new, value, xid)
            sent = (value[0], None if keeps else value[1])
            changes.append(Change(table, "u", new, key if new != key else None, sent, True))

    def _latest(self, table: str, xid: int | None = None) -> dict[int, Version]:
        """The rows that a writer may see: committed, or its own."""

        def counts(x: int | None) -> bool:
            return x is not None and (x in self.committed or x == xid)

        return {v.key: v for v in self.versions[table] if counts(v.born) and not counts(v.dead)}

    def _put(self, table: str, key: int, value: Value, xid: int) -> None:
        used = {v.place for v in self.versions[table]}
        place = self.rng.choice([p for p in range(max(used, default=0) + 3) if p not in used])
        self.versions[table].append(Version(place, key, value, xid))

    def _commit(self, xid: int) -> None:
        self.log.append((xid, self.running.pop(xid)))
        self.committed.add(xid)  # in the log now; visible to others, and its locks free, only later

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
        self.log.append((self.next_xid, []))
        self.committed.add(self.next_xid)
        self.next_xid += 1
        self.flushed = len(self.log)
        return self.flushed

    def snapshot(self) -> Visibility:
        """Return what a transaction that begins now sees."""
        busy = tuple(sorted(self.invisible | set(self.running)))
        return Visibility(busy[0] if busy else self.next_xid, self.next_xid, busy)

    def create_slot(self) -> Visibility:
        """Make the slot and return its snapshot: exactly the commits before its position, visible to others or not."""
        self.confirmed = self.emit()
        busy = tuple(sorted(self.running))
        return Visibility(busy[0] if busy else self.next_xid, self.next_xid, busy)

    def export(self, seen: Visibility) -> str:
        """Make a snapshot importable until the next crash, or until `forget`."""
        self.exports += 1
        name = f"snapshot-{self.exports}"
        self.exported[name] = seen
        return name

    def forget(self, name: str) -> None:
        """End the transaction that holds a snapshot."""
        self.exported.pop(name, None)

    def read(self, table: str, seen: Visibility, low: int, high: int) -> dict[int, Value]:
        """Return the rows at places `[low, high)` that a snapshot sees."""

        def visible(xid: int | None) -> bool:
            return xid is not None and xid in self.committed and seen.sees(xid)

        return {
            v.key: v.value
            for v in self.versions[table]
            if low <= v.place < high and visible(v.born) and not visible(v.dead)
        }

    def highest_place(self, table: str) -> int:
        """Return the last place in use: how large the table is."""
        return max((v.place for v in self.versions[table]), default=0)

    def state_at(self, position: int) -> dict[str, dict[int, Value]]:
        """Return every table as it was after the commit at `position`."""
        state = {t: dict(rows) for t, rows in self.base.items()}
        for _, changes in self.log[:position]:
            for change in changes:
                rows = state[change.table]
                if change.op == "d":
                    del rows[change.key]
                    continue
                assert change.value is not None
                was = rows.pop(change.old_key if change.old_key is not None else change.key, None)
                small, large = change.value
                if large is None:
                    assert was is not None
                    large = was[1]
                rows[change.key] = (small, large)
        return state
