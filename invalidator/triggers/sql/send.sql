if (select count(*) from (select from {rows} limit {bulk_limit} + 1) as counted) > {bulk_limit} then
            perform pg_notify({channel}, head || '"w":true}}');
        else
            perform pg_notify({channel}, payload) from (
                select case
                    when max(largest) > 3800 then head || '"w":true}}'
                    when kind = 1 then head || rest || '"old":[' || string_agg(before, ',') || ']}}'
                    when kind = 2 then head || rest || '"new":[' || string_agg(after, ',') || ']}}'
                    else head || rest || '"p":true,"old":[' || string_agg(before, ',' order by place)
                        || '],"new":[' || string_agg(after, ',' order by place) || ']}}'
                end as payload
                from (
                    select before, after, kind, place, max(length) over () as largest,
                        sum(length) over (partition by kind order by place) / 3800 as slice
                    from (
                        select before, after, row_number() over () as place,
                            (before is not null)::int + 2 * (after is not null)::int as kind,
                            coalesce(octet_length(before) + 1, 0) + coalesce(octet_length(after) + 1, 0) as length
                        from ({images}) as image
                    ) as measured
                ) as sliced
                group by kind, slice
            ) as payloads;
        end if;
