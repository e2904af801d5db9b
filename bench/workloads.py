"""The shapes of load: two tables, a wide and a narrow one, and what is done to them."""

from __future__ import annotations

WIDE = """
create table wide (
  id bigint primary key, a int, b int not null, amount numeric(12,2), name varchar(40), descr text, ts timestamptz,
  flag boolean, doc jsonb, d date, u uuid, f double precision, opt varchar(20)
)"""

NARROW = "create table narrow (aid bigint primary key, bid int not null, abalance int, filler char(84))"

MARK = "create table mark (id int primary key, v bigint not null)"

FILL_WIDE = """
insert into wide
select g, g % 1000, (g * 7) % 100000, ((g * 13) % 10000000) / 100.0, 'name ' || md5(g::text),
       md5(g::text) || ' some, text ' || md5((g + 1)::text) || E' x',
       timestamptz '2024-01-01' + (g % 1000000) * interval '1.234567 s', g % 3 = 0,
       jsonb_build_object('k', g, 'tag', substr(md5(g::text), 1, 8), 'on', true, 'n', g * 1.5),
       date '2020-01-01' + (g % 2000)::int, md5(g::text)::uuid, g * 1.1234567,
       case when g % 4 = 0 then null else 'opt' || g end
from generate_series({low}, {high}) g"""

FILL_NARROW = "insert into narrow select g, g % 100, 0, '' from generate_series({low}, {high}) g"

SMALL = """\\set id random(1, {keys})
\\set delta random(1, 1000)
begin;
update wide set amount = amount + :delta, ts = now() where id = :id;
update narrow set abalance = abalance + :delta where aid = :id;
end;
"""
"""A pgbench script: one small transaction of two updates."""

FINGERPRINT = "select count(*), md5(string_agg(md5(r::text), '' order by {key})) from {table} r"
"""Every column of every row, in key order: equal texts mean equal tables."""

KEYS = {"wide": "id", "narrow": "aid", "mark": "id"}
