-- The triggers of one installation: those that run one of its functions.
select n.nspname as schema, c.relname as table, t.tgname as trigger
from pg_catalog.pg_trigger t
join pg_catalog.pg_class c on c.oid = t.tgrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_proc p on p.oid = t.tgfoid
join pg_catalog.pg_namespace pn on pn.oid = p.pronamespace
where not t.tgisinternal and pn.nspname = %(schema)s and p.proname ~ %(functions)s
order by 1, 2, 3
