"""A slot whose history is gone, and what a role without rights sees: on servers of their own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest

from control.servers.postgres import PostgresServer
from engines.postgres.asking import run
from engines.postgres.connect import connect, replication
from engines.postgres.errors import translated
from engines.postgres.prerequisites import source_problems
from engines.postgres.replication import (
    create_slot,
    current_snapshot,
    drop_slot,
    emit_message,
    make_publications,
    publication_names,
    slot_state,
    start_streaming,
    system_identity,
)
from schemas.errors import PositionLost, PrerequisiteMissing

pytestmark = pytest.mark.versions


@pytest.mark.parametrize("major", [16, 18])
def test_a_slot_that_lost_its_history_is_a_lost_position(
    major: int, make_postgres: Callable[..., PostgresServer]
) -> None:
    settings = {"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    server = make_postgres(major, conf=settings | {"wal_keep_size": 0})
    url = server.url()
    with contextlib.closing(connect(url, role="control", application="t")) as conn:
        conn.execute("create table public.t (a int primary key, b text)")
        make_publications(conn, "penstock_p", [])
        create_slot(url, "penstock_p").pgconn.finish()
        deadline = time.monotonic() + 60
        while True:
            state = slot_state(conn, "penstock_p")
            assert state is not None
            if state.lost:
                break
            assert time.monotonic() < deadline
            emit_message(conn, "fill", "x" * 4_000_000)
            conn.execute("select pg_switch_wal()")
            conn.execute("checkpoint")
        assert any(
            problem.severity == "error" and "slot penstock_p is lost" in problem.what
            for problem in source_problems(url, "p", lambda id: True, "load")
        )
        stream = replication(url)
        try:
            with pytest.raises(PositionLost) as caught, translated("source", "streaming"):
                start_streaming(stream, "penstock_p", publication_names("penstock_p"), 0, messages=True)
            assert caught.value.remedy
        finally:
            stream.finish()
        drop_slot(conn, "penstock_p")


@pytest.mark.parametrize("major", [16, 18])
def test_a_role_that_may_only_replicate_can_do_all_that_a_source_needs(
    major: int, make_postgres: Callable[..., PostgresServer]
) -> None:
    server = make_postgres(major, conf={"max_replication_slots": 1, "max_prepared_transactions": 2})
    with contextlib.closing(connect(server.url(), role="control", application="t")) as admin:
        admin.execute("create role plain login replication; create role other login superuser")
        admin.execute("create table public.t (a int primary key); grant select on public.t to plain")
        make_publications(admin, "penstock_p", [])
        admin.execute("begin; insert into public.t values (2)")
        admin.execute("prepare transaction 'two'")
        url = server.url().replace("postgres@", "plain@")
        seen: list[str] = []
        other = connect(
            server.url().replace("postgres@", "other@"), role="writer", application="blocker", autocommit=False
        )
        other.execute("insert into public.t values (1)")

        def on_wait(lines: list[str]) -> None:
            seen.extend(lines)
            other.rollback()
            run(admin, "rollback prepared 'two'")

        with contextlib.closing(other):
            created = create_slot(url, "penstock_p", on_wait=on_wait)
        created.pgconn.finish()
        assert len(seen) == 2
        assert "user other, database postgres, application blocker" in seen[1]
        assert seen[0].startswith("prepared transaction 'two' (user postgres, database postgres) since ")
        with contextlib.closing(connect(url, role="control", application="t")) as conn:
            assert system_identity(conn) == system_identity(admin)
            assert emit_message(conn, "penstock", "x") > created.consistent_point
            assert current_snapshot(conn).xmax > 0
            with pytest.raises(PrerequisiteMissing) as caught:
                create_slot(url, "penstock_q")
            assert "max_replication_slots" in caught.value.remedy
            problems = source_problems(url, "q", lambda id: True, "changes")
            assert "source: all 1 replication slots are taken" in [problem.what for problem in problems]
            drop_slot(conn, "penstock_p")


@pytest.mark.parametrize("major", [16, 18])
def test_settings_of_a_source_that_stop_a_pipeline_are_named(
    major: int, make_postgres: Callable[..., PostgresServer]
) -> None:
    settings: dict[str, str | int] = {"wal_level": "replica", "wal_sender_timeout": "5s", "max_slot_wal_keep_size": 64}
    if major < 17:
        settings["old_snapshot_threshold"] = "1h"
    else:
        settings["idle_replication_slot_timeout"] = "1h"
    server = make_postgres(major, conf=settings)
    problems = source_problems(server.url(), "p", lambda id: True, "load")
    told = [problem.what for problem in problems]
    assert "source: wal_level is replica" in told
    assert any("wal_sender_timeout is 5000 ms" in what for what in told)
    assert any("max_slot_wal_keep_size is 64 MB" in what for what in told)
    assert any(("old_snapshot_threshold" if major < 17 else "idle_replication_slot_timeout") in what for what in told)
