-- What removes an installation, in order: its name and schema come in the setting invalidator.plan. Triggers go by name
-- where the table is ours; dropping their function takes them along where it is not.
with installation as materialized (
    select plan ->> 'name' as name, plan ->> 'schema' as schema,
        (select oid from pg_namespace where nspname = plan ->> 'schema') as namespace,
        format('^%s_[0-9a-f]{16}$', plan ->> 'name') as of_functions
    from (select current_setting('invalidator.plan')::jsonb as plan) as setting
),
ours as materialized (
    select p.oid, p.proname, p.proowner
    from installation
    join pg_proc p on p.pronamespace = namespace and (p.proname ~ of_functions or p.proname = name || '_altered')
),
others as (
    select count(*) > 0 as any
    from installation join pg_proc p on p.pronamespace = namespace
    where p.prorettype = 'event_trigger'::regtype and p.oid not in (select oid from ours)
),
objects (stage, nspname, relname, name, statement, what, todo) as (
    select 0, null, null, evtname, format('drop event trigger %I', evtname),
        case when not pg_has_role(evtowner, 'usage')
             then format('%s does not own the event trigger %I', current_user, evtname) end,
        'run this as ' || quote_ident(pg_get_userbyid(evtowner))
    from installation, pg_event_trigger
    where evtname in (
        format('invalidator_%s_altered', installation.name), format('invalidator_%s_dropped', installation.name))

    union all
    select 1, n.nspname, c.relname, t.tgname,
        case when pg_has_role(c.relowner, 'usage')
             then format('drop trigger %I on %I.%I', t.tgname, n.nspname, c.relname) end, null, null
    from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
    where t.tgparentid = 0 and t.tgfoid in (select oid from ours)

    union all
    select 2, null, null, proname, format('drop function %I.%I() cascade', schema, proname),
        case when not pg_has_role(proowner, 'usage')
             then format('%s does not own the function %I.%I', current_user, schema, proname) end,
        'run this as ' || quote_ident(pg_get_userbyid(proowner))
    from installation, ours

    union all
    select 3, null, null, p.proname, format('drop function %s', p.oid::regprocedure),
        case when not pg_has_role(proowner, 'usage')
             then format('%s does not own the function %I.changed', current_user, schema) end,
        'run this as ' || quote_ident(pg_get_userbyid(proowner))
    from installation
    join pg_proc p on p.pronamespace = namespace and p.proname = 'changed' and p.prosrc like '-- invalidator %'
    cross join others
    where not others.any

    union all
    select 4, null, null, schema, format('drop schema %I', schema), null, null
    from installation join pg_namespace n on n.oid = namespace
    where pg_has_role(n.nspowner, 'usage') and not exists (
        select from pg_depend
        where refclassid = 'pg_namespace'::regclass and refobjid = namespace and deptype = 'n'
            and not (classid = 'pg_proc'::regclass and (objid in (select oid from ours) or objid in (
                select oid from pg_proc where proname = 'changed' and prosrc like '-- invalidator %')))
    )
)
select * from objects order by stage, nspname collate "C", relname collate "C", name collate "C"
