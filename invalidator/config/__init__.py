"""The configuration: one YAML file, read once, frozen."""
