"""Databases that take no more connections, and a target where locks, deadlocks and a full disk are in the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import psycopg
import pytest

from control.servers.postgres import PostgresServer
from tests.fault.conftest import MakeWorld
from tests.fault.world import Run, World

TRIGGER = """
create table public.trouble (code text);
create function public.trouble() returns trigger language plpgsql as $$
declare code text := (select t.code from public.trouble t limit 1);
begin
  if code is not null then
    raise exception 'there is trouble' using errcode = code;
  end if;
  return new;
end $$;
create trigger trouble before insert or update on app.accounts for each row execute function public.trouble();
alter table app.accounts enable always trigger trouble;
"""
"""Stands for a server that is in trouble by itself: it says so in the same way."""

PASSING = {
    "40001": "SQLSTATE 40001",  # could not serialize
    "53100": "free disk space on the server",
    "57014": "SQLSTATE 57014",  # canceled
}
"""What passes by itself, and what is told meanwhile."""

WAITS_FOR = "select exists (select from pg_locks where not granted and %s = any (pg_blocking_pids(pid)))"


@contextlib.contextmanager
def no_room(url: str) -> Iterator[None]:
    """Take all connections that a server has."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(contextlib.closing(psycopg.connect(url)))
        yield


@pytest.fixture
def world(make_world: MakeWorld, make_postgres: Callable[..., PostgresServer]) -> World:
    source, target = (make_postgres(major, conf={"max_connections": 40}) for major in (16, 18))
    for server in (source, target):
        server.create_database("app")
    return make_world(source.url("app"), target.url("app"), "", 500)


def _logged(world: World, text: str) -> Callable[[], bool]:
    return lambda: any(text in path.read_text() for path in world.state.glob("logs/*.log"))


def _change_account(world: World) -> None:
    with contextlib.closing(psycopg.connect(world.source, autocommit=True)) as connection:
        connection.execute("update app.accounts set balance = balance where id = 1")


def test_trouble_that_passes_is_waited_for(world: World) -> None:
    with no_room(world.target):
        with no_room(world.source):
            run = world.start()
            told = run.output.read_text
            world.wait("a word of the source's connections", lambda: "max_connections" in told(), run)
        world.wait("a word of the target's", lambda: "target: " in told() and told().count("max_connections") > 1, run)
        assert world.retries() < 80
    world.wait("live tables", world.all_live, run)
    world.begin_traffic(rate=50)
    with contextlib.closing(psycopg.connect(world.target, autocommit=True)) as other:
        _locked_out(world, run, other)
        _deadlock(world, run, other)
        other.execute(TRIGGER.encode())
        for code, words in PASSING.items():
            before = world.retries()
            other.execute("insert into public.trouble values (%s)", [code])
            _change_account(world)
            world.wait(code, lambda before=before: world.retries() >= before + 2, run)  # type: ignore[misc]
            other.execute("delete from public.trouble")
            world.wait(words, _logged(world, words), run)
            assert world.retries() < before + 12
            world.catch_up(run)
    world.finish(run)


def _locked_out(world: World, run: Run, other: psycopg.Connection) -> None:
    """Somebody holds a lock at the target: we wait, and the source does not."""
    assert world.traffic is not None
    with other.transaction():
        other.execute("lock table app.accounts in access exclusive mode")
        _change_account(world)
        world.wait("a wait for the lock", lambda: _waits(world, other), run)
        world.more_commits(30)
    assert world.traffic.longest < 5.0
    world.catch_up(run)


def _deadlock(world: World, run: Run, other: psycopg.Connection) -> None:
    """We have what the other one wants, and want what he has; the server takes us as the victim."""
    with other.transaction():
        other.execute("set local deadlock_timeout = '60s'")
        other.execute("select from app.accounts where id = 1 for update")
        _change_account(world)
        world.wait("a wait for the row", lambda: _waits(world, other), run)
        other.execute("select from penstock.progress for update")
    world.wait("a deadlock", _logged(world, "deadlock detected"), run)
    world.catch_up(run)


def _waits(world: World, other: psycopg.Connection) -> bool:
    with contextlib.closing(psycopg.connect(world.target, autocommit=True)) as connection:
        row = connection.execute(WAITS_FOR, [other.info.backend_pid]).fetchone()
    return row is not None and bool(row[0])
