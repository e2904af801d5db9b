"""A simulated target: a database with transactions, in which rows and progress change together or not at all.

What a transaction touches, it locks until it ends; who would have to wait for it, because it stalled in the midst of
it, is told that the target can't be reached now. The database may be restored to an earlier state, progress with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from apply.dead_letters import Bundle, Letter, Refusal, Tray, Waiting, keyed_batch, net_of
from apply.target import Batch, Change, Load, Progress, Redefinition, TableMove, TableProgress, TableRefused, Taken
from codec.net import Net
from codec.rows import decode
from schemas.errors import (
    ConstraintViolated,
    GapDetected,
    IntegrityError,
    LogRewound,
    ReplicationError,
    RowError,
    TargetUnavailable,
    WriteConflict,
)
from schemas.frontier import HEAL
from schemas.record import Op
from schemas.states import TableState
from schemas.table import Objects, Table, TableId
from tests.simulation.faults import Faults, Process, Session, T
from transport.views import Registered

Row = tuple[str | None, ...]
Refuses = Callable[[Row], bool]
Place = int | TableId  # a group or a table: what is locked, and changes at once


@dataclass
class Rows:
    """The rows of one table: by key, or counted where there is none."""

    keyed: dict[Row, Row] = field(default_factory=dict)
    counted: Counter[Row] = field(default_factory=Counter)

    def copy(self) -> Rows:
        return Rows(dict(self.keyed), Counter(self.counted))


@dataclass
class Held:
    """What is stored of one table."""

    progress: TableProgress
    rows: Rows | None = None
    chunks: frozenset[tuple[int, int]] = frozenset()  # generation and number
    letters: tuple[Letter, ...] = ()
    numbered: int = 0  # of the last letter

    def copy(self) -> Held:
        return replace(self, rows=self.rows.copy() if self.rows is not None else None)

    def store(self, tray: Tray) -> None:
        """Keep what a tray holds."""
        clear, letters = tray.take()
        first = self.numbered + 1
        self.letters = () if clear else self.letters
        self.letters += tuple(replace(letter, number=number) for number, letter in enumerate(letters, first))
        self.numbered += len(letters)


@dataclass
class Stored:
    """All that a target database holds."""

    log: str = ""
    groups: dict[int, Progress] = field(default_factory=dict)
    tables: dict[TableId, Held] = field(default_factory=dict)

    def copy(self) -> Stored:
        # What is in it is never changed, only replaced.
        return Stored(self.log, dict(self.groups), dict(self.tables))


class TargetDatabase:
    """The server. `committed` is called after every commit."""

    def __init__(self, name: str, committed: Callable[[TargetDatabase], None]) -> None:
        self.name, self.committed = name, committed
        self.stored = Stored()
        self.locks: dict[Place, SimulatedTarget] = {}
        self.sessions: list[Session] = []
        self.backups: list[Stored] = []
        self.away = False
        self.refuses: Refuses = lambda row: False  # as a check constraint does

    def restore(self, backup: Stored) -> None:
        """Go back to an earlier state; every connection is lost."""
        self.stored = backup.copy()
        self.cut()

    def cut(self) -> None:
        """Lose every connection."""
        for session in list(self.sessions):
            session.end()


class Transaction:
    """Groups and tables as one transaction has them."""

    def __init__(self, target: SimulatedTarget, session: Session) -> None:
        self._target, self._database, self._session = target, target.database, session
        self.groups: dict[int, Progress] = {}
        self.tables: dict[TableId, Held] = {}

    def group(self, group: int) -> Progress:
        self._lock(group)
        return self.groups.setdefault(group, self._database.stored.groups[group])

    def table(self, table: TableId) -> Held:
        self._lock(table)
        if table not in self.tables:
            self.tables[table] = self._database.stored.tables[table].copy()
        return self.tables[table]

    def _lock(self, place: Place) -> None:
        if not self._session.alive:
            raise TargetUnavailable("the connection was lost in the midst of a transaction")
        holder = self._database.locks.setdefault(place, self._target)
        if holder is not self._target:
            raise TargetUnavailable(f"{holder.process.name} holds a lock on {place}")


class SimulatedTarget:
    """One worker's connection to a target."""

    def __init__(self, database: TargetDatabase, process: Process, faults: Faults) -> None:
        self.database, self.process, self._faults = database, process, faults
        self._session: Session | None = None

    # ------------------------------------------------------------------------------------------------ calls

    def _call(self, what: str, effect: Callable[[], T]) -> T:
        def checked() -> T:
            if self._session is None or not self._session.alive or self.database.away:
                raise TargetUnavailable(f"the connection was lost: {what}")
            return effect()

        try:
            return self._faults.call(self.process, f"{self.database.name}: {what}", checked, TargetUnavailable)
        except TargetUnavailable:
            self.close()  # whatever went wrong, this connection is not used again
            raise

    @contextmanager
    def _transaction(self, what: str) -> Iterator[Transaction]:
        """Begin, and at the end commit; after any exception nothing of it remains."""
        if self._session is None or not self._session.alive:
            raise TargetUnavailable("the connection was lost")
        session = self._session
        transaction = Transaction(self, session)
        try:
            yield transaction
            self._call(what, lambda: self._commit(transaction))
        finally:
            # The session may have ended in the meantime, and with it the transaction: locks are not kept for it.
            if session is self._session or self._session is None:
                self._unlock()

    def _commit(self, transaction: Transaction) -> None:
        self.database.stored.groups.update(transaction.groups)
        self.database.stored.tables.update(transaction.tables)
        self._unlock()
        self.database.committed(self.database)

    def _unlock(self) -> None:
        self.database.locks = {place: who for place, who in self.database.locks.items() if who is not self}

    def _end(self, session: Session) -> None:
        self.database.sessions.remove(session)
        self._unlock()

    # ------------------------------------------------------------------------------------------------ reading

    def open(self, log: str) -> None:
        session = Session(self.process, lambda: self._end(session))
        self.database.sessions.append(session)
        self._session = session

        def begin() -> None:
            stored = self.database.stored
            if stored.log not in {"", log}:
                raise LogRewound("the progress was made in another log")
            stored.log = log

        self._call("open", begin)

    def register(
        self,
        groups: Mapping[int, Progress],
        tables: Sequence[TableProgress],
        definitions: Sequence[Table],
        objects: Objects,
        called: Callable[[TableId, int], TableId],
    ) -> None:
        def add() -> None:
            stored = self.database.stored
            stored.groups = {**groups, **stored.groups}
            stored.tables = {**{table.table: Held(table) for table in tables}, **stored.tables}

        self._call("register", add)

    def groups(self) -> dict[int, Progress]:
        return self._call("read groups", lambda: dict(self.database.stored.groups))

    def tables(self) -> dict[TableId, TableProgress]:
        return self._call(
            "read tables", lambda: {table: held.progress for table, held in self.database.stored.tables.items()}
        )

    def chunks(self) -> dict[tuple[TableId, int], set[int]]:
        def read() -> dict[tuple[TableId, int], set[int]]:
            found: dict[tuple[TableId, int], set[int]] = {}
            for table, held in self.database.stored.tables.items():
                for generation, number in held.chunks:
                    found.setdefault((table, generation), set()).add(number)
            return found

        return self._call("read chunks", read)

    def make_durable(self) -> None:
        self._call("make durable", lambda: None)

    # ------------------------------------------------------------------------------------------------ moving

    def prepare(self, tables: Sequence[tuple[Registered, TableMove]]) -> list[TableProgress]:
        done: list[TableProgress] = []
        with self._transaction(f"prepare {', '.join(str(version.table.id) for version, _ in tables)}") as transaction:
            for version, move in tables:
                held = self._moved(transaction, move)
                if held.rows is not None:
                    raise TableRefused(version.table.id, ConstraintViolated("it is there already"))
                held.rows = Rows()
                held.progress = replace(held.progress, made=True)
                done.append(held.progress)
        return done

    def accepted(self, version: Registered) -> Registered:
        """All of it: nothing is altered in this world."""
        return version

    def get_ready(self, version: Registered) -> None:
        """Nothing: tables of this world rest on nothing."""

    def restart(self, piece: Redefinition, move: TableMove) -> None:
        with self._transaction(f"restart {move.progress.table}") as transaction:
            held = self._moved(transaction, move)
            held.rows, held.chunks, held.letters = Rows(), frozenset(), ()

    def load(self, loads: Sequence[Load]) -> list[int]:
        loaded: list[int] = []
        with self._transaction(
            f"load {', '.join(f'{load.table.table}/{load.chunk}' for load in loads)}"
        ) as transaction:
            for load in loads:
                held = transaction.table(load.table.table)
                now, number = held.progress, (load.table.generation, load.chunk)
                if (now.state, now.generation) != (TableState.LOADING, load.table.generation):
                    raise WriteConflict(f"{load.table.table} is not loading generation {load.table.generation}")
                if number in held.chunks:
                    loaded.append(-1)
                    continue
                assert held.rows is not None
                done = sum(self._load(load.version, held, batch, load.tray) for batch in load.batches())
                if len(loads) > 1 and load.tray.refused:
                    raise TableRefused(load.table.table, ConstraintViolated("a row of several chunks is refused"))
                held.store(load.tray)
                if load.chunk != HEAL and done != load.rows:
                    raise GapDetected(f"chunk {load.chunk} of {load.table.table} has {done} rows, not {load.rows}")
                held.chunks |= {number}
                loaded.append(done)
        return loaded

    def _load(self, version: Registered, held: Held, batch: bytes, tray: Tray) -> int:
        changes = keyed_batch(version.layout, batch)
        gone = set(tray.forget(changes))
        held.letters = tuple(letter for letter in held.letters if letter.key not in gone)

        def attempt(some: Sequence[Bundle]) -> Refusal | None:
            values = [change for bundle in some for _, _, change in bundle]
            if any(self._refuses(version, value) for value in values):
                return Refusal(ConstraintViolated("it is refused"))
            assert held.rows is not None
            for value in values:
                _load(version, held.rows, value)
            return None

        tray.sift(version.layout, changes, attempt, refused_together=False)
        return len(changes)

    def _refuses(self, version: Registered, value: bytes) -> bool:
        row = decode(version.layout, value).after
        return row is not None and self.database.refuses(row)

    def finish(self, version: Registered, table: TableProgress) -> bool:
        return self._call(f"finish {table.table}", lambda: True)

    def tie(self, version: Registered, table: TableProgress, *, last: bool) -> bool:
        return self._call(f"tie {table.table}", lambda: True)

    def built(self) -> list[TableId]:
        return []

    def net(self, version: Registered, expected: int) -> Net:
        return Net(version.layout, binary=False)

    def write(self, batch: Batch) -> None:
        moves = [f"{move.group}→{move.progress.offset}" for move in batch.groups]
        moves += [f"{move.progress.table}→{move.progress.state}" for move in batch.tables]
        with self._transaction(f"write {', '.join(moves)}") as transaction:
            for group in batch.groups:
                self._compare(_at(transaction.group(group.group)) == _at(group.after), f"group {group.group}")
                transaction.groups[group.group] = group.progress
            for table in batch.tables:
                self._moved(transaction, table)
            for piece in batch.pieces:
                for change in () if isinstance(piece, Redefinition) else piece:
                    held = transaction.table(change.version.table.id)
                    assert held.rows is not None
                    if change.tray is None or not change.tray.sifts:
                        write(change, held.rows, self.database.refuses)
                    else:
                        self._sift(change, change.tray, held)
                    if change.tray is not None:
                        held.store(change.tray)

    def _sift(self, change: Change, tray: Tray, held: Held) -> None:
        if change.net.truncated:
            held.rows = Rows()

        def attempt(some: Sequence[Bundle]) -> Refusal | None:
            net = net_of(change.version.layout, (one for bundle in some for one in bundle), binary=False)
            assert held.rows is not None
            before = held.rows.copy()
            try:
                write(Change(change.version, net, change.exact), held.rows, self.database.refuses)
            except TableRefused as refused:
                held.rows = before
                if not isinstance(refused.cause, RowError):
                    raise
                return Refusal(refused.cause)
            return None

        tray.sift(change.version.layout, change.sifted, attempt, refused_together=False)

    # ------------------------------------------------------------------------------------------ dead letters

    def waiting(self) -> dict[TableId, Waiting]:
        def read() -> dict[TableId, Waiting]:
            found: dict[TableId, Waiting] = {}
            for table, held in self.database.stored.tables.items():
                for letter in held.letters:
                    found.setdefault(table, Waiting()).add(letter)
            return found

        return self._call("read what waits", read)

    def letter_counts(self) -> dict[TableId, int]:
        return {table: found.letters for table, found in self.waiting().items()}

    def letters(self) -> list[Letter]:
        return [letter for held in self.database.stored.tables.values() for letter in held.letters]

    @contextmanager
    def taken(self, table: TableId) -> Iterator[Taken]:
        with self._transaction(f"take the letters of {table}") as transaction:
            group = transaction.table(table).progress.group
            progress = transaction.group(group)
            transaction.groups[group] = progress._replace(roster=progress.roster + 1)
            held = transaction.table(table)
            held.progress = replace(held.progress, roster=held.progress.roster + 1)
            yield TakenLetters(held, self.database.refuses)

    def _moved(self, transaction: Transaction, move: TableMove) -> Held:
        held = transaction.table(move.progress.table)
        self._compare(_standing(held.progress) == _standing(move.after), str(move.progress.table))
        held.progress = replace(move.progress, made=held.progress.made)
        return held

    @staticmethod
    def _compare(equal: bool, what: str) -> None:
        """The comparison before the set; a deliberate mistake leaves it out."""
        if not equal:
            raise WriteConflict(f"{what} is not where it was")

    def resume(self, table: TableId) -> bool:
        return False

    def close(self) -> None:
        if self._session is not None:
            self._session.end()


@dataclass
class TakenLetters:
    """The letters of one table in the midst of a transaction."""

    held: Held
    refuses: Refuses

    @property
    def letters(self) -> list[Letter]:
        return list(self.held.letters)

    def attempt(self, changes: Sequence[Change]) -> ReplicationError | None:
        assert self.held.rows is not None
        rows = self.held.rows.copy()
        try:
            for change in changes:
                write(change, rows, self.refuses)
        except TableRefused as refused:
            return refused.cause
        self.held.rows = rows
        return None

    def remove(self, letters: Sequence[Letter]) -> None:
        gone = {letter.number for letter in letters}
        self.held.letters = tuple(letter for letter in self.held.letters if letter.number not in gone)

    def change(self, letter: Letter) -> None:
        self.held.letters = tuple(letter if old.number == letter.number else old for old in self.held.letters)


def _at(progress: Progress) -> tuple[object, ...]:
    """Return what PostgreSQL's target compares of a group."""
    return progress.offset, progress.epoch, progress.roster


def _standing(progress: TableProgress) -> tuple[object, ...]:
    """Return what PostgreSQL's target compares of a table."""
    return (
        progress.state,
        progress.generation,
        progress.progress.offset,
        progress.progress.epoch,
        progress.command,
        progress.roster,
    )


def _load(version: Registered, rows: Rows, value: bytes) -> None:
    """Carry out one row of a chunk. It may be there already, if it was read in two snapshots."""
    key = version.table.key
    change = decode(version.layout, value)
    row = change.before if change.after is None else change.after
    assert row is not None
    place = tuple(row[i] for i in key)
    if not key:
        rows.counted[row] += 1
    elif change.op == Op.DELETE:
        rows.keyed.pop(place, None)
    else:
        rows.keyed[place] = row


def write(change: Change, rows: Rows, refuses: Refuses) -> None:
    """Carry out net changes, as exactly as the source's own: what must be there and is not refuses the table."""
    table, net, exact = change.version.table, change.net, change.exact
    if net.truncated:
        rows.keyed.clear()
        rows.counted.clear()
    if net.ordered:
        for op, before, after in net.changes():
            if op in {Op.UPDATE, Op.DELETE}:
                assert before is not None
                if not rows.counted[before]:
                    raise TableRefused(table.id, IntegrityError(f"there is no row {before}"))
                rows.counted -= Counter([before])
            if op in {Op.INSERT, Op.READ, Op.UPDATE}:
                assert after is not None
                _require_accepted(table.id, [after], refuses)
                rows.counted[after] += 1
        return
    width = len(table.columns)
    written: dict[Row, Row] = {}
    for blank, _, data in net.partials():
        for row in _texts(data):
            origin = row[width:]
            was = rows.keyed.get(origin)
            if was is None:
                raise TableRefused(table.id, IntegrityError(f"there is no row {origin} to take values from"))
            whole = tuple(was[i] if i in blank else row[i] for i in range(width))
            written[tuple(whole[i] for i in table.key)] = whole
    for row in _texts(net.rows()[1]):
        place = tuple(row[i] for i in table.key)
        if exact and net.insert_only and place in rows.keyed:
            raise TableRefused(table.id, IntegrityError(f"row {place} is there already"))
        written[place] = row
    _require_accepted(table.id, written.values(), refuses)
    for place in _texts(net.deletes()[1]):
        rows.keyed.pop(place, None)
    rows.keyed.update(written)


def _require_accepted(table: TableId, rows: Iterable[Row], refuses: Refuses) -> None:
    if any(map(refuses, rows)):
        raise TableRefused(table, ConstraintViolated("a row is refused"))


def _texts(data: bytes) -> Iterator[Row]:
    """Return the rows of a block in COPY's text form; the values here have nothing that is escaped."""
    for line in data.decode().splitlines():
        yield tuple(None if text == "\\N" else text for text in line.split("\t"))
