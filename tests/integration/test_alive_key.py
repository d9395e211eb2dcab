"""The alive key exists only while a sidecar keeps the promise, whatever happens to the sidecar or the network."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pytest
import redis

from invalidator import clock
from invalidator.config.compile import compile_rules
from invalidator.config.defaults import stale_after
from invalidator.config.parse import parse
from invalidator.config.redis_url import parse_redis_url
from invalidator.core.protocol.batch import Gap
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.errors import TargetAway
from invalidator.pipeline import target_watch
from invalidator.service import installation
from invalidator.service.sidecar import Sidecar
from invalidator.targets.redis import RedisTarget
from invalidator.targets.redis.alive import AliveKey
from invalidator.targets.redis.identity import IdentityTracker
from invalidator.targets.redis.node_connections import NodeConnections
from invalidator.targets.redis.topology import SingleServer
from invalidator.triggers.install import install
from tests.support import eventually, until
from tests.support.memory_source import MemorySource
from tests.support.proxy import Proxy
from tests.support.sidecars import Sidecar as One
from tests.support.sidecars import T

FOREVER = 3600.0


def now():
    return asyncio.get_running_loop().time()


class Entry:
    """One sidecar's, whose clock may stand still."""

    def __init__(self, line, instance):
        self.behind = 0.0
        self._stopped = None
        self.key = AliveKey(line, "alive", instance, 0.0, self.clock)

    def clock(self):
        return (now() if self._stopped is None else self._stopped) - self.behind

    async def keep(self, stale_after):
        """Promise for so long from now on."""
        await self.key.keep(None, "server")
        self.key.stale_after = stale_after
        await self.key.keep(self.clock(), "server")

    async def take_back(self):
        await self.key.keep(None, "server")

    def sleep(self):
        self._stopped = now()

    def wake(self):
        self.behind, self._stopped = self.behind + now() - self._stopped, None


class TestKey:
    """The key itself."""

    @pytest.fixture
    async def entries(self, redis_url):
        line = NodeConnections(SingleServer(parse_redis_url(redis_url)), IdentityTracker())
        yield lambda instance: Entry(line, instance)
        line.close()
        await asyncio.sleep(0)

    async def test_it_runs_out_at_the_deadline_and_not_later(self, entries, cache):
        one = entries("one")
        await one.key.keep(now(), "server")  # nobody has said yet what time it is there
        assert not cache.exists("alive")
        for left in (2.0, 30.0, 1.0):
            await one.key.keep(None, "server")
            one.key.stale_after = left
            deadline = now() + left
            await one.key.keep(deadline - left, "server")
            asked = now()
            assert 0 < cache.pttl("alive") <= (deadline - asked) * 1000 + 1
        await one.keep(0.05)
        await eventually(lambda: not cache.exists("alive"))

    async def test_a_deadline_that_is_past_is_no_promise(self, entries, cache):
        one = entries("one")
        await one.keep(FOREVER)
        assert cache.exists("alive")
        await one.keep(-0.001)
        assert not cache.exists("alive")
        await one.keep(-FOREVER)
        assert not cache.exists("alive")

    async def test_a_machine_that_slept_promises_nothing_from_before(self, entries, cache):
        """Its clock stood still: what it knows looks as fresh as when it fell asleep."""
        one = entries("one")
        await one.keep(0.5)
        as_of, woken = one.clock(), now() + 0.6
        one.sleep()
        await eventually(lambda: now() > woken)
        one.wake()
        assert one.clock() < as_of + 0.1
        await one.key.keep(as_of, "server")
        assert not cache.exists("alive")
        await one.keep(FOREVER)
        assert cache.exists("alive")

    async def test_a_server_that_was_set_back_is_asked_what_time_it_is(self, entries, cache):
        one = entries("one")
        await one.keep(FOREVER)
        one.behind -= 10  # as it looks where the server's clock was set back
        await one.key.keep(one.clock() - 5, "server")
        await one.key.keep(one.clock() - 5, "server")
        assert not cache.exists("alive")
        await one.key.keep(one.clock(), "server")
        assert cache.exists("alive")

    async def test_another_server_is_asked_what_time_it_is(self, entries, cache):
        one = entries("one")
        await one.keep(FOREVER)
        as_of = one.clock()
        await one.key.keep(as_of, "another")
        assert not cache.exists("alive")
        await one.key.keep(one.clock(), "another")
        assert cache.exists("alive")

    async def test_it_is_there_while_one_of_many_promises(self, entries, cache):
        one, other = entries("one"), entries("other")
        await one.keep(100)
        await other.keep(200)
        assert 190_000 < cache.pttl("alive") <= 200_000
        await other.take_back()
        assert 90_000 < cache.pttl("alive") <= 100_000
        await other.take_back()
        assert cache.exists("alive")
        await one.take_back()
        assert not cache.exists("alive")

    async def test_an_entry_that_has_run_out_keeps_nothing(self, entries, cache):
        one, other = entries("one"), entries("other")
        await one.keep(100)
        await other.keep(0.1)
        deadline = now() + 0.1
        await eventually(lambda: now() > deadline)
        await one.keep(100)
        assert cache.get("alive").count("=") == 1

    async def test_what_our_last_life_left_is_ours(self, entries, cache):
        await entries("one").keep(FOREVER)
        await entries("one").take_back()
        assert not cache.exists("alive")

    async def test_of_very_many_some_are_kept(self, entries, cache):
        for number in range(50):
            await entries(f"pod-{number}").keep(100 + number)
        assert len(cache.get("alive")) < 300
        assert cache.pttl("alive") > 140_000
        for number in range(50):
            await entries(f"pod-{number}").take_back()
        assert not cache.exists("alive")

    async def test_a_release_that_wrote_another_value(self, entries, cache):
        """One degrades, another of the release before keeps the promise; then all have the new release."""
        cache.set("alive", "1", px=60_000)
        await entries("one").take_back()
        assert cache.get("alive") == "1"
        await entries("one").keep(2)
        assert cache.pttl("alive") <= 2000


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(target_watch, "HEARTBEAT_INTERVAL", 0.05)


@pytest.fixture
def shown_only_when_told(monkeypatch):
    """Nothing is said by the second, so what is said at all was said at once."""
    monkeypatch.setattr(target_watch, "HEARTBEAT_INTERVAL", FOREVER)


@asynccontextmanager
async def holding(source, url, instance="one", **options):
    """A sidecar that keeps the promise, and has said so."""
    options = {"alive_key": "alive", "stale_after": FOREVER} | options
    async with One(source, url, instance, **options).running() as one:
        await one.settles()
        assert await one.pipeline.barrier(10)
        one.lane.publish_soon()
        with redis.Redis.from_url(url) as client:
            await eventually(lambda: client.exists("alive"))
        yield one


@pytest.mark.usefixtures("quick")
class TestPromise:
    async def test_it_never_outlives_what_is_left_of_stale_after(self, redis_url, cache):
        async with holding(MemorySource(), redis_url, stale_after=1.0) as one:
            deadline, seen = one.lane.queue.as_of + 1.0, 0
            while (asked := now()) < deadline + 0.2:
                left = await asyncio.to_thread(cache.pttl, "alive")
                assert left <= max((deadline - asked) * 1000, 0) + 1
                seen += left > 0
            assert seen
            assert await one.pipeline.barrier(10)
            await eventually(lambda: cache.exists("alive"))

    async def test_one_that_owes_does_not_take_away_what_another_keeps(self, redis_url, cache):
        source = MemorySource()
        async with holding(source, redis_url, "one") as one, holding(source, redis_url, "other") as other:
            await eventually(lambda: cache.get("alive").count("=") == 2)
            one.fingerprints.text = ""
            await eventually(lambda: cache.get("alive").count("=") == 1)
            other.fingerprints.text = ""
            await eventually(lambda: not cache.exists("alive"))
            one.fingerprints.text = "same"
            await eventually(lambda: cache.exists("alive"))

    async def test_one_that_leaves_takes_its_entry_with_it(self, redis_url, cache):
        source = MemorySource()
        async with holding(source, redis_url, "one"):
            async with holding(source, redis_url, "other"):
                await eventually(lambda: cache.get("alive").count("=") == 2)
            assert cache.get("alive").count("=") == 1
        assert not cache.exists("alive")

    async def test_who_only_looks_at_the_target_takes_nothing_away(self, redis_url, cache):
        """As `check` and `run --observe` do, on the host of a sidecar and so under its name."""
        async with holding(MemorySource(), redis_url, "one"):
            with happenings(redis_url, "alive") as happened:
                target = RedisTarget("cache", parse_redis_url(redis_url), instance="one", alive_key="alive")
                async with target:
                    await target.check()
                await eventually(lambda: happened)
            assert "del" not in happened

    async def test_it_is_not_there_before_anybody_knows_how_far_it_is(self, redis_url, cache):
        async with One(MemorySource(), redis_url, "one", alive_key="alive").running() as one:
            await one.settles()
            await eventually(lambda: cache.exists("invalidator:{shop.cache}:able"))
            assert not cache.exists("alive")


def lose_the_source(one):
    one.fingerprints.text = ""
    one.source.lose()


def drift(one):
    one.fingerprints.text = ""
    one.pipeline.gap(Gap("drift", frozenset({T})))


WORSE = {
    "a gap": lambda one: one.pipeline.gap(Gap("reconnect")),
    "the source is lost": lose_the_source,
    "triggers have drifted": drift,
    "a person wants a flush": lambda one: one.pipeline.flush(Gap("asked")),
}


@pytest.mark.usefixtures("shown_only_when_told")
class TestAtOnce:
    @pytest.mark.parametrize("what", WORSE)
    async def test_it_goes_as_soon_as_something_is_owed(self, redis_url, what):
        async with holding(MemorySource(), redis_url) as one:
            with happenings(redis_url, "alive") as happened:
                WORSE[what](one)
                await eventually(lambda: "del" in happened, 20)

    async def test_it_goes_when_evictions_are_refused(self, redis_url, cache):
        async with holding(MemorySource(), redis_url) as one:

            async def refuse(evictions: Evictions) -> int:
                raise TargetAway("OOM", where="cache", reason="refused")

            one.target.evict = refuse
            one.pipeline.purge([], Evictions.of([Eviction("key", "p:1")]))
            await eventually(lambda: not cache.exists("alive"), 20)
            del one.target.evict
            await eventually(lambda: cache.exists("alive"), 20)


@contextmanager
def happenings(url, key):
    """What happens to a key from now on, as the server notifies of it."""
    happened = []
    with redis.Redis.from_url(url, decode_responses=True) as client, client.pubsub() as listener:
        client.config_set("notify-keyspace-events", "KA")
        listener.subscribe(**{f"__keyspace@0__:{key}": lambda message: happened.append(message["data"])})
        until(lambda: (listener.get_message(timeout=1) or {}).get("type") == "subscribe")
        thread = listener.run_in_thread(sleep_time=0.01)
        try:
            yield happened
        finally:
            thread.stop()
            thread.join()
            client.config_set("notify-keyspace-events", "")


CONFIG = """
version: 1
name: frozen
postgres: {{dsn: "{dsn}", canary: 200ms, canary_timeout: 800ms}}
targets: {{cache: {{kind: redis, url: "redis://127.0.0.1:{redis}/0"}}}}
listen: {{api: "unix:{folder}/api", probes: "unix:{folder}/probes"}}
rules: [{{table: public.products, evict: "p:{{id}}"}}]
"""
ALIVE = "invalidator:frozen:alive"


def installed(db, folder, dsn, port):
    """A configuration, and the file that it is in; its triggers are there."""
    db.execute("create table products (id int primary key)")
    file = folder / "invalidator.yaml"
    file.write_text(CONFIG.format(dsn=dsn, redis=port, folder=folder))
    config = parse(file.read_text(), {}, str)
    install(db, installation(config), compile_rules(config))
    return config, file


class TestFrozen:
    """A process that is stopped at the worst moment: it has decided that the promise holds, and has not said it yet."""

    async def test_what_it_says_when_it_wakes_is_no_promise(self, dsn, db, redis_url, cache, tmp_path):
        """Its word to Redis lies on the way while it is stopped, and PostgreSQL is away when it wakes."""
        port = int(redis_url.rpartition(":")[2].partition("/")[0])
        with Proxy(psycopg.conninfo.conninfo_to_dict(dsn)["port"]) as postgres, Proxy(port) as line:
            led = psycopg.conninfo.make_conninfo(dsn, host="127.0.0.1", port=postgres.port)
            config, file = installed(db, tmp_path, led, line.port)
            with subprocess.Popen([sys.executable, "-m", "invalidator", "run", "-c", file]) as running:
                try:
                    await eventually(lambda: cache.exists(ALIVE), 30)
                    line.hold_on = ALIVE.encode()
                    await eventually(line.holds.is_set, 30)
                    running.send_signal(signal.SIGSTOP)
                    ends = now() + stale_after(config.postgres)  # of all that it can know
                    line.hold_on = None
                    postgres.stall()
                    await eventually(lambda: now() > ends and not cache.exists(ALIVE), 30)
                    with happenings(redis_url, ALIVE) as happened:
                        before = said(cache)
                        line.flow()
                        running.send_signal(signal.SIGCONT)
                        await eventually(lambda: said(cache) > before + 4, 30)  # it beats, and has had its say
                        assert "set" not in happened
                    assert not cache.exists(ALIVE)
                    postgres.flow()
                    await eventually(lambda: cache.exists(ALIVE), 30)
                finally:
                    running.kill()


def said(cache):
    """How many scripts the server has run: a sidecar sends some every second."""
    return cache.info("commandstats")["cmdstat_eval"]["calls"]


def test_a_sidecar_whose_machine_slept_says_so_at_once(dsn, db, redis_url, tmp_path, monkeypatch):
    """Before anything has come back to it, and until it knows again how far it is."""
    config, _ = installed(db, tmp_path, dsn, int(redis_url.rpartition(":")[2].partition("/")[0]))

    async def live():
        stop, boot_time = asyncio.Event(), clock.boot_time
        sidecar = Sidecar(config)
        task = asyncio.create_task(sidecar.run(stop))
        await eventually(lambda: sidecar.barrier(5) if not sidecar.degraded() else False, 30)
        monkeypatch.setattr(clock, "boot_time", lambda: boot_time() + 3600.0)
        (doubt,) = sidecar.degraded()
        assert "may not be evicted yet" in doubt
        assert sidecar.status()["targets"]["cache"]["as_of_seconds"] > 3590
        await eventually(lambda: not sidecar.degraded(), 30)
        stop.set()
        await task

    clock.run(live())
