"""Tables with parents and children: every row is heard under its rule's table, whatever table a statement names."""

from __future__ import annotations

import pytest

from invalidator.triggers.install import install
from invalidator.triggers.spec import Installation
from tests.integration.heard import PAIRED, rules


@pytest.fixture
def parts(db):
    db.execute(
        "create table products (id int, state int, name text) partition by list (state);"
        "create table low partition of products for values in (0);"
        "create table high partition of products for values in (1)"
    )
    return db


class TestAMoveThatLosesRows:
    """An UPDATE has more old rows than new ones when a BEFORE INSERT trigger of the destination drops some."""

    @pytest.mark.parametrize("count", [5, 101, 500, 3000])
    @pytest.mark.parametrize("kept", ["new.id % 5 = 0", "new.id = 5", "false"])
    @pytest.mark.parametrize("conditions", [{}, PAIRED], ids=["single", "paired"])
    def test_every_old_row_is_heard(self, parts, heard, count, kept, conditions):
        wanted = rules("p:{id}:{state}", **conditions)
        install(parts, Installation("shop", "invalidator", 10_000), wanted)
        parts.execute(
            "create function picky() returns trigger language plpgsql as"
            f" $$ begin if {kept} then return new; end if; return null; end $$;"
            "create trigger picky before insert on high for each row execute function picky()"
        )
        parts.execute(f"insert into products select g, 0 from generate_series(1, {count}) g")
        heard()
        parts.execute("update products set state = 1")
        left = [number for (number,) in parts.execute("select id from products").fetchall()]
        evicted = {eviction.key for eviction in wanted.evict(heard())["cache"]}
        assert evicted == {*(f"p:{n}:0" for n in range(1, count + 1)), *(f"p:{n}:1" for n in left)}
