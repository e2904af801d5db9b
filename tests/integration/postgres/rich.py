"""A schema with something of everything that the catalogue is asked for."""

RICH = """
create schema shop;
create schema "We ird";
create type shop.status as enum ('new', 'it''s', 'back\\slash');
create domain shop.positive as int check (value > 0);
create domain shop.quantity as shop.positive not null default 3;
create type shop.address as (street text collate "C", state shop.status);
create type shop.span as range (subtype = float8, subtype_diff = float8mi);
create table shop.customers (
    id serial primary key,
    name varchar(20) not null,
    flag "char",
    status shop.status default 'new',
    address shop.address,
    quantity shop.quantity,
    statuses shop.status[],
    span shop.span,
    ip inet,
    amount numeric(12,2),
    doubled int generated always as (id * 2) stored,
    created timestamptz(3) default now(),
    code char(5),
    title text collate "C",
    dropped int
);
alter table shop.customers drop column dropped;
comment on table shop.customers is 'it''s';
comment on column shop.customers.name is E'a\\nb\\\\';
create table shop.orders (
    id bigint generated always as identity (start with 10 increment by 5) primary key,
    customer int references shop.customers on delete cascade,
    x int check (x > 0),
    y int,
    unique (customer, x),
    exclude using btree (y with =)
);
alter table shop.orders add constraint late check (y > 0) not valid;
create index on shop.orders (x desc) where x > 5;
create unique index on shop.orders (lower(x::text));
create table shop.parts (id int, d date not null, primary key (id, d)) partition by range (d);
create index on shop.parts (d);
create table shop.parts_1 partition of shop.parts for values from ('2024-01-01') to ('2025-01-01')
    partition by list (id);
create table shop.parts_1a partition of shop.parts_1 for values in (1, 2);
create table "We ird".parts_2 partition of shop.parts default;
create table shop.refers (a int, d date, foreign key (a, d) references shop.parts);
create table shop.base (a int primary key);
create table shop.a_child (b int) inherits (shop.base);
create table shop."Q""uote" ("a b" int primary key, "%s" text);
create table shop."empty" ();
create sequence shop.counter;
create table shop.counted (n bigint primary key default nextval('shop.counter'));
"""

IDENTITIES = """
create schema i;
create table i.by_default (b int, a int primary key);
create table i.two (b int, x text, a int, primary key (a, b));
create table i.no_key (a int);
create table i.deferrable_key (a int primary key deferrable);
create table i.full_key (a text, b int primary key);
alter table i.full_key replica identity full;
create table i.full_none (a text);
alter table i.full_none replica identity full;
create table i.full_deferrable (a int primary key deferrable);
alter table i.full_deferrable replica identity full;
create table i.by_index (a int primary key, b int not null);
create unique index by_index_b on i.by_index (b) include (a);
alter table i.by_index replica identity using index by_index_b;
create table i.index_gone (a int primary key, b int not null unique);
alter table i.index_gone replica identity using index index_gone_b_key;
alter table i.index_gone drop constraint index_gone_b_key;
create table i.nothing (a int primary key);
alter table i.nothing replica identity nothing;
create table i.generated_key (a int, g int generated always as (a + 1) stored primary key);
create unlogged table i.unlogged (a int primary key);
create table i.part (a int, b int) partition by list (a);
create table i.part_1 partition of i.part (primary key (b)) for values in (1);
create table i.part_2 (b int primary key, a int);
alter table i.part attach partition i.part_2 for values in (2);
create table i.part_bad (a int, b int) partition by list (a);
create table i.part_bad_1 partition of i.part_bad (primary key (b)) for values in (1);
create table i.part_bad_2 partition of i.part_bad for values in (2);
create table i.part_mixed (a int, b int primary key) partition by list (b);
create table i.part_mixed_1 partition of i.part_mixed for values in (1);
create table i.part_mixed_2 partition of i.part_mixed for values in (2);
alter table i.part_mixed_2 replica identity full;
create table i.part_none (a int primary key) partition by list (a);
"""
