do {tag}
#variable_conflict use_column
declare
    pinned constant text[] := array['search_path', 'quote_all_identifiers', 'lock_timeout', 'enable_nestloop', 'jit'];
    was text[];
    steps jsonb;
    refused text;
    may_go_on bool;  -- a removal goes on without the objects that it may not remove
    step jsonb;
begin
    -- Every name is qualified until search_path is set: a role that may create objects in a schema of the session's path
    -- could otherwise have its function called by the superuser who runs this.
    if pg_catalog.current_setting('server_version_num')::pg_catalog.int4 operator(pg_catalog.<) {oldest} then
        raise feature_not_supported using message = pg_catalog.format(
            'the server is PostgreSQL %s, and %s is the oldest that this works with; upgrade the server',
            pg_catalog.current_setting('server_version'), {oldest} operator(pg_catalog./) 10000);
    end if;
    if pg_catalog.current_setting('server_encoding') operator(pg_catalog.=) 'SQL_ASCII' then
        raise feature_not_supported using message = 'invalidator needs a database with another encoding than SQL_ASCII';
    end if;
    for place in 1 .. pg_catalog.cardinality(pinned) loop
        was[place] := pg_catalog.current_setting(pinned[place]);
    end loop;
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    perform set_config('quote_all_identifiers', 'off', true),
        set_config('lock_timeout', '5s', true), set_config('enable_nestloop', 'off', true),
        set_config('jit', 'off', true), set_config('invalidator.plan', {setting}, true);
    perform pg_advisory_xact_lock(hashtextextended('invalidator ' || {schema}, 0));
    select jsonb_agg(to_jsonb(planned)) into steps from (
{rows}
    ) as planned
    where {when};
    select string_agg(concat_ws('; ', row ->> 'what', row ->> 'todo'), E'\n')
            filter (where row ->> 'what' is not null and row ->> 'kind' is distinct from 'note'),
        bool_and(coalesce(row ->> 'kind' = 'remains', row ->> 'what' is null))
    into refused, may_go_on
    from jsonb_array_elements(steps) as row
    where row ->> 'kind' is distinct from 'note';
    if refused is not null and may_go_on and exists (
        select from jsonb_array_elements(steps) as row where row ->> 'statement' is not null)
    then
        raise warning using message = refused;
    elsif refused is not null then
        raise exception using message = refused;
    end if;
    for step in
        select row from jsonb_array_elements(steps) with ordinality as rows (row, place) order by place
    loop
        if step ->> 'statement' is not null then
            execute step ->> 'statement';
            -- A table may be locked now, and a writer that waits for it may hold a lock on the next one. Give way before
            -- PostgreSQL, after its deadlock_timeout, ends one of the two.
            if (step ->> (case when step ? 'on_name' then 'on_name' else 'relname' end)) is not null then
                perform set_config('lock_timeout', '800ms', true);
            end if;
        end if;
    end loop;
    perform set_config(name, was[place], true) from unnest(pinned) with ordinality as n (name, place);
end
{tag};
