-- invalidator {generation}: says a change by hand, inside the caller's transaction, to every installation in this schema
declare
    names constant text[] := parse_ident(relation);
    payload text;
    channel text;
begin
    if cardinality(names) <> 2 then
        raise invalid_parameter_value using
            message = format('invalidator.changed: "%s" is not schema and table', relation),
            hint = 'write it like public.products';
    elsif jsonb_typeof(image) <> 'object' then
        raise invalid_parameter_value using
            message = 'invalidator.changed: the row is not a JSON object',
            hint = 'write it like {"id": 42}, or leave it out to say that any row may have changed';
    elsif to_regclass(format('%I.%I', names[1], names[2])) is null then
        raise warning 'invalidator.changed: there is no "%" now; only rules about that name will hear of it', relation;
    end if;
    payload := format('{"v":{version},"t":%s', to_json(names));
    if image is null or image = '{}' then
        payload := payload || ',"w":true}';
    else
        payload := payload || (
            select format(',"c":%s,"new":%s}', json_agg(key order by key), json_agg(json_build_array(value) order by key))
            from jsonb_each_text(image)
        );
        if octet_length(payload) > 7950 then
            payload := format('{"v":{version},"t":%s,"w":true}', to_json(names));
        end if;
    end if;
    for channel in
        select distinct 'invalidator_' || substring(p.proname from '^(.*)_(?:channel|altered)$')
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = {schema} and (
            p.proname ~ '_channel$' and p.prosrc like '-- invalidator %'
            or p.proname ~ '_altered$' and p.prorettype = 'event_trigger'::regtype)  -- as 0.1 has it
    loop
        execute format('notify %I, %L', channel, payload);  -- which needs no EXECUTE on pg_notify()
    end loop;
end
