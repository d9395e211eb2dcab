"""The templates of the generated functions: what their comments claim is what is written."""

from __future__ import annotations

import re

from invalidator.triggers.install import install
from invalidator.triggers.sql import load
from tests.integration.trigger_support import SHOP, rules

EXAMPLE = re.compile(r"^--     ([a-z_]+) +(\S.*)$", re.MULTILINE)


def test_the_example_in_write_sql_is_what_a_function_of_that_table_contains(db):
    db.execute("create table products (id int primary key, name text)")
    install(db, SHOP, rules("product:{id}:{name}"))
    (source,) = db.execute("select prosrc from pg_proc where proname ~ '^shop_[0-9a-f]{16}$'").fetchone()
    example = EXAMPLE.findall(load("write"))
    assert len(example) >= 10
    for blank, text in example:
        assert f"{{{blank}}}" in load("function")
        assert text in source, blank
