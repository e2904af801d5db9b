"""Errors: the first level is what a loop does with them.

ReplicationError
├── TransientError      retry from the same position, with back-off
│   ├── SourceUnavailable
│   ├── TargetUnavailable
│   ├── LogUnavailable
│   ├── WriteConflict       another owner moved the stored progress: look again
│   └── SnapshotLost        the exported snapshot is gone: go on in a new one
├── OperatorError       stop the task and show `.remedy`
│   ├── ConfigInvalid
│   ├── PermissionMissing
│   ├── PrerequisiteMissing
│   ├── PositionLost
│   ├── LogRewound
│   ├── ReplicaIdentityMissing
│   └── SchemaUnsupported
├── RowError            set the row aside where allowed, else stop its table
│   ├── ValueUnsupported
│   └── ConstraintViolated
└── IntegrityError      stop the process: something that must not happen has happened
    ├── DecodeError
    ├── OrderViolated
    ├── GapDetected
    └── Superseded          another incarnation of this service took over

An error that no driver mapping classifies is an `OperatorError`: a person has to look.
"""

from __future__ import annotations

LOAD_AGAIN = "`penstock drop` the pipeline, and run it again with prepare: drop-and-create"
"""The remedy, or its last part, where what is at a target can't be brought up to date any more."""

RELOAD = "load the table anew: `penstock reload FILE {table}`"
"""The same for one table: its name is put in."""

LOAD_TABLE_AGAIN = "when the cause is mended, load the table anew: `penstock reload`"
"""The same for one table of many, where it is named."""


class ReplicationError(Exception):
    """Base of every error that Penstock raises on purpose.

    `remedy` says what a person can do: a statement, a setting, a command. It is empty where the program itself
    acts (retries, another table goes on). Neither the message nor the remedy may hold a secret or a row's values
    beyond its key.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class TransientError(ReplicationError):
    """May pass by itself: try again from the same position."""


class SourceUnavailable(TransientError):
    """The source can't be reached, or cut the connection."""


class TargetUnavailable(TransientError):
    """The target can't be reached, or cut the connection; whether the last commit took effect is unknown."""


class LogUnavailable(TransientError):
    """The log can't be reached, or is at its disk budget."""


class WriteConflict(TransientError):
    """The progress stored in the target is not what this worker last saw: another owner went on."""


class SnapshotLost(TransientError):
    """The exported snapshot can't be imported any more."""


class OperatorError(ReplicationError):
    """A person has to act; `remedy` says how."""


class ConfigInvalid(OperatorError):
    """The pipeline file is wrong; the message begins with file and line."""


class PermissionMissing(OperatorError):
    """A grant or a membership is missing."""


class PrerequisiteMissing(OperatorError):
    """A setting, an extension or an object that the pipeline needs is missing."""


class PositionLost(OperatorError):
    """The source has dropped history that the log does not hold."""


class LogRewound(OperatorError):
    """The log is not the one that progress was made in, or has lost its tail."""


class ReplicaIdentityMissing(OperatorError):
    """Updates and deletes of a table can't be told apart by row."""


class SchemaUnsupported(OperatorError):
    """A table, or a change of its definition, can't be carried to the target."""


class RowError(ReplicationError):
    """One row is refused; others go on."""


class ValueUnsupported(RowError):
    """A value has no lossless form in the log or on the target."""


class ConstraintViolated(RowError):
    """The target's constraints refuse a row that the source had."""


class IntegrityError(ReplicationError):
    """An invariant does not hold: stop at once, write nothing more."""


class DecodeError(IntegrityError):
    """Bytes are not what their format says."""


class OrderViolated(IntegrityError):
    """Records came in another order than was promised."""


class GapDetected(IntegrityError):
    """Records that were promised are missing."""


class Superseded(IntegrityError):
    """A newer incarnation of this service has claimed its place; this one must stop without another effect."""
