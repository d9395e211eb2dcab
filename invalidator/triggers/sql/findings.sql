-- Part of plan.sql: the rows of the plan, with refusals and notes. A refusal keeps the plan from being executed; it has a
-- state only when the rules name a table or column that does not exist. A note is advice.
select * from (
select stage, kind, nspname, relname, on_schema, on_name, name, state, statement, trace,
    case when statement is not null then what end as what, case when statement is not null then todo end as todo,
    null as wrong, null::text[] as instead, number
from objects

union all
select 7, 'notification', null, null, null, null, null, null, statement, null, null, null, null, null, 0
from notifications

union all
select 0, 'refusal', null, null, null, null, null, null, null, null,
    'the server is a standby, and takes no triggers', 'connect to the primary', null, null, 0
where pg_is_in_recovery()

union all
select 0, 'refusal', asked.schema, asked.name, null, null, null, 'table missing', null, null,
    format('there is no table "%s.%s"', asked.schema, asked.name), 'create it, or correct the rule', null, null, asked.number
from asked
where level <> 'none' and pattern is null and not exists (select from matched where matched.number = asked.number)

union all
select 0, 'refusal', nspname, relname, null, null, null, 'table missing', null, null,
    format('"%s.%s" is a %s: triggers cannot report what changes in it', nspname, relname,
           case relkind when 'v' then 'view' when 'm' then 'materialized view' else 'foreign table' end),
    case relkind when 'v' then 'name the tables that it reads'
         else format('write triggers: none into the rule, and say changes by hand: select %I.changed(''%s.%s'')',
                     schema_of.schema, nspname, relname) end,
    null, null, number
from (
    select nspname, relname, relkind, min(number) as number from matched where relkind in ('v', 'm', 'f') group by 1, 2, 3
) as others
cross join (select schema from installation) as schema_of

union all
select 0, 'refusal', t.nspname, t.relname, null, null, null, null, null, null,
    format('the table "%s.%s" has the foreign table "%s.%s" below it, and PostgreSQL collects no changed rows from that',
           t.nspname, t.relname, n.nspname, c.relname),
    'name the other partitions in rules of their own, or write triggers: none into the rule', null, null, t.number
from below
join tables t on t.relid = top
join pg_class c on c.oid = below.relid and c.relkind = 'f'
join pg_namespace n on n.oid = c.relnamespace

union all
select 0, 'refusal', t.nspname, t.relname, null, null, null, 'outdated', null, null,
    format('the table "%s.%s" has no column "%s"', t.nspname, t.relname, f.attname), null, f.attname,
    (select array_agg(attname) from columns where columns.relid = t.relid), t.number
from fields f
join tables t using (relid)
where asked and not exists (select from columns where columns.relid = f.relid and columns.attname = f.attname)

union all
select 0, 'refusal', t.nspname, t.relname, null, null, null, 'outdated', null, null,
    format('"%s" of the table "%s.%s" is a path into a column of type %s',
           f.name, t.nspname, t.relname, format_type(declared, null)),
    'only json and jsonb have paths', null, null, t.number
from fields f
join tables t using (relid)
join columns using (relid, attname)
join types using (declared)
where asked and path is not null and type not in (114, 3802)

union all
select 0, 'note', null, null, null, null, 'prepared transactions', null, null, null,
    format('max_prepared_transactions is %s: PREPARE TRANSACTION fails after a change to these tables',
           current_setting('max_prepared_transactions')),
    'PostgreSQL forbids it after NOTIFY; let no two-phase commit write to them', null, null, 0
where current_setting('max_prepared_transactions')::int > 0

union all
select 0, 'note', t.nspname, t.relname, null, null, 'more', null, null, null,
    format('the triggers of "%s.%s" send more than these rules need', t.nspname, t.relname),
    'another version of the rules may need it; else --prune narrows them', null, null, t.number
from tables t
where sends_more or exists (select from fields where fields.relid = t.relid and not asked)

union all
select 0, 'note', t.nspname, t.relname, null, null, 'row', null, null, null,
    case when relid in (select o.relid from reached_from_outside o)
         then format('statements that name a parent change "%s.%s" too: its triggers fire for each row, which costs writers'
                     ' more', t.nspname, t.relname)
         else format('EXECUTE on current_setting is not granted to all: the triggers of "%s.%s" fire for each row', t.nspname,
                     t.relname) end,
    case when relid in (select o.relid from reached_from_outside o)
         then 'a rule that names the topmost parent instead has statement triggers'
         else 'grant execute on function current_setting(text, boolean) to public' end, null, null, t.number
from tables t
where rows_only

union all
select 0, 'note', null, null, null, null, 'notification queue', case when usage > 0.5 then 'full' end, null, null,
    format('the notification queue is %s %% full%s', round(usage::numeric * 100, 1),
           case when usage > 0.5 then ': only table-wide changes are sent; when it is full, commits fail' end),
    'look in pg_stat_activity for a session that listens and has a transaction open', null, null, 0
from (select pg_notification_queue_usage() as usage) as queue
where usage > 0.1

union all
select 0, 'note', null, null, null, null, 'pg_notify', null, null, null,
    'EXECUTE on pg_notify is not granted to all: changes by roles that lack it are reported for the whole table, not by row',
    'grant execute on function pg_notify(text, text) to public', null, null, 0
where not has_function_privilege('public', 'pg_notify(text, text)', 'execute')

union all
select 0, 'note', null, null, null, null, 'event triggers', null, null, null,
    'partitions that are created, attached, detached or dropped, and rewritten tables, are seen only by a look at the catalog',
    format('a superuser who runs this gives the installation event triggers; %s is none', current_user), null, null, 0
from installation
where not by_superuser and exists (select from tables) and not exists (select from listening where there is not null)

union all
select 0, 'note', null, null, null, null, 'event triggers', 'tampered', null, null,
    format('%s can replace what the event triggers of %s run with the rights of whoever alters a table, superusers among them',
           (select string_agg(distinct stranger, ', ')
            from (select unnest(strangers) from handler union select unnest(strangers) from listening) as all_of_them (stranger)),
           name),
    format('a superuser runs install-triggers of this version, or: %s',
           (select string_agg(format('drop event trigger %I', event_trigger), '; ' order by event_trigger)
            from listening where there is not null)),
    null, null, 0
from installation
where not (by_superuser and (select is_closed from handler))
    and exists (select from listening where there is not null and state = 'tampered')

union all
select 0, 'note', null, null, null, null, 'event triggers', 'tampered', null, null,
    format('there are no event triggers: %s could replace what they run, in the schema %I',
           array_to_string(handler.strangers, ', '), events_schema),
    format('drop schema %1$I, or: alter schema %1$I owner to %2$I; revoke create on schema %1$I from %3$s; then run this again',
           events_schema, current_user, array_to_string(handler.strangers, ', ')),
    null, null, 0
from installation
cross join handler
where by_superuser and not is_closed

union all
select 0, 'note', null, null, null, null, 'event triggers', handler_state, null, null,
    'what the event triggers run was written by another version, or for other rules without triggers',
    'a superuser runs install-triggers', null, null, 0
from installation
cross join handler
where not by_superuser and is_closed and handler_state = 'outdated'
    and exists (select from listening where there is not null and state <> 'tampered')

union all
select 0, 'note', null, null, null, null, 'replica sessions', null, null, null,
    format('%s of these tables belong to others: what sessions with session_replication_role = replica change there'
           ' is not reported', count(*)),
    'the owner of the tables can run this', null, null, 0
from (select distinct onrel from triggers left join standing on tgrelid = onrel and standing.tgname = triggers.tgname
      where not owned and tgenabled is distinct from 'A') as others
having count(*) > 0

) as everything
order by stage, number, nspname collate "C", relname collate "C", on_schema collate "C", on_name collate "C", name collate "C"
