"""Errors of the driver become ours: every class of them, and none with a value or a password in it."""

from __future__ import annotations

import inspect

import psycopg
import pytest

from engines.postgres.errors import CLASSES, EXACT, translate, translated
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

STATES = sorted(
    {
        cls.sqlstate
        for _, cls in inspect.getmembers(psycopg.errors, inspect.isclass)
        if issubclass(cls, psycopg.Error) and cls.sqlstate
    }
)


def error(state: str, message: str = "something") -> psycopg.Error:
    return psycopg.errors.lookup(state)(message)


def test_every_class_of_sqlstate_that_the_driver_knows_is_mapped() -> None:
    assert {state[:2] for state in STATES} - CLASSES.keys() == set()


def test_exact_states_are_ones_that_the_driver_knows() -> None:
    assert EXACT.keys() - set(STATES) == set()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("side", ["source", "target"])
def test_every_state_becomes_an_error_of_the_first_level(state: str, side: str) -> None:
    ours = translate(error(state), side, "trying")  # type: ignore[arg-type]
    assert type(ours) is not ReplicationError
    assert str(ours).startswith(f"{side}: trying: ")
    assert state in str(ours)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("08006", TargetUnavailable),
        ("22003", ValueUnsupported),
        ("23505", ConstraintViolated),
        ("23P01", ConstraintViolated),
        ("28P01", PermissionMissing),
        ("3D000", ConfigInvalid),
        ("3F000", PrerequisiteMissing),
        ("40001", TransientError),
        ("40P01", TransientError),
        ("42501", PermissionMissing),
        ("42703", SchemaUnsupported),
        ("42P01", SchemaUnsupported),
        ("53100", TargetUnavailable),
        ("53300", TargetUnavailable),
        ("53400", PrerequisiteMissing),
        ("55P03", TransientError),
        ("57014", TransientError),
        ("57P01", TargetUnavailable),
        ("57P03", TargetUnavailable),
        ("XX001", OperatorError),
        ("P0001", ConstraintViolated),
    ],
)
def test_states_of_a_target(state: str, expected: type[ReplicationError]) -> None:
    assert type(translate(error(state), "target")) is expected


@pytest.mark.parametrize(
    ("state", "message", "expected"),
    [
        ("22023", 'invalid snapshot identifier: "0000-1"', SnapshotLost),
        ("42704", 'snapshot "00000003-00000002-9" does not exist', SnapshotLost),
        ("55000", "could not import the requested snapshot", SnapshotLost),
        ("72000", "snapshot too old", SnapshotLost),
        ("55000", 'can no longer get changes from replication slot "s"', PositionLost),
        ("55000", 'can no longer access replication slot "s"', PositionLost),
        ("42704", 'replication slot "s" does not exist', PositionLost),
        ("58P01", "requested WAL segment 000000010000000000000001 has already been removed", PositionLost),
        ("42704", 'publication "p" does not exist', PrerequisiteMissing),
        ("55006", 'replication slot "s" is active for PID 1', TransientError),
        ("57P01", "terminating connection due to administrator command", SourceUnavailable),
        ("23505", "a row is never refused by reading", OperatorError),
    ],
)
def test_states_of_a_source(state: str, message: str, expected: type[ReplicationError]) -> None:
    translated = translate(error(state, message), "source")
    assert type(translated) is expected
    assert (LOAD_AGAIN in translated.remedy) == (expected in {PositionLost, PrerequisiteMissing})


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("server closed the connection unexpectedly", TargetUnavailable),
        ('FATAL:  password authentication failed for user "u"', PermissionMissing),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1"', PermissionMissing),
        ('FATAL:  role "u" does not exist', PermissionMissing),
        ('FATAL:  database "d" does not exist', ConfigInvalid),
        ("FATAL:  sorry, too many clients already", TargetUnavailable),
        ("FATAL:  unsupported startup parameter: replication", ConfigInvalid),
        ("FATAL:  permission denied to start WAL sender", PermissionMissing),
        ("server does not support SSL, but SSL was required", ConfigInvalid),
    ],
)
def test_refused_connections_have_no_state_and_are_told_apart_by_their_message(
    message: str, expected: type[ReplicationError]
) -> None:
    assert type(translate(psycopg.OperationalError(message), "target")) is expected


def test_a_closed_connection_is_passing_and_an_impossible_value_is_not() -> None:
    assert type(translate(psycopg.InterfaceError("the connection is closed"), "target")) is TargetUnavailable
    assert type(translate(psycopg.DataError("text can't contain NUL"), "target")) is ValueUnsupported
    assert type(translate(psycopg.ProgrammingError("odd"), "target")) is OperatorError


def test_a_connection_that_is_lost_while_a_result_is_awaited_is_passing() -> None:
    """libpq then makes up a result of its own, without an SQLSTATE, and the driver has no class for that."""
    lost = psycopg.errors.error_from_result(psycopg.pq.PGconn.connect_start(b"").make_empty_result(7))
    assert type(lost) is psycopg.DatabaseError
    assert type(translate(lost, "target")) is TargetUnavailable
    assert type(translate(lost, "source")) is SourceUnavailable


def test_values_that_the_server_quotes_are_not_repeated() -> None:
    for state in ("22P02", "22003", "42601", "P0001", "21000", "38000"):
        assert "secret" not in str(translate(error(state, 'invalid value: "secret"'), "target"))


def test_an_unknown_state_is_for_a_person() -> None:
    class Unheard(psycopg.Error):
        sqlstate = "ZZ123"

    assert type(translate(Unheard("secret"), "source")) is OperatorError
    assert "secret" not in str(translate(Unheard("secret"), "source"))


@pytest.mark.parametrize(
    "message",
    [
        "tuple concurrently updated",
        "tuple concurrently deleted",
        "cache lookup failed for index 16423",
        "could not open relation with OID 16423",
    ],
)
def test_to_be_overtaken_by_others_is_to_try_again(message: str) -> None:
    assert type(translate(error("XX000", message), "target")) is TransientError
    assert type(translate(error("XX000", "invalid page in block 7"), "target")) is OperatorError


def test_the_drivers_error_stays_the_cause() -> None:
    cause = error("40001")
    with pytest.raises(TransientError) as caught, translated("target", "writing"):
        raise cause
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("54000", "out of memory"),
        ("54000", "string buffer exceeds maximum allowed length (1073741823 bytes)"),
        ("XX000", "invalid memory alloc request size 1132462140"),
    ],
)
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_row_that_no_message_can_hold_is_one_to_make_smaller(state: str, message: str, side: str) -> None:
    ours = translate(error(state, message), side, "reading shop.films")  # type: ignore[arg-type]
    assert isinstance(ours, ValueUnsupported)
    assert str(ours).startswith(f"{side}: reading shop.films: a row has more than the 1 GB that PostgreSQL can send or")
    assert "leave the table out" in ours.remedy
    assert not isinstance(translate(error("53200", "out of memory"), "source"), ValueUnsupported)
