"""What must not matter: killed holders, restarted sources, tables whose rows are moved while they are read."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest

from control.servers.postgres import PostgresServer
from engines.postgres.connect import connect
from schemas.frontier import HEAL
from snapshot import holder, postgres, rules
from tests.integration.snapshot.conftest import World

pytestmark = pytest.mark.versions

ROWS = 6000


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some pages a chunk, so that a small table has many."""
    monkeypatch.setattr(postgres, "CHUNK_BYTES", 100_000)
    monkeypatch.setattr(postgres, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(holder, "PING_SECONDS", 0.1)


def fill(world: World) -> None:
    world.run(
        "create schema shop",
        "create table shop.keyed (id int primary key, n int, big text)",
        "alter table shop.keyed alter big set storage external",
        'create table shop.two (b text collate "C", a numeric, v text, primary key (a, b)) partition by hash (a)',
        "create table shop.two_0 partition of shop.two for values with (modulus 2, remainder 0)",
        "create table shop.two_1 partition of shop.two for values with (modulus 2, remainder 1)",
        "create table shop.full_rows (id uuid primary key, v jsonb, w text)",
        "alter table shop.full_rows replica identity full",
        "create table shop.no_key (a int, b text)",
        f"insert into shop.keyed select g, g, repeat(md5(g::text), 100) from generate_series(10, {ROWS}, 10) g",
        f"insert into shop.keyed select g, g, 'small' from generate_series(1, {ROWS}) g where g % 10 > 0",
        f"insert into shop.two select E'\\\\{{\"' || g, g / 10.0, md5(g::text) from generate_series(1, {ROWS}) g",
        "insert into shop.full_rows"
        f" select md5(g::text)::uuid, to_jsonb(g), repeat('w', 60) from generate_series(1, {ROWS}) g",
        f"insert into shop.no_key select g % 100, 'b' from generate_series(1, {ROWS}) g",
    )


TABLES = ("shop.keyed", "shop.two", "shop.full_rows", "shop.no_key")


class Traffic:
    """An application that changes everything, in a thread of its own, as long as the block lasts."""

    def __init__(self, url: str, seed: int) -> None:
        self._url, self._random = url, random.Random(seed)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.transactions = 0

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join()

    def _work(self) -> None:
        r, new = self._random, ROWS
        with connect(self._url, role="writer", application="traffic", autocommit=False) as connection:
            while not self._ending.wait(0.002):
                for _ in range(r.randint(1, 5)):
                    new += 1
                    some = r.randint(1, ROWS)
                    connection.execute(
                        r.choice(
                            (
                                f"update shop.keyed set n = n + 1 where id = {some}",
                                f"update shop.keyed set id = {new} where id = {some}",
                                f"update shop.keyed set big = repeat('z', {new % 5000}) where id = {some}",
                                f"delete from shop.keyed where id = {some}",
                                f"insert into shop.keyed values ({new}, 0, repeat('new', 1000))",
                                f"update shop.two set v = 'changed' where a = {some} / 10.0",
                                f"update shop.two set a = {new} where a = {some} / 10.0",
                                f"update shop.two set b = b || '\"' where a = {some} / 10.0",
                                f"delete from shop.two where a = {some} / 10.0",
                                f"insert into shop.two values (E'new\\\\', {new} / 10.0, 'v')",
                                f"update shop.full_rows set v = '{{\"a\": 1}}' where id = md5('{some}')::uuid",
                                f"delete from shop.full_rows where id = md5('{some}')::uuid",
                                f"insert into shop.full_rows values (md5('{new}')::uuid, '[]', 'w')",
                                f"insert into shop.no_key values ({new}, 'n')",
                            )
                        )
                    )
                if r.random() < 0.1:
                    connection.rollback()
                else:
                    connection.commit()
                    self.transactions += 1


def equal(world: World) -> None:
    """Check each table as a target would have it against the source."""
    world.catch_up()
    for table in TABLES:
        have, want = world.rebuilt_rows(table), world.source_rows(table)
        assert have == want, f"{table}: {list((have - want).items())[:3]} instead of {list((want - have).items())[:3]}"


def test_a_load_under_traffic_meets_the_stream(world: World) -> None:
    fill(world)
    with Traffic(world.url, 1) as traffic:
        world.holder(), world.capture(), world.worker(0), world.worker(1)
        world.load()
        enough = traffic.transactions + 50
        world.until(lambda: traffic.transactions > enough)
    equal(world)
    assert not world.chunks("shop.keyed").healed
    assert len(world.chunks("shop.keyed").plan.chunks) > 5  # type: ignore[union-attr]


@pytest.mark.parametrize("kill", [2, 7, 15])
def test_a_holder_is_killed_and_the_load_goes_on_in_a_new_snapshot(world: World, kill: int) -> None:
    fill(world)

    def read() -> int:
        return sum(world.final(table) for table in TABLES)

    with Traffic(world.url, kill) as traffic:
        first = world.holder_process()
        world.capture(), world.worker(0), world.worker(1)
        world.until(lambda: read() >= kill)
        final = {table: dict(world.chunks(table).manifests) for table in TABLES}
        first.kill()
        first.join()
        second = world.holder_process()
        world.load()
        enough = traffic.transactions + 50
        world.until(lambda: traffic.transactions > enough)
    second.join(20)
    assert second.exitcode == 0
    equal(world)
    assert any(world.chunks(table).healed for table in TABLES)
    for table in TABLES[:3]:  # what was final stayed final
        manifests = world.chunks(table).manifests
        assert all(manifests[number] == manifest for number, manifest in final[table].items())
    assert not world.chunks("shop.no_key").healed


def test_two_holders_are_killed_one_after_the_other(world: World) -> None:
    fill(world)

    def read() -> int:
        return sum(world.final(table) for table in TABLES)

    with Traffic(world.url, 99):
        world.capture(), world.worker(0), world.worker(1)
        for most in (3, 8):
            process = world.holder_process()
            world.until(lambda most=most: read() >= most)  # type: ignore[misc]
            process.kill()
            process.join()
        world.holder()
        world.load()
    equal(world)


@pytest.fixture
def own_server(make_postgres: Callable[..., PostgresServer]) -> Iterator[PostgresServer]:
    """A server that may crash; its commits reach the disk late."""
    yield make_postgres(16, durable=True, conf={"synchronous_commit": "off", "wal_writer_delay": "500ms"})


def test_the_source_crashes_in_the_middle_of_a_load(
    own_server: PostgresServer, make_world: Callable[..., World]
) -> None:
    """A snapshot sees commits that the crash takes back, and other transactions get their ids."""
    world = make_world(own_server.url())
    fill(world)
    own_holder, own_capture, own_worker = world.holder(), world.capture(), world.worker(0)
    world.until(lambda: sum(world.final(table) for table in TABLES) >= 6)
    world.run("update shop.keyed set n = -1 where id % 7 = 0")
    for machine in (own_holder, own_capture, own_worker):
        world.remove(machine)
    world.db.close()
    own_server.kill()
    own_server.restart()
    world.db = connect(world.url, role="control", application="test")
    world.run("update shop.keyed set n = -2 where id % 11 = 0", "delete from shop.two where a < 20")
    world.holder(), world.capture(), world.worker(0)
    world.load()
    equal(world)
    world.db.close()


@pytest.mark.parametrize(
    "rewrite",
    [
        "vacuum full shop.keyed",
        "cluster shop.keyed using keyed_pkey",
        "truncate shop.keyed",
        "alter table shop.keyed alter n type bigint",
        "alter table shop.keyed add extra float default random()",
    ],
)
def test_a_table_that_is_rewritten_in_the_middle_of_its_load_begins_again(world: World, rewrite: str) -> None:
    fill(world)
    world.holder(), world.capture(), world.worker(0), world.worker(1)
    world.until(lambda: world.final("shop.keyed") >= 2)
    assert world.chunks("shop.keyed").missing
    world.run("update shop.keyed set n = n + 1 where id % 3 = 0", "delete from shop.keyed where id % 5 = 0")
    world.run(rewrite)
    world.run("insert into shop.keyed (id, n, big) values (1000000, 1, 'after')")
    world.load()
    equal(world)
    chunks = world.chunks("shop.keyed")
    assert chunks.plan is not None and chunks.plan.generation >= 1
    assert rules.REWRITTEN in chunks.plan.cause or "columns" in chunks.plan.cause
    assert HEAL not in chunks.manifests
    assert world.chunks("shop.two").plan.generation == 0  # type: ignore[union-attr]


def test_a_table_that_was_rewritten_between_snapshot_and_plan_is_not_read_in_that_snapshot(world: World) -> None:
    fill(world)
    holder = world.holder()
    while holder.setup is None:
        holder.step()
    world.run("alter table shop.keyed add extra float default random()", "insert into shop.keyed values (1000000, 1)")
    world.capture(), world.worker(0)
    world.load()
    equal(world)
    chunks = world.chunks("shop.keyed")
    assert chunks.snapshots() == {max(holder_snapshots(world))}
    assert len(holder_snapshots(world)) == 2


def test_a_table_that_got_a_column_before_a_newer_snapshot_is_not_read_there_without_it(world: World) -> None:
    fill(world)
    world.capture(), world.worker(0), world.worker(1)
    holder = world.holder_process()
    world.until(lambda: world.final("shop.keyed") >= 2)
    holder.kill()
    holder.join()
    assert world.chunks("shop.keyed").missing
    world.run("alter table shop.keyed add extra int", "update shop.keyed set extra = id where id % 3 = 0")
    world.holder()
    world.load()
    equal(world)
    chunks = world.chunks("shop.keyed")
    assert chunks.plan is not None and rules.ALTERED in chunks.plan.cause
    assert world.chunks("shop.two").plan.generation == 0  # type: ignore[union-attr]


def holder_snapshots(world: World) -> list[int]:
    from transport.views import Chunks

    with world.log.reader() as reader:
        chunks = Chunks(reader, world.topics)
        chunks.refresh()
        return list(chunks.snapshots)


def test_a_table_that_was_dropped_before_it_was_read_is_empty_and_stops_no_other(world: World) -> None:
    fill(world)
    holder = world.holder()
    while holder.setup is None:
        holder.step()
    world.run("drop table shop.keyed")
    world.capture(), world.worker(0)
    world.load()
    assert world.loaded_rows("shop.keyed").total() == 0
    assert world.loaded_rows("shop.two") == world.source_rows("shop.two")
