do {tag}
#variable_conflict use_column
declare
    pinned constant text[] := array['search_path', 'quote_all_identifiers', 'lock_timeout', 'enable_nestloop', 'jit'];
    was text[];
    steps jsonb;
    refused text;
    step text;
begin
    if current_setting('server_version_num')::int < {oldest} then
        raise feature_not_supported using
            message = 'invalidator needs a newer PostgreSQL than ' || current_setting('server_version');
    end if;
    if current_setting('server_encoding') = 'SQL_ASCII' then
        raise feature_not_supported using message = 'invalidator needs a database with another encoding than SQL_ASCII';
    end if;
    was := array(select current_setting(name) from unnest(pinned) with ordinality as n (name, place) order by place);
    perform set_config('search_path', 'pg_catalog, pg_temp', true), set_config('quote_all_identifiers', 'off', true),
        set_config('lock_timeout', '5s', true), set_config('enable_nestloop', 'off', true),
        set_config('jit', 'off', true), set_config('invalidator.plan', {setting}, true);
    perform pg_advisory_xact_lock(hashtextextended('invalidator ' || {schema}, 0));
    select jsonb_agg(to_jsonb(planned)) into steps from (
{rows}
    ) as planned
    where {when};
    select string_agg(concat_ws('; ', row ->> 'what', row ->> 'todo'), E'\n') into refused
    from jsonb_array_elements(steps) as row
    where row ->> 'what' is not null and row ->> 'kind' is distinct from 'note';
    if refused is not null then
        raise exception using message = refused;
    end if;
    for step in
        select row ->> 'statement' from jsonb_array_elements(steps) with ordinality as rows (row, place) order by place
    loop
        if step is not null then
            execute step;
        end if;
    end loop;
    perform set_config(name, was[place], true) from unnest(pinned) with ordinality as n (name, place);
end
{tag};
