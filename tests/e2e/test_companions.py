"""Views, owners and grants, for a target that asks for them."""

from __future__ import annotations

import psycopg

from control import checks
from schemas.pipeline import load_pipeline
from tests.e2e.conftest import SECONDS, Project, one

TABLES = """
create role {name}_owner; create role {name}_reader;
create schema shop;
grant usage on schema shop to {name}_reader;
create table shop.parts (id int, day date, t text, primary key (id, day)) partition by range (day);
create table shop.parts_old partition of shop.parts for values from (minvalue) to ('2024-01-01');
create table shop.z_last (id int primary key, secret text, "open %s" text);
create table shop.hidden (id int primary key);
insert into shop.parts select n, date '2023-06-01' + n, n from generate_series(1, 100) n;
insert into shop.z_last select n, 's', 'o' from generate_series(1, 100) n;
create view shop.a_view with (security_barrier = true) as
    select z.id, "open %s" as renamed, p.day from shop.z_last z join shop.parts_old p using (id);
create view shop."above $1" as select count(*) from shop.a_view;
create materialized view shop.kept as select id, renamed from shop.a_view;
create unique index kept_id on shop.kept (id);
create view shop.of_what_is_left_out as select * from shop.hidden;
alter table shop.parts owner to {name}_owner; alter table shop.parts_old owner to {name}_owner;
alter table shop.a_view owner to {name}_owner;
grant select on shop.z_last to {name}_owner;
grant select on shop.parts to {name}_reader with grant option; grant insert, truncate on shop.z_last to public;
grant update ("open %s") on shop.z_last to {name}_reader; grant select on shop.a_view, shop.kept to {name}_reader
"""

ACCESS = """
with given (name, owner, acl) as (
    select c.relname::text, c.relowner, c.relacl from pg_class c
     where c.relnamespace = 'shop'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
       and c.relname <> all (array['hidden', 'of_what_is_left_out'])
     union all
    select a.attname, 0, a.attacl from pg_attribute a where a.attrelid = 'shop.z_last'::regclass
     union all
    select n.nspname, n.nspowner, n.nspacl from pg_namespace n where n.nspname = 'shop'
)
select name, case when owner <> 0 then pg_get_userbyid(owner)::text end, a.privilege_type, a.is_grantable,
       a.grantee::regrole::text
  from given left join lateral aclexplode(acl) a on a.grantee <> owner
 order by 1, 2, 3, 5
"""

VIEWS = """
select c.relname::text, c.reloptions, pg_get_viewdef(c.oid),
       array(select pg_get_indexdef(indexrelid) from pg_index where indrelid = c.oid)
  from pg_class c
 where c.relkind in ('v', 'm') and relnamespace = 'shop'::regnamespace and relname <> 'of_what_is_left_out'
 order by 1
"""


def test_a_target_gets_views_owners_and_grants_if_it_asks_for_them(simple: Project) -> None:
    with psycopg.connect(simple.source, autocommit=True) as connection:
        connection.execute(TABLES.replace("{name}", simple.name).encode())
    with psycopg.connect(simple.target, autocommit=True) as connection:
        connection.execute(f"create role {simple.name}_owner".encode())
    try:
        simple.write(tables='shop.*", "!shop.hidden')
        text = simple.file.read_text()
        simple.file.write_text(text + "    views: true\n    owners: true\n    grants: true\n")
        checked = simple.run("check", str(simple.file))
        assert checked.returncode == 4
        assert f"role {simple.name}_reader" in checked.stdout
        with psycopg.connect(simple.target, autocommit=True) as connection:
            connection.execute(f"create role {simple.name}_reader".encode())
        simple.succeed("run", str(simple.file), "--until-caught-up")
        for query in (ACCESS, VIEWS):
            assert _rows(simple.target, query) == _rows(simple.source, query)
        assert one(simple.target, 'select * from shop."above $1"') == one(
            simple.source, 'select * from shop."above $1"'
        )
        assert one(simple.target, "select count(*) from shop.kept") == 100
    finally:
        for url in (simple.source, simple.target):
            with psycopg.connect(url, autocommit=True) as connection:
                for role in ("owner", "reader"):
                    connection.execute(f"drop owned by {simple.name}_{role} cascade".encode())
                    connection.execute(f"drop role {simple.name}_{role}".encode())


COLLIDING = """
create schema shop; create table shop.one (id int primary key);
create role {name}_reader; grant usage on schema shop to {name}_reader; grant select on shop.one to {name}_reader
"""

WAITING = (
    "select count(*) from pg_stat_activity"
    " where wait_event = 'transactionid' and datname = current_database() and query like '%grant%'"
)


def test_a_grant_that_collides_with_somebody_elses_is_given_again(simple: Project) -> None:
    with psycopg.connect(simple.source, autocommit=True) as connection:
        connection.execute(COLLIDING.replace("{name}", simple.name).encode())
    try:
        simple.write()
        simple.file.write_text(simple.file.read_text() + "    grants: true\n")
        with psycopg.connect(simple.target) as other:
            other.execute(f"create role {simple.name}_reader; create schema shop".encode())
            other.commit()
            other.execute("grant create on schema shop to pg_monitor")
            running = simple.start("run", str(simple.file), "--until-caught-up")
            simple.wait_until("our grant waits for theirs", lambda: one(simple.target, WAITING) == 1, running)
        said, _ = running.communicate(timeout=SECONDS)
        assert running.returncode == 0, f"{said}\n{simple.logs()}"
        for right in ("schema_privilege('{}', 'shop', 'usage')", "table_privilege('{}', 'shop.one', 'select')"):
            assert one(simple.target, f"select has_{right.format(f'{simple.name}_reader')}") == 1
    finally:
        for url in (simple.source, simple.target):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"drop owned by {simple.name}_reader; drop role {simple.name}_reader".encode())


def test_what_could_not_be_given_is_told_and_given_when_the_table_is_resumed(simple: Project) -> None:
    with psycopg.connect(simple.source, autocommit=True) as connection:
        connection.execute(COLLIDING.replace("{name}", simple.name).encode())
    try:
        simple.write()
        file = str(simple.file)
        simple.file.write_text(simple.file.read_text() + "    grants: true\n")
        said = simple.succeed("run", file, "--until-caught-up")
        assert "shop.one is live, but" in said and "create the role" in said, said
        with psycopg.connect(simple.target, autocommit=True) as connection:
            connection.execute(f"create role {simple.name}_reader".encode())
        simple.succeed("resume", file, "shop.one", "--no-wait")
        assert "is live, but" not in simple.succeed("run", file, "--until-caught-up")
        may = f"has_table_privilege('{simple.name}_reader', 'shop.one', 'select')"
        assert one(simple.target, f"select {may}::int") == 1
    finally:
        for url in (simple.source, simple.target):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"drop owned by {simple.name}_reader; drop role {simple.name}_reader".encode())


OF_OTHERS = """
create schema shop; create role {name}_owner; create role {name}_reader;
create table shop.a (id int primary key); create table shop.b (id int primary key);
insert into shop.a values (1); insert into shop.b values (1);
create view shop.seen as select a.id from shop.a join shop.b using (id);
create materialized view shop.kept as select * from shop.seen;
alter table shop.a owner to {name}_owner; alter table shop.b owner to {name}_owner;
grant select on shop.a, shop.b to {name}_reader; alter view shop.seen owner to {name}_reader
"""

ERRORS = "select count(*) from penstock.tables where error <> ''"
FILLED = "select count(*) from pg_matviews where matviewname = 'kept' and ispopulated"
LOCKS_AWAITED = "select count(*) from pg_locks where not granted and relation = 'shop.b'::regclass"


def test_views_are_filled_with_the_rights_of_their_owners_whichever_table_comes_first(simple: Project) -> None:
    with psycopg.connect(simple.source, autocommit=True) as connection:
        connection.execute(OF_OTHERS.replace("{name}", simple.name).encode())
    try:
        simple.write()
        text = simple.file.read_text().replace("apply: 2", "apply: 1")  # so that a comes first
        simple.file.write_text(text + "    views: true\n    owners: true\n    grants: true\n")
        assert "shop.b is live, but" in simple.succeed("run", str(simple.file), "--until-caught-up")
        with psycopg.connect(simple.target, autocommit=True) as connection:
            for role in ("owner", "reader"):
                connection.execute(f"create role {simple.name}_{role}".encode())
        with psycopg.connect(simple.target) as other:
            other.execute("lock table shop.b in share update exclusive mode")  # as a vacuum of it would hold
            running = simple.start("run", str(simple.file))
            simple.succeed("resume", str(simple.file), "shop.a", "shop.b")
            simple.wait_until(
                "that a waits for b, or has gone on without it",
                lambda: bool(one(simple.target, LOCKS_AWAITED)),
                running,
            )
        simple.wait_until(
            "that the view is filled",
            lambda: bool(one(simple.target, FILLED)) or one(simple.target, ERRORS) == 1,
            running,
        )
        assert one(simple.target, ERRORS) == 0, simple.logs()
        assert one(simple.target, "select count(*) from shop.kept") == 1
        simple.kill(running)
    finally:
        for url in (simple.source, simple.target):
            with psycopg.connect(url, autocommit=True) as connection:
                for role in ("owner", "reader"):
                    connection.execute(f"drop owned by {simple.name}_{role} cascade".encode())
                    connection.execute(f"drop role {simple.name}_{role}".encode())


def _rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True, options="-c search_path=pg_catalog") as connection:
        return connection.execute(query.encode()).fetchall()


OF_TWO = """
create schema shop;
create schema hall;
create type hall.mood as enum ('happy', 'sad');
create type shop.size as enum ('small', 'large');
create table shop.parts (id int primary key, size shop.size);
create table shop.guests (id int primary key, mood hall.mood);
insert into shop.parts values (1, 'small');
insert into shop.guests values (1, 'sad')
"""


def test_a_target_gets_only_what_its_own_tables_rest_on(simple: Project) -> None:
    with psycopg.connect(simple.source, autocommit=True) as connection:
        connection.execute(OF_TWO.encode())
    simple.write(mode="load", more_targets="    tables: [shop.parts]\n")
    assert "hall" not in simple.succeed("plan", str(simple.file))
    simple.succeed("run", str(simple.file))
    assert one(simple.target, "select count(*) from shop.parts where size = 'small'") == 1
    assert one(simple.target, "select count(*) from pg_namespace where nspname = 'hall'") == 0


def test_a_target_is_asked_for_the_extensions_of_its_own_tables_alone(simple: Project) -> None:
    with psycopg.connect(simple.source, autocommit=True) as connection:
        connection.execute(OF_TWO.encode())
    simple.write(more_targets="    tables: [shop.parts]\n  - name: whole\n    url: " + simple.target + "\n")
    catalogue = checks._catalogue(load_pipeline(simple.file), [])
    assert catalogue is not None
    of_parts, of_all = catalogue[0].of_choice(("shop.parts",)), catalogue[0].of_choice(())
    assert [str(id) for id, _ in of_parts.types] == ["shop.size"] and of_parts.schemas == ("shop",)
    assert {str(id) for id, _ in of_all.types} == {"hall.mood", "shop.size"}
