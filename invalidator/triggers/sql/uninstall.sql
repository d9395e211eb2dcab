-- The statements that remove an installation, in order; its name and schema come in the setting invalidator.plan. Triggers
-- on tables of this role are dropped by name, those on other tables together with their function. An object that this role
-- may not remove has no statement: it remains, and is reported.
with installation as materialized (
    select plan ->> 'name' as name, plan ->> 'schema' as schema, (plan ->> 'version')::int as version,
        left(plan ->> 'schema', 56) || '_events' as events_schema,
        (select oid from pg_namespace where nspname = plan ->> 'schema') as namespace,
        format('^%s_[0-9a-f]{16}$', plan ->> 'name') as of_functions
    from (select current_setting('invalidator.plan')::jsonb as plan) as setting
),
-- The owner of a schema may drop what is in it.
functions as materialized (
    select p.oid, n.nspname, p.proname, p.proowner, pg_has_role(p.proowner, 'usage') or pg_has_role(n.nspowner, 'usage') as may_drop
    from installation
    join pg_namespace n on n.nspname in (schema, events_schema)
    join pg_proc p on p.pronamespace = n.oid and p.pronargs = 0 and p.prokind = 'f' and (
        n.nspname = schema and p.proname ~ of_functions
        or p.proname = name || '_altered' and p.prorettype = 'event_trigger'::regtype
        or n.nspname = schema and p.proname = name || '_channel' and p.prosrc like '-- invalidator %')
),
others as (
    select count(*) > 0 as any
    from installation join pg_proc p on p.pronamespace = namespace
    where (p.prorettype = 'event_trigger'::regtype and p.proname ~ '_altered$'
           or p.proname ~ '_channel$' and p.prosrc like '-- invalidator %')
        and p.oid not in (select oid from functions)
),
ours as materialized (
    select oid, nspname, proname, proowner, may_drop from functions
    union all
    select p.oid, schema, p.proname, p.proowner, pg_has_role(p.proowner, 'usage') or pg_has_role(nspowner, 'usage')
    from installation
    join pg_namespace n on n.oid = namespace
    join pg_proc p on p.pronamespace = namespace and p.proname = 'changed' and p.prosrc like '-- invalidator %'
    cross join others
    where not others.any
),
event_triggers as materialized (
    -- Dropping the function drops the event trigger, too, whoever owns it.
    select evtname, evtowner, pg_has_role(evtowner, 'usage') as may_drop,
        exists (select from ours where ours.oid = evtfoid and ours.may_drop) as goes_along
    from installation, pg_event_trigger
    where evtname in (
        format('invalidator_%s_altered', installation.name), format('invalidator_%s_dropped', installation.name))
),
objects (stage, nspname, relname, name, statement, what, todo) as (
    select 0, null, null, evtname, case when may_drop then format('drop event trigger %I', evtname) end,
        case when not may_drop and not goes_along
             then format('%s does not own the event trigger %I, which remains', current_user, evtname) end,
        'run this as ' || quote_ident(pg_get_userbyid(evtowner))
    from event_triggers

    union all
    select 1, n.nspname, c.relname, t.tgname,
        case when pg_has_role(c.relowner, 'usage')
             then format('drop trigger %I on %I.%I', t.tgname, n.nspname, c.relname) end, null, null
    from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
    where t.tgparentid = 0 and t.tgfoid in (select oid from ours)
        and (pg_has_role(c.relowner, 'usage') or t.tgfoid in (select oid from ours where may_drop))

    union all
    select 2, null, null, proname,
        case when may_drop
             then format('drop function %s%s', oid::regprocedure, case when proname <> 'changed' then ' cascade' end) end,
        case when not may_drop
             then format('%s does not own the function %I.%I, which remains', current_user, nspname, proname) end,
        'run this as ' || quote_ident(pg_get_userbyid(proowner))
    from ours

    union all
    select 3, null, null, n.nspname, format('drop schema %I', n.nspname), null, null
    from installation join pg_namespace n on n.nspname in (schema, events_schema)
    where pg_has_role(n.nspowner, 'usage') and not exists (
        select from pg_depend
        where refclassid = 'pg_namespace'::regclass and refobjid = n.oid and deptype = 'n'
            and not (classid = 'pg_proc'::regclass and objid in (select oid from ours where may_drop))
    )
)
select * from (
    select stage, nspname, relname, name, statement, what, todo, case when what is not null then 'remains' end as kind
    from objects
    union all
    -- Running sidecars check the triggers at once.
    select distinct 4, null, null, null, format('notify %I, %L', 'invalidator_' || installation.name,
        format('{"v":%s,"t":%s,"w":true,"by":"install"}', version, jsonb_build_array(nspname, relname))), null, null, null
    from objects cross join installation
    where nspname is not null
) as everything
order by stage, nspname collate "C", relname collate "C", name collate "C"
