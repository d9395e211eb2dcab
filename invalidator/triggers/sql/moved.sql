        if tg_level = 'ROW' then  -- see above
            declare
                state text := current_setting({setting}, true);
                moved int := split_part(state, ' ', 2)::int + 1;
            begin
                if tg_op = 'INSERT' and state = 'merging 0' then
                    return null;
                end if;
                if moved > {moves_limit} then
                    state := set_config({setting}, concat(split_part(state, ' ', 1), ' wide'), true);
                    exit narrow;
                end if;
                state := set_config({setting}, concat(split_part(state, ' ', 1), ' ', moved), true);
                exit narrow when pg_notification_queue_usage() > 0.5;
            end;
            if tg_op = 'DELETE' then
                perform pg_notify({channel}, one.payload)
                from (
                    select concat({opening}, ',"o":"update"', {fields}, {few_old}, '}') as payload
                    from (
                        select {row_collect_old}
                        offset 0) as images
                    offset 0) as one
                where octet_length(one.payload) < 7950;
            else
                perform pg_notify({channel}, one.payload)
                from (
                    select concat({opening}, ',"o":"update"', {fields}, {few_new}, '}') as payload
                    from (
                        select {row_collect_new}
                        offset 0) as images
                    offset 0) as one
                where octet_length(one.payload) < 7950;
            end if;
            if found then
                return null;
            end if;
            exit narrow;
        end if;
