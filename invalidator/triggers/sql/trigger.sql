create or replace trigger {trigger} after {event} on {table} {referencing} for each statement execute function {function}()
