"""Problems as they are found: collected, not raised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import psycopg

from engines.postgres.connect import NEWEST, OLDEST, major
from engines.postgres.errors import Side, translate
from engines.postgres.quoting import quote
from schemas.errors import ReplicationError
from schemas.table import TableId

SHOWN = 10  # names in a message


class Problem(NamedTuple):
    """Something to mend (error) or to know (warning) before a pipeline starts."""

    severity: Literal["error", "warning"]
    what: str
    remedy: str = ""


class Found:
    """Problems in the order in which they were found."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def error(self, what: str, remedy: str = "") -> None:
        self.problems.append(Problem("error", what, remedy))

    def warning(self, what: str, remedy: str = "") -> None:
        self.problems.append(Problem("warning", what, remedy))

    @contextmanager
    def asking(self, side: Side, doing: str) -> Iterator[None]:
        """Make a failing question a problem instead of the end of all questions."""
        try:
            yield
        except psycopg.Error as exc:
            ours = translate(exc, side, doing)
            self.error(str(ours), ours.remedy)
        except ReplicationError as exc:
            self.error(str(exc), exc.remedy)


def right_version(found: Found, conn: psycopg.Connection, side: Side) -> bool:
    """Whether it makes sense to ask more."""
    version = major(conn)
    if version < OLDEST:
        found.error(f"{side}: PostgreSQL {version} is too old", f"use PostgreSQL {OLDEST} to {NEWEST}")
    elif version > NEWEST:
        found.warning(f"{side}: PostgreSQL {version} is newer than what was tried: {NEWEST}")
    encoding = conn.info.parameter_status("server_encoding")
    if encoding == "SQL_ASCII":
        found.warning(f"{side}: the database's encoding is SQL_ASCII: text that is not UTF-8 will be refused")
    elif encoding != "UTF8" and side == "target":
        found.warning(f"{side}: the database's encoding is {encoding}: characters that it lacks will be refused")
    return version >= OLDEST


def quoted(ids: Sequence[TableId]) -> str:
    """Return tables as a statement names them."""
    return ", ".join(quote(*id) for id in ids)


def some(names: Sequence[object]) -> str:
    """Return the first of many names."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(str(name) for name in names[:SHOWN]) + more
