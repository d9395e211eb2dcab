-- What the triggers of one table run: one notification for as many rows of a statement as fit.
--
-- Names and literals arrive quoted. Each operation's images are one SELECT of (before, after), JSON arrays
-- as text or null. A row of more than half a payload, and any error, makes the table-wide notification: the writer's statement
-- never fails because of us. A cancelled statement stays cancelled: OTHERS does not catch it.
create or replace function {function}() returns trigger
language plpgsql
security invoker
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO'
set intervalstyle = 'postgres'
set timezone = 'UTC'
set extra_float_digits = 1
set bytea_output = 'hex'
as $invalidator$
declare
    head constant text := {head} || '"o":"' || lower(tg_op) || '",';
    rest constant text := {fields};
begin
    if tg_op = 'TRUNCATE' then
        perform pg_notify({channel}, head || '"w":true}}');
    elsif tg_op = 'INSERT' then
        {insert}
    elsif tg_op = 'DELETE' then
        {delete}
    else
        {update}
    end if;
    return null;
exception when others then
    perform pg_notify({channel}, head || '"w":true}}');
    return null;
end
$invalidator$
