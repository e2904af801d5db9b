"""The end of a run whose source gives nothing more: the targets get all that is in the log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

from apply.target import NOWHERE, Progress, TableProgress
from control.status import Collector
from control.supervisor import current_stop
from control.wiring import opened_log
from schemas.errors import TransientError
from schemas.pipeline import Pipeline
from schemas.states import TableState
from schemas.table import TableId
from transport.topics import Topics
from transport.views import Frontiers

LOOK_SECONDS = 0.2
REMIND_SECONDS = 60.0


def drain(pipeline: Pipeline, say: Callable[[str], None]) -> int:
    """Return when every target has all that is in the log. Tables that are not loaded yet are not waited for: their
    load can't end any more."""
    stop, remind_at = current_stop(), time.monotonic() + REMIND_SECONDS
    with opened_log(pipeline) as log, contextlib.closing(Collector(pipeline, log)) as collector, log.reader() as reader:
        while not stop:
            late = []
            with contextlib.suppress(TransientError):  # the services tell of it
                if not collector.ready():
                    return 0  # there is nothing to be applied
                end = Frontiers(reader, Topics(pipeline.pipeline)).to_end()
                position = end.frontier.position if end is not None else 0
                for settings, error, tables, groups in collector.progress():
                    if error or not has_all(tables, groups, position):
                        late.append(f"{settings.name} ({error})" if error else settings.name)
                if not late:
                    return 0
            if time.monotonic() >= remind_at:
                remind_at = time.monotonic() + REMIND_SECONDS
                say(f"penstock: nothing more comes from the source; still to get what is in the log: {', '.join(late)}")
            stop.wait(LOOK_SECONDS)
    return 0


def has_all(tables: Mapping[TableId, TableProgress], groups: Mapping[int, Progress], position: int) -> bool:
    """Whether all that is loaded at a target has come to a position."""
    reached = [groups.get(table.group, NOWHERE) for table in tables.values() if table.state is TableState.LIVE]
    reached += [table.progress for table in tables.values() if table.state is TableState.CATCHING_UP]
    return all(progress.position >= position for progress in reached)
