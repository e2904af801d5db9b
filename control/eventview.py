"""What a pipeline has told of itself, for people and programs: `penstock events`."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime

from control.logview import Line
from control.naming import Names
from control.wiring import exists
from schemas.errors import ConfigInvalid, LogRewound
from schemas.events import Event, EventKind
from schemas.pipeline import duration
from transport.events import Told, told
from transport.log import Log, LogReader
from transport.topics import Topics
from transport.views import Tables

_WAIT_SECONDS = 0.5


def moment(text: str, now: float) -> float:
    """Return the seconds since 1970 that a duration before `now`, or a time, says: without a zone of the clock here.

    Raises `ValueError` if it is neither.
    """
    with contextlib.suppress(ValueError):
        return now - duration(text)
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise ValueError("a number with its unit: 90s, 30m, 2h, 1d; or a time: 2026-07-01, 2026-07-01 14:30") from None


def events_of(
    log: Log, pipeline: str, pattern: str | None, since: float, limit: int | None, *, follow: bool
) -> Iterator[Line]:
    """Yield what was told, oldest first: of tables that fit the pattern, `since` that many seconds after 1970, the last
    `limit`; with `follow` also what is told from now on.

    Raises `ConfigInvalid` if there is no log.
    """
    topics = Topics(pipeline)
    if not exists(log) or not topics.are_made(log):
        raise ConfigInvalid(f"pipeline {pipeline} has no log yet", remedy="`penstock run` makes it")
    with log.reader() as reader:
        names = Names(Tables(reader, topics))

        def is_asked_for(event: Event) -> bool:
            return event.at >= since * 1e6 and (
                pattern is None or (bool(event.table) and names.fit(event.table, pattern))
            )

        at = log.offsets(topics.events).start
        found: deque[Told] = deque(maxlen=limit)
        names.refresh()
        for entry in _there(log, reader, topics, at):
            at = entry.offset + 1
            if is_asked_for(entry.event):
                found.append(entry)
        yield from map(_line, found)
        while follow:
            reader.wait({topics.events: at}, _WAIT_SECONDS)
            names.refresh()
            for entry in _there(log, reader, topics, at):
                at = entry.offset + 1
                if is_asked_for(entry.event):
                    yield _line(entry)


def _there(log: Log, reader: LogReader, topics: Topics, at: int) -> Iterator[Told]:
    """Yield all events from an offset on that are there now."""
    while True:
        before = at
        try:
            for entry in told(reader, topics, at):
                at = entry.offset + 1
                yield entry
        except LogRewound:
            at = log.offsets(topics.events).start  # the oldest were forgotten meanwhile
            if at <= before:
                raise
        if at == before:
            return


def _line(entry: Told) -> Line:
    event = entry.event
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at / 1e6))
    about = event.table + (f" on {event.target}" if event.target else "") if event.table else event.target
    kind = f"{event.kind.upper()}: " if event.kind in {EventKind.ERROR, EventKind.WARNING} else ""
    text = f"{at} {event.service}: {about + ': ' if about else ''}{kind}{event.text}"
    if event.remedy:
        text += f"\n    {event.remedy}"
    return Line(text, {"offset": entry.offset, **asdict(event)})
