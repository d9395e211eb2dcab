-- As few notifications for a statement as its rows need. Each field is collected into an array for all rows at once, which
-- is several times as fast as making JSON row by row; a few rows are one notification, more are sent in slices, and too
-- many, or what can't be read or does not fit, make the table-wide one.
--
-- The old and new rows of an UPDATE come in the same order. Where rules want them paired, the table's key is collected
-- as well, and they are paired only if the keys are the same, place by place: then the pairs are right whatever the order.
-- There may be fewer new rows than old ones: where a row moves to another partition, a BEFORE INSERT trigger may drop it.
--
-- A statement of one row is the common one, and costs what it executes: hence a single query for a few rows, which also
-- sends them, and no variables. (A function that it called would not see the transition tables.) Operators and functions
-- are named in full, because a pinned search_path would cost each call a microsecond.
#variable_conflict use_column
begin
{moving}    <<narrow>>
    begin
{moved}        if tg_op = 'UPDATE' then
            perform pg_notify({channel}, few.payload)
            from (
                select case when greatest(cardinality(old_1), cardinality(new_1)) = 0 or greatest(cardinality(old_1), cardinality(new_1)) > {few}
                        or pg_notification_queue_usage() > 0.5 then null
                    when {same} then {same_few}
                    else concat({opening}, ',"o":"update"', {fields}, case when {key_same} then ',"p":true' end, {few_old}, {few_new}, '}') end as payload
                from (
                    select {few_collect_old},
                        {few_collect_new}
                    offset 0) as images
                offset 0) as few
            where octet_length(few.payload) < 7950;
        elsif tg_op = 'INSERT' then
            perform pg_notify({channel}, few.payload)
            from (
                select case when cardinality(new_1) = 0 or cardinality(new_1) > {few} or pg_notification_queue_usage() > 0.5 then null
                    else concat({opening}, {inserted}, {fields}, {few_new}, '}') end as payload
                from (
                    select {few_collect_new}
                    offset 0) as images
                offset 0) as few
            where octet_length(few.payload) < 7950;
        elsif tg_op = 'DELETE' then
            perform pg_notify({channel}, few.payload)
            from (
                select case when cardinality(old_1) = 0 or cardinality(old_1) > {few} or pg_notification_queue_usage() > 0.5 then null
                    else concat({opening}, {deleted}, {fields}, {few_old}, '}') end as payload
                from (
                    select {few_collect_old}
                    offset 0) as images
                offset 0) as few
            where octet_length(few.payload) < 7950;
        else
            exit narrow;
        end if;
        if found then
            return null;
        end if;

        <<invalidator>>
        declare  -- here, so that a few rows need not pay for it
            {arrays}
            head text;
            payload text;
            count int;
            reach int := least({bulk_limit}, 2000) + 1;
            step int := 100;
            start int;
        begin
            loop
                if tg_op = 'UPDATE' then
                    select {collect_old},
                        {collect_new}
                    into {all_old}, {all_new};
                elsif tg_op = 'INSERT' then
                    select {collect_new}
                    into {all_new};
                else
                    select {collect_old}
                    into {all_old};
                end if;
                count := greatest(cardinality(old_1), cardinality(new_1));
                exit when count < reach or reach > {bulk_limit};
                exit narrow when (coalesce({size_old}, 0) + coalesce({size_new}, 0)) > 4000000;
                reach := {bulk_limit} + 1;
            end loop;
            if count = 0 then
                return null;
            end if;
            exit narrow when count > {bulk_limit} or pg_notification_queue_usage() > 0.5;
            head := concat({opening}, {op}, {fields});
            if tg_op = 'UPDATE' then
                if {same} then
                    {when_same}
                elsif {key_same} then
                    head := concat(head, ',"p":true');
                end if;
            end if;
            -- Out of an array of 100,000 each slice would cost a copy of it, so a part of it is cut first.
            for part in 0 .. ((count - 1) / 2000) loop
                {cut}
                start := 1;
                while start <= least(count - (part * 2000), 2000) loop
                    payload := concat(head, {slice_old}, {slice_new}, '}');
                    if octet_length(payload) < 7950 then
                        perform pg_notify({channel}, payload);
                        start := start + step;
                        step := least(((step * 7500) / octet_length(payload)) + 1, 2000);
                    else
                        exit narrow when step = 1;
                        step := greatest(least((step * 7500) / octet_length(payload), step - 1), 1);
                    end if;
                end loop;
            end loop;
            return null;
        end;
    exception when others then
        null;  -- a column is gone, a value can't be written: whatever it is, the statement that called us does not fail of it
    end;
    begin
        perform pg_notify({channel}, concat({opening}, {op}, ',"w":true}'));
    exception when others then
        notify {channel_name}, {wide};  -- who may not call pg_notify() may still do this
    end;
    return null;
end
