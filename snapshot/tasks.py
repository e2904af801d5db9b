"""What there is to do for a load, as the log tells it, and who of all workers is to do it."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from schemas.frontier import HEAL, Setup
from schemas.table import TableId
from snapshot import rules
from transport.log import Membership
from transport.views import Chunks, Frontiers, TableChunks, Tables

PLAN = -2
assert HEAL == -1


class Task(NamedTuple):
    """Something to do for a table: a chunk's number, or `PLAN`, or `HEAL`; for a part of it, that has a generation of
    its own, as if the part were healed."""

    table: TableId
    what: int
    part: int = -1

    @property
    def work(self) -> int:
        """The work partition whose owner does it."""
        return rules.work_of_chunk(self.table, self.what) if self.what >= 0 else rules.work_of_table(self.table)


@dataclass(frozen=True, slots=True)
class Views:
    """What the log says, once there is a setup."""

    setup: Setup
    tables: Tables
    chunks: Chunks
    frontiers: Frontiers
    membership: Membership

    def chosen(self) -> list[TableId]:
        """Return the tables that the pipeline has."""
        return rules.chosen(self.setup, self.tables, self.chunks)


def is_untouched(state: TableChunks) -> bool:
    """Whether a table is still to be planned for the first time, and nobody has asked for anything else."""
    return state.plan is None and state.generation < 0 and state.after < 0


def tasks(views: Views, mine: Container[int], spoilt: Container[TableId]) -> Iterator[Task]:
    """Yield all that is to be done by the owner of some work partitions, or by who has found out that a table is
    spoilt: plans first, as they are quick and tell how much there is."""
    states = [(table, views.chunks.of(table)) for table in views.chosen()]
    for table, state in states:
        unplanned = state.plan is None or state.outdated
        if table in spoilt or (unplanned and rules.work_of_table(table) in mine):
            yield Task(table, PLAN)
    for table, state in states:
        for chunk in state.missing:
            if rules.work_of_chunk(table, chunk) in mine:
                yield Task(table, chunk)
        if state.needs_healing() and rules.work_of_table(table) in mine:
            yield Task(table, HEAL)
        for generation, part in state.parts.items():
            if not part.settled and rules.work_of_table(table) in mine:
                yield Task(table, HEAL, generation)
