"""From a row's change to the evictions that rules make of it."""
