"""How long `install-triggers` takes on 1,000 tables, at first and again; the cost of JIT in a trigger check.

python -m bench.install
"""

from __future__ import annotations

import time

import psycopg

from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.embedded import PostgresServer, Workspace
from invalidator.embedded.postgres import at_hand
from invalidator.triggers.install import install
from invalidator.triggers.plan import look, prepare
from invalidator.triggers.spec import Installation, setting
from invalidator.triggers.sql import plan

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
        for binaries in at_hand():
            compare_compiled(PostgresServer(workspace, binaries))


def compare_compiled(server):
    """A look at one table, without JIT as we look, and with it, as it is on by default."""
    server.start()
    evicts = (Evict("key", parse("product:{id}")),)
    wanted = RuleSet([Rule(0, TablePattern("public", "products"), evicts, ("cache",))], ["cache"])
    installation = Installation("bench", "invalidator", 100_000)
    with psycopg.connect(server.create_database(), autocommit=True) as db:
        if db.execute("select pg_jit_available()").fetchone() == (True,):
            db.execute("create table products (id int primary key)")
            install(db, installation, wanted)
            with db.transaction():
                prepare(db, setting(installation, wanted))
                took = {}
                for jit in ("off", "on", "off"):
                    db.execute(f"set local jit = {jit}")
                    started = time.perf_counter()
                    db.execute(plan(), prepare=False)
                    took.setdefault(jit, []).append(time.perf_counter() - started)
            without, compiled = min(took["off"]), min(took["on"])
            print(
                f"PostgreSQL {server.binaries.major}, one table: a look {without * 1000:.0f} ms,"
                f" compiled {compiled:.1f} s ({compiled / without:.0f} times)"
            )
    server.stop()


if __name__ == "__main__":
    main()
