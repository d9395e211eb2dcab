"""Where changes come from: one module a source."""
