"""Where evictions go: one module a target."""
