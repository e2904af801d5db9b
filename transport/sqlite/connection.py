"""Connections to SQLite files: how they are opened and made, and their errors in our words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from schemas.errors import LOAD_AGAIN, LogRewound, LogUnavailable, PrerequisiteMissing, ReplicationError
from transport.sqlite.disk import unlink

_FORMAT = 2  # user_version of every file

DISK_REMEDY = "free room on the disk of the state folder, and see that it can be written"

_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
    }
)


def make_file(path: Path, schema: str, begin: Mapping[int, int] | None = None) -> None:
    """Make a file under another name and give it its own when it is whole; one that is there already stays."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        for statement in ("journal_mode = wal", "synchronous = full", f"user_version = {_FORMAT}"):
            connection.execute(f"pragma {statement}").close()
        connection.executescript(f"begin; {schema} commit;").close()
        if begin:
            connection.execute("begin").close()
            connection.executemany("insert into begin values (?, ?)", begin.items()).close()
            connection.execute("commit").close()
    finally:
        connection.close()  # the last one to leave ends the WAL, so that one file is all there is
    with contextlib.suppress(FileExistsError):
        os.link(fresh, path)
    unlink(fresh)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def connect(path: Path, wait_s: float) -> sqlite3.Connection:
    """Open a file that is there: SQLite would make a missing one."""
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None, timeout=wait_s, check_same_thread=False
    )
    try:
        run(connection, "pragma fullfsync = on")  # macOS: its fsync does not reach the disk
        (found,) = fetch_one(connection, "pragma user_version")
    except BaseException:
        connection.close()
        raise
    if found != _FORMAT:
        connection.close()
        raise PrerequisiteMissing(
            f"{path} is of format {found}, and this version reads format {_FORMAT}",
            remedy="use the version of the program that wrote it",
        )
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, begin: str = "begin immediate") -> Iterator[None]:
    # Immediate: a transaction that reads first and writes after another's commit fails without waiting.
    run(connection, begin)
    try:
        yield
        run(connection, "commit")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            run(connection, "rollback")
        raise


def run(connection: sqlite3.Connection, statement: str, *parameters: object) -> None:
    connection.execute(statement, parameters).close()


# A cursor that is not read to its end holds a read transaction, and the WAL grows: `fetchall`, always.
def fetch(connection: sqlite3.Connection, statement: str, *parameters: object) -> list[Any]:
    return connection.execute(statement, parameters).fetchall()


def fetch_named(connection: sqlite3.Connection, statement: str, parameters: Mapping[str, int]) -> list[Any]:
    return connection.execute(statement, parameters).fetchall()


def fetch_one(connection: sqlite3.Connection, statement: str, *parameters: object) -> Any:
    rows = connection.execute(statement, parameters).fetchall()
    return rows[0] if rows else None


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn SQLite's errors into ours; what is neither the disk's nor the file's fault is a mistake of this module."""
    try:
        yield
    except ReplicationError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _UNAVAILABLE:
            remedy = DISK_REMEDY if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) else ""
            raise LogUnavailable(f"cannot {what}: {error}", remedy=remedy) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise LogRewound(
                f"cannot {what}: {error}: a file of the log is damaged",
                remedy=f"look at the disk; {LOAD_AGAIN}",
            ) from error
        raise
    except OSError as error:
        raise LogUnavailable(f"cannot {what}: {error}", remedy=DISK_REMEDY) from error
