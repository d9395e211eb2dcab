"""Rules: from a change to its evictions."""
