-- invalidator {generation}: what no trigger on a table sees: partitions created, attached, detached and dropped, tables
-- rewritten, triggers disabled, views refreshed. Anything in such a table may have changed. DDL never fails because of us, so
-- nothing here needs a right: NOTIFY is a command, and whatever else fails, or takes too long, is the last line's.
declare
    relations oid[];
    functions text[];  -- of the tables concerned; for a dropped partition only how its name begins
    about jsonb;
    is_said bool := false;
begin
    if tg_event = 'sql_drop' then
        functions := array(
            select {name} || '_' || coalesce(
                substring(address_names[3] from {of_child}),
                left(encode(sha256(convert_to(address_names[1] || chr(31) || address_names[2], 'UTF8')), 'hex'), 16))
            from pg_event_trigger_dropped_objects()
            where object_type = 'trigger' and address_names[3] ~ {of_ours});
    else
        relations := array(
            -- What alters a table alters those below it, and PostgreSQL names the first alone.
            with recursive below (relid) as (
                select objid from pg_event_trigger_ddl_commands() where classid = 'pg_class'::regclass
                union
                select inhrelid from below join pg_inherits on inhparent = relid
            ), concerned (relid) as (
                select relid from below
                union
                select inhparent from concerned join pg_inherits on inhrelid = relid
            )
            select relid from concerned);
        functions := array(
            select p.proname
            from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace
            where t.tgrelid = any (relations) and n.nspname = {schema} and p.proname ~ {of_functions});
    end if;
    for about in
        select distinct substr(line, length(split_part(line, ' ', 3)) + 34)::jsonb -> 'table'
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace, split_part(p.prosrc, E'\n', 1) as line
        where n.nspname = {schema} and p.proname ~ {of_functions} and left(p.proname, {width}) = any (
            select left(function, {width}) from unnest(functions) as function)
        union
        select jsonb_build_array(n.nspname, c.relname)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace,
            jsonb_array_elements({untriggered}) as asked
        where c.oid = any (relations) and c.relname = asked ->> 'name'
            and (n.nspname = asked ->> 'schema' or n.nspname like asked ->> 'like')
    loop
        execute format('notify %I, %L', {channel}, format('{"v":{version},"t":%s,"w":true}', about));
        is_said := true;
    end loop;
    if cardinality(functions) > 0 and not is_said then  -- triggers went, and the functions that know of which table
        notify {channel_name}, '{"v":{version}}';
    end if;
exception when query_canceled or others then
    notify {channel_name}, '{"v":{version}}';
end
