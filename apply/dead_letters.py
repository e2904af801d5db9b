"""Dead letters: changes of rows that a target refused, whole and in order, and whatever waits behind them.

A letter is one change as the log has it. It is stored in the target in the same transaction as the progress that passes
it, so it is there exactly once, like a row. As long as a key has a letter nothing is applied under that key: what comes
later becomes a letter too, behind the others. A change that gives a row another key touches both, so both are blocked,
and what was set aside by one blocks the other. So the target is always the source but for the blocked keys, of which it
has what it had before the first of their letters. What is emptied or dropped at the source has no letters any more:
they are about rows that are gone.

A table without key has whole rows for keys: what changes or deletes a row that waits, waits too.

Which rows of many are refused is found by `sift`: the changes are divided into bundles that have no key in common, and
so do not depend on each other, and these are tried in ever smaller parts. What is accepted on the way stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from apply.target import TableRefused
from codec.frames import pack
from codec.layout import Layout
from codec.net import Net, keyed
from codec.rows import Head, decode_batch, decode_key, encode, head
from schemas.errors import GapDetected, OperatorError, RowError
from schemas.frontier import lsn_text
from schemas.record import key_schema_id, schema_id_of
from schemas.table import Table, TableId

Visibility = tuple[int, int, frozenset[int]]

MOST_REFUSED = 500
"""Rows of one batch: of more than that it is not the rows that are wrong."""

MOST_LETTERS = 10_000
"""Of one table: their keys are kept in mind, and whoever replays them reads them all."""

PARTS = 16
"""Into so many parts is divided what was refused: few, and much is written again; many, and each is a round trip."""

MEND = "mend or drop what refuses it on the target"
SET_ASIDE = "on-row-error: set-aside"
REPLAY = "mend the cause, then `penstock dead-letters replay`"


@dataclass(frozen=True, slots=True)
class Letter:
    """One change that was set aside."""

    table: TableId
    key: bytes
    origin: bytes | None  # the key before the change, if it was another
    change: bytes  # the record as the log has it
    cause: str = ""  # empty: it waits behind another
    remedy: str = ""
    number: int = 0  # their order; given by the target
    at: int = 0  # microseconds since 1970, when it was set aside; given by the target

    @property
    def schema_id(self) -> int:
        return schema_id_of(self.change)

    @property
    def head(self) -> Head:
        return head(self.change)

    @property
    def keyed(self) -> tuple[bytes, bytes | None, Letter]:
        """What it touches, and itself."""
        return self.key, self.origin, self


@dataclass(slots=True)
class Waiting:
    """What a worker keeps in mind of the letters of one table."""

    keys: set[bytes] = field(default_factory=set)
    letters: int = 0
    schema_ids: set[int] = field(default_factory=set)

    def copy(self) -> Waiting:
        return Waiting(set(self.keys), self.letters, set(self.schema_ids))

    def add(self, letter: Letter) -> None:
        self.keys.add(letter.key)
        if letter.origin is not None:
            self.keys.add(letter.origin)
        self.letters += 1
        self.schema_ids.add(letter.schema_id)


Keyed = tuple[bytes, bytes | None, bytes]
"""A change and what it touches; see `codec.net.keyed`. There are many, so it is no object of its own."""

Bundle = Sequence[Keyed]

V = TypeVar("V")


def bundles(changes: Sequence[tuple[bytes, bytes | None, V]]) -> list[list[tuple[bytes, bytes | None, V]]]:
    """Divide changes into those that hang together by their keys, each in order, and in the order of their firsts."""
    leads = _leads(changes)
    found: dict[bytes, list[tuple[bytes, bytes | None, V]]] = {}
    for change in changes:
        found.setdefault(_lead(leads, change[0]) if leads else change[0], []).append(change)
    return list(found.values())


def _leads(changes: Sequence[tuple[bytes, bytes | None, V]]) -> dict[bytes, bytes]:
    """Return, for each key that hangs together with others, one that leads to the one that stands for all of them."""
    leads: dict[bytes, bytes] = {}
    for key, origin, _ in changes:
        if origin is not None:
            leads[_lead(leads, key)] = _lead(leads, origin)
    return leads


def _lead(leads: dict[bytes, bytes], key: bytes) -> bytes:
    lead = key
    while (further := leads.get(lead, lead)) != lead:
        lead = further
    if lead != key:
        leads[key] = lead  # so that the way is short the next time
    return lead


class Refusal(NamedTuple):
    """Why the target did not take some bundles; `collides`: another row was in the way, perhaps one of theirs."""

    error: RowError
    collides: bool = False


Attempt = Callable[[Sequence[Bundle]], Refusal | None]
"""Write bundles so that they stay, or leave no trace of them and say why."""


def sift(found: Sequence[Bundle], attempt: Attempt, *, refused_together: bool) -> Iterator[tuple[Bundle, RowError]]:
    """Write all bundles but those that the target refuses, which are yielded.

    `refused_together` says that all of them at once were refused already. Rows that have exchanged unique values are
    refused alone, but not together: so what collided is tried again, without what was refused for other reasons, as
    long as that helps.
    """
    collided: list[tuple[Bundle, RowError]] = []
    for bundle, refusal in _refused(found, attempt, refused_together=refused_together):
        if not refusal.collides:
            yield bundle, refusal.error
            continue
        collided.append((bundle, refusal.error))
        if len(collided) > MOST_REFUSED:
            yield from collided
    before = -1
    while len(collided) not in (before, 0):
        before = len(collided)
        if attempt([bundle for bundle, _ in collided]) is None:
            return
        if before > 1:
            collided = [(bundle, error) for bundle, error in collided if attempt([bundle]) is not None]
    yield from collided


def _refused(found: Sequence[Bundle], attempt: Attempt, *, refused_together: bool) -> Iterator[tuple[Bundle, Refusal]]:
    if not refused_together or len(found) == 1:
        refusal = attempt(found)
        if refusal is None:
            return
        if len(found) == 1:
            yield found[0], refusal
            return
    step = -(-len(found) // PARTS)
    for at in range(0, len(found), step):
        yield from _refused(found[at : at + step], attempt, refused_together=False)


class Refused(NamedTuple):
    """A row that was set aside, for people."""

    row: str
    cause: str
    position: int


class Tray:
    """What becomes a dead letter of one table in one transaction of the target.

    With `keeps` a refused row is set aside; otherwise it stops the table, which then says which row it was. With
    `sifts` the changes are kept in mind one by one, as is done when some of them were refused together.
    """

    def __init__(self, table: TableId, waiting: Waiting, *, keeps: bool, sifts: bool, where: str = "") -> None:
        self.table, self.keeps, self.sifts, self._where = table, keeps, sifts, where
        self.waiting = waiting.copy()  # as it is once the transaction is committed
        self.found = frozenset(waiting.keys)  # as it was before
        self.refused: list[Refused] = []
        self.added = 0  # letters
        self.cleared = 0  # letters that are gone
        self.why_cleared = "was emptied at the source"
        self._letters: list[Letter] = []
        self._clear = False

    def divide(
        self,
        layout: Layout,
        data: bytes,
        visibility: Visibility | None,
        epoch: int | None,
        changes: list[Keyed],
    ) -> bytes:
        """Return what of a block is to be applied now; what has to wait is kept here. What `visibility` shows already,
        and what is other tables', may be left in. Where rows are sifted, those that are to be applied are added to
        `changes`, too, which then holds all since the last TRUNCATE."""
        truncate, found = keyed(layout, data, visibility)
        if truncate is not None:
            self._empty()
            changes.clear()
        keys = self.waiting.keys
        if keys:
            prefix = _key_prefix(layout)
            goes: list[Keyed] = []
            for key, origin, change in found:
                if key not in keys and origin not in keys:
                    goes.append((key, origin, change))
                    continue
                if epoch is not None and (written := head(change).epoch) != epoch:
                    raise GapDetected(f"a change of epoch {written} among those of epoch {epoch}")
                self._put(Letter(self.table, key, origin, change))
            before = [] if truncate is None else [(None, truncate)]
            data = pack([*before, *((prefix + key if prefix else None, change) for key, _, change in goes)])
            found = goes
        if self.sifts:
            changes += found
        return data

    @property
    def clears(self) -> bool:
        """Whether no letter stays that was there before."""
        return self._clear

    def clear(self) -> None:
        """Let all letters go that were there before: what they are about is read anew."""
        self._empty()
        self.found, self.why_cleared = frozenset(), "is read anew"

    def _empty(self) -> None:
        self.cleared += self.waiting.letters - self.added
        self.added = 0
        self.waiting = Waiting()
        self._letters.clear()
        self.refused.clear()
        self._clear = True

    def _put(self, letter: Letter) -> None:
        self._letters.append(letter)
        self.waiting.add(letter)
        self.added += 1
        if self.waiting.letters > MOST_LETTERS:
            raise TableRefused(
                self.table,
                OperatorError(
                    f"more than {MOST_LETTERS} changes would wait in the dead letters",
                    remedy=f"{REPLAY}, or discard them; then resume the table",
                ),
            )

    def forget(self, changes: Iterable[Keyed]) -> list[bytes]:
        """Let those letters go that were there and whose keys are read anew; return these keys."""
        return sorted({key for key, _, _ in changes} & self.found)

    def sift(self, layout: Layout, changes: Sequence[Keyed], attempt: Attempt, *, refused_together: bool) -> None:
        """Write changes but for what the target refuses. Raises `TableRefused` for that, if it is not to be kept or too
        much."""
        for bundle, error in sift(bundles(changes), attempt, refused_together=refused_together):
            where = self._place(layout, bundle)
            if not self.keeps:
                remedy = (
                    f"{error.remedy or MEND}; then `penstock resume` the table, or have such rows wait: {SET_ASIDE}"
                )
                raise TableRefused(self.table, type(error)(f"{error}; {where}", remedy=remedy)) from error
            if len(self.refused) == MOST_REFUSED:
                raise TableRefused(
                    self.table,
                    type(error)(
                        f"more than {MOST_REFUSED} rows of one batch were refused; one of them: {error}; {where}",
                        remedy=f"{error.remedy or MEND}; then `penstock resume` the table",
                    ),
                ) from error
            self.refused.append(Refused(where, str(error), head(bundle[-1][2]).position))
            for change in bundle:
                self._put(Letter(self.table, *change, str(error), error.remedy or MEND))

    def _place(self, layout: Layout, bundle: Bundle) -> str:
        """Say which row it is, without more of its values than its key."""
        key, _, change = bundle[-1]
        found = head(change)
        where = self._where or f"position {lsn_text(found.position)}, transaction {found.xid}"
        return f"the row with key {key_text(layout, key)}, {where}" if layout.key else f"a row, {where}"

    def take(self) -> tuple[bool, list[Letter]]:
        """Hand over what is to be stored, in the order of the source: whether all letters before go, and the new ones.

        A row that is refused may have been changed before another that waits came to its key.
        """
        clear, letters = self._clear, self._letters
        self._clear, self._letters = False, []
        if not self._where:
            letters.sort(key=lambda letter: (letter.head.position, letter.head.ordinal))
        return clear, letters


def net_of(layout: Layout, changes: Iterable[Keyed], *, binary: bool) -> Net:
    """Fold changes of one version of a table."""
    net = Net(layout, binary=binary)
    prefix = _key_prefix(layout)
    net.add(pack([(prefix + key if prefix else None, change) for key, _, change in changes]))
    return net


def keyed_batch(layout: Layout, value: bytes) -> list[Keyed]:
    """Return the rows of a batch value as records of their own. Costs far more a row than to write them."""
    return keyed(layout, pack([encode(layout, change) for change in decode_batch(layout, value)]))[1]


def _key_prefix(layout: Layout) -> bytes:
    """Return what a record's key begins with; nothing for a table without key."""
    return b"\0" + key_schema_id(layout.schema_id).to_bytes(4, "big") if layout.key else b""


def key_text(layout: Layout, key: bytes) -> str:
    """Return a letter's key for people: a JSON array of the columns' canonical texts; nothing for a table without
    key."""
    return json.dumps(list(key_values(layout, key)), ensure_ascii=False) if layout.key else ""


def key_values(layout: Layout, key: bytes) -> tuple[str, ...]:
    """Return the canonical texts of a letter's key, of a table that has one."""
    return tuple(decode_key(layout, _key_prefix(layout) + key))


def key_columns(table: Table) -> list[tuple[int, str]]:
    """Return what a table's keys are made of: those of other versions can be compared only if it is the same."""
    places = table.key or range(len(table.columns))
    return [(table.columns[place].number, table.columns[place].kind.name) for place in places]
