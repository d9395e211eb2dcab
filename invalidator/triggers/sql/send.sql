step := greatest(7500 / ({width}), 1);
        if {count} <= step then
            payload := head || {whole} || '}}';
            if octet_length(payload) < 7950 then
                perform pg_notify({channel}, payload);
                step := 0;
            end if;
        end if;
        if step > 0 then
            -- Out of an array of 100,000 each slice would cost a copy of it, so a part of it is cut first.
            for part in 0 .. ({count} - 1) / 2000 loop
                {cut}
                start := 1;
                while start <= least({count} - part * 2000, 2000) loop
                    stop := start + step - 1;
                    payload := head || {slice} || '}}';
                    if octet_length(payload) < 7950 then
                        perform pg_notify({channel}, payload);
                        start := start + step;
                    elsif step = 1 then
                        perform pg_notify({channel}, head || '"w":true}}');
                        return null;
                    else
                        step := step / 2;
                    end if;
                end loop;
            end loop;
        end if;
