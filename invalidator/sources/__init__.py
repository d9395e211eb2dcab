"""Sources of changes. `notify` is PostgreSQL's LISTEN; `feed`, `canary` and `channels` are its parts."""
