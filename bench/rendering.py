"""Rendering: changes per second through a rule with two keys, relative to the simplest loop with the same result.

    python -m bench.rendering

The baseline is a hand-written loop for exactly this rule, without rules, nulls, unknowns, conditions or routes: the
upper bound. Batches hold 230 changes, as many as a full notification carries. The profile shows where the time goes.
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time

from invalidator.core.protocol.payload import decode, encode
from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.fields import Field
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse

T = Table("public", "products")
BATCH, BATCHES, ROUNDS = 230, 1000, 9
SOURCES = ("product:{id}", "category:{category_id}:products")


def rules(*sources, **kwargs):
    return RuleSet(
        [Rule(0, TablePattern(*T), tuple(Evict("key", parse(s)) for s in sources), ("cache",), **kwargs)], ["cache"]
    )


def batches(op):
    made = []
    for start in range(0, BATCH * BATCHES, BATCH):
        rows = [{"id": str(n), "category_id": str(n % 50)} for n in range(start, start + BATCH)]
        old = rows if op == "update" else [None] * BATCH
        made.append([Change(T, op, before, row, ("id",)) for before, row in zip(old, rows, strict=True)])
    return made


def by_hand(batch):
    keys = {}
    for change in batch:
        for row in (change.old, change.new):
            if row is not None:
                keys["product:" + row["id"]] = None
                keys["category:" + row["category_id"] + ":products"] = None
    return keys


def rate(function, work):
    started = time.perf_counter()
    for batch in work:
        function(batch)
    return BATCH * BATCHES / (time.perf_counter() - started)


def main():
    two = rules(*SOURCES)
    picky = rules(
        *SOURCES, changed=(Field("category_id"),), if_=((Field("category_id"), frozenset(map(str, range(50)))),)
    )
    filtered = rules("product:{id|lower}", "category:{category_id}:{id}")
    payloads = {op: [next(encode(batch, 1 << 20)) for batch in batches(op)] for op in ("insert", "update")}
    print(f"{'':34}{'changes/s':>12}  of by hand")
    for op in ("insert", "update"):
        work = batches(op)
        subjects = {
            "by hand": (by_hand, work),
            "two keys": (two.evict, work),
            "two keys, changed and if": (picky.evict, work),
            "two keys with a filter, two holes": (filtered.evict, work),
            "decoding the payload": (decode, payloads[op]),
        }
        rates = {name: [] for name in subjects}
        for _ in range(ROUNDS):  # interleaved, so that what the machine does besides hits all alike
            for name, (function, some) in subjects.items():
                rates[name].append(rate(function, some))
        base = statistics.median(rates["by hand"])
        for name, seen in rates.items():
            middle = statistics.median(seen)
            print(f"{op + ': ' + name:<42}{middle:>12,.0f}  {middle / base:.2f}")
    profile = cProfile.Profile()
    work = batches("update")
    profile.enable()
    for batch in work:
        two.evict(batch)
    profile.disable()
    print("\nprofile of: update, two keys")
    pstats.Stats(profile).sort_stats("tottime").print_stats(8)


if __name__ == "__main__":
    main()
