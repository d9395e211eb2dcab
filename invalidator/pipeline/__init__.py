"""A source joined to its lanes."""
