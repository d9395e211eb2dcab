"""The demo's application: its cache keys, and the query for the value of each."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

PRODUCTS: Final = 200
CATEGORIES: Final = 10
BRANDS: Final = ("Acme", "Bolt", "Cirrus")
_WORDS: Final = ("lamp", "chair", "desk")

SCHEMA: Final = (files("invalidator.demo") / "shop.sql").read_text()
CONFIG: Final = (files("invalidator.demo") / "shop.yaml").read_text()


class Cached(NamedTuple):
    """A cache key, and the query whose result it holds."""

    key: str
    query: str
    parameter: object

    async def truth(self, connection: psycopg.AsyncConnection[Any]) -> str:
        """What the value is in the database now."""
        row = await (await connection.execute(self.query, [self.parameter])).fetchone()
        return str(row[0]) if row else ""


_PRODUCT = "select coalesce(max(row_to_json(p)::text), 'gone') from products p where id = %s"
_CATEGORY = "select coalesce(string_agg(id || '=' || price, ',' order by id), '') from products where category_id = %s"
_SEARCH = "select sum(price)::text from products where brand = %s"


def product(number: int) -> Cached:
    return Cached(f"product:{number}", _PRODUCT, number)


def category(number: int) -> Cached:
    return Cached(f"category:{number}:products", _CATEGORY, number)


def search(word: str, brand: str) -> Cached:
    return Cached(f"search:{word}:{brand.lower()}", _SEARCH, brand)


EVERYTHING: Final = [
    *map(product, range(1, PRODUCTS + 1)),
    *map(category, range(CATEGORIES)),
    *(search(word, brand) for word in _WORDS for brand in BRANDS),
]


def anything(chance: random.Random) -> Cached:
    """A random key, mostly of a product, as visitors request them."""
    roll = chance.random()
    if roll < 0.8:
        return product(chance.randint(1, PRODUCTS))
    if roll < 0.95:
        return category(chance.randrange(CATEGORIES))
    return search(chance.choice(_WORDS), chance.choice(BRANDS))


WRITES: Final[list[tuple[int, LiteralString, Callable[[random.Random], list[Any]]]]] = [
    # a weight in percent, the statement, a function that chooses its parameters
    (80, "update products set price = price + 1 where id = %s", lambda c: [c.randint(1, PRODUCTS)]),
    (
        8,
        "update products set category_id = %s where id = %s",
        lambda c: [c.randrange(CATEGORIES), c.randint(1, PRODUCTS)],
    ),
    (6, "update products set brand = %s where id = %s", lambda c: [c.choice(BRANDS), c.randint(1, PRODUCTS)]),
    (6, "update products set price = price * 1.01 where category_id = %s", lambda c: [c.randrange(CATEGORIES)]),
]
