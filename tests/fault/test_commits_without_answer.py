"""The target has written, or has not, and the connection is lost before anybody knows which."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from schemas.states import TableState
from tests.fault.conftest import MakeWorld
from tests.fault.proxy import Proxy
from tests.fault.world import Balance

CUTS = 6


@pytest.fixture(params=["after", "before"])
def proxy(request: pytest.FixtureRequest, target_db: str) -> Iterator[Proxy]:
    """A wire to the target that loses the answer to a commit, or the commit itself."""
    with contextlib.closing(Proxy(target_db, answers=request.param == "after")) as made:
        yield made


def test_a_commit_whose_answer_is_lost_counts_once(
    make_world: MakeWorld, source_db: str, log_lines: str, proxy: Proxy
) -> None:
    world = make_world(source_db, proxy.url, log_lines)
    balance = Balance(world)
    world.begin_traffic()
    run = world.start()
    # During the load, at each step of it; then of the stream.
    moments: dict[str, Callable[[], bool]] = {
        "the load": lambda: bool(set(world.states().values()) - {TableState.WAITING}),
        "a live table": lambda: TableState.LIVE in world.states().values(),
    }
    for what, come in moments.items():
        world.wait(what, come, run)
        for _ in range(CUTS // 2):
            cuts = proxy.cuts
            proxy.arm()
            world.wait("a lost answer", lambda cuts=cuts: proxy.cuts > cuts, run)  # type: ignore[misc]
            balance.check()
    world.wait("live tables", world.all_live, run)
    cuts = proxy.cuts
    proxy.arm()
    world.wait("a lost answer", lambda: proxy.cuts > cuts, run)
    world.finish(run)
