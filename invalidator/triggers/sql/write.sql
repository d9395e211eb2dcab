-- Part of plan.sql: the source of each table's function, from `tables` and `fields`.
--
-- A function collects each field of the old and of the new rows into an array. `collected` has the expressions that fill
-- the arrays, `pieces` the text that one array adds to each blank of function.sql, `parts` these texts joined for a table,
-- and `written` fills the blanks. For products (id int primary key, name text) and the template "product:{id}:{name}",
-- some blanks and their text:
--
--     arrays          old_1 integer[]; new_1 integer[]; part_old_1 integer[]; part_new_1 integer[];
--     few_collect_old array(select id from old_rows limit 101) as old_1,
--     all_new         new_1, new_2
--     opening         '{"v":1,"t":["public", "products"]'
--     fields          ',"c":["id","name"]'
--     same            old_1 operator(pg_catalog.=) new_1 and old_2 operator(pg_catalog.=) new_2 collate pg_catalog."C"
--     few_old         ',"old":[', pg_catalog.array_to_json(old_1)::pg_catalog.text operator(pg_catalog.||) ','
--     channel         'invalidator_shop'
--     few             100
--     wide            '{"v":1,"t":["public", "products"],"w":true}'
columns as materialized (
    select a.attrelid as relid, a.attname::text as attname, a.atttypid as declared,
        -- A transition table has no virtual columns, but it has the columns of their expressions.
        case when a.attgenerated = 'v' then '(' || pg_get_expr(d.adbin, d.adrelid) || ')'
             else quote_ident(a.attname) end as source,
        a.attgenerated = 'v' as virtual
    from tables
    join pg_attribute a on a.attrelid = relid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef d on d.adrelid = relid and d.adnum = a.attnum
),
bases (declared, type) as (
    select distinct declared, declared from columns
    union all
    select declared, typbasetype from bases join pg_type t on t.oid = type where typtype = 'd'
),
-- How a value of each type becomes text. The JSON of a `native` type is its text; no setting of a session changes the
-- text of a `settled` type; a `small` type has no values too long for a notification. The text comes from the type's
-- output function, never from a cast, because a user can define casts.
types as materialized (
    select declared, t.oid as type, native,
        native is not null or t.typtype = 'e' or t.oid = any ('{18,19,25,26,114,1042,1043,1700,2950,3802}') as settled,
        native is not null or t.typtype = 'e' or t.typlen > 0 or t.oid in (650, 869, 1700) as small,
        format(
            case when native is not null or t.oid in (25, 1043) then '%%s%1$s'
                 else 'pg_catalog.textin(%2$I.%3$I(%%s%1$s))' end,
            case when declared <> t.oid then format('::%I.%I', tn.nspname, t.typname) end,  -- a domain
            n.nspname, p.proname) as as_text
    from bases
    join pg_type t on t.oid = bases.type and t.typtype <> 'd'
    join pg_proc p on p.oid = t.typoutput
    join pg_namespace n on n.oid = p.pronamespace
    join pg_namespace tn on tn.oid = t.typnamespace
    left join (values (16, 'boolean'), (21, 'smallint'), (23, 'integer'), (20, 'bigint')) as natives (oid, native)
        on natives.oid = t.oid
),
-- The fields that a function collects, and the columns of the key that show which old row became which new row. The rows
-- come from the sources of the function's own level, then from those of a row trigger.
sides as (
    select relid, (case when rows_level then row_trigger else '{old_rows,new_rows}' end || row_trigger) as rows_of
    from tables
    cross join (values ('{(select (old).*) as old_rows,(select (new).*) as new_rows}'::text[])) as of_a_row (row_trigger)
),
wanted_values as materialized (
    select relid, name, attname, path, rendered, true as sent, path is null and attname = any (key) as in_key
    from fields join tables using (relid)
    union all
    select relid, column_name, column_name, null, true, false, true
    from tables, unnest(key) as column_name
    where pairs and not exists (
        select from fields
        where fields.relid = tables.relid and fields.attname = column_name and fields.path is null and fields.rendered
    )
),
collected as materialized (
    select relid, sent, in_key, sort.settled,
        row_number() over (partition by relid order by sent desc, name collate "C", path is not null) as number,
        case when path is null and native is not null then native else 'pg_catalog.text' end || '[]' as array_type,
        case when rendered or sort.small then to_json(name)::text
             else '"\u0000' || substr(to_json(name)::text, 2) end as name_json,
        -- From old and from new rows: the first 101 of them, the one of a row trigger, and all of them.
        (select array_agg(
                case when sort.small then format('array(select %s from %s limit %s)', value, rows, reach)
                     else format('array(select case when %s then %s else value end'
                                 ' from (select %s as value from %s limit %s) as image)',
                                 is_long, instead, value, rows, reach)
                end order by which, place)
            from unnest(rows_of) with ordinality as sides (rows, place),
                unnest('{101,invalidator.reach}'::text[]) with ordinality as reaches (reach, which)
            where which = 1 or place <= 2
        ) as collect
    from wanted_values
    join sides using (relid)
    join columns using (relid, attname)
    join types using (declared)
    cross join lateral (
        select (path is not null or settled) and not virtual as settled, path is null and small as small
    ) as sort
    cross join lateral (
        select case when path is null then format(as_text, source)
                    else format('%s operator(pg_catalog.#>>) %L', source, path) end as value
    ) as valued
    -- A long value becomes a digest: equal values stay equal. A rendered one stays too long for a notification.
    cross join lateral (
        select format('pg_catalog.octet_length(value) operator(pg_catalog.>) %s',
                      case when rendered then 7900 else 64 end) as is_long,
            case when rendered then $$pg_catalog.repeat('x', 7900) operator(pg_catalog.||) $$ else '' end
                || 'pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(value, pg_catalog.getdatabaseencoding())), '
                || $$'hex')$$ as instead
    ) as digested
),
-- The text that each array adds to the blanks of function.sql; {side} is old or new.
pieces as (
    select relid, number, sent, in_key, settled, array_type = 'pg_catalog.text[]' as is_text, name_json, collect,
        format('old_%1$s %2$s; new_%1$s %2$s; part_old_%1$s %2$s; part_new_%1$s %2$s;', number, array_type) as arrays,
        '{side}_' || number as variable,
        format('pg_catalog.pg_column_size({side}_%s)', number) as size,
        -- The collation of a column may treat different texts as equal.
        format('old_%1$s operator(pg_catalog.=) new_%1$s', number)
            || case when array_type = 'pg_catalog.text[]' then ' collate pg_catalog."C"' else '' end as equal,
        format('pg_catalog.array_to_json({side}_%s)::pg_catalog.text', number) as json,
        format('part_{side}_%1$s := {side}_%1$s[part operator(pg_catalog.*) 2000 operator(pg_catalog.+) 1'
               ' : part operator(pg_catalog.*) 2000 operator(pg_catalog.+) 2000];', number) as cut,
        format('pg_catalog.array_to_json(part_{side}_%s[start : start operator(pg_catalog.+) step operator(pg_catalog.-) 1])'
               '::pg_catalog.text', number) as slice
    from (
        select relid, sent, in_key, settled, number, array_type, name_json, collect from collected
        union all  -- without fields, the function only reports whether there are rows
        select relid, false, false, true, 1, 'boolean[]', '',
            array(select format('array(select true from %s limit 1)', rows) from unnest(rows_of || rows_of[:2]) as rows)
        from sides
        where not exists (select from collected where collected.relid = sides.relid)
    ) as everything
),
parts as materialized (
    select relid, bool_and(settled) as settled, not bool_or(sent or in_key) as fieldless,
        string_agg(arrays, E'\n            ' order by number) as arrays,
        string_agg(collect[1] || ' as old_' || number, E',\n                        ' order by number) as few_old,
        string_agg(collect[2] || ' as new_' || number, E',\n                        ' order by number) as few_new,
        string_agg(collect[3] || ' as old_' || number, E',\n                        ' order by number) as row_old,
        string_agg(collect[4] || ' as new_' || number, E',\n                        ' order by number) as row_new,
        string_agg(collect[5], E',\n                        ' order by number) as all_old,
        string_agg(collect[6], E',\n                        ' order by number) as all_new,
        string_agg(variable, ', ' order by number) as all_arrays,
        coalesce(string_agg(size, ' operator(pg_catalog.+) ' order by number) filter (where is_text), '0') as size,
        string_agg(equal, ' and ' order by number) as same,
        coalesce(string_agg(equal, ' and ' order by number) filter (where in_key), 'false') as key_same,
        coalesce(string_agg(name_json, ',' order by number) filter (where sent), '') as names,
        coalesce(string_agg(cut, E'\n                ' order by number) filter (where sent), 'null;') as cut,
        format($$',"{side}":[', %s, ']'$$, coalesce(string_agg(
            json, $$ operator(pg_catalog.||) ',' operator(pg_catalog.||) $$ order by number) filter (where sent), 'null')
        ) as few,
        format($$case when part_{side}_1 is not null then pg_catalog.concat(',"{side}":[', %s, ']') end$$, coalesce(string_agg(
            slice, $$ operator(pg_catalog.||) ',' operator(pg_catalog.||) $$ order by number) filter (where sent), 'null')
        ) as slice
    from pieces
    group by relid
),
-- Each function twice: with the bulk limit of the configuration, and with the limit of the function that is installed
-- (as_installed), because a changed limit alone is no drift.
written as materialized (
    select tables.relid, tables.proname, as_installed, config,
        format('-- invalidator %s %s %s', generation, seal, spec) || E'\n' || body as source
    from tables
    join parts using (relid)
    left join (
        select relid, jsonb_agg(
            jsonb_build_array(name, attname, coalesce(path, '{}'), rendered) order by name collate "C", path) as listed
        from fields
        group by relid
    ) as lists using (relid)
    cross join installation i
    cross join lateral (
        select tables.bulk_limit, false union all select tables.old_limit, true
    ) as limits (bulk_limit, as_installed)
    cross join lateral (
        select jsonb_build_object(
            'table', jsonb_build_array(nspname, relname), 'key', sends_key, 'pairs', pairs, 'skips', skips,
            'level', case when rows_level then 'row' else 'statement' end, 'moves', moves, 'bulk_limit', limits.bulk_limit,
            'fields', coalesce(listed, '[]')
        )::text as spec
    ) as specs
    -- What several blanks are made of. A row that moves to another partition is a DELETE and an INSERT to row triggers,
    -- which can't tell the move from a deleted and an inserted row: their payloads name no operation (unsure).
    cross join lateral (
        select rows_level and moves as unsure, moves and not rows_level as has_move_triggers,
            pairs and key is not null and key_holds as keyed,
            case when fieldless then 0 else limits.bulk_limit end as row_limit,
            format('{"v":%s,"t":%s', version, json_build_array(nspname, relname)) as head,
            $$pg_catalog.lower(tg_op collate pg_catalog."C")$$ as lower_op
    ) as common
    -- The blanks that function.sql shares with moved.sql, as expressions of PL/pgSQL.
    cross join lateral (
        select quote_literal('invalidator_' || i.name) as channel,
            quote_literal(head) as opening,
            quote_literal(',"c":[' || names || ']'
                || case when sends_key then ',"k":' || coalesce(to_json(key)::text, '[]') else '' end) as fields,
            replace(few, '{side}', 'old') as few_old,
            replace(few, '{side}', 'new') as few_new
    ) as shared
    cross join lateral (
        select quote_literal('invalidator.' || tables.proname) as setting,
            format('invalidator.%I', tables.proname) as setting_name
    ) as moving_blanks
    cross join lateral (
        select shared.*, setting, row_limit as moves_limit, row_old as row_collect_old, row_new as row_collect_new
    ) as moved_blanks
    -- The blanks of function.sql, by name.
    cross join lateral (
        select shared.*,
            case when has_move_triggers then {fill moving from moving_blanks}
                 when moves then  -- a trigger that the statement level has left behind does nothing
                     $$    if tg_level operator(pg_catalog.=) 'STATEMENT' and tg_op operator(pg_catalog.<>) 'TRUNCATE' then$$
                     || E'\n        return null;\n    end if;\n' end as moving,
            case when has_move_triggers then {fill moved from moved_blanks} end as moved,
            least(row_limit, 100) as few,
            parts.same,
            case when keyed and skips then 'null'
                 else format($$pg_catalog.concat(%s, ',"o":"update"', %s, %s, %s, '}')$$, shared.opening, shared.fields,
                             case when keyed then $$',"p":true'$$ else 'null' end, shared.few_new) end as same_few,
            case when keyed then parts.key_same else 'false' end as key_same,
            parts.few_old as few_collect_old,
            parts.few_new as few_collect_new,
            case when unsure then $$',"o":null'$$ else $$',"o":"insert"'$$ end as inserted,
            case when unsure then $$',"o":null'$$ else $$',"o":"delete"'$$ end as deleted,
            parts.arrays,
            row_limit as bulk_limit,
            parts.all_old as collect_old,
            parts.all_new as collect_new,
            replace(all_arrays, '{side}', 'old') as all_old,
            replace(all_arrays, '{side}', 'new') as all_new,
            replace(size, '{side}', 'old') as size_old,
            replace(size, '{side}', 'new') as size_new,
            format(
                case when unsure then $$case when tg_op operator(pg_catalog.=) any ('{UPDATE,TRUNCATE}') then %s else ',"o":null' end$$
                     else '%s' end,
                format($$pg_catalog.concat(',"o":"', %s, '"')$$, case when has_move_triggers
                    then format($$case when tg_level operator(pg_catalog.=) 'ROW' then 'update' else %s end$$, lower_op)
                    else lower_op end)) as op,
            case when keyed and skips then 'return null;'
                 when keyed then $$old_1 := null; head := pg_catalog.concat(head, ',"p":true');$$
                 else 'old_1 := null;' end as when_same,
            replace(parts.cut, '{side}', 'old') || E'\n                ' || replace(parts.cut, '{side}', 'new') as cut,
            replace(slice, '{side}', 'old') as slice_old,
            replace(slice, '{side}', 'new') as slice_new,
            quote_ident('invalidator_' || i.name) as channel_name,
            quote_literal(head || ',"w":true}') as wide
    ) as function_blanks
    cross join lateral (select {fill function from function_blanks} as body) as bodies
    cross join lateral (
        select left(encode(sha256(convert_to(spec || E'\n' || body, 'UTF8')), 'hex'), 16) as seal
    ) as sealed
    cross join lateral (
        select case when not settled then array[
            'search_path=pg_catalog, pg_temp', 'DateStyle=ISO', 'IntervalStyle=postgres', 'TimeZone=UTC',
            'extra_float_digits=1', 'bytea_output=hex', 'lc_monetary=C', 'quote_all_identifiers=off'] end as config
    ) as configs
)
