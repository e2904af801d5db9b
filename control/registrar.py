"""The registrar: takes tables over that are made at the source while its changes flow, where `ddl: apply` says so.

It looks at the catalogue now and then, which works with any rights and after any pause. Every table that it does not
know, and that fits both its own file and the last one that a person had taken over, is either taken over, as
`penstock reconfigure` does it, or left, and people are told why, once. It never takes back what a person took out: only
what was never the pipeline's is new. Killed at any point it is simply started again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from control.choosing import Chooser, Published
from control.commanding import asking
from engines.postgres.catalogue import tables
from engines.postgres.errors import translated
from engines.postgres.newcomers import Newcomer, newcomers, present
from engines.postgres.quoting import quote
from schemas.errors import OperatorError, SourceUnavailable, TransientError
from schemas.events import EventKind
from schemas.frontier import Chosen
from schemas.pipeline import Ddl, Pipeline, matches
from schemas.table import Identity, Table, TableId
from transport.events import Teller, told
from transport.log import Log, LogReader
from transport.topics import Topics
from transport.views import read_setup

LOOK_SECONDS, LOOK_SHARE = 1.0, 50
"""How long after a look the next one is, and at least how many times longer than the looks take. A single slow one is
no measure: the first connects."""

SETTLE_SECONDS = 2.0
"""How long a table must have been there: one that is made to be attached to another one is that by then."""

REFUSED_SECONDS = 60.0
"""How long the source is not asked again to publish a table that it refused."""

WRITERS_SECONDS = 0.1

SERVICE = "registrar"

_LEFT = "was made at the source, and is not copied"
_REFUSED = "was made at the source, and can't be taken over now"
_ASK = "`penstock reconfigure` takes it over"


class Verdict(NamedTuple):
    """Why a table is left, for now: what people are told."""

    kind: EventKind
    text: str
    remedy: str


def policy_of(pipeline: Pipeline, table: TableId) -> Ddl | None:
    """Return what is to be done with a new table; None if no target is to have it. It is taken over if all targets that
    are to have it want that: of what is taken over nobody knows which target it was for."""
    targets = [target.name for target in pipeline.targets if matches(table, target.tables)]
    wanted = {pipeline.policies(name)(table).ddl for name in targets}
    return next((policy for policy in (Ddl.PAUSE_TABLE, Ddl.IGNORE, Ddl.APPLY) if policy in wanted), None)


def verdict_on(table: Table) -> Verdict | None:
    """Return why a table can't be taken over as it is; None if it can."""
    if table.definition.unlogged:
        return Verdict(
            EventKind.WARNING,
            f"{_LEFT}: it is unlogged, and its changes are in no stream",
            f"alter table {quote(*table.id)} set logged; or exclude it in `tables`",
        )
    if table.identity is Identity.NOTHING:
        return Verdict(
            EventKind.WARNING,
            f"{_LEFT}: it has no replica identity, so that its updates and deletes could not be carried",
            "give it a primary key, or `replica identity full`, and it is taken over; as it is, with inserts and"
            f" truncates only, {_ASK}",
        )
    return None


def fate_of(pipeline: Pipeline, table: Table) -> str:
    """Return, for people, what becomes of a table that is new, once the pipeline runs."""
    policy = policy_of(pipeline, table.id)
    if policy is not Ddl.APPLY:
        return f"is not copied, as `ddl: {policy}` says: {_ASK}"
    verdict = verdict_on(table)
    return f"{verdict.text} -> {verdict.remedy}" if verdict else "is new, and taken over as soon as the pipeline runs"


def coming(pipeline: Pipeline, log: Log) -> set[TableId]:
    """Return the tables that are new at the source and about to be taken over: none that is left, or was refused."""
    topics = Topics(pipeline.pipeline)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(log.reader())
        setup = read_setup(reader, topics)
        assert setup is not None
        chooser = Chooser(pipeline, log, reader, setup, "penstock run")
        stack.enter_context(contextlib.closing(chooser))
        with translated("source", "looking for new tables"):
            unknown = present(chooser.source) - chooser.oids_taken
            found = {
                new.id
                for new in newcomers(chooser.source, unknown, chooser.publications)
                if _fits(pipeline, chooser, new.id)
                and (new.id not in chooser.ever_chosen or new.id in chooser.dropped)
                and policy_of(pipeline, new.id) is Ddl.APPLY
                and new.may_be_published
            }
            if not found:
                return set()
            takeable = [table.id for table in tables(chooser.source, found.__contains__) if verdict_on(table) is None]
        refused = {table for table, text in _read_told(log, reader, topics) if text.startswith(_REFUSED)}
        return {table for table in takeable if str(table) not in refused}


def _fits(pipeline: Pipeline, chooser: Chooser, table: TableId) -> bool:
    return pipeline.chooses(table) and matches(table, chooser.patterns)


def _read_told(log: Log, reader: LogReader, topics: Topics) -> Iterator[tuple[str, str]]:
    """Yield what registrars have told, and of which tables."""
    at = log.offsets(topics.events).start
    while some := list(told(reader, topics, at)):
        at = some[-1].offset + 1
        yield from ((event.table, event.text) for _, event in some if event.service == SERVICE)


class Registrar:
    """The loop. A look, or a taking over, is a step; to wait for writers is none."""

    def __init__(
        self,
        pipeline: Pipeline,
        log: Log,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._pipeline, self._log, self._clock, self._sleep = pipeline, log, clock, sleep
        self._topics = Topics(pipeline.pipeline)
        self._stack = contextlib.ExitStack()
        self._reader = self._stack.enter_context(log.reader())
        self._teller = self._stack.enter_context(contextlib.closing(Teller(log, self._topics, SERVICE)))
        self._chooser: Chooser | None = None
        self._pending: Published | None = None
        self._look_at = self._took = 0.0
        self._seen: dict[int, float] = {}  # since when, by the source's number
        self._refused: dict[int, float] = {}  # until when, by the source's number
        self._withdrawn: Chosen | None = None  # when it was last seen to that what was removed is not published
        self._told: set[tuple[str, str]] | None = None  # of tables, by this service, ever

    def step(self) -> bool:
        """Look, if it is time, or go on with what is being taken over. Raises what source and log raise; to be refused
        a single table is no error."""
        if self._chooser is None:
            return self._begin()
        if self._pending is not None:
            return self._choose(self._chooser, self._pending)
        if self._clock() < self._look_at:
            return False
        began = self._clock()
        self._look(self._chooser)
        self._teller.flush()
        took = self._clock() - began
        self._look_at = self._clock() + max(LOOK_SECONDS, LOOK_SHARE * min(took, self._took))
        self._took = took
        return True

    def wait(self, timeout: float) -> None:
        """Wait until it is time for something, at most `timeout` seconds."""
        if self._chooser is None:
            self._reader.wait({self._topics.control: self._log.offsets(self._topics.control).end}, timeout)
        else:
            until = WRITERS_SECONDS if self._pending is not None else self._look_at - self._clock()
            self._sleep(max(0.0, min(timeout, until)))

    def close(self) -> None:
        """Let go of source and log."""
        self._stack.close()

    def _begin(self) -> bool:
        if not self._topics.are_made(self._log):
            return False
        setup = read_setup(self._reader, self._topics)
        if setup is None:
            return False
        chooser = Chooser(self._pipeline, self._log, self._reader, setup, f"penstock {SERVICE}")
        self._chooser = self._stack.enter_context(contextlib.closing(chooser))
        return True

    # --------------------------------------------------------------------------------------------------- looking

    def _look(self, chooser: Chooser) -> None:
        chooser.refresh()
        self._withdraw(chooser)
        with translated("source", "looking for new tables"):
            there = present(chooser.source)
            unknown = self._settled(there - chooser.oids_taken)
            strangers = newcomers(chooser.source, unknown, chooser.publications)
            fitting = [new for new in strangers if _fits(self._pipeline, chooser, new.id)]
            found = {}
            for new in fitting:
                if new.id not in chooser.ever_chosen or new.id in chooser.dropped:
                    if self._is_wanted(new.id):
                        found[new.id] = new
                elif chooser.oids([new.id]) & there:
                    self._judge_name(chooser, new.id)
            candidates = tables(chooser.source, found.__contains__) if found else []
        taken = [table.id for table in candidates if self._can_be_taken(table, found[table.id])]
        if taken:
            self._publish(chooser, taken, found)

    def _withdraw(self, chooser: Chooser) -> None:
        """See to it that what was removed is not published: whoever removed it may have died before he did."""
        if chooser.last == self._withdrawn:
            return
        try:
            chooser.withdraw()
        except SourceUnavailable:
            raise
        except TransientError:
            return  # somebody holds a lock: with the next look
        except OperatorError as error:
            text = f"tables that were removed stay in the publications: {error}"
            self._tell(None, Verdict(EventKind.WARNING, text, error.remedy))
        self._withdrawn = chooser.last

    def _settled(self, unknown: set[int]) -> set[int]:
        """Return those that have been there for long enough."""
        now = self._clock()
        self._seen = {oid: self._seen.get(oid, now) for oid in unknown}
        return {oid for oid, since in self._seen.items() if now - since >= SETTLE_SECONDS}

    def _judge_name(self, chooser: Chooser, id: TableId) -> None:
        """Tell of a table whose name is, in the log, that of another one that is still there."""
        if id in chooser.chosen:  # else somebody has taken that name out, whatever is called so now
            text = "was made at the source, and is not copied: a table that is copied had this name before"
            remedy = "give it another name, or copy it by a pipeline of its own"
            self._tell(id, Verdict(EventKind.WARNING, text, remedy))

    def _is_wanted(self, table: TableId) -> bool:
        policy = policy_of(self._pipeline, table)
        if policy in {Ddl.IGNORE, Ddl.PAUSE_TABLE}:
            self._tell(table, Verdict(EventKind.NOTICE, f"{_LEFT}, as `ddl: {policy}` says", _ASK))
        return policy is Ddl.APPLY

    def _can_be_taken(self, table: Table, newcomer: Newcomer) -> bool:
        if (verdict := verdict_on(table)) is not None:
            self._tell(table.id, verdict)
            return False
        if not newcomer.may_be_published:
            text = f"{_LEFT}: only its owner, {newcomer.owner}, can publish it"
            remedy = f"grant {quote(newcomer.owner)} to the role of the source's URL"
            if newcomer.is_superusers:
                remedy = (
                    f"alter table {quote(*table.id)} owner to … (a role that is no superuser), and grant that one to"
                    " the role of the source's URL"
                )
            self._tell(table.id, Verdict(EventKind.WARNING, text, f"{remedy}; or exclude the table in `tables`"))
            return False
        return self._refused.get(newcomer.oid, 0.0) <= self._clock()

    # --------------------------------------------------------------------------------------------- taking over

    def _publish(self, chooser: Chooser, taken: list[TableId], found: Mapping[TableId, Newcomer]) -> None:
        """Publish tables, together, or if that fails, each by itself."""
        try:
            self._pending = chooser.publish(taken)
        except SourceUnavailable:
            raise
        except (OperatorError, TransientError) as error:
            if len(taken) == 1:
                self._refuse(taken[0], found[taken[0]].oid, error)
                return
            published = []
            for id in taken:
                self._publish(chooser, [id], found)
                if self._pending is not None:
                    published.append(self._pending)
                self._pending = None
            if published:
                schemas = {id: n for some in published for id, n in some.schemas.items()}
                self._pending = Published(schemas, max(some.before for some in published))
            return
        for id in self._pending.schemas:
            text = "was made at the source: is published, and loaded when all transactions have ended that run now"
            self._tell(id, Verdict(EventKind.DEFINITION, text, ""))

    def _refuse(self, id: TableId, oid: int, error: OperatorError | TransientError) -> None:
        """Leave a table that the source does not let us publish now."""
        self._refused[oid] = self._clock() + REFUSED_SECONDS
        text = f"{_REFUSED}: {error}"
        self._tell(id, Verdict(EventKind.WARNING, text, error.remedy or "it is tried again"))

    def _choose(self, chooser: Chooser, published: Published) -> bool:
        if chooser.is_awaited(published):
            return False
        self._pending = None
        by, at = asking()
        if published.schemas and not chooser.choose(published, (), chooser.patterns, by, at):
            self._look_at = 0.0  # a person has reconfigured the pipeline meanwhile: what is new is another question
        return True

    # --------------------------------------------------------------------------------------------------- telling

    def _tell(self, table: TableId | None, verdict: Verdict) -> None:
        """Tell something, unless it was told before, by whichever process."""
        if self._told is None:
            self._told = set(_read_told(self._log, self._reader, self._topics))
        what = str(table or ""), verdict.text
        if what not in self._told:
            self._told.add(what)
            self._teller.tell(verdict.kind, verdict.text, table=table, remedy=verdict.remedy)
