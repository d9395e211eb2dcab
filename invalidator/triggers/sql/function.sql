-- What the triggers of one table run: as few notifications for a statement as its rows need.
--
-- The fields of all rows are collected into an array each, in one pass over a transition table, and sent in slices. That
-- is several times as fast as making JSON row by row. Only `{{bulk_limit}}` rows and one more are ever collected.
--
-- An UPDATE's old and new rows come in the same order. Where rules want them paired, the table's key is collected as
-- well, and they are paired only if the keys are the same, place by place: then the pairs are right whatever the order.
--
-- A row too wide for a notification, and any error, makes the table-wide notification: the writer's statement never
-- fails because of us. A cancelled statement stays cancelled: OTHERS does not catch that.
create or replace function {function}() returns trigger
language plpgsql
security invoker
set search_path = pg_catalog, pg_temp
{pins}
as $invalidator$
declare
    head constant text := {head} || '"o":"' || lower(tg_op) || '",';
    old_count bigint := 0;
    new_count bigint := 0;
    old_width bigint;
    new_width bigint;
    {arrays}
    start int;
    step int;
    stop int;
    payload text;
begin
    if tg_op = 'TRUNCATE' then
        perform pg_notify({channel}, head || '"w":true}}');
        return null;
    end if;
    if tg_op <> 'INSERT' then
        {collect_old}
    end if;
    if tg_op <> 'DELETE' then
        {collect_new}
    end if;
    if old_count + new_count = 0 then
        return null;
    elsif old_count > {bulk_limit} or new_count > {bulk_limit} then
        perform pg_notify({channel}, head || '"w":true}}');
    elsif tg_op = 'INSERT' then
        {send_new}
    elsif tg_op = 'DELETE' then
        {send_old}
    elsif {same} then
        {send_same}
    elsif {paired} then
        {send_paired}
    else
        {send_old}
        {send_new}
    end if;
    return null;
exception when others then
    perform pg_notify({channel}, head || '"w":true}}');
    return null;
end
$invalidator$
