"""Connections to PostgreSQL: how they are opened, configured, bounded in time and closed."""
