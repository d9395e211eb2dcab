-- The trigger functions of one installation in our schema.
select p.proname as name
from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
where n.nspname = %(schema)s and p.proname ~ %(functions)s
order by 1
