"""The pipeline file: what a user writes, checked before anything is touched."""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr

from schemas.table import TableId


class Mode(StrEnum):
    """What a pipeline does."""

    LOAD = "load"
    CHANGES = "changes"
    LOAD_AND_CHANGES = "load-and-changes"


class Prepare(StrEnum):
    """What becomes of a target's tables before the load."""

    CREATE = "create"
    TRUNCATE = "truncate"
    DROP_AND_CREATE = "drop-and-create"
    KEEP = "keep"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSettings(_Model):
    url: SecretStr


class TargetSettings(_Model):
    name: str
    url: SecretStr
    prepare: Prepare = Prepare.CREATE
    tables: tuple[str, ...] = ()


class Pipeline(_Model):
    """One source, its tables, and the targets they go to."""

    pipeline: str
    source: SourceSettings
    tables: tuple[str, ...] = ("*.*",)
    log: str | None = None
    state: Path = Path(".penstock")
    mode: Mode = Mode.LOAD_AND_CHANGES
    targets: tuple[TargetSettings, ...]

    def chooses(self, table: TableId) -> bool:
        """Whether the table belongs to the pipeline."""
        return matches(table, self.tables)


def matches(table: TableId, patterns: tuple[str, ...]) -> bool:
    """Whether `schema.table` fits a pattern and none of the excluding ones (`!…`); the order does not matter."""
    name = str(table)
    wanted = [p for p in patterns if not p.startswith("!")] or ["*.*"]
    return any(fnmatchcase(name, p) for p in wanted) and not any(
        fnmatchcase(name, p[1:]) for p in patterns if p.startswith("!")
    )
