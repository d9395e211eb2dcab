"""How the sidecars of one name agree on who flushes a target that they share."""
