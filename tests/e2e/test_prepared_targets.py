"""Targets whose tables were made by others, with triggers, rules and policies of their own."""

from __future__ import annotations

import psycopg
import pytest

from tests.e2e.conftest import Project

SOURCE = "create schema shop; create table shop.t (id int primary key, v text)"

TARGET = """
create schema shop; create table shop.t (id int primary key, v text); create table public.fired (name text, did text);
create function public.note() returns trigger language plpgsql as $$
    begin insert into public.fired values (tg_name, tg_op); return null; end $$;
create function public.forbid() returns trigger language plpgsql as $$ begin raise 'not for replicated rows'; end $$;
create trigger origin before insert or update or delete on shop.t for each row execute function public.forbid();
create trigger always after insert or update or delete on shop.t for each row execute function public.note();
create trigger replica after insert or update or delete on shop.t for each row execute function public.note();
alter table shop.t enable always trigger always; alter table shop.t enable replica trigger replica;
create rule kept as on delete to shop.t do instead nothing; create rule still as on update to shop.t do instead nothing;
create rule none as on insert to shop.t do instead nothing;
alter table shop.t enable row level security; alter table shop.t force row level security;
create policy nobody on shop.t using (false)
"""

FIRED = "select name, did, count(*) from public.fired group by 1, 2 order by 1, 2"


@pytest.mark.parametrize("prepare", ["keep", "truncate"])
def test_triggers_fire_as_on_any_replica_and_rules_and_policies_hide_nothing(simple: Project, prepare: str) -> None:
    with (
        psycopg.connect(simple.source, autocommit=True) as source,
        psycopg.connect(simple.target, autocommit=True) as target,
    ):
        source.execute(SOURCE.encode())
        target.execute(TARGET.encode())
        if prepare == "truncate":
            target.execute("set session_replication_role = replica; insert into shop.t values (1, 'old')")
            target.execute("truncate public.fired")

        def fired() -> list[tuple[str, str, int]]:
            found = target.execute(FIRED.encode()).fetchall()
            target.execute("truncate public.fired")
            return found

        def both(did: str, times: int) -> list[tuple[str, str, int]]:
            return [("always", did, times), ("replica", did, times)]

        source.execute("insert into shop.t select n, 'loaded' from generate_series(1, 200) n")
        simple.write(more_targets=f"    prepare: {prepare}\n")
        checked = simple.run("check", str(simple.file)).stdout
        for name in ("always", "replica"):
            assert f"trigger {name} of shop.t fires for replicated rows too" in checked
        assert "trigger origin" not in checked
        simple.succeed("run", str(simple.file), "--until-caught-up")
        assert fired() == both("INSERT", 200)
        for last in (3, 160):  # a few changes, and many
            for change, did in (
                ("insert into shop.t select 1000 + n, 'more' from generate_series(1, {}) n", "INSERT"),
                ("update shop.t set v = v || '!' where id <= {}", "UPDATE"),
                ("delete from shop.t where id > 1000 and id <= 1000 + {}", "DELETE"),
            ):
                source.execute(change.format(last).encode())
                simple.succeed("run", str(simple.file), "--until-caught-up")
                assert fired() == both(did, last), change
                assert simple.differences() == []
