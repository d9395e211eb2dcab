-- The tables of one pattern (a LIKE pattern for the schema, an exact name), with their columns, their primary key, and
-- all partitions and inheritance children below them: a statement that names one of those fires only its own triggers.
-- A column's type is an OID, or "enum".
select n.nspname as schema, c.relname as name,
    (select jsonb_object_agg(a.attname, case t.typtype when 'e' then 'enum' else t.oid::text end)
       from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
    (select array_agg(a.attname::text order by k.place)
       from pg_catalog.pg_index i, unnest(i.indkey) with ordinality as k (number, place), pg_catalog.pg_attribute a
      where i.indrelid = c.oid and i.indisprimary and a.attrelid = c.oid and a.attnum = k.number) as key,
    (with recursive below (relid) as (
         select inhrelid from pg_catalog.pg_inherits where inhparent = c.oid
         union
         select i.inhrelid from below join pg_catalog.pg_inherits i on i.inhparent = below.relid
     )
     select coalesce(jsonb_agg(jsonb_build_array(cn.nspname, cc.relname) order by cn.nspname, cc.relname), '[]')
       from below
       join pg_catalog.pg_class cc on cc.oid = below.relid
       join pg_catalog.pg_namespace cn on cn.oid = cc.relnamespace
      where cc.relkind in ('r', 'p')) as children
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname like %(schema)s and c.relname = %(name)s and c.relkind in ('r', 'p')
order by 1, 2
