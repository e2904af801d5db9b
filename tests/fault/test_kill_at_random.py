"""Kill -9 at random moments: of single services, of several, and of the supervisor with everything."""

from __future__ import annotations

import os
import random
import time

from tests.fault.world import Balance, World

KILLS = 8
SEED = "PENSTOCK_TEST_SEED"


def _chance() -> random.Random:
    """Every run of the tests has moments of its own; the seed that is printed brings them back, as far as it can."""
    seed = int(os.environ.get(SEED) or random.randrange(1_000_000))
    print(f"{SEED}={seed}")
    return random.Random(seed)


def test_anything_is_killed_at_any_moment(world: World) -> None:
    chance = _chance()
    traffic = world.begin_traffic(seed=chance.randrange(1000))
    balance = Balance(world)
    run = world.start()
    world.started(run)
    for number in range(KILLS):
        if number % 4 == 3:
            run.kill_all()
            run = world.start()
            world.started(run)
        # The moment is what is tested, whatever it is.
        until = time.monotonic() + chance.uniform(0.0, 0.8)
        while time.monotonic() < until:
            balance.check()
        services = sorted(run.pids())
        if services:
            victims = chance.sample(services, min(len(services), chance.choice([1, 1, 2, 3])))
            print("kill -9", *victims)
            world.kill(run, *victims)
    world.wait("live tables", world.all_live, run)
    balance.check()
    assert balance.seen
    assert traffic.longest < 5.0
    world.finish(run)


def test_everything_is_killed_at_each_step(world: World) -> None:
    """The supervisor and all of its services at once: at the setup, at a manifest, at the first live table, later."""
    world.begin_traffic()
    eyes = world.look()
    for what, reached in (
        ("a table", lambda: eyes.records(eyes.topics.tables)),
        ("a setup", eyes.setup),
        ("a manifest", lambda: any(table.manifests for table in eyes.chunks().tables.values())),
        ("a live table", lambda: "live" in world.states().values()),
        ("live tables", world.all_live),
    ):
        run = world.start()
        world.wait(what, reached, run)
        run.kill_all()
    run = world.start()
    world.started(run)
    world.finish(run)
