"""The alive key never outlives the promise, whatever sleeps, and however late a command arrives."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from invalidator.targets.redis.alive import AliveKey

STALE_AFTER = 6.0
EPSILON = 0.002  # the server counts milliseconds

spans = st.sampled_from([0.0, 0.001, 0.1, 0.5, 1.0, 3.0, 10.0])
steps = st.one_of(
    st.tuples(st.just("time goes on"), spans),
    st.tuples(st.just("the machine sleeps"), spans),
    st.tuples(st.just("a canary comes back"), spans),
    st.tuples(st.just("it is said"), st.just(0.001), st.just(0.001), st.just(False), st.just(False)),
    st.tuples(st.just("it is said"), spans, spans, st.booleans(), st.booleans()),
)


class World:
    """The true time, a server whose clock is right, and a sidecar whose clock stands still while it sleeps."""

    def __init__(self, clock, servers):
        self.time, self.clock, self.servers = 1000.0, clock, servers
        self.as_of, self.truly_as_of, self.expires = None, None, 0.0
        self.key = AliveKey(self, "alive", "one", STALE_AFTER, lambda: self.clock)
        self.ways = (0.0, 0.0, False, False)

    def passes(self, span, *, asleep=False):
        self.time += span
        self.clock += 0 if asleep else span

    async def each(self, commands):
        """The server carries a script out, some time after it was sent; the answer takes some time too."""
        there, back, asleep_there, asleep_back = self.ways
        ((_, _, _, _, _, deadline),) = commands
        self.passes(there, asleep=asleep_there)
        now = self.time + self.servers
        self.expires = deadline / 1000 - self.servers if deadline / 1000 > now else 0.0
        self.passes(back, asleep=asleep_back)
        return [int(now * 1000)]

    def take(self, step, *rest):
        if step == "it is said":
            self.ways = rest
            asyncio.run(self.key.keep(self.as_of, "server"))
        elif step == "a canary comes back":
            self.as_of, self.truly_as_of = self.clock, self.time
            self.passes(*rest)
        else:
            self.passes(*rest, asleep=step == "the machine sleeps")


@settings(max_examples=150)
@given(st.lists(steps, min_size=5, max_size=30), st.floats(0, 1e6), st.floats(1e6, 1e9))
def test_it_never_outlives_the_promise(taken, clock, servers):
    world = World(clock, servers)
    for step in taken:
        world.take(*step)
        if world.expires > world.time:
            assert world.expires <= world.truly_as_of + STALE_AFTER + EPSILON


def test_it_is_there_while_all_is_well():
    world = World(0.0, 1e9)
    for second in range(20):
        world.take("it is said", 0.001, 0.001, False, False)
        world.take("time goes on", 0.01)
        world.take("a canary comes back", 1.0)
        assert second == 0 or world.expires > world.time + STALE_AFTER - 2.5
