"""What is missing on real servers is named, with a remedy that mends it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from conversion.ddl import create_table
from engines.postgres import catalogue
from engines.postgres.asking import run
from engines.postgres.connect import connect
from engines.postgres.newcomers import newcomers, present
from engines.postgres.prerequisites import Problem, source_problems, target_problems
from engines.postgres.replication import drop_publications, make_publications
from schemas.errors import PermissionMissing
from schemas.pipeline import Mode
from schemas.table import Identity, Objects, Table, TableId

pytestmark = pytest.mark.versions


def everything(id: TableId) -> bool:
    return True


def errors(problems: list[Problem]) -> list[str]:
    return [problem.what for problem in problems if problem.severity == "error"]


def warnings(problems: list[Problem]) -> list[str]:
    return [problem.what for problem in problems if problem.severity == "warning"]


@pytest.fixture
def source(source_db: str) -> Iterator[psycopg.Connection]:
    with contextlib.closing(connect(source_db, role="control", application="t")) as conn:
        yield conn


@pytest.fixture
def target(target_db: str) -> Iterator[psycopg.Connection]:
    with contextlib.closing(connect(target_db, role="control", application="t")) as conn:
        yield conn


@contextlib.contextmanager
def poor_role(conn: psycopg.Connection, url: str, name: str = "poor") -> Iterator[tuple[str, str]]:
    """Make a role that may only log in, and lend its name and URL."""
    role = f"{name}_" + str(conninfo_to_dict(url)["dbname"])[-20:]
    run(conn, f"create role \"{role}\" login password 'poor'")
    try:
        yield role, re.sub("//[^@]*@", f"//{role}:poor@", url)
    finally:
        run(conn, f'drop owned by "{role}"')
        run(conn, f'drop role "{role}"')


def plain_table(conn: psycopg.Connection, definition: str) -> Table:
    run(conn, definition)
    return catalogue.tables(conn, everything)[-1]


def test_a_source_that_has_all_has_no_errors(source_db: str, source: psycopg.Connection) -> None:
    source.execute("create table public.t (a int primary key)")
    problems = source_problems(source_db, "p", everything, Mode.LOAD_AND_CHANGES)
    # A test server does not flush, and says so.
    assert [what for what in errors(problems) + warnings(problems) if "fsync" not in what] == []


def test_a_source_without_tables_or_without_an_answer_says_just_that(source_db: str) -> None:
    problems = source_problems(source_db, "p", everything, "load")
    assert errors(problems) == ["source: no table is chosen"]
    (problem,) = source_problems("postgresql://postgres@127.0.0.1:1/x", "p", everything, "load")
    assert problem.what.startswith("source: connecting: ")
    (problem,) = source_problems("postgresql://u:se@cret@h/x", "p", everything, "load")
    assert "secret" not in problem.what
    assert problem.remedy


def test_each_right_that_a_role_lacks_at_the_source_is_named_and_its_remedy_helps(
    source_db: str, source: psycopg.Connection
) -> None:
    source.execute("create schema shop; create table shop.t (a int primary key)")
    with poor_role(source, source_db) as (role, url), poor_role(source, source_db, "owner") as (owner, _):
        source.execute(f'alter table shop.t owner to "{owner}"'.encode())
        problems = source_problems(url, "p", everything, Mode.LOAD_AND_CHANGES)
        assert errors(problems) == [
            f"source: role {role} may not replicate",
            "source: no right to use schema shop",
            "source: no right to read shop.t",
            f"source: no right to create publications in database {conninfo_to_dict(source_db)['dbname']}",
            "source: only their owner can publish shop.t",
        ]
        for problem in problems:
            if problem.severity == "error":
                run(source, re.split(r", or |  \(", problem.remedy)[0])
        source.execute("alter table shop.t enable row level security")
        again = source_problems(url, "p", everything, Mode.LOAD_AND_CHANGES)
        assert errors(again) == []  # it has become a member of the owner, a superuser's rights aside
        source.execute("alter table shop.t force row level security")
        (hidden,) = [p for p in source_problems(url, "p", everything, "load") if p.severity == "error"]
        assert hidden.what == "source: row-level security hides rows of shop.t"
        run(source, hidden.remedy)
        assert errors(source_problems(url, "p", everything, "load")) == []
        run(source, f'revoke "{owner}" from "{role}"')
        assert len(errors(source_problems(url, "p", everything, "load"))) == 1
        make_publications(source, "penstock_p", catalogue.tables(source, everything))
        assert errors(source_problems(url, "p", everything, "load")) == []  # somebody else made them


def test_nobody_is_asked_to_give_a_superusers_rights_away(source_db: str, source: psycopg.Connection) -> None:
    source.execute("create schema shop; create table shop.t (a int primary key); create table shop.keyless (a int)")
    with poor_role(source, source_db) as (role, url):
        for right in (f'usage on schema shop to "{role}"', f'select on all tables in schema shop to "{role}"'):
            source.execute(f"grant {right}".encode())
        database = conninfo_to_dict(source_db)["dbname"]
        source.execute(f'alter role "{role}" replication; grant create on database "{database}" to "{role}"'.encode())
        (problem,) = [p for p in source_problems(url, "p", everything, "load") if p.severity == "error"]
        assert "only superusers can publish shop.keyless, shop.t" in problem.what
        assert "grant postgres" not in problem.remedy and 'grant "postgres"' not in problem.remedy
        _, _, statements = problem.remedy.partition("as a superuser: ")
        run(source, statements)
        assert errors(source_problems(url, "p", everything, "load")) == []
        with psycopg.connect(url, autocommit=True) as poor:
            (keyless, t) = newcomers(poor, present(poor), ())[:2]
            assert (keyless.is_superusers, t.may_be_published) == (True, False)
            with pytest.raises(PermissionMissing, match="publication penstock_p was made by another role") as refused:
                drop_publications(poor, "penstock_p")
        run(source, refused.value.remedy.partition(": ")[2])
        assert len(errors(source_problems(url, "p", everything, "load"))) == 1


def test_tables_that_cannot_be_followed_are_named(source_db: str, source: psycopg.Connection) -> None:
    source.execute(
        "create table public.keyless (a int); create unlogged table public.fleeting (a int primary key);"
        "create table public.made (a int, g int generated always as (a) stored primary key);"
        "create table public.whole (a int); alter table public.whole replica identity full;"
        "create table public.part (a int) partition by list (a);"
        "create foreign data wrapper w; create server s foreign data wrapper w;"
        "create foreign table public.part_f partition of public.part for values in (1) server s;"
        "create function public.f() returns int language sql as 'select 1';"
        "create table public.called (a int primary key default public.f())"
    )
    problems = source_problems(source_db, "p", everything, Mode.LOAD_AND_CHANGES)
    assert errors(problems) == [
        "source: the replica identity of public.made has a generated column, which is not in the stream",
        "source: the changes of unlogged tables can't be followed: public.fleeting",
        "source: partitions that are foreign tables can't be read: public.part_f",
    ]
    told = " ".join(warnings(problems))
    assert "public.keyless, public.part without a usable replica identity" in told
    assert "public.whole without a key" in told
    assert "functions that are not carried: public.f()" in told
    assert all(problem.remedy for problem in problems if "fsync" not in problem.what)


@pytest.mark.versions(where=lambda versions: versions.target == 18)
def test_a_full_identity_with_a_generated_column_stops_no_update_of_the_application(
    target: psycopg.Connection, target_db: str
) -> None:
    """PostgreSQL 18 refuses updates and deletes of such a table once they are published."""
    target.execute(
        "create table public.t (a int primary key, g int generated always as (a) stored, v int);"
        "insert into public.t values (1); alter table public.t replica identity full"
    )
    [table] = catalogue.tables(target, everything)
    assert (table.identity, table.key) == (Identity.NOTHING, ())
    make_publications(target, "p", [table])
    target.execute("update public.t set v = 1; delete from public.t")
    told = errors(source_problems(target_db, "p", everything, Mode.LOAD_AND_CHANGES))
    assert "source: the replica identity of public.t has a generated column, which is not in the stream" in told
    target.execute("drop publication p, p_keyless; alter table public.t replica identity default")
    [table] = catalogue.tables(target, everything)
    assert (table.identity, table.key) == (Identity.KEY, (0,))


def test_open_transactions_are_named_before_the_slot_waits_for_them(source_db: str, source: psycopg.Connection) -> None:
    source.execute("create table public.t (a int primary key)")
    if source.execute("select current_setting('max_prepared_transactions')::int = 0").fetchall() == [(True,)]:
        with contextlib.closing(connect(source_db, role="writer", application="t", autocommit=False)) as writer:
            writer.execute("insert into public.t values (1)")
            assert not [p for p in source_problems(source_db, "p", everything, "load") if "process" in p.what]
    else:
        source.execute("begin; insert into public.t values (1); prepare transaction 'penstock test'")
        problems = source_problems(source_db, "p", everything, "load")
        source.execute("rollback prepared 'penstock test'")
        assert [p for p in problems if "'penstock test'" in p.remedy]


def test_a_target_for_new_tables_needs_nothing(source: psycopg.Connection, target_db: str) -> None:
    table = plain_table(source, "create table public.t (a int primary key)")
    assert target_problems(target_db, [table], "create") == []
    assert [problem.what for problem in target_problems(target_db, [table], "keep")] == [
        "target: missing tables: public.t"
    ]
    missing = Objects(extensions=("no_such_extension schema public",))
    assert errors(target_problems(target_db, [table], "create", missing)) == [
        "target: extensions are not installed on the server: no_such_extension"
    ]
    (problem,) = target_problems("postgresql://postgres@127.0.0.1:1/x", [table], "create")
    assert problem.what.startswith("target: connecting: ")


def test_each_right_that_a_role_lacks_at_the_target_is_named(
    source: psycopg.Connection, target: psycopg.Connection, target_db: str
) -> None:
    source.execute("create schema shop; create schema absent")
    source.execute("create table shop.t (a int primary key); create table absent.t (a int primary key)")
    tables = catalogue.tables(source, everything)
    target.execute("create schema shop; create table shop.t (a int primary key)")
    database = conninfo_to_dict(target_db)["dbname"]
    run(target, f'revoke temporary on database "{database}" from public')
    with poor_role(target, target_db) as (role, url):
        problems = target_problems(url, tables, "create")
        assert errors(problems) == [
            f"target: no right to create temporary tables in database {database}",
            f"target: role {role} may not switch off triggers and foreign keys for its session",
            f"target: schema absent is missing, and role {role} may not create it",
            f"target: schema penstock is missing, and role {role} may not create it",
            "target: no right to use schema shop",
            "target: no right to read and write shop.t",
        ]
        for problem in problems:
            if "authorization" not in problem.remedy:
                run(target, problem.remedy.removesuffix("(as a superuser)"))
        run(target, f'grant create on database "{database}" to "{role}"')
        assert target_problems(url, tables, "create") == []
        assert errors(target_problems(url, tables, "drop-and-create")) == ["target: only their owner can drop shop.t"]


def test_who_may_not_give_tables_to_their_owners_is_told_what_lets_him(
    target: psycopg.Connection, target_db: str
) -> None:
    database = conninfo_to_dict(target_db)["dbname"]
    with poor_role(target, target_db) as (role, url), poor_role(target, "postgresql://x/shop") as (owner, _):
        run(target, f'create schema shop; grant create on database "{database}" to "{role}"')
        owners = {("shop", owner), ("absent", owner)}
        found = [p for p in target_problems(url, [], "create", owners=owners) if owner in p.what]
        assert [problem.what for problem in found] == [
            f"target: role {role} may give no tables to {owner}",
            f"target: role {owner} can own no tables in schema absent: it may not create any there",
            f"target: role {owner} can own no tables in schema shop: it may not create any there",
        ]
        for problem in found:
            run(target, problem.remedy)
        assert not [p for p in target_problems(url, [], "create", owners=owners) if owner in p.what]
        assert not [p for p in target_problems(target_db, [], "create", owners=owners) if owner in p.what]


def test_tables_of_the_target_that_would_lose_something_are_refused(
    source: psycopg.Connection, target: psycopg.Connection, target_db: str
) -> None:
    table = plain_table(
        source,
        "create table public.t (a int primary key, b varchar(20), c numeric(10,2), d timestamp, e text, f int, g int)",
    )
    target.execute(
        "create table public.t (a int unique deferrable, b varchar(10), c numeric(10,1), d timestamp(3),"
        " f bigint, g int generated always as (1) stored, h int not null, i int not null default 1);"
        "create table public.other (a int primary key)"
    )
    name = 'alter table "public"."t"'
    assert [(p.what, p.remedy) for p in target_problems(target_db, [table], "truncate")] == [
        (
            "target: public.t: column b is character varying(10), at the source character varying(20)",
            f'{name} alter column "b" type character varying(20)',
        ),
        (
            "target: public.t: column c is numeric(10,1), at the source numeric(10,2)",
            f'{name} alter column "c" type numeric(10,2)',
        ),
        (
            "target: public.t: column d is timestamp(3) without time zone, at the source timestamp without time zone",
            f'{name} alter column "d" type timestamp without time zone',
        ),
        ("target: public.t lacks column e", f'{name} add column "e" text'),
        ("target: public.t: column f is bigint, at the source integer", f'{name} alter column "f" type integer'),
        (
            "target: public.t: column g is generated, at the source it is not",
            f'{name} alter column "g" drop expression',
        ),
        (
            "target: public.t: column h takes no nulls, and the source does not have it",
            f'{name} alter column "h" drop not null, or give it a default',
        ),
        (
            "target: public.t has no key on (a) that is not deferrable",
            'create unique index on "public"."t" ("a")',
        ),
    ]
    for problem in target_problems(target_db, [table], "truncate"):
        run(target, problem.remedy.partition(", or ")[0])
    assert target_problems(target_db, [table], "truncate") == []


def test_a_column_that_only_the_source_computes_is_told(
    source: psycopg.Connection, target: psycopg.Connection, target_db: str
) -> None:
    table = plain_table(source, "create table public.t (a int primary key, g int generated always as (a * 2) stored)")
    target.execute("create table public.t (a int primary key, g int)")
    [problem] = target_problems(target_db, [table], "keep")
    assert (
        problem.what
        == "target: public.t: column g is generated at the source, so it is not sent, and stays as it is here"
    )
    run(target, problem.remedy)
    assert target_problems(target_db, [table], "keep") == []


def test_rows_triggers_and_references_of_a_target_are_told(
    source: psycopg.Connection, target: psycopg.Connection, target_db: str
) -> None:
    table = plain_table(source, "create table public.t (a int primary key)")
    for statement in create_table(table):
        run(target, statement)
    target.execute("insert into public.t values (1)")
    assert errors(target_problems(target_db, [table], "create")) == ["target: tables hold rows already: public.t"]
    assert warnings(target_problems(target_db, [table], "keep")) == [
        "target: tables hold rows already, and keep them: public.t"
    ]
    assert target_problems(target_db, [table], "truncate") == []
    target.execute(
        "create table public.outside (a int references public.t);"
        "create function public.f() returns trigger language plpgsql as 'begin return new; end';"
        "create trigger always before insert on public.t for each row execute function public.f();"
        "alter table public.t enable always trigger always;"
        "create rule quiet as on delete to public.t do instead nothing;"
        "create rule loud as on delete to public.t do instead nothing; alter table public.t enable replica rule loud"
    )
    problems = target_problems(target_db, [table], "truncate")
    assert errors(problems) == [
        "target: public.outside, which is not of the pipeline, refers to public.t: it can't be emptied or dropped"
    ]
    assert warnings(problems) == [
        "target: trigger always of public.t fires for replicated rows too",
        "target: rule loud of public.t changes what is done for replicated rows too",
    ]
    target.execute("drop table public.t cascade; create view public.t as select 1 as a")
    assert errors(target_problems(target_db, [table], "create")) == ["target: public.t exists, but is no table"]


def test_what_is_no_table_is_named_as_left_out(source_db: str, source: psycopg.Connection) -> None:
    run(source, "create table public.t (id int primary key)")
    run(source, "create view public.v as select * from public.t")
    run(source, "create materialized view public.m as select * from public.t")
    run(source, "create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing")
    run(source, "create foreign table public.f (a int) server nowhere")
    found = source_problems(source_db, "p", everything, Mode.LOAD_AND_CHANGES)
    assert errors(found) == []
    assert "source: views are not copied: public.v, public.m" in warnings(found)
    run(source, "create view public.w as select * from public.f")
    wanted = source_problems(source_db, "p", everything, Mode.LOAD_AND_CHANGES, views=True)
    assert "source: views are not copied: public.w" in warnings(wanted)
    assert "source: foreign tables are not copied: public.f" in warnings(found)
    only_tables = source_problems(source_db, "p", lambda id: id.name == "t", Mode.LOAD_AND_CHANGES)
    assert not [what for what in warnings(only_tables) if "not copied" in what]


def test_an_extension_that_the_role_may_not_make_comes_with_its_command(
    target: psycopg.Connection, target_db: str
) -> None:
    query = "select min(name) from pg_available_extensions where installed_version is null"
    (name,) = target.execute(query).fetchone() or ()
    needed = Objects(extensions=(f"{name} schema public",))
    assert not [what for what in errors(target_problems(target_db, [], "create", needed)) if "extensions" in what]
    with poor_role(target, target_db) as (role, url):
        found = target_problems(url, [], "create", needed)
    (missing,) = [problem for problem in found if "extensions" in problem.what]
    assert missing.what == f"target: extensions are missing in the database, and role {role} may not make them: {name}"
    assert missing.remedy == f'as a superuser: create extension "{name}" schema "public"'
