"""One history: an application and a pipeline that is killed again and again, and what the target is in the end."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from engines.postgres import replication
from engines.postgres.connect import connect
from schemas.states import TableState
from schemas.table import TableId
from tests.ddl.conftest import BEHIND, COLUMNS, TABLES, UNSETTLED
from tests.fault.world import Run, World
from tests.histories.application import SCHEMAS, Application, Table
from validation.rows import compare

KEYS = """
select array(select a.attname::text from unnest(i.indkey::int2[]) k (number)
             join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number)
from pg_index i
where i.indrelid = %s::regclass and i.indisprimary
"""
STATES = "select table_schema, table_name, state, error, remedy from penstock.tables where pipeline = %s"
NOT_TOLD = ("is not known", "is not told", "can't be told", "attached with rows", "truncated alone")
"""What may stop a table: each says what the stream does not tell."""
NOT_HEARD_OF = "violates not-null constraint"
"""Nulls come right behind `drop not null`, before the catalogue is looked at: the target refuses them."""


class Pipeline(World):
    """A pipeline that has the tables of all schemas."""

    def write(self) -> None:
        super().write()
        patterns = ", ".join(f'"{schema}.*"' for schema in SCHEMAS)
        self.file.write_text(self.file.read_text().replace('tables: ["app.*"]', f"tables: [{patterns}]"))


class Length(NamedTuple):
    """How much happens in a history."""

    steps: int = 90
    kills: int = 5
    commands: int = 2  # for single tables
    pause: float = 0.05  # at most, between two steps


class Failed(AssertionError):
    """A history that did not end as it has to."""


class History:
    """Runs one history between two fresh databases."""

    def __init__(
        self, seed: int, folder: Path, source: str, target: str, length: Length | None = None, log: str = ""
    ) -> None:
        self.length = length or Length()
        self.chance = random.Random(seed + 1)  # of what is done to the pipeline; the application has its own
        self.application = Application(source, seed)
        self.application.make()
        self.world = Pipeline(folder, source, target, log)
        self.stopped: dict[str, str] = {}  # tables that had to be loaded anew, and why
        self.commands: list[Run] = []
        self.gone: set[str] = set()  # tables that stopped, and were dropped at the source

    def run(self) -> None:
        """Let it happen, and compare. Raises `Failed`, or whatever a wait raises that was in vain."""
        world, chance, length = self.world, self.chance, self.length
        told = chance.random() < 0.5
        kills = {chance.randrange(length.steps): chance.random() for _ in range(length.kills)}
        commands = {chance.randrange(length.steps // 3, length.steps) for _ in range(length.commands)}
        untold_from = chance.randrange(length.steps // 2) if not told else -1
        run = world.start()
        for step in range(length.steps):
            if step == length.steps // 3:
                # The rest of it happens to what is followed already, or about to be; nothing can be set up while a
                # transaction is open.
                self.application.settle()
                self.world.wait("a live table", lambda: TableState.LIVE in self.world.states().values(), run)
            self.application.step()
            # The moment is what is tested, whatever it is: nothing waits for anything here.
            time.sleep(chance.random() * length.pause)
            if step == untold_from:
                self._forget_the_trigger()
            if step in kills:
                run = self._kill(run, kills[step])
            if step in commands:
                self._command()
        self.application.settle()
        self._let_all_go_on()
        for _ in range(3):
            self._catch_up(run)
            if not self._load_stopped_tables_anew():
                break
        else:
            raise Failed(f"tables stop again and again: {self.stopped}\n{world.told()}")
        self._wait_for_definitions(run)
        self._catch_up(run)
        if self._load_stopped_tables_anew():  # by what was found only now
            self._catch_up(run)
            self._wait_for_definitions(run)
        run.process.send_signal(signal.SIGTERM)
        if run.process.wait(30) != 0:
            raise Failed(f"the run ended with {run.process.returncode}\n{world.told()}")
        self._compare()

    def close(self) -> None:
        self.application.close()
        self.world.close()
        self.world.forget_topics()

    # ------------------------------------------------------------------------------------------------ on the way

    def _kill(self, run: Run, x: float) -> Run:
        """Kill -9 everything, or a service."""
        services = sorted(run.pids())
        if x < 0.4 or not services:
            run.kill_all()
            self.world.tell("kill -9 of all")
            return self.world.start()
        self.world.tell(f"kill -9 {services[int(x * 97) % len(services)]}")
        run.signal(services[int(x * 97) % len(services)], signal.SIGKILL)
        return run

    def _command(self) -> None:
        """Ask for something to be done with a table, and let it be carried out when it may."""
        tables = sorted(self._states())
        if tables:
            kind, table = self.chance.choice(["pause", "pause", "resume", "reload"]), self.chance.choice(tables)
            self.world.tell(f"{kind} {table}")
            self.commands.append(self.world.start(kind, table))

    def _let_all_go_on(self) -> None:
        for run in self.commands:
            # What it says against it, as that a table was dropped, does not matter here.
            run.process.wait(60)
        # Those of them that the targets have not heard of yet come first.
        paused = self.world.start("resume", "*.*")
        if paused.process.wait(60) != 0:
            raise Failed(f"resume: {paused.output.read_text()}")

    def _states(self) -> dict[str, tuple[str, str, str]]:
        """Return the state of each table on the target, by the name that it was chosen by, with error and remedy."""
        with psycopg.connect(self.world.target, autocommit=True) as connection:
            try:
                found = connection.execute(STATES, [self.world.name]).fetchall()
            except psycopg.errors.UndefinedTable:
                return {}
        return {f"{schema}.{name}": (state, error, remedy) for schema, name, state, error, remedy in found}

    def _forget_the_trigger(self) -> None:
        """Drop the event trigger, as if it could not be made: the catalogue alone tells from here on."""
        with psycopg.connect(self.world.source, autocommit=True) as connection:
            for name in connection.execute(
                "select evtname from pg_event_trigger where evtname like %s", [f"penstock_{self.world.name}%"]
            ).fetchall():
                connection.execute(f"drop event trigger {name[0]}".encode())

    def _catch_up(self, run: Run) -> None:
        """Wait until the target has all that is committed at the source, or has stopped."""
        with contextlib.closing(connect(self.world.source, role="control", application="test")) as source:
            position = replication.emit_message(source, "test", "")

        def there() -> bool:
            with psycopg.connect(self.world.target, autocommit=True) as connection:

                def count(query: str, *values: object) -> int:
                    row = connection.execute(query.encode(), values or None).fetchone()
                    assert row is not None
                    return int(row[0])

                try:
                    return count(TABLES) > 0 and count(UNSETTLED) == 0 and count(BEHIND, position) == 0
                except psycopg.errors.UndefinedTable:
                    return False

        self.world.wait("all that is committed", there, run)

    def _load_stopped_tables_anew(self) -> bool:
        """Do what stopped tables ask for; return whether there were any."""
        failed = {
            name: (error, remedy)
            for name, (state, error, remedy) in self._states().items()
            if state == TableState.FAILED and name not in self.gone
        }
        for name, (error, remedy) in failed.items():
            known = "penstock reload" in remedy and any(cause in error for cause in NOT_TOLD)
            if not known and NOT_HEARD_OF not in error:
                raise Failed(f"{name}: {error} → {remedy}\n{self.world.told()}")
            self.stopped[name] = error
        return any([self._load_anew(name) for name in failed])

    def _load_anew(self, name: str) -> bool:
        """Ask for a table to be loaded anew; return whether there is such a table."""
        run = self.world.start("reload", name)
        if run.process.wait(60) != 0:
            said = run.output.read_text()
            if "dropped at the source" not in said:
                raise Failed(f"reload {name}: {said}")
            self.gone.add(name)  # if it is not, it will be missed in the end
        return name not in self.gone

    # --------------------------------------------------------------------------------------------------- the end

    def _wait_for_definitions(self, run: Run) -> None:
        """Wait until what nobody's rows have shown is there too; a table may stop over it."""

        def there() -> bool:
            failed = {name for name, (state, *_) in self._states().items() if state == TableState.FAILED}
            try:
                return bool(failed - self.gone) or not self._misfits()
            except psycopg.errors.UndefinedTable:  # it just got another name
                return False

        try:
            self.world.wait("the same definitions", there, run)
        except pytest.fail.Exception:
            print("\n".join(self._misfits()))
            raise

    def _misfits(self) -> list[str]:
        """Return what is not defined on the target as it is at the source."""
        tables = self.application.tables()
        with psycopg.connect(self.world.source) as source, psycopg.connect(self.world.target) as target:
            found = []
            names = target.execute(
                "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
                " where n.nspname = any(%s) and c.relkind in ('r', 'p') and not c.relispartition",
                [list(SCHEMAS)],
            ).fetchall()
            there = {TableId(schema, name) for schema, name in names}
            for table in tables:
                if TableId(table.schema, table.name) not in there:
                    found.append(f"there is no {table.quoted}")
                    continue
                for query in (COLUMNS, KEYS):
                    ours, theirs = (
                        sorted(map(repr, c.execute(query.encode(), [table.quoted]).fetchall()))
                        for c in (source, target)
                    )
                    if ours != theirs:
                        found.append(f"{table.quoted}: {ours} at the source, {theirs} at the target")
            return found

    def _compare(self) -> None:
        tables: list[Table] = self.application.tables()
        ids = [TableId(table.schema, table.name) for table in tables]
        differences = [str(difference)[:300] for difference in compare(self.world.source, self.world.target, ids)]
        if differences:
            shown = "\n".join(differences[:20])
            raise Failed(f"{len(differences)} differences:\n{shown}\n{self.world.told()}")
