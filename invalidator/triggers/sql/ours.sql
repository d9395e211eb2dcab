-- The triggers of one installation, by the names we give them.
select n.nspname as schema, c.relname as table, t.tgname as trigger
from pg_catalog.pg_trigger t
join pg_catalog.pg_class c on c.oid = t.tgrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where not t.tgisinternal and t.tgname = any (%(triggers)s)
order by 1, 2, 3
