"""Connections that depend on nothing but their URL: settings of the database, the role and the shell don't count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote as percent_encode

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq.abc import PGconn, PGresult

from engines.postgres.quoting import literal
from schemas.errors import ConfigInvalid

Role = Literal["reader", "writer", "control"]

OLDEST, NEWEST = 12, 18

DEFAULTS: Mapping[str, str | int] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # A network that swallows what we send is noticed by this alone: keepalives are not sent while data is under way.
    "tcp_user_timeout": 35_000,
}
"""What the URL may say otherwise."""

SETTINGS: Mapping[str, str] = {
    # how values are written and read as text
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "timezone": "UTC",
    "lc_monetary": "C",
    "xmloption": "content",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    # what names mean: nothing without its schema, and in definitions everything with it
    "search_path": "pg_catalog",
    # what ends a session or a statement that waits on purpose
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read committed",
}
"""Set when a connection is there, they outrank what a database or a role sets; pgoutput's text depends on them too.
Not as start-up options: a pooler in between refuses those, or takes them and drops them without a word."""

LATER_SETTINGS: Mapping[str, int] = {"idle_session_timeout": 140_000, "transaction_timeout": 170_000}
"""Set to 0 as well, where the server's version knows them."""


def connect(url: str, *, role: Role, autocommit: bool = True, application: str) -> psycopg.Connection:
    """Open a connection; raise `psycopg.OperationalError` when there is none to be had, `ConfigInvalid` on a bad URL.

    A reader fails on a table whose row-level security would hide rows, instead of reading fewer.
    """
    own = {"row_security": "off"} if role == "reader" else {}
    connection = psycopg.connect(_conninfo(url, application_name=application), autocommit=True)
    try:
        connection.execute(_settle(connection.info.server_version, own).encode())
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


def replication(url: str, *, application: str = "penstock") -> PGconn:
    """Open a connection that takes replication commands and SQL. The caller ends it with `finish()`."""
    pgconn = pq.PGconn.connect(_conninfo(url, application_name=application, replication="database").encode())
    try:
        if pgconn.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError(pgconn.get_error_message())
        execute(pgconn, _settle(pgconn.server_version, {}))
        if is_sql_ascii(pgconn):
            # Else the server refuses a text that is not UTF-8, and does not say of which table; we do.
            execute(pgconn, "set client_encoding = 'SQL_ASCII'")
    except BaseException:
        pgconn.finish()
        raise
    return pgconn


def is_sql_ascii(pgconn: PGconn) -> bool:
    """Whether the database takes texts in any encoding, and knows of none."""
    return pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII"


def execute(pgconn: PGconn, statement: str) -> list[tuple[str | None, ...]]:
    """Run one statement on a bare connection and return its rows as text; raise the driver's own error."""
    return rows(pgconn.exec_(statement.encode()))


def rows(result: PGresult) -> list[tuple[str | None, ...]]:
    """Return the rows of a bare result as text; raise the driver's own error if it is one."""
    if result.status not in {pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK}:
        raise psycopg.errors.error_from_result(result)
    values = (tuple(result.get_value(row, column) for column in range(result.nfields)) for row in range(result.ntuples))
    return [tuple(None if value is None else value.decode() for value in row) for row in values]


def major(connection: psycopg.Connection) -> int:
    """Return the server's major version."""
    return connection.info.server_version // 10_000


def redact(url: str) -> str:
    """Return a URL for people: user, host, port and database; what can't be told apart from a password is left out."""
    try:
        given = _parse(url)
    except ConfigInvalid:
        return "postgresql://…"
    user = percent_encode(str(given["user"])) + "@" if given.get("user") else ""
    hosts = str(given.get("host") or given.get("hostaddr") or "").split(",")
    ports = str(given.get("port") or "").split(",")
    if len(ports) < len(hosts):
        ports = [*ports, *[ports[-1]] * (len(hosts) - len(ports))]
    places = [
        percent_encode(host, safe=":[]") + (f":{port}" if port else "")
        for host, port in zip(hosts, ports, strict=False)
    ]
    return f"postgresql://{user}{','.join(places)}/{percent_encode(str(given.get('dbname') or ''))}"


def _conninfo(url: str, **fixed: str) -> str:
    merged: dict[str, Any] = {**DEFAULTS, **_parse(url), **fixed, "client_encoding": "UTF8"}
    return make_conninfo("", **merged)


def _parse(url: str) -> dict[str, Any]:
    """Split a URL. libpq's own messages quote pieces of it, which may be a password with unescaped signs."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        given = {}
    hosts = str(given.get("host") or "")
    database = str(given.get("dbname") or "")
    ports = str(given.get("port") or "")
    if not given or "@" in hosts or "@" in database or not all(p.isdigit() for p in ports.split(",") if p):
        raise ConfigInvalid(
            "the database URL can't be read",
            remedy="write postgresql://user:password@host:port/database,"
            " with / @ : ? # and % in a password percent-encoded",
        )
    return given


def _settle(version: int, own: Mapping[str, str]) -> str:
    """Return the statement that sets everything of ours, in one round trip."""
    later = {name: "0" for name, since in LATER_SETTINGS.items() if version >= since}
    settings = {**SETTINGS, **later, **own}.items()
    return "select " + ", ".join(
        f"pg_catalog.set_config({literal(name)}, {literal(value)}, false)" for name, value in settings
    )
