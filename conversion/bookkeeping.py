"""What a target remembers, as tables of its schema `penstock`, for every database in the same way.

Only what makes them is here: the statements that read and change them are each engine's own. To import SQLAlchemy
takes longer than a whole small load, so no service does: `python -m conversion` writes what it makes of these tables
to `bookkeeping.<product>.sql`, from where `conversion.stored` takes it, and a test keeps the files true.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.mysql import LONGBLOB, TIMESTAMP
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateSchema, CreateTable, ExecutableDDLElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

SCHEMA = "penstock"

# MySQL has no keys of unlimited text, and by default compares `A` and `a` as equal.
NAME = Text().with_variant(String(64, collation="utf8mb4_bin"), "mysql")
BYTES = LargeBinary().with_variant(LONGBLOB(), "mysql")
MOMENT = DateTime(timezone=True).with_variant(TIMESTAMP(fsp=6), "mysql")


class _clock(FunctionElement[Any]):
    """The time of day, also within a transaction."""

    inherit_cache = True


@compiles(_clock)
def _standard(element: _clock, compiler: SQLCompiler, **options: Any) -> str:
    return "CURRENT_TIMESTAMP(6)"


@compiles(_clock, "postgresql")
def _postgres(element: _clock, compiler: SQLCompiler, **options: Any) -> str:
    return "clock_timestamp()"  # the other one is when the transaction began


def _key(name: str, kind: Any = NAME) -> Column[Any]:
    return Column(name, kind, primary_key=True)


def _value(name: str, kind: Any, default: Any = None) -> Column[Any]:
    return Column(name, kind, nullable=False, server_default=default)


def _place() -> list[Column[Any]]:
    """Return what says how far a group or table has come in the log."""
    return [_value(name, BigInteger) for name in ("frontier", "epoch", "position", "commit_time", "captured_at")]


TABLES = MetaData(schema=SCHEMA)

Table(
    "pipelines",
    TABLES,
    _key("pipeline"),
    _value("log", Text),
    _value("created_at", MOMENT, _clock()),
)

Table(
    "progress",
    TABLES,
    _key("pipeline"),
    _key("grp", Integer),
    *_place(),
    _value("roster", BigInteger),
    _value("updated_at", MOMENT, _clock()),
    # One row for each group, changed in every transaction: room for new versions beside the old ones keeps them in
    # place.
    postgresql_with={"fillfactor": 20, "autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 2000},
)

Table(
    "tables",
    TABLES,
    _key("pipeline"),
    _key("table_schema"),
    _key("table_name"),
    _value("grp", Integer),
    _value("state", Text),
    _value("schema_id", BigInteger),
    _value("generation", Integer),
    *_place(),
    _value("snapshot", BigInteger),
    _value("rows_loaded", BigInteger),
    _value("changes", BigInteger),
    _value("made", Boolean),
    _value("tied", Boolean),
    _value("error", Text),
    _value("remedy", Text),
    _value("stopped_in", Text),
    _value("command", BigInteger),
    _value("roster", BigInteger, text("0")),
    _value("updated_at", MOMENT, _clock()),
    postgresql_with={"fillfactor": 50, "autovacuum_vacuum_scale_factor": 0.1, "autovacuum_vacuum_threshold": 2000},
)

Table(
    "chunks",
    TABLES,
    _key("pipeline"),
    _key("table_schema"),
    _key("table_name"),
    _key("generation", Integer),
    _key("chunk", Integer),
    _value("rows_loaded", BigInteger),
    _value("loaded_at", MOMENT, _clock()),
)

# Letters are few, so what is wanted of them is found without an index.
Table(
    "dead_letters",
    TABLES,
    Column("number", BigInteger, primary_key=True, autoincrement=True),
    _key("pipeline"),
    _value("table_schema", NAME),
    _value("table_name", NAME),
    _value("schema_id", BigInteger),
    _value("op", Text),
    _value("position", BigInteger),
    _value("xid", BigInteger),
    _value("ordinal", BigInteger),
    _value("commit_time", BigInteger),
    _value("key_text", Text),
    _value("key_bytes", BYTES),
    Column("origin_bytes", BYTES),
    _value("row_change", BYTES),
    _value("cause", Text),
    _value("remedy", Text),
    _value("set_aside_at", MOMENT, _clock()),
)


def create_statements(product: str) -> list[str]:
    """Return what makes the schema and its tables on `postgresql` or `mysql`, as far as they are not there."""
    dialect: Dialect = registry.load(product)()
    made: list[ExecutableDDLElement] = [CreateSchema(SCHEMA, if_not_exists=True)]
    made += [CreateTable(table, if_not_exists=True) for table in TABLES.tables.values()]
    return [str(statement.compile(dialect=dialect)) for statement in made]
