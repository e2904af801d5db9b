"""The pipeline file: what a user writes, checked before anything is touched."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from schemas import config
from schemas.errors import ConfigInvalid
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


class OnRowError(StrEnum):
    """What becomes of a row that a target refuses."""

    PAUSE_TABLE = "pause-table"
    SET_ASIDE = "set-aside"  # it goes to the dead letters, and what follows under its key waits behind it


class Ddl(StrEnum):
    """What becomes of a table of a target whose definition was changed at the source."""

    APPLY = "apply"  # the same is done to it
    IGNORE = "ignore"  # it stays as it is; columns that it lacks are left out
    PAUSE_TABLE = "pause-table"  # it waits until somebody has done the same


@dataclass(frozen=True, slots=True)
class TablePolicy:
    """What is done with one table of one target, where there is a choice."""

    on_row_error: OnRowError = OnRowError.PAUSE_TABLE
    ddl: Ddl = Ddl.APPLY


WILDCARDS = frozenset("*?[")

_SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


def size(text: object) -> int:
    """Return the bytes that `20GB` says. Raises `ValueError` without a unit that is known."""
    match = _QUANTITY.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or match[2].upper() not in _SIZES:
        raise ValueError("a size is a number with its unit: 500MB, 20GB, 1TB (or MiB, GiB, TiB)")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def duration(text: object) -> float:
    """Return the seconds that `10s` says. Raises `ValueError` without a unit that is known."""
    match = _QUANTITY.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or match[2] not in _DURATIONS:
        raise ValueError("a duration is a number with its unit: 500ms, 10s, 5min, 2h, 1d")
    return float(match[1]) * _DURATIONS[match[2]]


Size = Annotated[int, BeforeValidator(size)]
Duration = Annotated[float, BeforeValidator(duration)]


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


class _Model(BaseModel):
    # Messages must not repeat what was written: it may be a secret.
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, alias_generator=_hyphens, populate_by_name=True
    )


def _database_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError("this is not a URL: postgresql://user@host:port/database") from None
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ValueError("only postgresql://user@host:port/database is known here")
    if not parts.path.strip("/"):
        raise ValueError("the URL names no database: postgresql://user@host:port/database")
    return url


class AtBudget(StrEnum):
    """What follows when a source keeps as much of its log for a pipeline as it may."""

    WARN = "warn"
    RELEASE = "release"


class SourceSettings(_Model):
    url: SecretStr
    wal_budget: Size | None = None  # of the source's log that may be kept for the pipeline; None: no limit
    at_wal_budget: AtBudget = AtBudget.WARN

    @model_validator(mode="after")
    def _a_budget_to_come_to(self) -> SourceSettings:
        if self.at_wal_budget is not AtBudget.WARN and self.wal_budget is None:
            raise ValueError("at-wal-budget is for a wal-budget, which is missing here: wal-budget: 50GB")
        return self

    _url = field_validator("url")(_database_url)


class Choices(_Model):
    """What a file may say of tables; `TablePolicy` has the same fields, and what holds where nothing is said."""

    on_row_error: OnRowError | None = None
    ddl: Ddl | None = None


class Rule(Choices):
    """What a file says of the tables that fit."""

    tables: tuple[str, ...] = Field(min_length=1)


class _Chooses(Choices):
    """A place of the file that says something of all its tables, and of some of them by rules."""

    rules: tuple[Rule, ...] = ()

    def said_of(self, table: TableId) -> Iterator[Choices]:
        """Yield what is said of a table; the last word counts."""
        yield self
        yield from (rule for rule in self.rules if matches(table, rule.tables))


class TargetSettings(_Chooses):
    name: str = Field(pattern=r"^[a-z0-9_-]{1,40}$")
    url: SecretStr
    prepare: Prepare = Prepare.CREATE
    tables: tuple[str, ...] = ()
    # Of tables that are made here:
    views: bool = False
    owners: bool = False
    grants: bool = False

    _url = field_validator("url")(_database_url)


class LogSettings(_Model):
    """Where the log is. In the file either its address alone or a mapping."""

    url: str | None = None
    replication_factor: int | None = Field(default=None, ge=1)
    settings: Mapping[str, SecretStr] = {}  # librdkafka's own
    budget: Size = 20 * 10**9  # of the files of the embedded log
    deadline: Duration = 60.0  # for the log to answer

    @field_validator("url")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        if url is None or url.removesuffix("//") == "sqlite:":
            return None
        if not re.fullmatch(r"kafka://[^\s/,:@]+(:\d+)?(,[^\s/,:@]+(:\d+)?)*/?", url):
            raise ValueError("a log is kafka://host:port,host:port, or left out for files under the state folder")
        return url

    @model_validator(mode="after")
    def _one_kind(self) -> LogSettings:
        if self.url is None and (self.settings or self.replication_factor):
            raise ValueError("replication-factor and settings are for kafka://…, which is missing here")
        return self

    def plain_settings(self) -> dict[str, str]:
        """Return librdkafka's settings with their secrets, to be handed on and never printed."""
        return {name: value.get_secret_value() for name, value in self.settings.items()}


class Workers(_Model):
    """How many processes `penstock run` starts for each kind of work; by default as many as the machine can use.

    By default one apply worker follows the changes, and the others help to load. If a number is given, all of them
    share the groups of tables; then tables that no foreign key ties together may be as of different moments.
    """

    snapshot: int | None = Field(default=None, ge=1, le=16)
    apply: int | None = Field(default=None, ge=1, le=64)  # for each target


def _address_or_mapping(value: object) -> object:
    return {"url": value} if value is None or isinstance(value, str) else value


class Pipeline(_Chooses):
    """One source, its tables, and the targets they go to."""

    pipeline: str = Field(pattern=r"^[a-z0-9_]{1,40}$")
    source: SourceSettings
    tables: tuple[str, ...] = Field(default=("*.*",), min_length=1)
    log: Annotated[LogSettings, BeforeValidator(_address_or_mapping)] = LogSettings()
    state: Path = Path(".penstock")
    mode: Mode = Mode.LOAD_AND_CHANGES
    workers: Workers = Workers()
    targets: tuple[TargetSettings, ...] = Field(min_length=1)

    _lines: _Lines | None = PrivateAttr(default=None)

    def chooses(self, table: TableId) -> bool:
        """Whether the table belongs to the pipeline."""
        return matches(table, self.tables)

    def target(self, name: str) -> TargetSettings:
        """Return the target of that name. Raises `ConfigInvalid` if there is none."""
        for target in self.targets:
            if target.name == name:
                return target
        names = ", ".join(target.name for target in self.targets)
        raise ConfigInvalid(f"{self.where('targets')}there is no target {name!r}", remedy=f"one of {names}")

    def policies(self, target: str) -> Callable[[TableId], TablePolicy]:
        """Return what says how a target's tables are dealt with: what the file says of all targets, then what it says
        of this one, and in both what it says of all tables before its rules, in their order; the last word counts."""
        places = (self, self.target(target))

        def policy(table: TableId) -> TablePolicy:
            found = TablePolicy()
            for place in places:
                for choices in place.said_of(table):
                    said = {field.name: getattr(choices, field.name) for field in fields(TablePolicy)}
                    found = replace(found, **{name: choice for name, choice in said.items() if choice is not None})
            return found

        return policy

    def where(self, *path: str | int) -> str:
        """Return `file:line: ` of a value in the file, or of the nearest that stands there; empty without a file."""
        return self._lines.where(path) if self._lines else ""

    def require_matches(self, tables: Iterable[TableId]) -> None:
        """Raise `ConfigInvalid` with file and line for a pattern that none of the source's tables fits, unless it may
        be for tables to come: see `awaited`."""
        names = [str(table) for table in tables]
        for where, pattern, may_come in self._unfit(names):
            if not may_come:
                raise ConfigInvalid(
                    f"{where}no table fits {pattern!r}",
                    remedy="write schema.table, with * and ? as wildcards; the role must have USAGE on the schema",
                )
        if not any(matches_name(name, self.tables) for name in names):
            raise ConfigInvalid(f"{self.where('tables')}no table is chosen")

    def awaited(self, tables: Iterable[TableId]) -> list[str]:
        """Return, for people, with file and line, the patterns that so far none of the source's tables fits."""
        return [
            f"{where}no table fits {pattern!r} yet"
            for where, pattern, may_come in self._unfit([str(table) for table in tables])
            if may_come
        ]

    def _unfit(self, names: list[str]) -> Iterator[tuple[str, str, bool]]:
        """Yield where patterns stand that none of these names fits, these, and whether they may be for tables to come.

        One may if it has a wildcard, and is in a rule, or beside another pattern that some table fits: with a single
        wrong one nothing would be copied at all.
        """
        chosen = [name for name in names if matches_name(name, self.tables)]
        lists: list[tuple[tuple[str | int, ...], tuple[str, ...], list[str]]] = [(("tables",), self.tables, names)]
        lists += [(("rules", i, "tables"), rule.tables, chosen) for i, rule in enumerate(self.rules)]
        for i, target in enumerate(self.targets):
            lists.append((("targets", i, "tables"), target.tables, chosen))
            its = [name for name in chosen if matches_name(name, target.tables)]
            lists += [(("targets", i, "rules", j, "tables"), rule.tables, its) for j, rule in enumerate(target.rules)]
        for path, patterns, candidates in lists:
            # One that excludes may guard against tables that come and go.
            fits = {
                i: any(fnmatchcase(name, pattern) for name in candidates)
                for i, pattern in enumerate(patterns)
                if not pattern.startswith("!")
            }
            enough = self.mode is Mode.LOAD_AND_CHANGES and ("rules" in path or any(fits.values()))
            for i in (i for i, fit in fits.items() if not fit):
                yield self.where(*path, i), patterns[i], enough and not WILDCARDS.isdisjoint(patterns[i])


def matches(table: TableId, patterns: tuple[str, ...]) -> bool:
    """Whether `schema.table` fits a pattern and none of the excluding ones (`!…`); the order does not matter."""
    return matches_name(str(table), patterns)


def matches_name(name: str, patterns: tuple[str, ...]) -> bool:
    """`matches` for a name that is put together already."""
    wanted = [p for p in patterns if not p.startswith("!")] or ["*.*"]
    return any(fnmatchcase(name, p) for p in wanted) and not any(
        fnmatchcase(name, p[1:]) for p in patterns if p.startswith("!")
    )


# ------------------------------------------------------------------------------------------------- the file

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_ROOT: tuple[str | int, ...] = ()


class _Lines:
    """Where each key and item of a file stands."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines: dict[tuple[str | int, ...], int] = {_ROOT: 1}

    def note(self, path: tuple[str | int, ...], line: int) -> None:
        self._lines[path] = line

    def where(self, path: tuple[str | int, ...]) -> str:
        while path not in self._lines:
            path = path[:-1]
        return f"{self._file}:{self._lines[path]}: "


def load_pipeline(path: Path, variables: Mapping[str, str] | None = None) -> Pipeline:
    """Read and check a pipeline file.

    `${NAME}` in any value is replaced by the environment variable. A relative `state` is beside the file. Raises
    `ConfigInvalid`, whose message begins with file and line, and never holds a value that may be secret.
    """
    lines = _Lines(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigInvalid(f"{path} can't be read: {why}", remedy="give the path of a pipeline file") from None
    try:
        data = _read(text, lines, config.environment() if variables is None else variables)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigInvalid(f"{path}:{line}: this is not YAML: {error.problem}", remedy="mend the line") from None
    except yaml.YAMLError:
        raise ConfigInvalid(f"{path}:1: this is not YAML", remedy="mend the file") from None
    except RecursionError:  # nested without end, or by an alias within its own anchor
        raise ConfigInvalid(f"{path}:1: values are nested too deeply", remedy="mend the file") from None
    if not isinstance(data, dict):
        raise ConfigInvalid(f"{path}:1: a pipeline file has keys: pipeline, source, targets", remedy="see the README")
    try:
        pipeline = Pipeline.model_validate(data)
    except ValidationError as error:
        raise _first(error, lines) from None
    seen: set[str] = set()
    for i, target in enumerate(pipeline.targets):
        if target.name in seen:
            raise ConfigInvalid(
                f"{lines.where(('targets', i, 'name'))}a second target is named {target.name!r}",
                remedy="give each target a name of its own: its progress is kept under it",
            )
        seen.add(target.name)
    pipeline = pipeline.model_copy(update={"state": path.absolute().parent / pipeline.state})
    pipeline._lines = lines
    return pipeline


_DEEPEST = 32
"""More than any pipeline file needs. An alias within its own anchor has no end, and time goes with its square."""


def _read(text: str, lines: _Lines, variables: Mapping[str, str]) -> Any:
    """Return what a file says as plain Python values. Raises `YAMLError`, `RecursionError` or `ConfigInvalid`."""
    loader = yaml.SafeLoader(text)
    try:
        return _plain(loader, loader.get_single_node(), _ROOT, lines, variables)
    finally:
        loader.dispose()


def _plain(
    loader: yaml.SafeLoader,
    node: yaml.Node | None,
    path: tuple[str | int, ...],
    lines: _Lines,
    variables: Mapping[str, str],
) -> Any:
    """Return a node as plain Python values and note where everything stands."""
    if node is None:
        return None
    if len(path) > _DEEPEST:
        raise RecursionError
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            lines.note((*path, key), line)
            if key in found:
                raise ConfigInvalid(f"{lines.where((*path, key))}{key!r} is given twice", remedy="keep one")
            found[key] = _plain(loader, value_node, (*path, key), lines, variables)
        return found
    if isinstance(node, yaml.SequenceNode):
        items = []
        for i, item in enumerate(node.value):
            lines.note((*path, i), item.start_mark.line + 1)
            items.append(_plain(loader, item, (*path, i), lines, variables))
        return items
    try:
        value = loader.construct_object(node)
    except ValueError as error:  # what looks like a date and is none
        raise ConfigInvalid(f"{lines.where(path)}{error}", remedy="put the value into quotes") from None
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _variable(match[1], lines.where(path), variables), value)
    return value


def _variable(name: str, where: str, variables: Mapping[str, str]) -> str:
    if name not in variables:
        raise ConfigInvalid(f"{where}the environment variable {name!r} is not set", remedy=f"export {name}=…")
    return variables[name]


def _first(error: ValidationError, lines: _Lines) -> ConfigInvalid:
    """Return what is wrong, told for the first place in the file, without the value itself."""
    problems = list(_problems(error))
    # Unknown keys first: they are most often the cause of what is missing.
    problems.sort(key=lambda problem: problem[0] != "extra_forbidden")
    kind, path, message, context = problems[0]
    key = ".".join(str(part) for part in path if isinstance(part, str)) or "the file"
    where = lines.where(path)
    if kind == "extra_forbidden":
        known = ", ".join(_keys(path[:-1]))
        return ConfigInvalid(f"{where}unknown key {path[-1]!r}", remedy=f"known here: {known}")
    if kind == "missing":
        return ConfigInvalid(f"{where}{path[-1]!r} is missing", remedy="add it")
    if kind == "enum":
        return ConfigInvalid(f"{where}{key} can't be that", remedy=f"one of {context.get('expected', '')}")
    if kind == "tuple_type":
        return ConfigInvalid(f"{where}{key} has to be a list", remedy='write it as one: ["public.*", "!public.tmp_*"]')
    if kind == "string_pattern_mismatch":
        return ConfigInvalid(
            f"{where}{key} is not a name that can be used",
            remedy="1 to 40 of a-z, 0-9 and _: it becomes part of the names of slot and topics"
            if path == ("pipeline",)
            else "1 to 40 of a-z, 0-9, _ and -",
        )
    return ConfigInvalid(f"{where}{key}: {message.removeprefix('Value error, ')}", remedy="mend the line")


def _problems(error: ValidationError) -> Iterator[tuple[str, tuple[str | int, ...], str, Mapping[str, Any]]]:
    for problem in error.errors(include_input=False, include_url=False):
        yield problem["type"], problem["loc"], problem["msg"], problem.get("ctx", {})


def _keys(path: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the file may have at `path`."""
    models: dict[str, type[BaseModel]] = {
        "source": SourceSettings,
        "targets": TargetSettings,
        "log": LogSettings,
        "workers": Workers,
        "rules": Rule,
    }
    # The innermost name tells, whatever number of a list it stands under.
    names = [name for name in path if isinstance(name, str)]
    model = models.get(names[-1], Pipeline) if names else Pipeline
    return [_hyphens(name) for name in model.model_fields]
