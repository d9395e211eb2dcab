"""The database side: what is installed on tables so that every committed change is announced."""
