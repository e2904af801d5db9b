"""The questions behind `prerequisites`: each returns what is wrong, nothing if all is well."""

from __future__ import annotations

SETTINGS = """
select name, setting
  from pg_settings
 where name = any (array['wal_level', 'max_replication_slots', 'wal_sender_timeout', 'max_slot_wal_keep_size',
                         'old_snapshot_threshold', 'idle_replication_slot_timeout', 'fsync'])
"""

NAMES = """
select convert_to(concat_ws('.', n.nspname, c.relname, a.attname), 'SQL_ASCII')
  from pg_namespace n
  left join pg_class c on c.relnamespace = n.oid and c.relkind in ('r', 'p', 'f')
  left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
 where n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
 order by 1
"""
"""Schemas, tables and columns by their bytes, as a database in SQL_ASCII has them."""

SERVER = """
select pg_is_in_recovery(),
       (select count(*) from pg_replication_slots),
       (select count(*) from pg_stat_activity where backend_type = 'walsender'),
       current_setting('max_wal_senders')::int
"""

ROLE = """
select r.rolname,
       r.rolreplication or r.rolsuper
       or exists (select from pg_roles g where g.rolname = 'rds_replication' and pg_has_role(g.oid, 'usage'))
  from pg_roles r
 where r.rolname = current_user
"""

CLOSED_SCHEMAS = """
select n.nspname
  from pg_namespace n
 where n.nspname = any (%(schemas)s) and not has_schema_privilege(n.oid, 'usage')
 order by n.nspname
"""

UNREADABLE = """
select n.nspname, c.relname
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.oid = any (%(oids)s::oid[]) and not has_table_privilege(c.oid, 'select')
 order by n.nspname, c.relname
"""

ROW_SECURITY = """
select n.nspname, c.relname
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.oid = any (%(oids)s::oid[]) and c.relrowsecurity
   and (c.relforcerowsecurity or not pg_has_role(c.relowner, 'usage'))
   and not (select r.rolbypassrls or r.rolsuper from pg_roles r where r.rolname = current_user)
 order by n.nspname, c.relname
"""

MAY_CREATE = """
select current_database(), has_database_privilege(current_database(), 'create')
"""

CHOSEN = """
  from unnest(%(schemas)s::text[], %(names)s::text[]) as wanted(schema, name)
  join pg_namespace n on n.nspname = wanted.schema
  join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
"""

NOT_OWNED = f"""
select n.nspname, c.relname, r.rolname, r.rolsuper
{CHOSEN}
  join pg_roles r on r.oid = c.relowner
 where not pg_has_role(c.relowner, 'usage')
 order by n.nspname, c.relname
"""

GENERATED_KEYS = f"""
select distinct n.nspname, c.relname
{CHOSEN}
  join pg_attribute a on a.attrelid = c.oid and a.attgenerated <> ''
 where (c.relreplident = 'f' and current_setting('server_version_num')::int >= 180000)
    or exists (select from pg_index i
                where i.indrelid = c.oid and a.attnum = any (i.indkey::int2[])
                  and (i.indisreplident and c.relreplident = 'i' or i.indisprimary and c.relreplident = 'd'))
 order by n.nspname, c.relname
"""

LEFT_OUT = """
select c.relkind::text, n.nspname, c.relname
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('v', 'm', 'f') and not c.relispartition
   and n.nspname <> all (array['information_schema', 'penstock']) and n.nspname !~ '^pg_'
   and not exists (select from pg_depend d
                    where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
 order by n.nspname, c.relname
"""
"""Views, materialised views and foreign tables of users, which have no changes in the stream."""

FOREIGN_PARTITIONS = f"""
select distinct fn.nspname, f.relname
{CHOSEN}
 cross join lateral pg_partition_tree(c.oid) as t
  join pg_class f on f.oid = t.relid and f.relkind = 'f'
  join pg_namespace fn on fn.oid = f.relnamespace
 where c.relkind = 'p'
 order by fn.nspname, f.relname
"""

FUNCTIONS = f"""
with chosen (oid) as (
    select c.oid
    {CHOSEN}
), parts (classid, objid) as (
    select 'pg_attrdef'::regclass::oid, a.oid from pg_attrdef a where a.adrelid in (select oid from chosen)
     union all
    select 'pg_constraint'::regclass::oid, k.oid from pg_constraint k where k.conrelid in (select oid from chosen)
     union all
    select 'pg_class'::regclass::oid, i.indexrelid from pg_index i where i.indrelid in (select oid from chosen)
)
select distinct p.oid::regprocedure::text
  from parts
  join pg_depend d on d.classid = parts.classid and d.objid = parts.objid and d.refclassid = 'pg_proc'::regclass
  join pg_proc p on p.oid = d.refobjid
  join pg_namespace n on n.oid = p.pronamespace
 where n.nspname <> 'pg_catalog'
   and not exists (select from pg_depend e
                    where e.classid = 'pg_proc'::regclass and e.objid = p.oid and e.deptype = 'e')
 order by 1
"""

PREPARED = """
select quote_literal(gid), owner, extract(epoch from now() - prepared)::int8
  from pg_prepared_xacts
 order by prepared
"""

LONG_TRANSACTIONS = """
select l.pid, coalesce(a.usename, '?'), coalesce(a.datname, '?'), extract(epoch from now() - a.xact_start)::int8
  from pg_locks l
  join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'transactionid' and l.granted and l.mode = 'ExclusiveLock'
   and a.xact_start < now() - make_interval(secs => %(seconds)s)
 order by a.xact_start
"""
"""The age of another role's transaction is shown to members of pg_monitor only."""

EXISTING = """
select n.nspname, c.relname, c.oid::int8, c.relkind::text
  from unnest(%(schemas)s::text[], %(names)s::text[]) as wanted(schema, name)
  join pg_namespace n on n.nspname = wanted.schema
  join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
"""

TARGET_RIGHTS = """
select has_database_privilege(current_database(), 'temporary'), has_database_privilege(current_database(), 'create'),
       current_database(), current_user
"""

OWNERS = """
select wanted.schema, r.rolname, pg_has_role(r.oid, %(how)s),
       n.oid is not null and has_schema_privilege(r.oid, n.oid, 'create')
  from unnest(%(schemas)s::text[], %(roles)s::text[]) as wanted(schema, role)
  join pg_roles r on r.rolname = wanted.role
  left join pg_namespace n on n.nspname = wanted.schema
 order by wanted.schema, r.rolname
"""

SCHEMAS = """
select wanted.schema, n.oid is not null,
       coalesce(has_schema_privilege(n.oid, 'usage'), false), coalesce(has_schema_privilege(n.oid, 'create'), false)
  from unnest(%(schemas)s::text[]) as wanted(schema)
  left join pg_namespace n on n.nspname = wanted.schema
 order by wanted.schema
"""

UNWRITABLE = """
select n.nspname, c.relname
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.oid = any (%(oids)s::oid[])
   and not (has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert')
            and has_table_privilege(c.oid, 'update') and has_table_privilege(c.oid, 'delete')
            and has_table_privilege(c.oid, 'truncate'))
 order by n.nspname, c.relname
"""

ALWAYS_TRIGGERS = """
select n.nspname, c.relname, t.tgname
  from pg_trigger t
  join pg_class c on c.oid = t.tgrelid
  join pg_namespace n on n.oid = c.relnamespace
 where c.oid = any (%(oids)s::oid[]) and not t.tgisinternal and t.tgenabled in ('A', 'R')
 order by n.nspname, c.relname, t.tgname
"""
"""Triggers that fire although rows are replicated."""

ALWAYS_RULES = """
select n.nspname, c.relname, r.rulename
  from pg_rewrite r
  join pg_class c on c.oid = r.ev_class
  join pg_namespace n on n.oid = c.relnamespace
 where c.oid = any (%(oids)s::oid[]) and r.ev_enabled in ('A', 'R')
 order by n.nspname, c.relname, r.rulename
"""
"""The same of rules. Those that are in force only at the origin are passed over."""

REFERRERS = """
select distinct n.nspname, c.relname, rn.nspname, r.relname
  from pg_constraint k
  join pg_class c on c.oid = k.confrelid
  join pg_namespace n on n.oid = c.relnamespace
  join pg_class r on r.oid = k.conrelid
  join pg_namespace rn on rn.oid = r.relnamespace
 where k.contype = 'f' and k.confrelid = any (%(oids)s::oid[]) and not k.conrelid = any (%(oids)s::oid[])
   and k.conparentid = 0
 order by n.nspname, c.relname, rn.nspname, r.relname
"""
"""Tables outside the pipeline that refer to one in it: they stop truncate and drop."""

EXTENSIONS = """
select wanted.name, a.name is not null, a.installed_version is not null,
       (select u.rolsuper from pg_roles u where u.rolname = current_user)
       or exists (select from pg_available_extension_versions v
                   where v.name = a.name and v.version = a.default_version and {trusted}
                     and has_database_privilege(current_database(), 'create'))
  from unnest(%(names)s::text[]) with ordinality as wanted(name, place)
  left join pg_available_extensions a on a.name = wanted.name
 order by wanted.place
"""
"""Whether extensions are on the server, in the database, and could be put there by this role."""

UNIQUE_KEYS = """
select n.nspname, c.relname,
       array(select a.attname::text
               from unnest(i.indkey::int2[]) with ordinality as k(attnum, place)
               join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
              where k.place <= i.indnkeyatts)
  from pg_index i
  join pg_class c on c.oid = i.indrelid
  join pg_namespace n on n.oid = c.relnamespace
 where i.indrelid = any (%(oids)s::oid[])
   and i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null and i.indexprs is null
"""
"""Keys that rows can be found and replaced by."""
