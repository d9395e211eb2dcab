    -- A row that a MERGE moves to another partition is in no transition table of a trigger that fires: PostgreSQL puts it
    -- into those of a DELETE and an INSERT, and fires the triggers of an UPDATE. (The moves of an UPDATE are in its own.) Row
    -- triggers on the partitions hear it, but would cost every INSERT and DELETE. So they have a condition, a setting that
    -- is not empty while a MERGE may move rows: the BEFORE UPDATE trigger of the partitioned table, which a MERGE fires
    -- too, sets it, and the AFTER UPDATE trigger clears it. PostgreSQL evaluates the condition when it changes the row, and
    -- fires a row's triggers before those of the statement.
    --
    -- The setting ends with the transaction, and a savepoint that is rolled back restores it. It is "merging N", where N
    -- rows have moved so far. When another UPDATE or MERGE of the table begins meanwhile, in a function or trigger, it
    -- becomes "nested N" and stays until the transaction ends, because nothing says which statement an AFTER trigger ends.
    --
    -- An UPDATE is told from a MERGE by its text: that of the client, or for a statement in a function, what the context of
    -- an error would show. A text that is not seen, is long, or has "merge" or "execute" anywhere, may be a MERGE. Then rows
    -- that an UPDATE moves are sent twice. What an upsert inserts is not: it deletes nothing, while a move deletes its row
    -- before it inserts it, and their triggers fire in this order. So while N is 0, an inserted row did not move.
    --
    -- When too many rows have moved to send each, N becomes "wide", and the same call sends the table-wide change: no later
    -- row of the transaction has to be sent, and a savepoint that is rolled back takes both back.
    if tg_level = 'ROW' then
        if current_setting({setting}, true) ~~ '% wide' then
            return null;
        end if;
    elsif tg_op = 'UPDATE' then
        declare
            state text := current_setting({setting}, true);
            called text;
        begin
            if tg_when = 'BEFORE' then
                begin
                    if state <> '' then
                        state := set_config({setting}, replace(state, 'merging', 'nested'), true);
                        return null;
                    end if;
                    get diagnostics called := pg_context;
                    called := case when strpos(called, E'\n') = 0 then current_query()
                                   when split_part(called, E'\n', 2) ~~ 'SQL statement "%' then substr(called, strpos(called, E'\n')) end;
                    if called is null or octet_length(called) > 20000 or lower(called collate "C") ~ 'merge|execute' then
                        state := set_config({setting}, 'merging 0', true);
                    end if;
                exception when others then
                    set local {setting_name} to 'nested 0';  -- a role that may not call set_config() may do this
                end;
                return null;
            elsif state ~~ 'merging %' then
                state := set_config({setting}, '', true);
            end if;
        end;
    end if;
