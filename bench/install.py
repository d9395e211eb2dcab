"""How long `install-triggers` takes on 1,000 tables, the first time and the second.

python -m bench.install
"""

from __future__ import annotations

import time

import psycopg

from invalidator.core.rule import Evict, Rule, TablePattern
from invalidator.core.ruleset import RuleSet
from invalidator.core.template import parse
from invalidator.demo.servers import PostgresServer, Workspace
from invalidator.triggers.install import install
from invalidator.triggers.plan import look
from invalidator.triggers.spec import Installation

TABLES = 1000


def main():
    evicts = (Evict("key", parse("product:{id}")), Evict("key", parse("name:{name|lower}")))
    one_each = [Rule(i, TablePattern("public", f"t{i}"), evicts, ("cache",)) for i in range(TABLES)]
    pattern = [Rule(0, TablePattern("tenant_*", "products"), evicts, ("cache",))]
    with Workspace() as workspace:
        server = PostgresServer(workspace)
        server.start()
        for name, rules in ((f"{TABLES} rules", one_each), (f"a rule for {TABLES} schemas", pattern)):
            with psycopg.connect(server.create_database(), autocommit=True) as db:
                columns = "(id int primary key, name text, price numeric, body jsonb)"
                db.execute(
                    f"do $$ begin for i in 0..{TABLES - 1} loop execute format('create table t%s {columns};"
                    f" create schema tenant_%s; create table tenant_%s.products {columns}', i, i, i); end loop; end $$"
                )
                wanted = RuleSet(rules, ["cache"])
                installation = Installation("bench", "invalidator", 100_000)
                took = []
                for act in (install, install, look):
                    started = time.perf_counter()
                    act(db, installation, wanted)
                    took.append(time.perf_counter() - started)
                print(f"{name:28} first {took[0]:.2f} s, second {took[1]:.2f} s, a look {took[2]:.2f} s")


if __name__ == "__main__":
    main()
