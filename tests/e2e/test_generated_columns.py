"""Generated columns: never in the log, computed again by the target, whatever version that is."""

from __future__ import annotations

import psycopg
import pytest

from tests import servers
from tests.e2e.conftest import Project

TABLES = """
create schema shop;
create table shop.made (id int primary key, n int, kept int generated always as (n * 2) stored,
    seen int generated always as (n + 1) virtual);
create table shop.by_index (n int not null unique, v int, kept text generated always as (n || '!') stored,
    seen int generated always as (-n) virtual);
alter table shop.by_index replica identity using index by_index_n_key;
"""
ROWS = """
insert into shop.made select n, n from generate_series({0}, {1}) n;
insert into shop.by_index select n, n % 7 from generate_series({0}, {1}) n
"""
CHANGES = """
update shop.made set n = -n where id % 3 = 0; update shop.made set id = -id where id % 5 = 0;
delete from shop.made where id % 7 = 0; update shop.by_index set v = 10 where v = 3;
update shop.by_index set n = -n where v = 2; delete from shop.by_index where v = 4
"""
MADE = "select id, n, kept, seen from shop.made order by id"
BY_INDEX = "select n, v, kept, seen from shop.by_index order by n"
GENERATED = """
select attname::text, attgenerated::text from pg_attribute
where attrelid = 'shop.made'::regclass and attgenerated <> '' order by attname
"""


@pytest.mark.parametrize("versions", [servers.Versions(18, 18), servers.Versions(18, 17)], indirect=True, ids=str)
def test_virtual_and_stored_columns_are_computed_by_the_target(simple: Project) -> None:
    with (
        psycopg.connect(simple.source, autocommit=True) as source,
        psycopg.connect(simple.target, autocommit=True) as target,
    ):
        virtual = "virtual" if source.info.server_version >= 180_000 else "stored"
        source.execute(TABLES.replace("virtual", virtual).encode())
        source.execute(ROWS.format(1, 100).encode())
        simple.write()
        stored = virtual == "virtual" and target.info.server_version < 180_000
        planned = simple.succeed("plan", str(simple.file))
        assert ("column seen: it is virtual, of PostgreSQL 18: the target stores it" in planned) is stored
        simple.succeed("run", str(simple.file), "--until-caught-up")
        assert target.execute(GENERATED.encode()).fetchall() == [("kept", "s"), ("seen", "s" if stored else virtual[0])]
        for first, last in ((201, 210), (301, 400)):  # a few changes, and many
            source.execute(ROWS.format(first, last).encode())
            source.execute(CHANGES.encode())
            simple.succeed("run", str(simple.file), "--until-caught-up")
            for query in (MADE, BY_INDEX):
                assert target.execute(query.encode()).fetchall() == source.execute(query.encode()).fetchall()
