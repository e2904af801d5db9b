"""Every connection of ours is ended by the server, again and again, while the load goes on and after it."""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from tests.fault.world import Balance, World

ROUNDS = 5

# By database and not by name: a connection that does not say whose it is would be missed. The application's stays.
CUT = """
select count(pg_terminate_backend(pid))
  from pg_stat_activity
 where datname = current_database() and pid <> pg_backend_pid() and application_name like 'penstock%'
"""


def _cut(url: str) -> int:
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        row = connection.execute(CUT).fetchone()
    return int(row[0]) if row is not None else 0


@pytest.mark.parametrize("side", ["source", "target"])
def test_all_connections_are_cut_again_and_again(world: World, side: str) -> None:
    traffic = world.begin_traffic()
    balance = Balance(world)
    url = world.source if side == "source" else world.target
    run = world.start()
    for _ in range(ROUNDS):
        world.wait("a connection to be cut", lambda: _cut(url), run)
        world.more_commits(25)
        balance.check()
    world.wait("live tables", world.all_live, run)
    for _ in range(2):
        world.more_commits(50)
        world.wait("a connection to be cut", lambda: _cut(url), run)
        balance.check()
    assert traffic.longest < 5.0
    world.finish(run)
