"""What is done with dead letters by hand: `penstock dead-letters list | show | replay | edit | discard`."""

from __future__ import annotations

import contextlib
import difflib
import getpass
import json
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apply.dead_letters import Letter, key_text
from apply.replay import replay
from apply.target import Target, find_target
from codec.rows import Change, decode, encode
from control.logview import Line, time_text
from control.naming import Names
from control.wiring import exists
from schemas.errors import ConfigInvalid, DecodeError, ValueUnsupported
from schemas.events import EventKind
from schemas.frontier import lsn_text
from schemas.pipeline import Pipeline
from schemas.table import Table, TableId
from transport.events import Teller
from transport.log import Log
from transport.topics import Topics
from transport.views import Tables


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which letters are meant: all that fit everything that is said."""

    tables: Sequence[str] = ()  # patterns
    key: str | None = None  # the column's text, or a JSON array of several
    number: int | None = None
    target: str = ""


class Letters:
    """The dead letters of a pipeline's targets, in their order.

    Raises `ConfigInvalid` if there is no pipeline yet, or no such target, and whatever a target raises that can't be
    reached.
    """

    def __init__(self, pipeline: Pipeline, log: Log) -> None:
        if not exists(log):
            raise ConfigInvalid(f"pipeline {pipeline.pipeline} has no log yet", remedy="`penstock run` makes it")
        self._pipeline, self._log = pipeline, log
        self._topics = Topics(pipeline.pipeline)
        self._stack = contextlib.ExitStack()
        self._versions = Tables(self._stack.enter_context(log.reader()), self._topics)
        self._names = Names(self._versions)
        self._targets: dict[str, Target] = {}
        self._by = f"{getpass.getuser()}@{socket.gethostname()}"

    def close(self) -> None:
        """Let go of targets and log."""
        for target in self._targets.values():
            target.close()
        self._stack.close()

    def _target(self, name: str) -> Target:
        if name not in self._targets:
            self._targets[name] = find_target(self._pipeline.target(name), self._pipeline.pipeline)
            self._targets[name].open(self._log.identity())
        return self._targets[name]

    def find(self, chosen: Chosen) -> list[tuple[str, Letter]]:
        """Return the letters that are meant, with the names of their targets."""
        names = [chosen.target] if chosen.target else [target.name for target in self._pipeline.targets]
        fits = self._fits(chosen)
        return [(name, letter) for name in names for letter in self._target(name).letters() if fits(letter)]

    def _fits(self, chosen: Chosen) -> Callable[[Letter], bool]:
        self._names.refresh()

        def fits(letter: Letter) -> bool:
            return (
                (not chosen.tables or any(self._names.fit(str(letter.table), pattern) for pattern in chosen.tables))
                and chosen.number in (None, letter.number)
                and (chosen.key is None or self._has_key(letter, chosen.key))
            )

        return fits

    def _has_key(self, letter: Letter, key: str) -> bool:
        layout = self._versions.by_schema(letter.schema_id).layout
        wanted = key if key.startswith("[") else json.dumps([key], ensure_ascii=False)
        touched = (part for part in (letter.key, letter.origin) if part is not None)
        return any(key_text(layout, part) == wanted for part in touched)

    # ------------------------------------------------------------------------------------------------- looking

    def lines(self, chosen: Chosen, *, whole: bool = False) -> Iterator[Line]:
        """Yield a line for each letter; `whole` with the row's values."""
        for target, letter in self.find(chosen):
            table = self._versions.by_schema(letter.schema_id).table
            change, fields = self._described(target, letter, table)
            if whole:
                fields |= {
                    "before": _named(table, change.before, ()),
                    "after": _named(table, change.after, change.unchanged),
                }
                yield Line("\n".join(f"{name:<12} {_shown(value)}" for name, value in fields.items()) + "\n", fields)
                continue
            where = f"at {lsn_text(change.position)}" if change.position else "loaded"
            why = letter.cause or "waits behind the one before it"
            text = f"{letter.number:>6} {letter.table} on {target} {fields['key']} {fields['op']} {where}: {why}"
            yield Line(text, fields)

    def _described(self, target: str, letter: Letter, table: Table) -> tuple[Change, dict[str, Any]]:
        layout = self._versions.by_schema(letter.schema_id).layout
        change = decode(layout, letter.change)
        return change, {
            "number": letter.number,
            "target": target,
            "table": str(letter.table),
            "key": key_text(layout, letter.key),
            "old_key": key_text(layout, letter.origin) if letter.origin is not None else "",
            "op": change.op.name.lower(),
            "position": lsn_text(change.position),
            "xid": change.xid,
            "ordinal": change.ordinal,
            "committed": time_text(change.commit_time),
            "schema_id": letter.schema_id,
            "cause": letter.cause,
            "remedy": letter.remedy,
            "set_aside": time_text(letter.at),
        }

    # ------------------------------------------------------------------------------------------------- changing

    def replay(self, chosen: Chosen) -> Iterator[Line]:
        """Apply the letters that are meant, with all that hang together with them by their keys; yield what became of
        each table's."""
        fits = self._fits(chosen)
        for target, table in self._by_table(chosen):
            done = replay(self._target(target), table, self._versions.by_schema, fits)
            causes = sorted({letter.cause for letter in done.refused})
            text = f"{table} on {target}: {done.applied} applied, {len(done.refused)} refused again"
            self._tell(EventKind.COMMAND, f"dead letters replayed by {self._by}: {text}", target, table)
            fields = {"table": str(table), "target": target, "applied": done.applied, "refused": len(done.refused)}
            yield Line("\n  ".join([text, *causes]), {**fields, "causes": causes})

    def discard(self, chosen: Chosen) -> Iterator[Line]:
        """Remove the letters that are meant; yield how many each table had."""
        fits = self._fits(chosen)
        for target, table in self._by_table(chosen):
            with self._target(target).taken(table) as taken:
                gone = [letter for letter in taken.letters if fits(letter)]
                taken.remove(gone)
            text = f"{table} on {target}: {len(gone)} discarded"
            self._tell(EventKind.COMMAND, f"dead letters discarded by {self._by}: {text}", target, table)
            yield Line(text, {"table": str(table), "target": target, "discarded": len(gone)})

    def edit(self, chosen: Chosen, values: Mapping[str, str | None]) -> Line:
        """Change columns of one letter's row; raises `ConfigInvalid` if there is no such letter, or it can't be."""
        found = self.find(chosen)
        if len(found) != 1:
            raise ConfigInvalid(
                f"there is no dead letter {chosen.number}" if not found else "more than one target has that letter",
                remedy="`penstock dead-letters list` shows their numbers, --target names a target",
            )
        [(target, letter)] = found
        with self._target(target).taken(letter.table) as taken:
            now = next((one for one in taken.letters if one.number == letter.number), None)
            if now is None:
                raise ConfigInvalid(f"dead letter {letter.number} was just replayed or discarded")
            version = self._versions.by_schema(now.schema_id)
            changed = _edited(version.table, decode(version.layout, now.change), values)
            try:
                _, record = encode(version.layout, changed)
            except (DecodeError, ValueUnsupported) as error:
                raise ConfigInvalid(f"a value does not fit its column: {error}") from None
            taken.change(replace(now, change=record))
        text = f"{letter.table} on {target}: letter {letter.number} has other values for {', '.join(sorted(values))}"
        self._tell(EventKind.COMMAND, f"a dead letter edited by {self._by}: {text}", target, letter.table)
        return Line(text, {"table": str(letter.table), "target": target, "number": letter.number})

    def _by_table(self, chosen: Chosen) -> list[tuple[str, TableId]]:
        counts: dict[tuple[str, TableId], int] = defaultdict(int)
        for target, letter in self.find(chosen):
            counts[target, letter.table] += 1
        return list(counts)

    def _tell(self, kind: EventKind, text: str, target: str, table: TableId) -> None:
        with contextlib.closing(Teller(self._log, self._topics, "command")) as teller:
            teller.tell(kind, text, table=table, target=target)


def _edited(table: Table, change: Change, values: Mapping[str, str | None]) -> Change:
    if change.after is None:
        raise ConfigInvalid("a delete has no row whose values could be others", remedy="replay it, or discard it")
    if not table.key:
        raise ConfigInvalid(
            f"the rows of {table.id} are known by all their values, so none can be changed",
            remedy="mend the target and replay, or write the row by hand and discard the letter",
        )
    after, unchanged = list(change.after), set(change.unchanged)
    names = [column.name for column in table.columns]
    for name, value in values.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, 3, 0.4) or names[:10]
            raise ConfigInvalid(f"{table.id} has no column {name!r}", remedy=f"one of {', '.join(close)}")
        place = names.index(name)
        if place in table.key:
            raise ConfigInvalid(f"{name} is of the key, by which later changes find the row", remedy="edit another")
        after[place] = value
        unchanged.discard(place)
    return change._replace(after=tuple(after), unchanged=tuple(sorted(unchanged)))


def _named(table: Table, row: Sequence[str | None] | None, unchanged: Sequence[int]) -> dict[str, str | None] | None:
    if row is None:
        return None
    return {column.name: row[at] for at, column in enumerate(table.columns) if at not in unchanged}


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value if value is not None else "")
