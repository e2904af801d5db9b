"""The questions that are put to PostgreSQL's catalogue; each is asked once, for all tables together.

All of them work from 12 to 18; what differs by version is in `VERSIONED`. `search_path` is `pg_catalog`, so
definitions name everything else with its schema. Of `oids` every query takes an array.
"""

from __future__ import annotations

import psycopg

VERSIONED: dict[str, tuple[int, str, str]] = {
    # name: (since, then, before)
    "no_inherit_not_null": (18, "c.contype = 'n' and not c.convalidated", "false"),
}


def versioned(query: str, connection: psycopg.Connection) -> str:
    """Put into a query the pieces that depend on the server's version: `{name}`."""
    for name, (since, then, before) in VERSIONED.items():
        query = query.replace("{" + name + "}", then if connection.info.server_version >= since * 10_000 else before)
    return query


RELATIONS = """
select c.oid::int8, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       c.relispartition, c.reltuples::float8, c.relpages::int8,
       case when c.relkind = 'p' then pg_get_partkeydef(c.oid) end,
       case when c.relispartition then pg_get_expr(c.relpartbound, 0) end,
       (select d.description from pg_description d
         where d.classoid = 'pg_class'::regclass and d.objoid = c.oid and d.objsubid = 0),
       c.reltoastrelid::int8,
       -- One that is about to be detached has been written once more.
       coalesce((select case when to_jsonb(i) @> '{"inhdetachpending": true}' then 0 else i.xmin::text::int8 end
                   from pg_inherits i
                  where c.relispartition and i.inhrelid = c.oid), 0)
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'f')
   and c.relpersistence <> 't'
   and n.nspname <> all (array['information_schema', 'penstock'])
   and n.nspname !~ '^pg_'
   and not exists (select from pg_depend d
                    where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
 order by n.nspname, c.relname
"""
"""Every table, partition and foreign table of users; what an extension made belongs to the extension."""

LARGE_VALUES = """
select wanted.oid::int8
  from unnest(%(oids)s::oid[]) as wanted(oid)
  join pg_class c on c.oid = wanted.oid
 where c.reltoastrelid <> 0 and pg_relation_size(c.reltoastrelid) >= %(least)s
"""
"""Tables with so many bytes of values out of line, compressed as they are."""

PARENTS = """
select i.inhrelid::int8, i.inhparent::int8
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
 where c.relkind in ('r', 'p', 'f')
 order by i.inhrelid, i.inhseqno
"""
"""Children and parents, of partitions and of plain inheritance."""

ROW_TYPES = """
select distinct a.attrelid::int8, t.typrelid::int8
  from pg_attribute a
  join pg_type w on w.oid = a.atttypid
  join pg_type t on t.oid = case when w.typlen = -1 and w.typelem <> 0 then w.typelem else w.oid end
  join pg_class c on c.oid = t.typrelid and c.relkind in ('r', 'p')
 where a.attrelid = any (%(oids)s::oid[]) and a.attnum > 0 and not a.attisdropped and t.typrelid <> a.attrelid
"""
"""Tables with columns whose type is the row of another table."""

SIZES = """
select c.oid::int8, coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::int8
  from unnest(%(oids)s::oid[]) as wanted(oid)
  join pg_class c on c.oid = wanted.oid
 where c.relkind = 'r'
"""
"""The pages that are there now. It waits for whoever holds the table in an access exclusive lock."""

COLUMNS = """
select a.attrelid::int8, a.attnum::int4, a.attname, a.atttypid::int8, a.atttypmod::int4,
       format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text, a.attgenerated::text,
       pg_get_expr(d.adbin, case when a.attgenerated <> '' then d.adrelid else 0 end),
       case when a.attcollation <> t.typcollation then cn.nspname end, co.collname,
       de.description, sn.nspname, s.relname, a.xmin::text::int8
  from pg_attribute a
  join pg_type t on t.oid = a.atttypid
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  left join pg_collation co on co.oid = a.attcollation
  left join pg_namespace cn on cn.oid = co.collnamespace
  left join pg_description de
    on de.classoid = 'pg_class'::regclass and de.objoid = a.attrelid and de.objsubid = a.attnum
  left join pg_depend o
    on o.refclassid = 'pg_class'::regclass and o.refobjid = a.attrelid and o.refobjsubid = a.attnum
   and o.classid = 'pg_class'::regclass and o.deptype in ('a', 'i')
   and exists (select from pg_class x where x.oid = o.objid and x.relkind = 'S')
  left join pg_class s on s.oid = o.objid
  left join pg_namespace sn on sn.oid = s.relnamespace
 where a.attrelid = any (%(oids)s::oid[]) and a.attnum > 0 and not a.attisdropped
 order by a.attrelid, a.attnum, s.oid
"""
"""Columns; one that owns several sequences comes several times."""

MISSING = """
select a.attrelid::int8, a.attname,
       quote_literal((a.attmissingval::text::text[])[1]) || '::' || format_type(a.atttypid, a.atttypmod)
  from pg_attribute a
 where a.attrelid = any (%(oids)s::oid[]) and a.atthasmissing and not a.attisdropped
 order by a.attrelid, a.attnum
"""
"""What rows from before a column show for it: only what holds rows knows."""

BASES = """
with recursive step (oid, typtype, base, depth) as (
    select t.oid, t.typtype, case when t.typtype = 'd' then t.typbasetype end, 0
      from pg_type t
     where t.oid = any (%(oids)s::oid[])
    union all
    select step.oid, t.typtype, case when t.typtype = 'd' then t.typbasetype else t.oid end, step.depth + 1
      from step
      join pg_type t on t.oid = step.base
     where step.typtype = 'd'
)
select distinct on (oid) oid::int8, coalesce(base, oid)::int8, typtype::text
  from step
 order by oid, depth desc
"""
"""What a type rests on at last, through domains over domains."""

CONSTRAINTS = """
select c.conrelid::int8, c.conname, c.contype::text, pg_get_constraintdef(c.oid), c.conkey::int4[],
       rn.nspname, r.relname
  from pg_constraint c
  left join pg_class r on r.oid = c.confrelid
  left join pg_namespace rn on rn.oid = r.relnamespace
 where c.conrelid = any (%(oids)s::oid[])
   and c.conparentid = 0
   and (c.contype in ('p', 'u', 'x', 'c', 'f') or {no_inherit_not_null})
 order by c.conrelid, c.conname
"""
"""A foreign key to a partitioned table has a shadow for each partition, which has a parent."""

INDEXES = """
select i.indrelid::int8, ic.relname, i.indisunique, pg_get_indexdef(i.indexrelid),
       i.indkey::int2[]::int4[], i.indnkeyatts::int4
  from pg_index i
  join pg_class ic on ic.oid = i.indexrelid
 where i.indrelid = any (%(oids)s::oid[])
   and (i.indisvalid or ic.relkind = 'I')
   and not exists (select from pg_constraint c where c.conindid = i.indexrelid and c.contype in ('p', 'u', 'x'))
 order by i.indrelid, ic.relname
"""
"""Indexes that no constraint owns."""

IDENTITIES = """
select i.indrelid::int8, i.indisprimary, i.indisreplident,
       array(select a.attname::text
               from unnest(i.indkey::int2[]) with ordinality as k(attnum, place)
               join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
              where k.place <= i.indnkeyatts
              order by k.place)
  from pg_index i
 where i.indrelid = any (%(oids)s::oid[])
   and i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null
   and (i.indisprimary or i.indisreplident)
"""
"""Indexes that tell rows apart for the stream; a deferrable one does not: on the way it may hold a key twice."""

FILENODES = """
select wanted.oid::int8, pg_relation_filenode(wanted.oid)::int8
  from unnest(%(oids)s::oid[]) as wanted(oid)
"""
"""Where a table's rows lie now. `pg_class.relfilenode` would show what an old snapshot sees."""
