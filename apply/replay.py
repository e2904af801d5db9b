"""Dead letters in somebody's hands: what waited is applied at last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import codec.rows
from apply.dead_letters import Letter, bundles, net_of
from apply.target import Change, Taken, Target
from codec.layout import Layout
from codec.rows import decode, encode
from schemas.record import Op
from schemas.table import TableId
from transport.views import Registered

AT_ONCE = 200
"""Bundles in one transaction: all who write to the table wait for it."""


class Replayed(NamedTuple):
    """What has become of letters: how many were applied, and those that were refused, with the new cause."""

    applied: int
    refused: list[Letter]


def replay(
    target: Target,
    table: TableId,
    version_of: Callable[[int], Registered],
    chosen: Callable[[Letter], bool] = lambda letter: True,
) -> Replayed:
    """Apply the letters of a table that are chosen, and all that hang together with them by their keys: such a bundle
    whole, in order, and folded as always, so that a refused row which a later change has mended is accepted.

    What is applied is no letter any more, in the same transaction; if none of a key's letters is left, it is free. What
    is refused again stays, with the new cause. As one row may stand in another's way, the refused ones are tried again
    as long as others are accepted.
    """
    now = version_of(target.tables()[table].schema_id)

    def named(schema_id: int) -> Registered:
        return as_named_now(version_of(schema_id), now)

    applied = 0
    while True:
        done, refused = _pass(target, table, named, chosen)
        applied += done
        if not done or not refused:
            return Replayed(applied, refused)


def _pass(
    target: Target,
    table: TableId,
    version_of: Callable[[int], Registered],
    chosen: Callable[[Letter], bool],
) -> Replayed:
    applied = 0
    refused: list[Letter] = []
    tried = 0  # up to the bundle that begins with this letter
    while True:
        with target.taken(table) as taken:
            # Each time anew: more may have come to wait meanwhile.
            found = [b for b in bundled(taken.letters) if b[0].number > tried and any(map(chosen, b))][:AT_ONCE]
            if not found:
                return Replayed(applied, refused)
            tried = found[-1][0].number
            applied += _some(taken, found, version_of, refused)


def _some(
    taken: Taken, found: Sequence[list[Letter]], version_of: Callable[[int], Registered], refused: list[Letter]
) -> int:
    together = sorted((letter for bundle in found for letter in bundle), key=lambda letter: letter.number)
    if taken.attempt(changes_of(together, version_of)) is None:
        taken.remove(together)
        return len(together)
    applied = 0
    for bundle in found:
        error = taken.attempt(changes_of(bundle, version_of))
        if error is None:
            taken.remove(bundle)
            applied += len(bundle)
            continue
        for letter in bundle:
            refused.append(replace(letter, cause=str(error), remedy=error.remedy))
            taken.change(refused[-1])
    return applied


def as_named_now(version: Registered, now: Registered) -> Registered:
    """Return a version of a table under the names that it and its columns have at the target by now."""
    if version.schema_id == now.schema_id:
        return version
    names = {column.number: column.name for column in now.table.columns}
    columns = tuple(
        column.model_copy(update={"name": names.get(column.number, column.name)}) for column in version.table.columns
    )
    table = version.table.model_copy(update={"columns": columns, "renamed": now.table.renamed})
    return version.like(table)


def bundled(letters: Sequence[Letter]) -> list[list[Letter]]:
    """Divide letters into those that hang together by their keys."""
    return [[letter for _, _, letter in bundle] for bundle in bundles([letter.keyed for letter in letters])]


def changes_of(letters: Iterable[Letter], version_of: Callable[[int], Registered]) -> list[Change]:
    """Fold letters, those of one version of the table after those of the one before."""
    changes = []
    for schema_id, group in groupby(letters, key=lambda letter: letter.schema_id):
        version, of_version = version_of(schema_id), list(group)
        if not version.layout.key:
            of_version = _shortened(version.layout, of_version)
        records = ((letter.key, letter.origin, letter.change) for letter in of_version)
        changes.append(Change(version, net_of(version.layout, records, binary=False)))
    return changes


def _shortened(layout: Layout, letters: Iterable[Letter]) -> list[Letter]:
    """Fold the letters of a table without key: a row that one of them made, and another changes, was never there."""
    folded: list[tuple[Letter, codec.rows.Change]] = []
    for letter in letters:
        change = decode(layout, letter.change)
        made = [at for at, (_, earlier) in enumerate(folded) if change.before and earlier.after == change.before]
        if made:
            _, first = folded.pop(made[-1])
            change = change._replace(before=first.before, op=Op.INSERT if first.before is None else change.op)
            if change.before is change.after is None:
                continue
        folded.append((letter, change))
    return [replace(letter, change=encode(layout, change)[1]) for letter, change in folded]
