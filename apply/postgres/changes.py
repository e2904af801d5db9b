"""Writing a piece of changes: several tables, in the order that their keys ask for."""

from __future__ import annotations

from collections.abc import Sequence

from apply.postgres.letters import Letters
from apply.postgres.merge import Work
from apply.postgres.session import QUEUED, Session
from apply.postgres.writers import Writers
from apply.target import Change
from schemas.table import TableId

RESTART_SEQUENCES = """
select pg_catalog.setval(s.seqrelid::regclass, s.seqstart, false)
from pg_depend d
join pg_sequence s on s.seqrelid = d.objid
where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = {oid}
  and d.refobjsubid > 0 and d.deptype in ('a', 'i') and has_sequence_privilege(s.seqrelid, 'update')
"""
"""What `restart identity` does, and no more than a right to write is needed for. If all is rolled back it is done
again: a truncate that was captured comes back until it is carried out."""


class ChangeWriter:
    """Writes changes in the transaction that is open."""

    def __init__(self, session: Session, writers: Writers, letters: Letters) -> None:
        self._session, self._writers, self._letters = session, writers, letters

    def write(self, piece: Sequence[Change], refused: TableId | None) -> None:
        """Write what a piece holds, and store what is set aside of it; rows of `refused` were refused before."""
        session = self._session
        self._truncate([change for change in piece if change.net.truncated])
        alone: list[Work] = []
        tied: list[Work] = []
        for change in piece:
            writer = self._writers.writer(change.version)
            if not writer.alone:
                tied.append(Work(writer, change))
            elif change.tray is None or not change.tray.sifts:
                alone.append(Work(writer, change))
            else:
                self._letters.sift(
                    writer, change.sifted, change.tray, change.exact, refused_together=writer.id == refused
                )
        # Large ones first: what is queued for the small ones then goes with the end of the transaction.
        for work in sorted(alone, key=lambda work: work.waits, reverse=True):
            work.run()
            if session.queued >= QUEUED:
                session.flush()
        if tied:
            self._write_tied(tied)
        for change in piece:
            if change.tray is not None:
                self._letters.store(self._writers.writer(change.version), change.tray)

    def _write_tied(self, works: list[Work]) -> None:
        """Write tables whose keys are looked at on the way: first what goes, children before parents, then what comes,
        parents before children."""
        session = self._session
        session.queue("set constraints all deferred")
        ordered = _parents_first(works)
        for work in reversed(ordered):
            work.first_half()
            session.flush()
        for work in ordered:
            work.second_half()
            session.flush()

    def _truncate(self, changes: list[Change]) -> None:
        """Empty tables, all in one statement, because they may refer to each other."""
        if not changes:
            return
        writers = [self._writers.writer(change.version) for change in changes]
        emptied = {writer.shape.oid for writer in writers}
        together = [writer for writer in writers if writer.shape.referenced <= emptied]
        if together:
            self._session.run(f"truncate {', '.join(writer.target for writer in together)}", together[0].id)
        for writer in writers:
            if writer not in together:
                self._session.run(f"delete from {writer.target}", writer.id)
        for change, writer in zip(changes, writers, strict=True):
            if change.net.restarted:
                self._session.query(RESTART_SEQUENCES.format(oid=writer.shape.oid), writer.id)


def _parents_first(works: list[Work]) -> list[Work]:
    """Return the works with tables that others refer to before these; in a circle the order is as it comes."""
    by_oid = {work.writer.shape.oid: work for work in works}
    ordered: dict[int, Work] = {}
    visiting: set[int] = set()

    def put(oid: int) -> None:
        if oid in ordered or oid in visiting or oid not in by_oid:
            return
        visiting.add(oid)
        for parent in sorted(by_oid[oid].writer.shape.references):
            put(parent)
        ordered[oid] = by_oid[oid]

    for oid in sorted(by_oid):
        put(oid)
    return list(ordered.values())
