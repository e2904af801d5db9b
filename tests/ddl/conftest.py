"""A pipeline that follows a source whose tables are altered."""

import contextlib
import subprocess

import psycopg

from engines.postgres import replication
from engines.postgres.connect import connect
from tests.e2e.conftest import Project, simple

__all__ = ["Followed", "simple"]

BEHIND = """
select count(*)
from penstock.progress p
where p.position < %s
  and exists (select from penstock.tables t where t.pipeline = p.pipeline and t.grp = p.grp and t.state = 'live')
"""
UNSETTLED = "select count(*) from penstock.tables where state in ('waiting', 'loading', 'indexing', 'catching-up')"
TABLES = "select count(*) from penstock.tables"
STATES = "select table_name, state, error, remedy from penstock.tables where pipeline = %s"


COLUMNS = """
select a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
from pg_attribute a
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""


class Followed:
    """A project that runs, its source, and its target."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.run: subprocess.Popen[str] | None = None

    def start(self, more_targets: str = "") -> None:
        self.project.write(more_targets=more_targets)
        self.run = self.project.start("run", str(self.project.file))

    def stop(self) -> None:
        assert self.run is not None
        self.run.terminate()
        self.run.wait(30)

    def do(self, *statements: str) -> None:
        """Run statements at the source, each a transaction of its own."""
        with psycopg.connect(self.project.source, autocommit=True) as source:
            for statement in statements:
                source.execute(statement.encode())

    def sync(self, target: str = "") -> None:
        """Wait until a target has all that is committed at the source."""
        with contextlib.closing(connect(self.project.source, role="control", application="test")) as source:
            position = replication.emit_message(source, "test", "")
        with psycopg.connect(target or self.project.target, autocommit=True) as connection:

            def count(query: str, *values: object) -> int:
                try:
                    row = connection.execute(query.encode(), values or None).fetchone()
                except psycopg.errors.UndefinedTable:
                    return -1
                assert row is not None
                return int(row[0])

            def there() -> bool:
                return count(TABLES) > 0 and count(UNSETTLED) == 0 and count(BEHIND, position) == 0

            self.project.wait_until("what is committed at the source", there, self.run)

    def states(self, target: str = "") -> dict[str, tuple[str, str, str]]:
        """Return the state of each table, and its error and remedy."""
        with psycopg.connect(target or self.project.target, autocommit=True) as connection:
            try:
                return {name: tuple(rest) for name, *rest in connection.execute(STATES, [self.project.name])}
            except psycopg.errors.UndefinedTable:
                return {}

    def captured(self, capture: subprocess.Popen[str]) -> None:
        """Wait until all that is committed at the source is in the log."""
        with contextlib.closing(connect(self.project.source, role="control", application="test")) as source:
            position = replication.emit_message(source, "test", "")

            def there() -> bool:
                state = replication.slot_state(source, f"penstock_{self.project.name}")
                return state is not None and (state.confirmed_flush or 0) >= position

            self.project.wait_until("what is committed at the source", there, capture)

    def columns(self, table: str, side: str = "source") -> list[tuple[object, ...]]:
        """Return what a side says of a table's columns."""
        url = self.project.source if side == "source" else self.project.target
        with psycopg.connect(url, autocommit=True) as connection:
            return list(connection.execute(COLUMNS, [table]))
