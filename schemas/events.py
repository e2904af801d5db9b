"""What a pipeline tells of itself, for people: every change of a table's state, every error, every command.

Events are records of the topic `p.events`, in the order in which they were written. Nothing is ever decided by them,
and an event may be there twice, or after a crash be told late: what is true stands in the targets and in the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """What an event is about."""

    STATE = "state"  # a table on a target has another state
    ERROR = "error"  # something stopped, or can't go on; `remedy` says what to do
    WARNING = "warning"  # something is going to stop unless somebody acts
    COMMAND = "command"  # somebody has asked for something
    DEFINITION = "definition"  # a table was changed, made or dropped at the source
    NOTICE = "notice"  # anything else worth knowing


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, with cause and remedy in plain words."""

    at: int  # microseconds since 1970
    kind: str  # an EventKind
    service: str  # who tells: capture, holder, apply-reports-0, or the command
    text: str
    table: str = ""  # schema.name; empty: the whole pipeline
    target: str = ""  # empty: all, or the source
    state: str = ""  # of the table on the target from here on, if that is what the event tells
    remedy: str = ""
    position: int = 0  # of the source, where there is one
