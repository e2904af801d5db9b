"""Noticing that tables were altered, where the change stream does not show it.

The stream describes a table anew before the first row that follows a change of its columns, and tells nothing else.
So the catalogue is looked at now and then; where an event trigger may be made, it says when there is something to see,
and what columns were called at that moment, which the catalogue of a later one may not tell any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

import psycopg

from engines.postgres.asking import ask, run
from engines.postgres.quoting import literal, quote
from schemas.errors import DecodeError

PREFIX = "penstock ddl"
"""Of the messages that the event trigger puts into the stream, within the transaction that alters something."""

SCHEMA = "penstock_source"
EVENTS = ("ddl_command_end", "sql_drop", "table_rewrite")
MESSAGES_SINCE = 140_000

LEFT = """
select count(*)
  from pg_proc p
  join pg_namespace n on n.oid = p.pronamespace
 where n.nspname = %(schema)s
"""

FINGERPRINTS = """
with wanted (oid) as (select unnest(%(oids)s::int8[])::oid),
rows (oid, place, xid) as (
    select c.oid, c.oid, c.xmin from pg_class c where c.oid in (select oid from wanted)
     union all
    select a.attrelid, a.attnum::int4::oid, a.xmin
      from pg_attribute a
     where a.attrelid in (select oid from wanted) and a.attnum > 0
     union all
    select d.adrelid, d.oid, d.xmin from pg_attrdef d where d.adrelid in (select oid from wanted)
     union all
    select i.indrelid, i.indexrelid, i.xmin from pg_index i where i.indrelid in (select oid from wanted)
     union all
    select n.conrelid, n.oid, n.xmin from pg_constraint n where n.conrelid in (select oid from wanted)
     union all
    select h.inhparent, h.inhrelid, h.xmin from pg_inherits h where h.inhparent in (select oid from wanted)
     union all
    select t.attrelid, e.oid, e.xmin
      from (select distinct a.attrelid, coalesce(nullif(t.typelem, 0), t.oid) as oid
              from pg_attribute a
              join pg_type t on t.oid = a.atttypid
             where a.attrelid in (select oid from wanted) and a.attnum > 0 and a.atttypid >= 16384) t
      join pg_enum e on e.enumtypid = t.oid
)
select oid::int8, count(*) || '/' || sum(hashtextextended(place || ',' || xid, 0))
  from rows
 group by oid
"""
"""A number for each relation that is another one when a row of the catalogue about it is. One that is gone is missing.

The catalogue's rows bear the transaction that wrote them; statistics are written in place, and do not count.
"""

ROOTS = """
select c.oid::int8,
       (select a.oid from pg_partition_ancestors(c.oid) with ordinality a (oid, place)
         order by place desc limit 1)::oid::int8
  from pg_class c
 where c.oid = any (%(oids)s::int8[]::oid[]) and c.relispartition
"""

NAMES = """
select c.oid::int8, n.nspname, c.relname
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.oid = any (%(oids)s::int8[]::oid[])
"""

DROPPED = """
select a.attnum::int4
  from pg_attribute a
 where a.attrelid = %(oid)s::int8::oid and a.attnum > %(number)s and a.attisdropped
"""

TRIGGERS = """
select count(*)
  from pg_event_trigger t
 where t.evtname = any (%(names)s) and t.evtenabled <> 'D'
"""

# It must never be in the way of what somebody does: an error here would be that one's.
FUNCTION = """
create or replace function {function}() returns event_trigger
language plpgsql set search_path to pg_catalog as $penstock$
declare
    altered oid[];
    told jsonb;
    stack text;
    hidden boolean;
    domains boolean := false;
begin
    if tg_event = 'sql_drop' then
        if not exists (select from pg_event_trigger_dropped_objects() d where not d.is_temporary) then
            return;
        end if;
    elsif tg_event = 'table_rewrite' then
        if pg_event_trigger_table_rewrite_reason() & 4 = 0 then -- not because of a column's type
            return;
        end if;
        altered := array[pg_event_trigger_table_rewrite_oid(),
                         pg_partition_root(pg_event_trigger_table_rewrite_oid())::oid];
    else
        if not exists (select from pg_event_trigger_ddl_commands() d
                        where d.schema_name is distinct from 'pg_temp'
                          and d.object_type in ('table', 'table column', 'type', 'domain', 'schema', 'index')) then
            return;
        end if;
        altered := array(select d.objid from pg_event_trigger_ddl_commands() d where d.classid = 'pg_class'::regclass);
        domains := exists (
            select from pg_event_trigger_ddl_commands() d
              join pg_attribute a on a.attrelid = d.objid
              join pg_type t on t.oid = a.atttypid and t.typtype = 'd' and t.typdefault is not null
             where d.classid = 'pg_class'::regclass);
    end if;
    select jsonb_agg(jsonb_build_object('oid', c.oid::int8, 'columns', (
               select jsonb_agg(jsonb_build_array(a.attnum, a.attname, a.atttypid::int8, a.atttypmod,
                                                  a.xmin::text::int8) order by a.attnum)
                 from pg_attribute a
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '')))
      into told
      from pg_class c
     where c.oid = any (altered) and c.relkind in ('r', 'p') and c.relpersistence <> 't';
    -- What a function does is not in what the client has sent.
    get diagnostics stack = pg_context;
    hidden := strpos(stack, chr(10)) > 0 or current_query() is null;
    perform pg_logical_emit_message(true, {prefix}, jsonb_build_object(
        'tables', coalesce(told, '[]'),
        'rewriting', tg_event = 'table_rewrite',
        'using', hidden or current_query() ~* '\\yusing\\y',
        'filling', hidden or domains or current_query() ~* '\\y(default|generated|(big|small)?serial[248]?)\\y')::text);
    -- The stream may bring a message behind the change that follows, because this is a subtransaction and messages are
    -- in their order by where they end. So what follows ours is one that nobody reads.
    perform pg_logical_emit_message(true, 'penstock', 'altered');
exception when others then
    raise log 'penstock was not told of a definition that changed: %', sqlerrm;
end
$penstock$
"""


class Told(NamedTuple):
    """The columns of a table as they were just then: number, name, oid of the type, modifier, and the transaction, by
    32 bits, that wrote them last."""

    oid: int
    columns: tuple[tuple[int, str, int, int, int], ...]


class Message(NamedTuple):
    """What the event trigger has said: the tables that a command may have altered, whether it is about to rewrite their
    rows for the type of a column, whether it may have said how values of one type become values of another, and
    whether new columns may have got values."""

    tables: tuple[Told, ...]
    rewriting: bool
    using: bool
    filling: bool


def fingerprints(conn: psycopg.Connection, oids: Iterable[int]) -> dict[int, str]:
    """Return a text for each relation that still exists; another one says that its definition may be another."""
    return dict(ask(conn, FINGERPRINTS, oids=list(oids)))


def roots(conn: psycopg.Connection, leaves: Iterable[int]) -> dict[int, int]:
    """Return the partitioned tables at the top of those that are partitions."""
    return dict(ask(conn, ROOTS, oids=list(leaves)))


def names(conn: psycopg.Connection, oids: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Return how relations are called now, as far as they exist."""
    return {oid: (schema, name) for oid, schema, name in ask(conn, NAMES, oids=list(oids))}


def dropped_behind(conn: psycopg.Connection, oid: int, number: int) -> list[int]:
    """Return the numbers, behind that one, of the columns that a relation has had and has no more."""
    return [found for (found,) in ask(conn, DROPPED, oid=oid, number=number)]


def make_trigger(conn: psycopg.Connection, name: str) -> bool:
    """Make the event trigger of that name, or make it anew; False if that is not for our role to do, or of no use
    because the server does not send messages."""
    if conn.info.server_version < MESSAGES_SINCE:
        return False
    function = quote(SCHEMA, name)
    try:
        with conn.transaction():
            drop_trigger(conn, name)
            run(conn, f"create schema if not exists {quote(SCHEMA)}")
            run(conn, FUNCTION.replace("{function}", function).replace("{prefix}", literal(PREFIX)))
            for event in EVENTS:
                run(conn, f"create event trigger {quote(f'{name}_{event}')} on {event} execute function {function}()")
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def has_trigger(conn: psycopg.Connection, name: str) -> bool:
    """Whether the event trigger of that name is there, and at work."""
    return ask(conn, TRIGGERS, names=[f"{name}_{event}" for event in EVENTS]) == [(len(EVENTS),)]


def drop_trigger(conn: psycopg.Connection, name: str) -> None:
    """Remove the event trigger of that name, and our schema with the last one; nothing happens if there is none."""
    with conn.transaction():
        for event in EVENTS:
            run(conn, f"drop event trigger if exists {quote(f'{name}_{event}')}")
        run(conn, f"drop function if exists {quote(SCHEMA, name)}()")
        if ask(conn, LEFT, schema=SCHEMA) == [(0,)]:
            run(conn, f"drop schema if exists {quote(SCHEMA)}")


def message_of(content: bytes) -> Message:
    """Return what a message of the event trigger says. Raises `DecodeError` if that is no such message."""
    try:
        said = json.loads(content.decode("utf-8", "surrogateescape"))  # as the stream's names are
        tables = [
            Told(
                int(table["oid"]),
                tuple((int(n), str(name), int(t), int(m), int(w)) for n, name, t, m, w in table["columns"] or ()),
            )
            for table in said["tables"]
        ]
        return Message(tuple(tables), bool(said["rewriting"]), bool(said["using"]), bool(said["filling"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DecodeError(f"a message with the prefix {PREFIX!r} that says nothing: {error}") from error
