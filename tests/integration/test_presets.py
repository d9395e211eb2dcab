"""Each block of docs/presets.md against the real library: its cached values for a row are gone, the rest stays."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from invalidator.config.compile import compile_rules
from invalidator.config.parse import parse
from invalidator.core.rules.change import Change, Table
from invalidator.service import wiring

PAGE = (Path(__file__).parents[2] / "docs" / "presets.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
ROW = {"id": "42", "category_id": "7"}

DJANGO = """
import django, sys
from django.conf import settings
caches = {"default": {"BACKEND": BACKEND, "LOCATION": sys.argv[1], **MORE}}
settings.configure(CACHES=caches, ALLOWED_HOSTS=["localhost"])
django.setup()
from django.core.cache import cache
if sys.argv[2] == "fill":
    cache.set("product:42", "stale")
    cache.set("product:43", "fresh")
else:
    assert cache.get("product:42") is None
    assert cache.get("product:43") == "fresh"
"""
PROGRAMS = {
    "Django": f"BACKEND, MORE = 'django.core.cache.backends.redis.RedisCache', {{}}\n{DJANGO}",
    "django-redis": f"BACKEND, MORE = 'django_redis.cache.RedisCache', {{'KEY_PREFIX': 'shop'}}\n{DJANGO}",
    "cacheops": """
import django, sys
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}, INSTALLED_APPS=["cacheops"],
    CACHEOPS_REDIS=sys.argv[1], CACHEOPS={"*.*": {"ops": "all", "timeout": 100}})
django.setup()
from django.db import connection, models
class Product(models.Model):
    category_id = models.IntegerField()
    class Meta:
        app_label, db_table = "shop", "products"
with connection.schema_editor() as editor:
    editor.create_model(Product)
queries = [Product.objects.filter(pk=42), Product.objects.filter(category_id=7), Product.objects.all()]
others = [Product.objects.filter(pk=43), Product.objects.filter(category_id=8)]
if sys.argv[2] == "fill":
    for query in queries + others:
        list(query.cache())
else:
    with connection.cursor() as cursor:
        cursor.execute("insert into products (id, category_id) values (42, 7)")
    assert all(len(query.cache()) == 1 for query in queries)
    with connection.cursor() as cursor:
        cursor.execute("insert into products (id, category_id) values (43, 8)")
    assert all(len(query.cache()) == 0 for query in others)  # still what was cached
""",
    "Flask-Caching": """
import sys
from flask import Flask
from flask_caching import Cache
app = Flask("shop")
cache = Cache(app, config={"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": sys.argv[1]})
@app.route("/products/<int:number>")
@cache.cached(100)
def view(number):
    return sys.argv[2]
with app.app_context():
    if sys.argv[2] == "fill":
        cache.set("product:42", "stale")
        cache.set("product:43", "fresh")
        assert [app.test_client().get(f"/products/{n}").text for n in (42, 43)] == ["fill", "fill"]
    else:
        assert cache.get("product:42") is None
        assert cache.get("product:43") == "fresh"
        assert [app.test_client().get(f"/products/{n}").text for n in (42, 43)] == ["check", "fill"]
""",
    "aiocache": """
import asyncio, sys
from urllib.parse import urlsplit
from aiocache import Cache
async def main():
    cache = Cache(Cache.REDIS, endpoint="127.0.0.1", port=urlsplit(sys.argv[1]).port, namespace="main")
    if sys.argv[2] == "fill":
        await cache.set("product:42", "stale")
        await cache.set("product:43", "fresh")
    else:
        assert await cache.get("product:42") is None
        assert await cache.get("product:43") == "fresh"
    await cache.close()
asyncio.run(main())
""",
    "cashews": """
import asyncio, sys
from cashews import Cache
cache = Cache()
cache.setup(sys.argv[1])
@cache(ttl="1m", key="list:{category}", tags=["category:{category}"])
async def listing(category):
    return sys.argv[2]
async def main():
    if sys.argv[2] == "fill":
        await cache.set("product:42", "stale")
        await cache.set("product:43", "fresh")
        assert [await listing(7), await listing(8)] == ["fill", "fill"]
    else:
        assert await cache.get("product:42") is None
        assert await cache.get("product:43") == "fresh"
        assert [await listing(7), await listing(8)] == ["check", "fill"]
    await cache.close()
asyncio.run(main())
""",
}
SCRIPTS = {
    "Keyv": """
const { Keyv } = require('keyv'); const { default: KeyvRedis } = require('@keyv/redis');
const cache = new Keyv(new KeyvRedis(process.argv[1]));
""",
    "NestJS": """
const { createKeyv } = require('@keyv/redis'); const { createCache } = require('cache-manager');
const cache = createCache({ stores: [createKeyv(process.argv[1])] });
""",
}
CHECK = """
(async () => {
  if (process.argv[2] === 'fill') {
    await cache.set('product:42', 'stale'); await cache.set('product:43', 'fresh');
  } else {
    if (await cache.get('product:42')) throw new Error('it is still there');
    if (await cache.get('product:43') !== 'fresh') throw new Error('the other one is gone');
  }
  await cache.disconnect();
})().catch(error => { console.error(error); process.exit(1); });
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """The packages of npm, in a folder of their own."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("npm")
    packages = ["keyv@5", "@keyv/redis@5", "cache-manager@7"]
    subprocess.run(
        [npm, "install", "--silent", "--no-audit", "--no-fund", *packages], cwd=folder, check=True, timeout=100
    )
    return folder


async def evict(name, url):
    """Carry out the block's rules for a row that changed."""
    block = re.search(r"```yaml\n(.*?)```", SECTIONS[name], re.DOTALL)[1]
    config = parse(f"version: 1\nname: shop\n{block}".replace("kind: redis", f'kind: redis, url: "{url}"'), {}, str)
    evictions = compile_rules(config).evict([Change(Table("public", "products"), "update", ROW, ROW, ("id",))])
    async with wiring.target(config, "cache") as target:
        return await target.evict(evictions["cache"])


def run(command, url, what, **options):
    done = subprocess.run([*command, url, what], capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PROGRAMS)
async def test_what_a_python_library_cached_is_evicted(name, redis_url):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAMS[name]]
    run(command, redis_url, "fill")
    assert await evict(name, redis_url)
    run(command, redis_url, "check")


VIEW = """
from django.http import HttpResponse
from django.test import RequestFactory
from django.views.decorators.cache import cache_control, cache_page
def render_product(number):
    return sys.argv[2]
%s
page = product(RequestFactory().get("/products/42", HTTP_HOST="localhost"), 42)
assert page.content.decode() == EXPECTED, page.content
assert page["Cache-Control"] == "max-age=0", page["Cache-Control"]
"""


async def test_a_page_of_django_is_kept_in_redis_and_no_browser_is_told_to_keep_it(redis_url):
    view = VIEW % re.search(r"```python\n(.*?)```", SECTIONS["Django"], re.DOTALL)[1]

    def shows(expected, what):
        program = PROGRAMS["Django"].partition("if sys.argv")[0] + f"EXPECTED = {expected!r}" + view
        run([sys.executable, "-W", "ignore", "-c", program], redis_url, what)

    shows("first", "first")
    shows("first", "second")
    assert await evict("Django", redis_url)
    shows("third", "third")


@pytest.mark.parametrize("name", SCRIPTS)
async def test_what_a_node_library_cached_is_evicted(name, redis_url, modules):
    command = ["node", "-e", SCRIPTS[name] + CHECK]
    run(command, redis_url, "fill", cwd=modules)
    assert await evict(name, redis_url)
    run(command, redis_url, "check", cwd=modules)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_block_is_valid_and_says_whether_it_is_verified(name):
    assert (name in PROGRAMS or name in SCRIPTS) != ("Unverified." in SECTIONS[name])
    block = re.search(r"```yaml\n(.*?)```", SECTIONS[name], re.DOTALL)[1]
    parse(f"version: 1\nname: shop\n{block}", {}, str)
