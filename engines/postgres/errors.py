"""PostgreSQL's errors as ours: by SQLSTATE, then by class, with what a person can do.

The driver's message may quote a row's values or a piece of a statement. So the primary message is shown only for
classes where it holds names, never the detail, the context or the statement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import psycopg

from schemas.errors import (
    LOAD_AGAIN,
    ConfigInvalid,
    ConstraintViolated,
    OperatorError,
    PermissionMissing,
    PositionLost,
    PrerequisiteMissing,
    ReplicationError,
    SchemaUnsupported,
    SnapshotLost,
    SourceUnavailable,
    TargetUnavailable,
    TransientError,
    ValueUnsupported,
)

Side = Literal["source", "target"]


class Unavailable(NamedTuple):
    """Stands for `SourceUnavailable` or `TargetUnavailable`, by the side."""


class Meaning(NamedTuple):
    """What an SQLSTATE, or a class of them, is to us."""

    error: type[ReplicationError] | type[Unavailable]
    remedy: str = ""
    quotes_values: bool = False  # the message may hold values or pieces of statements


ROW_TOO_LARGE = "a row has more than the 1 GB that PostgreSQL can send or take of one"
ROW_TOO_LARGE_REMEDY = "make its values smaller, or leave the table out"

NAMES_REMEDY = "give it another name, with a client encoding of SQL_ASCII"
NOT_UTF8 = "the catalogue has a name, a default or a comment that is not UTF-8"
NOT_UTF8_REMEDY = "`penstock check` tells names that are not UTF-8: rename them; correct such defaults and comments"

TABLE_REMEDY = "compare the table on both sides: it was altered or dropped after the pipeline began"
READ_ONLY_REMEDY = "name the primary in the URL: this one is a standby, or its default_transaction_read_only is on"
CONSTRAINT_REMEDY = (
    "compare the table's constraints on both sides: drop or alter what only the target has, and look for rows that only"
    " the target has and that are in the way (rows that were set aside are in `penstock dead-letters`)"
)
SLOTS_REMEDY = "raise max_replication_slots on the source (a restart), or drop a slot that nobody needs"

EXACT: dict[str, Meaning] = {
    "0A000": Meaning(SchemaUnsupported),
    "25006": Meaning(Unavailable, READ_ONLY_REMEDY),
    "25P03": Meaning(Unavailable),
    "25P04": Meaning(Unavailable),
    "40002": Meaning(ConstraintViolated),
    "40003": Meaning(Unavailable),
    "42501": Meaning(PermissionMissing, "`penstock check` names every right that is missing, and its grant"),
    "42601": Meaning(OperatorError, quotes_values=True),
    "42P01": Meaning(SchemaUnsupported, TABLE_REMEDY),
    "42703": Meaning(SchemaUnsupported, TABLE_REMEDY),
    "42704": Meaning(SchemaUnsupported, "create the role, type, extension or other object that the message names"),
    "42804": Meaning(SchemaUnsupported, TABLE_REMEDY),
    "42846": Meaning(SchemaUnsupported, TABLE_REMEDY),
    "428C9": Meaning(SchemaUnsupported, TABLE_REMEDY),
    "42883": Meaning(SchemaUnsupported, "create the function or operator that the message names, or its extension"),
    "42P07": Meaning(PrerequisiteMissing, "drop or rename what is there, or set prepare: truncate or keep"),
    "42710": Meaning(PrerequisiteMissing, "drop or rename what is there"),
    "2BP01": Meaning(SchemaUnsupported, "drop what depends on it, or do without it; then resume the table"),
    "42P10": Meaning(
        SchemaUnsupported, "give the target's table the key of the source's: a primary key or unique index"
    ),
    "42P16": Meaning(SchemaUnsupported),
    "42P17": Meaning(SchemaUnsupported),
    "53100": Meaning(Unavailable, "free disk space on the server"),
    "53300": Meaning(Unavailable, "raise max_connections (and max_wal_senders on the source), or end other sessions"),
    "53400": Meaning(PrerequisiteMissing, SLOTS_REMEDY),
    "54000": Meaning(ValueUnsupported),
    "54011": Meaning(SchemaUnsupported),
    "55006": Meaning(TransientError),
    "55P03": Meaning(TransientError),
    "55P04": Meaning(TransientError),
    "57014": Meaning(TransientError),
    "57P04": Meaning(ConfigInvalid, "the database was dropped: restore it, or name another in the URL"),
}

CLASSES: dict[str, Meaning] = {
    "02": Meaning(OperatorError),
    "03": Meaning(OperatorError),
    "08": Meaning(Unavailable),
    "09": Meaning(ConstraintViolated, "a trigger of the target's table failed: disable it for replication", True),
    "0A": Meaning(SchemaUnsupported),
    "0B": Meaning(OperatorError),
    "0F": Meaning(OperatorError),
    "0L": Meaning(PermissionMissing),
    "0P": Meaning(PermissionMissing),
    "0Z": Meaning(OperatorError),
    "10": Meaning(ValueUnsupported, quotes_values=True),
    "20": Meaning(OperatorError, quotes_values=True),
    "21": Meaning(OperatorError, quotes_values=True),
    "22": Meaning(ValueUnsupported, quotes_values=True),
    "23": Meaning(ConstraintViolated, CONSTRAINT_REMEDY),
    "24": Meaning(OperatorError),
    "25": Meaning(OperatorError),
    "26": Meaning(OperatorError),
    "27": Meaning(ConstraintViolated, quotes_values=True),
    "28": Meaning(PermissionMissing, "check user and password in the URL, and the server's pg_hba.conf"),
    "2B": Meaning(OperatorError),
    "2D": Meaning(OperatorError),
    "2F": Meaning(OperatorError, quotes_values=True),
    "34": Meaning(OperatorError),
    "38": Meaning(OperatorError, quotes_values=True),
    "39": Meaning(OperatorError, quotes_values=True),
    "3B": Meaning(OperatorError),
    "3D": Meaning(ConfigInvalid, "create the database, or name another in the URL"),
    "3F": Meaning(PrerequisiteMissing, "create the schema that the message names"),
    "40": Meaning(TransientError),
    "42": Meaning(OperatorError),
    "44": Meaning(ConstraintViolated, quotes_values=True),
    "53": Meaning(Unavailable),
    "54": Meaning(OperatorError),
    "55": Meaning(OperatorError),
    "57": Meaning(Unavailable),
    "58": Meaning(Unavailable),
    "72": Meaning(SnapshotLost),
    "F0": Meaning(OperatorError),
    "HV": Meaning(OperatorError, quotes_values=True),
    "P0": Meaning(
        ConstraintViolated,
        "mend or disable the trigger, or what it calls, that refuses the row: the server's log has its words",
        True,
    ),
    "XX": Meaning(OperatorError, "the server reports an internal error or damaged data: read its log"),
}

TOO_LARGE = re.compile(r"^out of memory$|exceeds maximum allowed length|invalid memory alloc request size")
"""What the server says of a row that does not fit into a message, or of a value as text that is none any more."""
OVERTAKEN = re.compile(
    r"^tuple concurrently (updated|deleted)$|^cache lookup failed for |^could not open relation with OID "
)
"""What the server says when somebody else altered the same object, or its rights, at the same moment, or dropped it
while it was being looked at."""
SNAPSHOT_FUNCTIONS = {"ImportSnapshot", "SetTransactionSnapshot", "parseIntFromText", "parseXidFromText"}
SLOT_FUNCTIONS = {"ReplicationSlotAcquire", "ReplicationSlotAlter", "StartLogicalReplication", "CreateDecodingContext"}
LOST_SLOT = re.compile(r"can no longer (get changes|access) |has been invalidated|slot .* was invalidated")
LOST_SNAPSHOT = re.compile(r"snapshot \".*\" does not exist|invalid snapshot identifier|import the requested snapshot")
STANDBY = re.compile(r"recovery is in progress")
LOST_WAL = re.compile(r"WAL segment .* has already been removed")
MISSING_SLOT = re.compile(r"replication slot \".*\" does not exist")
MISSING_PUBLICATION = re.compile(r"publication \".*\" does not exist")
REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|role \".*\" (does not exist|is not permitted)"
    r"|is not permitted to log in|permission denied|must be superuser or replication role|certificate"
)
NO_DATABASE = re.compile(r"database \".*\" does not exist")
WAL_LEVEL = re.compile(r"requires wal_level >= logical")
UNREACHABLE = re.compile(r"connection refused|timed? ?out|resolve host|translate host name|unreachable|no route", re.I)
FULL = re.compile(r"too many clients|too many connections|remaining connection slots")
POOLER = re.compile(r"unsupported startup parameter")
NO_TLS = re.compile(r"does not support SSL|invalid sslmode|invalid .* value: ")

POOLER_REMEDY = (
    "a pooler between us and the server refuses what it does not know: let the URL of the source lead to the server"
    " itself, or to PgBouncer 1.23 or newer in session mode, which carries replication; leave `options` out of the URL"
)
RESTART_REMEDY = f"the changes since then are lost: {LOAD_AGAIN}"


def translate(exc: psycopg.Error, side: Side, doing: str = "") -> ReplicationError:
    """Return our error for the driver's; `doing` says in a few words what was tried: "reading shop.orders"."""
    meaning = _meaning(exc, side)
    error = meaning.error
    if error is Unavailable:
        error = SourceUnavailable if side == "source" else TargetUnavailable
    assert issubclass(error, ReplicationError)
    return error(_message(exc, side, doing, meaning.quotes_values), remedy=meaning.remedy)


@contextmanager
def translated(side: Side, doing: str = "") -> Iterator[None]:
    """Raise the driver's errors of the block as ours."""
    try:
        yield
    except psycopg.Error as exc:
        raise translate(exc, side, doing) from exc


def _meaning(exc: psycopg.Error, side: Side) -> Meaning:
    state = exc.sqlstate
    text = exc.diag.message_primary or str(exc)
    function = exc.diag.source_function or ""
    if state is None:
        return _client_meaning(exc, text)
    if function in SNAPSHOT_FUNCTIONS or (state in {"22023", "42704", "55000"} and LOST_SNAPSHOT.search(text)):
        return Meaning(SnapshotLost)
    if state == "55000" and (STANDBY.search(text) or function.startswith("pg_current_wal_")):
        return EXACT["25006"]
    if side == "source":
        if state == "55000" and (LOST_SLOT.search(text) or function in SLOT_FUNCTIONS):
            return Meaning(PositionLost, RESTART_REMEDY)
        if state == "55000" and WAL_LEVEL.search(text):
            return Meaning(PrerequisiteMissing, "alter system set wal_level = logical; then restart the server")
        if state == "58P01" and LOST_WAL.search(text):
            return Meaning(PositionLost, RESTART_REMEDY)
        if state == "42704" and (MISSING_SLOT.search(text) or function == "ReplicationSlotAcquire"):
            return Meaning(PositionLost, RESTART_REMEDY)
        if state == BAD_TEXT:  # rows are read in such a way that we find that out by ourselves
            return Meaning(SchemaUnsupported, NOT_UTF8_REMEDY)
        if state == "42704" and MISSING_PUBLICATION.search(text):
            return Meaning(PrerequisiteMissing, "somebody dropped the publication: " + RESTART_REMEDY)
        if state[:2] in {"P0", "09", "27", "44", "23"}:  # no row is refused by reading
            return Meaning(OperatorError, quotes_values=True)
    if is_row_too_large(exc):
        return Meaning(ValueUnsupported, ROW_TOO_LARGE_REMEDY)
    if state == "XX000" and OVERTAKEN.search(text):
        return Meaning(TransientError)
    # A state that no table knows is one for a person.
    return EXACT.get(state) or CLASSES.get(state[:2]) or Meaning(OperatorError, quotes_values=True)


def with_column_name(message: str, names: Sequence[str]) -> str:
    """Return what the transcoder has said of a value, with the column's name for its number: it knows no names."""
    found = re.match(r"column (\d+): ", message)
    return f"column {names[int(found[1])]}: {message[found.end() :]}" if found else message


def is_row_too_large(exc: psycopg.Error) -> bool:
    """Whether the server could not put a row, or one value of it, together."""
    return exc.sqlstate in {"54000", "XX000"} and bool(TOO_LARGE.search(exc.diag.message_primary or str(exc)))


def _client_meaning(exc: psycopg.Error, text: str) -> Meaning:
    """Judge an error that came without an SQLSTATE: of connecting, of a broken connection, or of the driver."""
    if isinstance(exc, psycopg.OperationalError):
        # libpq does not hand on the SQLSTATE of a refused connection. In another language than English such a
        # refusal counts as passing, and is tried again.
        if NO_DATABASE.search(text):
            return CLASSES["3D"]
        if "walsender" in text or "WAL sender" in text or "replication role" in text:
            if "permission" in text or "must be" in text:
                return Meaning(PermissionMissing, "alter role … replication")
            return Meaning(Unavailable, "raise max_wal_senders on the source")
        if REFUSED.search(text):
            return CLASSES["28"]
        if FULL.search(text):
            return EXACT["53300"]
        if POOLER.search(text):
            return Meaning(ConfigInvalid, POOLER_REMEDY)
        if NO_TLS.search(text):
            return Meaning(ConfigInvalid, "correct sslmode and its companions in the URL")
        if UNREACHABLE.search(text):
            return Meaning(Unavailable, "start the server, or correct its host and port in the URL")
        return Meaning(Unavailable)
    if isinstance(exc, psycopg.InterfaceError) or type(exc) is psycopg.DatabaseError:
        # The latter is what the driver makes of a result that libpq made up itself, when the connection was lost
        # while it waited for the server's.
        return Meaning(Unavailable)
    if isinstance(exc, psycopg.DataError):
        return Meaning(ValueUnsupported, quotes_values=True)
    return Meaning(OperatorError, quotes_values=True)


BAD_TEXT = "22021"

DEPENDED_ON = "2BP01"
"""Its detail names objects, and nothing of any row."""

_LIBPQ_HINT = " Is the server running on that host and accepting TCP/IP connections?"


def _message(exc: psycopg.Error, side: Side, doing: str, quotes_values: bool) -> str:
    diag = exc.diag
    if quotes_values:
        # "InvalidTextRepresentation" says enough
        text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(exc).__name__).lower()
        text += _place(exc)
    elif is_row_too_large(exc):
        text = ROW_TOO_LARGE
    elif side == "source" and exc.sqlstate == BAD_TEXT:
        text = NOT_UTF8
    else:
        text = " ".join((diag.message_primary or str(exc)).split())
        # Of a refused connection libpq asks what our remedy says, and the driver repeats that it failed.
        text = text.removeprefix("connection failed: ").removesuffix(_LIBPQ_HINT)
        if exc.sqlstate == DEPENDED_ON:
            text += ": " + ", ".join((diag.message_detail or "").splitlines())
    state = f" (SQLSTATE {exc.sqlstate})" if exc.sqlstate else ""
    return f"{side}{': ' + doing if doing else ''}: {text}{state}"


def _place(exc: psycopg.Error) -> str:
    """Return where a value was refused, as far as it can be told without the value."""
    diag = exc.diag
    if diag.table_name:
        column = f", column {diag.column_name}" if diag.column_name else ""
        return f" in {diag.schema_name or '?'}.{diag.table_name}{column}"
    # COPY names line and column before the value; a name with a comma is cut there, which is harmless.
    found = re.match(r"COPY ([^\n:]{1,200}?), line (\d+)(?:, column ([^\n:,]{1,200}))?", diag.context or "")
    if found is None:
        return ""
    column = f", column {found[3]}" if found[3] else ""
    return f" in {found[1]}{column}"
