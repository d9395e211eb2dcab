-- What the rules need in this database, compared with what is there: a row for each object, with its state, and with a
-- statement where one is needed. An install, a check, a dry run and a printed migration all use these rows, so they cannot
-- disagree.
--
-- The rules come as JSON in the setting invalidator.plan (see spec.py). The query reads only the catalog: any role may run
-- it, it takes no lock above ACCESS SHARE, and it evaluates no expression of the user's.
--
-- The first line of a function's source seals it: the generation, a hash of everything behind it, and the spec from which
-- it was written. A function that does not match its hash was changed by hand (tampered). One that matches, but is not what
-- the rules and the table need now, is outdated. An install keeps what the spec of another version of the rules needs, so
-- two versions that are deployed one after the other don't undo each other. A function of a newer generation stays as it is.
--
-- The spec is not in the triggers' arguments: a changed rule would then have to lock the table. A trigger is the same for
-- all specs of a level.
with recursive installation as materialized (
    select plan ->> 'name' as name, plan ->> 'schema' as schema, (plan ->> 'version')::int as version,
        (plan ->> 'generation')::int as generation,
        (plan ->> 'bulk_limit')::int as bulk_limit, (plan ->> 'prune')::bool as prune, plan -> 'tables' as tables,
        (select oid from pg_namespace where nspname = plan ->> 'schema') as namespace,
        left(plan ->> 'schema', 56) || '_events' as events_schema,
        (select rolsuper from pg_roles where rolname = current_user) as by_superuser,
        format('^%s_[0-9a-f]{16}$', plan ->> 'name') as of_functions
    from (select current_setting('invalidator.plan')::jsonb as plan) as setting
),
asked as materialized (
    select number, entry ->> 'schema' as schema, entry ->> 'name' as name, entry ->> 'like' as pattern,
        entry ->> 'level' as level, (entry ->> 'key')::bool as sends_key, (entry ->> 'pairs')::bool as pairs,
        (entry ->> 'skips')::bool as skips, entry -> 'fields' as fields
    from installation, jsonb_array_elements(tables) with ordinality as asked (entry, number)
),
matched as materialized (
    select asked.*, c.oid as relid, c.relkind, n.nspname, c.relname
    from asked
    join pg_class c on c.relname = asked.name and c.relkind in ('r', 'p', 'v', 'm', 'f')
    join pg_namespace n on n.oid = c.relnamespace
    where level <> 'none'
        and case when pattern is null then nspname = schema
                 else nspname like pattern and nspname !~ '^(pg_|information_schema$)' end
),

-- The functions of this installation that exist, and the specs from which they were written.
there as materialized (
    select p.oid as function, p.xmin, p.proname, p.prosrc, p.proowner, p.proconfig,
        p.prosecdef or l.lanname <> 'plpgsql' as odd, sealed_by,
        case when sealed_by <= generation then sealed::jsonb end as spec
    from installation
    join pg_proc p on p.pronamespace = namespace and p.proname ~ of_functions and p.pronargs = 0 and p.prokind = 'f'
    join pg_language l on l.oid = p.prolang
    cross join lateral (select split_part(prosrc, E'\n', 1) as line) as first
    cross join lateral (select substr(line, length(split_part(line, ' ', 3)) + 34) as sealed) as parts
    cross join lateral (
        select case when line ~ '^-- invalidator \d{1,6} [0-9a-f]{16} ' and split_part(line, ' ', 4)
                = left(encode(sha256(convert_to(sealed || substr(prosrc, length(line) + 1), 'UTF8')), 'hex'), 16)
            then split_part(line, ' ', 3)::int end as sealed_by
    ) as seal
),

-- Each table of a rule, and each partition and inheritance child below it. All of them get statement triggers, because a
-- statement fires only those of the table that it names.
below (top, relid) as (
    select relid, relid from matched where relkind in ('r', 'p')
    union
    select top, inhrelid from below join pg_inherits on inhparent = below.relid
),
-- A statement that names an ancestor changes the table's rows, too. Statement triggers on the ancestor would not help:
-- their transition tables lack tableoid, so they don't show which rows belong to the table. Row triggers fire whichever
-- table the statement names. So a table gets those when it, or a table below it, has a parent outside its own tree.
reached_from_outside (relid) as materialized (
    select distinct below.top
    from below
    join pg_inherits on inhrelid = below.relid
    left join below as inside on inside.top = below.top and inside.relid = inhparent
    where inside.relid is null
),

-- Each table once, with what all its rules need together, and with what the existing function sends. When a row moves
-- between partitions, row triggers fire for a DELETE and an INSERT (see moving.sql).
tables as materialized (
    select relid, nspname, relname, relkind, relowner, owned, proname, rows_asked, key, key_holds, number,
        rows_wanted or (kept and spec ->> 'level' = 'row') as rows_level, rows_wanted and not rows_asked as rows_only,
        relkind = 'p' or is_partition or (kept and coalesce((spec ->> 'moves')::bool, false)) as moves,
        sends_key or (kept and (spec ->> 'key')::bool) as sends_key,
        pairs or (kept and (spec ->> 'pairs')::bool) as pairs,
        skips and (not kept or (spec ->> 'skips')::bool) as skips,
        installation.bulk_limit, coalesce((spec ->> 'bulk_limit')::int, installation.bulk_limit) as old_limit,
        case when kept then spec -> 'fields' else '[]' end as kept_fields,
        kept and ((spec ->> 'key')::bool and not sends_key or (spec ->> 'pairs')::bool and not pairs
            or skips and not (spec ->> 'skips')::bool or spec ->> 'level' = 'row' and not rows_wanted) as sends_more
    from (
        select relid, nspname, relname, relkind, bool_or(level = 'row') as rows_asked, bool_or(sends_key) as sends_key,
            bool_or(pairs) as pairs, bool_and(skips) as skips, min(number) as number
        from matched
        where relkind in ('r', 'p')
        group by relid, nspname, relname, relkind
    ) as wanted
    cross join installation
    cross join lateral (
        select name || '_' || left(encode(sha256(convert_to(nspname || chr(31) || relname, 'UTF8')), 'hex'), 16) as proname
    ) as named
    cross join lateral (
        select relowner, pg_has_role(relowner, 'usage') as owned, relispartition as is_partition
        from pg_class
        where oid = relid
    ) as class
    cross join lateral (
        -- The condition of the row triggers for moves reads a setting, so every writer must be allowed to read it.
        select rows_asked or relid in (select o.relid from reached_from_outside o) or relkind = 'p'
            and not has_function_privilege('public', 'pg_catalog.current_setting(text, boolean)', 'execute') as rows_wanted
    ) as levels
    cross join lateral (
        select array_agg(a.attname::text order by k.place) as key, bool_and(i.indimmediate and i.indisvalid) as key_holds
        from pg_index i, unnest(i.indkey) with ordinality as k (number, place), pg_attribute a
        where i.indrelid = relid and i.indisprimary and k.place <= i.indnkeyatts
            and a.attrelid = relid and a.attnum = k.number
    ) as keyed
    left join there using (proname)
    cross join lateral (select spec is not null and not prune as kept) as keeping
),

-- The fields of each table. A field that is only compared, not rendered, may be sent as a digest.
fields as materialized (
    select relid, name, attname, rendered, asked,
        (select array_agg(step order by place)
           from jsonb_array_elements_text(steps) with ordinality as s (step, place)) as path
    from (
        select relid, field ->> 0 as name, field ->> 1 as attname, field -> 2 as steps,
            bool_or((field ->> 3)::bool) as rendered, bool_or(asked) as asked
        from (
            -- A field that a lookup may return need not be a column of the table.
            select relid, field, true as asked
            from (select relid, jsonb_array_elements(fields) as field from matched join tables using (relid)) as named
            where field ->> 4 is null or exists (
                select from pg_attribute a where a.attrelid = relid and a.attname = field ->> 1 and not a.attisdropped
            )
            union all
            select relid, jsonb_array_elements(kept_fields), false from tables
            union all
            select relid, jsonb_build_array(column_name, column_name, '[]'::jsonb, true), true
            from tables, unnest(key) as column_name
            where sends_key
        ) as every
        group by 1, 2, 3, 4
    ) as merged
),
{write},

-- The function of each table, and whether it is replaced. An open transaction may have changed rows under the old function.
-- If the old function was silent about changes that the new one reports, those changes would be lost: a sidecar starts with
-- the new rules and flushes, a reader caches the old rows that it still sees, and the transaction commits. So in that case
-- the install locks the tables against writers until the new function is committed. Transactions that wrote under the old
-- function have ended by then, and writers that wait for the lock run the new one. CREATE TRIGGER takes the same lock, and
-- needs only the right TRIGGER.
--
-- The old function may have been silent about updates of fields that count only now; and about anything, when it was
-- changed by hand or an older generation wrote it. Otherwise it has reported each change, perhaps with fewer fields; the
-- rules treat missing fields as unknown.
functions as materialized (
    select t.relid, t.nspname, t.relname, t.number, t.proname, function, xmin, proowner, w.source, w.config, state,
        function is null or odd or sealed_by is null
            or sealed_by <= generation and (prosrc <> w.source or proconfig is distinct from w.config) as is_due,
        state = 'tampered' or sealed_by < generation or (spec ->> 'skips')::bool and (not skips or exists (
            select from fields f
            where f.relid = t.relid and not exists (
                select from jsonb_array_elements(spec -> 'fields') as known
                where known - 3 = jsonb_build_array(f.name, f.attname, coalesce(f.path, '{}')))
        )) as may_have_been_silent
    from installation
    cross join tables t
    join written w on w.relid = t.relid and not w.as_installed
    join written was on was.relid = t.relid and was.as_installed
    left join there on there.proname = t.proname
    cross join lateral (
        select case when function is null then 'missing'
            when sealed_by is null or odd then 'tampered'
            when sealed_by > generation then 'ok'
            when prosrc = was.source and proconfig is not distinct from was.config then 'ok'
            when prosrc = was.source then 'tampered'
            else 'outdated' end as state
    ) as judged
),

-- The triggers that the rules need. The last three serve the statement triggers of partitioned tables: see moving.sql.
events (suffix, event, bits, old_table, new_table) as (
    values ('insert', 'insert', 4, null, 'new_rows'), ('update', 'update', 16, 'old_rows', 'new_rows'),
           ('delete', 'delete', 8, 'old_rows', null), ('truncate', 'truncate', 32, null, null),
           ('moving', 'update', 2 + 16, null, null),
           ('moved_out', 'delete', 1 + 8, null, null), ('moved_in', 'insert', 1 + 4, null, null)
),
triggers as materialized (
    select t.nspname, t.relname, t.proname, t.rows_asked and by_row as always_fires, not for_moves as has_levels,
        c.oid as onrel, n.nspname as on_schema, c.relname as on_name, c.relowner, pg_has_role(c.relowner, 'usage') as owned,
        event, old_table, new_table, by_row, bits | by_row::int as type, tgname,
        -- In the spelling of pg_get_expr().
        case when has_condition then format('(current_setting(%L::text, true) <> ''''::text)', setting) end as condition,
        format('create or replace trigger %I %s %s on %I.%I %sfor each %s %sexecute function %I.%I()%s',
               tgname, case when suffix = 'moving' then 'before' else 'after' end, event, n.nspname, c.relname,
               case when not by_row then 'referencing ' || nullif(concat(
                   'old table as ' || old_table || ' ', 'new table as ' || new_table || ' '), '') end,
               case when by_row then 'row' else 'statement' end,
               case when has_condition then format(
                   'when (pg_catalog.current_setting(%L, true) operator(pg_catalog.<>) '''') ', setting) end,
               schema, t.proname, case when pg_has_role(c.relowner, 'usage') then '; ' || always end) as creation,
        always
    from below
    join tables t on t.relid = top
    join pg_class c on c.oid = below.relid and c.relkind in ('r', 'p')
    join pg_namespace n on n.oid = c.relnamespace
    cross join events
    cross join installation
    cross join lateral (
        select suffix like 'mov%' as for_moves, suffix like 'moved%' as has_condition, 'invalidator.' || t.proname as setting,
            suffix like 'moved%' or rows_level and event <> 'truncate' as by_row,
            concat_ws('_', 'invalidator', name,
                      case when below.relid <> t.relid then substr(t.proname, length(name) + 2, 8) end, suffix) as tgname
    ) as how
    cross join lateral (
        select format('alter table %I.%I enable always trigger %I', n.nspname, c.relname, tgname) as always
    ) as enabling
    where (not for_moves or moves and not rows_level)
        and case when by_row then c.relkind = 'r' when for_moves then c.relkind = 'p' else true end
),
standing as materialized (
    select t.oid, t.xmin, t.tgrelid, t.tgname, t.tgfoid, t.tgenabled, t.tgtype, t.tgoldtable, t.tgnewtable,
        cardinality(t.tgattr::int2[]) > 0 or t.tgnargs > 0 or t.tgdeferrable as odd,
        -- pg_get_expr() fails on a condition that names OLD or NEW; no generated condition does.
        case when t.tgqual::text like '%{VAR %' then 'another' else pg_get_expr(t.tgqual, 0) end as condition
    from pg_trigger t
    where not t.tgisinternal and t.tgparentid = 0
        and (t.tgfoid in (select function from there) or (t.tgrelid, t.tgname) in (select onrel, tgname from triggers))
),

-- The parents of a table and of those below it. A parent that was attached and detached again leaves a trace in the
-- columns of the table; while it was attached, changes through it were not reported.
family (top, ancestry) as materialized (
    select top, string_agg(format('%s/%s/%s', inhrelid, inhparent, i.xmin), ' ' order by inhrelid, inhparent)
    from below
    join pg_inherits i on inhrelid = below.relid
    group by top
),
alterations (attrelid, trace) as materialized (
    select attrelid, string_agg(distinct a.xmin::text, ' ')
    from tables
    join pg_attribute a on attrelid = relid and attnum > 0
    group by attrelid
),

-- The functions that serve the whole installation.
support (name, arguments, returns, source) as (
    select 'changed', 'relation text, image jsonb default null', 'void', {fill changed from blanks}
    from installation
    cross join lateral (select generation, version, quote_literal(schema) as schema) as blanks
    union all
    select name || '_channel', '', 'text',
        format($$-- invalidator %s: where the installation is heard; by its name changed() finds it$$ || E'\nbegin return %L; end',
               generation, 'invalidator_' || name)
    from installation
),

-- The function of the event triggers. It runs with the rights of any role that alters or drops a table, superusers
-- included, and the owner of a function can replace it. So it must belong to a superuser, as event triggers do, in a schema
-- of its own in which no other role may create objects. Otherwise a role could gain a superuser's rights: the install
-- removes such a function first of all, or reports it.
handler as materialized (
    select i.name || '_altered' as handler_name, s.oid as handler_schema, p.oid as handler, source,
        s.oid is null or coalesce(s.strangers, '{}') = '{}' as is_closed,
        coalesce(s.strangers, '{}') || case when rolsuper then '{}' else array[rolname::text] end as strangers,
        case when p.oid is null then 'missing'
             when not rolsuper or prosecdef or proconfig is distinct from pinned then 'tampered'
             when prosrc = source then 'ok'
             when prosrc ~ '^-- invalidator \d{1,6}:' and substring(prosrc from '\d+')::int > i.generation then 'ok'
             else 'outdated' end as handler_state
    from installation i
    cross join (
        select coalesce(jsonb_agg(jsonb_build_object('schema', schema, 'name', name, 'like', pattern)), '[]') as untriggered
        from asked
        where level = 'none'
    ) as others
    cross join lateral (
        select generation, version, quote_literal(name) as name, quote_literal(schema) as schema,
            quote_literal(format('^invalidator_%s_([0-9a-f]{8})_', name)) as of_child,
            quote_literal(format(
                '^invalidator_%s_([0-9a-f]{8}_)?(insert|update|delete|truncate|moving|moved_out|moved_in)$', name)) as of_ours,
            quote_literal(of_functions) as of_functions,
            length(name) + 9 as width,
            quote_literal(untriggered) || '::jsonb' as untriggered,
            quote_literal('invalidator_' || name) as channel,
            quote_ident('invalidator_' || name) as channel_name
    ) as blanks
    cross join lateral (
        select array['search_path=pg_catalog, pg_temp'] as pinned, {fill altered from blanks} as source
    ) as wanted
    left join lateral (
        select n.oid, array(
            select quote_ident(rolname) from pg_roles where not rolsuper and oid = nspowner
            union
            select coalesce(quote_ident(rolname), 'public')
            from aclexplode(nspacl) left join pg_roles r on r.oid = grantee
            where privilege_type = 'CREATE' and rolsuper is not true
        ) as strangers
        from pg_namespace n
        where nspname = events_schema
    ) as s on true
    left join pg_proc p on p.pronamespace = s.oid and p.proname = i.name || '_altered' and p.pronargs = 0
    left join pg_roles r on r.oid = p.proowner
),
listening as materialized (
    select event_trigger, e.oid as there, evtowner, p.proname as runs,
        format('create event trigger %I on %s %sexecute function %I.%I()', event_trigger, event,
               'when tag in (' || (select string_agg(quote_literal(tag), ', ') from unnest(tags) as tag) || ') ',
               events_schema, handler_name) as creation,
        case when e.oid is null then 'missing'
             when evtfoid is distinct from handler or not is_closed or handler_state = 'tampered' or not o.rolsuper
                 or evtevent <> event or evttags is distinct from tags then 'tampered'
             when evtenabled = 'D' then 'disabled'
             else 'ok' end as state,
        by_superuser and is_closed as may_create,
        case when r.rolsuper then '{}' else array[quote_ident(r.rolname)] end
            || case when o.rolsuper then '{}' else array[quote_ident(o.rolname)] end as strangers
    from installation
    cross join handler
    cross join (values ('altered', 'ddl_command_end', '{ALTER TABLE,CREATE TABLE,REFRESH MATERIALIZED VIEW}'::text[]),
                       ('dropped', 'sql_drop', null)) as events (suffix, event, tags)
    cross join lateral (select format('invalidator_%s_%s', name, suffix) as event_trigger) as named
    left join pg_event_trigger e on e.evtname = event_trigger
    left join pg_roles o on o.oid = evtowner
    left join pg_proc p on p.oid = evtfoid
    left join pg_roles r on r.oid = p.proowner
),

objects (stage, number, nspname, relname, kind, on_schema, on_name, name, state, statement, trace, what, todo) as (
    select 0, 0, null, null, 'schema', null, null, schema, 'missing', format('create schema %I', schema), null,
        case when not has_database_privilege(current_database(), 'create')
             then format('%s may not create the schema %I', current_user, schema) end,
        format('grant create on database %I to %I', current_database(), current_user)
    from installation
    where namespace is null

    union all
    select 1, 0, null, null, 'function', null, null, s.name, state,
        case when state <> 'ok' then
            case when is_foreign then format('alter function %s owner to %I; ', p.oid::regprocedure, current_user) else '' end
            || format(
                '%s function %I.%I(%s) returns %s language plpgsql security invoker'
                ' set search_path = pg_catalog, pg_temp as %s',
                case when p.oid is null then 'create' else 'create or replace' end, schema, s.name, arguments, returns, quoted)
        end,
        null,
        case when not pg_has_role(p.proowner, 'usage')
             then format('%s does not own the function %I.%I', current_user, schema, s.name) end,
        'run this as ' || quote_ident(pg_get_userbyid(p.proowner))
    from installation
    cross join support s
    left join pg_proc p on p.pronamespace = namespace and p.proname = s.name
        and pg_get_function_identity_arguments(p.oid) = replace(arguments, ' default null', '')
    cross join lateral (
        -- A function keeps its owner when it is replaced.
        select p.oid is not null and p.prosrc !~ '^-- invalidator \d{1,6}:' as is_foreign
    ) as compared
    cross join lateral (
        select case when p.oid is null then 'missing'
            when is_foreign or p.prosecdef or p.proconfig is distinct from array['search_path=pg_catalog, pg_temp'] then 'tampered'
            when p.prosrc = source or substring(p.prosrc from '\d+')::int > generation then 'ok'
            else 'outdated' end as state
    ) as judged
    cross join lateral (
        select case when source ~ '\$invalidator\$' then quote_literal(source)
                    else '$invalidator$' || source || '$invalidator$' end as quoted
    ) as quoting

    union all
    select 0, -1, null, null, 'event trigger', null, null, event_trigger, null, format('drop event trigger %I', event_trigger),
        null, null, null
    from installation
    cross join listening
    where state = 'tampered' and by_superuser

    union all
    select 0, 0, null, null, 'schema', null, null, events_schema, 'missing', format('create schema %I', events_schema),
        null, null, null
    from installation
    cross join handler
    where by_superuser and handler_schema is null

    union all
    select 1, 0, null, null, 'event trigger function', null, null, handler_name, handler_state,
        case when by_superuser and is_closed and handler_state <> 'ok' then
            case when handler_state = 'tampered'
                 then format('drop function %I.%I() cascade; ', events_schema, handler_name) else '' end
            || format(
                '%s function %I.%I() returns event_trigger language plpgsql security invoker'
                ' set search_path = pg_catalog, pg_temp as %s',
                case handler_state when 'outdated' then 'create or replace' else 'create' end, events_schema, handler_name,
                case when source ~ '\$invalidator\$' then quote_literal(source)
                     else '$invalidator$' || source || '$invalidator$' end)
        end,
        null, null, null
    from installation
    cross join handler
    where by_superuser and is_closed or handler is not null and exists (select from listening where there is not null)

    union all
    select 4, 0, null, null, 'event trigger', null, null, event_trigger, state,
        case when may_create and state in ('missing', 'tampered') then creation
             when may_create and state = 'disabled' then format('alter event trigger %I enable', event_trigger) end,
        null, null, null
    from listening
    where may_create or there is not null

    -- The event triggers of 0.1 ran this function.
    union all
    select 5, 0, null, null, 'function', null, null, p.proname, 'outdated', format('drop function %I.%I()', schema, p.proname),
        null, null, null
    from installation
    join pg_proc p on p.pronamespace = namespace and p.proname = name || '_altered' and p.pronargs = 0
    join pg_namespace n on n.oid = namespace
    where p.prorettype = 'event_trigger'::regtype and (pg_has_role(p.proowner, 'usage') or pg_has_role(n.nspowner, 'usage'))
        and not exists (
            select from pg_event_trigger e
            left join listening l on l.there = e.oid and l.state = 'tampered'
            where e.evtfoid = p.oid and (l.there is null or not by_superuser))

    -- A role that may not create triggers on a table must not own the function of its triggers.
    union all
    select distinct 1, 1, null, null, 'function', null::name, null::name, f.proname, 'tampered',
        format('alter function %I.%I() owner to %I', schema, f.proname, current_user), null,
        case when not pg_has_role(f.proowner, 'usage')
             then format('the function %I.%I belongs to %I, who may create no triggers on %I.%I and could have it run anything',
                         schema, f.proname, pg_get_userbyid(f.proowner), on_schema, on_name) end,
        'a superuser can run this, or drop the function'
    from installation
    cross join functions f
    join triggers t on t.proname = f.proname
    where not has_table_privilege(f.proowner, onrel, 'trigger')

    union all
    select 2, number, nspname, relname, 'function', null, null, proname, state,
        case when is_due then format('%s function %I.%I() returns trigger language plpgsql security invoker %sas %s',
                                     case when function is null then 'create' else 'create or replace' end,
                                     schema, proname, pinned, quoted) end,
        case when function is not null then concat_ws(':', function, xmin, ancestry, alterations.trace) end,
        case when not pg_has_role(proowner, 'usage')
             then format('%s does not own the function %I.%I', current_user, schema, proname)
             when function is null and namespace is not null
                 and not has_schema_privilege(namespace, 'create, usage')
             then format('%s may not create functions in the schema %I', current_user, schema) end,
        case when function is not null then format('run this as %I', pg_get_userbyid(proowner))
             else format('grant usage, create on schema %I to %I', schema, current_user) end
    from installation
    cross join functions
    left join family on family.top = functions.relid
    left join alterations on attrelid = functions.relid
    cross join lateral (
        select coalesce(string_agg(
            format('set %s = %s ', setting, case setting when 'search_path' then value else quote_literal(value) end),
            ''), '') as pinned
        from unnest(config) as entry, split_part(entry, '=', 1) as setting, split_part(entry, '=', 2) as value
    ) as pins
    cross join lateral (
        select case when source ~ '\$invalidator\$' then quote_literal(source)
                    else '$invalidator$' || source || '$invalidator$' end as quoted
    ) as quoting

    union all
    (select distinct on (onrel) 3, 0, null, null, 'lock', on_schema, on_name, null, null,
        case when may_lock then format('lock table only %I.%I in share row exclusive mode', on_schema, on_name)
             else creation end,
        null,
        case when not may_lock and (tgenabled = 'A' or not has_table_privilege(onrel, 'trigger'))
             then format('%s may not lock %I.%I, whose open transactions have to end', current_user, on_schema, on_name) end,
        format('run this as %I', pg_get_userbyid(relowner))
    from triggers
    join standing on tgrelid = onrel and standing.tgname = triggers.tgname
    join functions on functions.proname = triggers.proname and is_due and may_have_been_silent
    cross join lateral (select owned or has_table_privilege(onrel, 'update, delete, truncate') as may_lock) as locking
    order by onrel, tgenabled = 'A', event)

    union all
    select 3, 0, t.nspname, t.relname, 'trigger', on_schema, on_name, t.tgname,
        state,
        case when state in ('missing', 'tampered', 'outdated') or state = 'disabled' and not owned then creation
             when owned and tgenabled <> 'A' then always end,
        case when s.oid is not null then format('%s:%s%s', s.oid, s.xmin, tgenabled) end,
        case when not has_table_privilege(onrel, 'trigger')
             then format('%s may not create triggers on %I.%I', current_user, on_schema, on_name)
             when always_fires and not owned and s.oid is null
             then format('%s does not own %I.%I, and only its owner can have row triggers fire for replicated changes',
                         current_user, on_schema, on_name) end,
        case when not has_table_privilege(onrel, 'trigger')
             then format('grant trigger on %I.%I to %I', on_schema, on_name, current_user)
             else format('run this as %I', pg_get_userbyid(relowner)) end
    from triggers t
    left join standing s on s.tgrelid = t.onrel and s.tgname = t.tgname
    left join there on there.proname = t.proname
    cross join lateral (
        select case when s.oid is null then 'missing'
                when s.odd or tgfoid is distinct from function or s.condition is distinct from t.condition then 'tampered'
                when tgtype = type and (by_row or has_tables) then
                    case when tgenabled in ('D', 'R') or always_fires and tgenabled <> 'A' then 'disabled' else 'ok' end
                -- The level has changed, because a parent was attached or the rules changed.
                when has_levels and tgtype = type # 1 and (has_tables or not by_row) then 'outdated'
                else 'tampered' end as state
        from (
            select tgoldtable is not distinct from old_table and tgnewtable is not distinct from new_table as has_tables
        ) as looked
    ) as judged

    union all
    -- Triggers of another level may be left on a table of the rules; its function ignores their calls.
    select 5, 0, coalesce(t.nspname, n.nspname), coalesce(t.relname, c.relname), 'trigger', n.nspname, c.relname, s.tgname,
        case when t.relid is null then 'orphaned' else 'outdated' end,
        format('drop trigger %I on %I.%I', s.tgname, n.nspname, c.relname), null,
        case when not class.owned then format('%s does not own %I.%I', current_user, n.nspname, c.relname) end,
        format('run this as %I', pg_get_userbyid(c.relowner))
    from standing s
    join pg_class c on c.oid = s.tgrelid
    join pg_namespace n on n.oid = c.relnamespace
    cross join lateral (select pg_has_role(c.relowner, 'usage') as owned) as class
    left join (
        there join tables t using (proname) join below on top = t.relid
    ) on function = s.tgfoid and below.relid = s.tgrelid
    where (s.tgrelid, s.tgname) not in (select onrel, tgname from triggers) and (class.owned or t.relid is null)

    union all
    select 6, 0, null, null, 'function', null, null, there.proname, 'orphaned',
        format('drop function %I.%I()', schema, there.proname), null,
        case when not pg_has_role(proowner, 'usage')
             then format('%s does not own the function %I.%I', current_user, schema, there.proname) end,
        format('run this as %I', pg_get_userbyid(proowner))
    from installation
    cross join there
    where there.proname not in (select proname from tables)
),

-- A notification about each table that the install touched: running sidecars check the triggers at once.
notifications (statement) as (
    select distinct format('notify %I, %L', 'invalidator_' || installation.name,
                           format('{"v":%s,"t":%s,"w":true,"by":"install"}', version, jsonb_build_array(nspname, relname)))
    from objects
    cross join installation
    where statement is not null and nspname is not null and (state <> 'orphaned' or prune)
)
{findings}
