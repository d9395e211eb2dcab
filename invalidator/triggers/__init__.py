"""The triggers, which report every committed change of a table: plan, install, check, remove."""
