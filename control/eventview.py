"""What a pipeline has told of itself, for people and programs: `penstock events`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from fnmatch import fnmatchcase

from control.logview import Line
from control.wiring import exists
from schemas.errors import ConfigInvalid, LogRewound
from schemas.events import Event, EventKind
from transport.events import Told, told
from transport.log import Log, LogReader
from transport.topics import Topics

_WAIT_SECONDS = 0.5


def events_of(
    log: Log, pipeline: str, pattern: str | None, since: float | None, limit: int | None, *, follow: bool
) -> Iterator[Line]:
    """Yield what was told, oldest first: of tables that fit the pattern, in the last `since` seconds, the last `limit`;
    with `follow` also what is told from now on.

    Raises `ConfigInvalid` if there is no log.
    """
    topics = Topics(pipeline)
    if not exists(log) or not topics.are_made(log):
        raise ConfigInvalid(f"pipeline {pipeline} has no log yet", remedy="`penstock run` makes it")
    earliest = int((time.time() - since) * 1_000_000) if since is not None else 0
    with log.reader() as reader:
        at = log.offsets(topics.events).start
        found: deque[Told] = deque(maxlen=limit)
        for entry in _there(log, reader, topics, at):
            at = entry.offset + 1
            if _fits(entry.event, pattern, earliest):
                found.append(entry)
        yield from map(_line, found)
        while follow:
            reader.wait({topics.events: at}, _WAIT_SECONDS)
            for entry in _there(log, reader, topics, at):
                at = entry.offset + 1
                if _fits(entry.event, pattern, earliest):
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


def _fits(event: Event, pattern: str | None, earliest: int) -> bool:
    return event.at >= earliest and (
        pattern is None or event.table == pattern or (bool(event.table) and fnmatchcase(event.table, pattern))
    )


def _line(entry: Told) -> Line:
    event = entry.event
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at / 1e6))
    about = event.table + (f" on {event.target}" if event.target else "") if event.table else event.target
    kind = f"{event.kind.upper()}: " if event.kind in {EventKind.ERROR, EventKind.WARNING} else ""
    text = f"{at} {event.service}: {about + ': ' if about else ''}{kind}{event.text}"
    if event.remedy:
        text += f"\n    {event.remedy}"
    return Line(text, {"offset": entry.offset, **asdict(event)})
