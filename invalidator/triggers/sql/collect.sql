select count(*), {width}, {aggregates}
          into {side}_count, {side}_width, {targets}
          from (select {expressions} from {side}_rows limit {bulk_limit} + 1) as image;
