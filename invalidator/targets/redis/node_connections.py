"""A line to the target: one connection to each of its primaries, for one purpose.

Evictions, sweeps and what sidecars write for each other have lines of their own, so that none waits for another.

Before a connection is used, the identity of the server is read on it. `Met` remembers whom we met at each place: where
it is another than before, or the same process with another history, evictions may be lost there, which is
`TargetChanged`. Whoever meets it first says so; the lane owes a flush from then on, whatever else is on its way.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, Final, NamedTuple

from redis.crc import key_slot

from invalidator.core.protocol.redis_endpoint import Endpoint
from invalidator.errors import RetryReason, TargetAway, TargetChanged
from invalidator.targets.redis.connection import Command, Connection, connect
from invalidator.targets.redis.replies import ErrorReply, away
from invalidator.targets.redis.topology import Topology, read_info, wrong_mode

KEYS_A_COMMAND: Final = 500  # more gains nothing, and stalls the server's other clients
_COMMANDS_A_CHUNK: Final = 100
_REDIRECTIONS: Final = 20
_PAUSE: Final = 0.05
REDIRECTED: Final = frozenset({"MOVED", "ASK", "TRYAGAIN"})
_NOTED: ContextVar[set[Connection] | None] = ContextVar("noted", default=None)  # tasks of the call share the set


@contextmanager
def noted() -> Iterator[set[Connection]]:
    """The connections that lines give to this call, and to the tasks that it starts."""
    connections: set[Connection] = set()
    token = _NOTED.set(connections)
    try:
        yield connections
    finally:
        _NOTED.reset(token)


def _note(connection: Connection) -> Connection:
    if (connections := _NOTED.get()) is not None:
        connections.add(connection)
    return connection


class Identity(NamedTuple):
    """Which process it is, and whose history it goes on with."""

    run_id: str
    replication_id: str


class Met:
    """Whom we met at each place of a target.

    The places may be others after any await: another connection, told that a slot has moved, has looked where they are.
    So one that is there now may not have been met yet; until it is, there is no telling whom the target consists of.
    """

    def __init__(self) -> None:
        self._known: dict[str, Identity] = {}
        self._complete = self._began = False

    def meet(self, place: str, identity: Identity) -> None:
        """Note who is there; TargetChanged when that is somebody else than before."""
        before = self._known.get(place)
        self._known[place] = identity
        if before is None and not self._began:
            return
        if before != identity:
            raise TargetChanged("it is another server than before, or came back with what it had saved", where=place)

    def are(self, places: Collection[str]) -> None:
        """These are all places that there are now. Once all of them were met, another one is news."""
        self._known = {place: identity for place, identity in self._known.items() if place in places}
        self._complete = len(self._known) == len(places)
        self._began |= self._complete

    @property
    def is_complete(self) -> bool:
        """Whether all places that there were at the last look were met."""
        return self._complete

    def __str__(self) -> str:
        return " ".join(f"{place}={':'.join(identity)}" for place, identity in sorted(self._known.items()))


class NodeConnections:
    """Opened when it is used; after an error, opened anew."""

    def __init__(self, places: Topology, met: Met) -> None:
        self._topology, self._met = places, met
        self._open: dict[str, Connection] = {}
        self._asking: dict[Endpoint, Connection] = {}  # to where slots are moving
        self._opening = asyncio.Lock()

    async def node(self, place: str) -> Connection:
        """The connection to this place's primary."""
        async with self._opening:
            return _note(await self._node(place))

    async def _node(self, place: str) -> Connection:
        connection = self._open.get(place)
        if connection is not None and connection.is_open and connection.endpoint == self._topology.primaries.get(place):
            return connection
        if connection is not None:
            connection.close()
        endpoint = self._topology.primaries.get(place)
        if endpoint is None:
            await self._topology.find()
            endpoint = self._topology.primaries.get(place)
            if endpoint is None:
                raise TargetAway("it is no part of the target any more", where=place, reason=RetryReason.MOVED)
        connection = await connect(endpoint)
        try:
            self._met.meet(place, await self._identity(connection))
        except BaseException:
            connection.close()
            raise
        self._open[place] = connection
        return connection

    async def _identity(self, connection: Connection) -> Identity:
        info = read_info(b"\n".join(await connection.ask(("INFO", "server"), ("INFO", "replication"))))
        where = str(connection.endpoint)
        mode = info.get("redis_mode") or info.get("server_mode", "standalone")  # Valkey's name for it
        if wrong := wrong_mode(self._topology.mode, mode):
            raise TargetAway(wrong.what, where=where, todo=wrong.todo, reason=RetryReason.REFUSED)
        if info.get("role") != "master":
            raise TargetAway(
                "it is a replica", where=where, todo="name the primary, or its Sentinels", reason=RetryReason.MOVED
            )
        try:
            return Identity(info["run_id"], info["master_replid"])
        except KeyError as error:
            what = f"its INFO has no {error}: another server would not be noticed"
            todo = "connect to the server itself, not through a proxy that leaves it out"
            raise TargetAway(what, where=where, todo=todo, reason=RetryReason.REFUSED) from error

    async def nodes(self) -> list[tuple[str, Connection]]:
        """Each place, with a connection to its primary."""
        if not self._topology.primaries:
            await self._topology.find()
        return [(place, await self.node(place)) for place in self._topology.primaries]

    async def meet_again(self) -> None:
        """See who is there: a server may change its history without closing a connection."""
        for place, connection in await self.nodes():
            self._met.meet(place, await self._identity(connection))

    def place(self, key: str) -> str:
        return self._topology.place(key.encode())

    @property
    def is_cluster(self) -> bool:
        return self._topology.mode == "cluster"

    def close(self) -> None:
        for connection in (*self._open.values(), *self._asking.values()):
            connection.close()
        self._open.clear()
        self._asking.clear()

    # Commands about keys

    async def unlink(self, keys: Iterable[bytes]) -> int:
        """Remove these; how many there had been."""
        if self.is_cluster:
            return sum(await self.each([("UNLINK", *some) for some in by_slot(keys)]))
        connection = await self.node("")
        return sum(_checked(await connection.exchange([("UNLINK", *some)] for some in portions(keys)), connection))

    async def each(self, commands: Sequence[Command], *, may_fail: str = "") -> list[Any]:
        """The reply to each of these, whose first argument is a key; an error with this code is a reply too."""
        by_place: dict[str, list[int]] = defaultdict(list)
        if not self._topology.primaries:
            await self._topology.find()
        for number, command in enumerate(commands):
            by_place[self._topology.place(_key(command))].append(number)
        replies: list[Any] = [None] * len(commands)

        async def ask(place: str, numbers: list[int]) -> None:
            connection = await self.node(place)
            chunks = (
                [commands[number] for number in numbers[start : start + _COMMANDS_A_CHUNK]]
                for start in range(0, len(numbers), _COMMANDS_A_CHUNK)
            )
            for number, reply in zip(numbers, await connection.exchange(chunks), strict=True):
                replies[number] = reply

        if len(by_place) == 1:
            ((place, numbers),) = by_place.items()
            await ask(place, numbers)
        else:
            await all_of(ask(place, numbers) for place, numbers in by_place.items())
        for number, reply in enumerate(replies):
            if isinstance(reply, ErrorReply) and reply.code in REDIRECTED:
                replies[number] = await self._redirected(commands[number])
            elif isinstance(reply, ErrorReply) and reply.code != may_fail:
                raise away(reply, self._topology.place(_key(commands[number])))
        return replies

    async def _redirected(self, command: Command) -> Any:
        """The reply to a command whose slot is on the move: key by key, wherever the key is."""
        if command[0] == "UNLINK" and len(command) > 2:
            return sum([await self._redirected(("UNLINK", key)) for key in command[1:]])
        asking = ""
        connection = await self.node(self._topology.place(_key(command)))
        for _ in range(_REDIRECTIONS):
            if asking:
                host, _, port = asking.rpartition(":")
                connection = await self._asked(connection.endpoint.at(host or connection.endpoint.host, int(port)))
                _, reply = await connection.exchange([[("ASKING",), command]])
            else:
                connection = await self.node(self._topology.place(_key(command)))
                (reply,) = await connection.exchange([[command]])
            if not isinstance(reply, ErrorReply):
                return reply
            asking = str(reply).split()[2] if reply.code == "ASK" else ""
            if reply.code == "TRYAGAIN":
                await asyncio.sleep(_PAUSE)
            elif reply.code == "MOVED":
                await self._topology.find()
            elif reply.code != "ASK":
                raise away(reply, str(connection.endpoint))
        raise TargetAway("a slot of the Cluster does not come to rest", where=self._topology.place(_key(command)))

    async def _asked(self, endpoint: Endpoint) -> Connection:
        """A connection to a node that has a slot only for those who ask."""
        async with self._opening:
            connection = self._asking.get(endpoint)
            if connection is None or not connection.is_open:
                connection = self._asking[endpoint] = await connect(endpoint)
            return _note(connection)


async def all_of(calls: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Make all of them at once; when all are over, the first error, one that says most before others."""
    ended = await asyncio.gather(*calls, return_exceptions=True)
    errors = [one for one in ended if isinstance(one, BaseException)]
    if errors:
        raise next((one for one in errors if isinstance(one, TargetChanged)), errors[0])


def _key(command: Command) -> bytes:
    # EVAL script count key
    key = command[3] if command[0] == "EVAL" else command[1]
    return key if isinstance(key, bytes) else str(key).encode()


def portions(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The keys in numbers that one command may name."""
    rest = iter(keys)
    while some := list(islice(rest, KEYS_A_COMMAND)):
        yield some


def by_slot(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The keys that one command may name in a Cluster, in bounded numbers."""
    slots: dict[int, list[bytes]] = defaultdict(list)
    for key in keys:
        slots[key_slot(key)].append(key)
    for some in slots.values():
        for start in range(0, len(some), KEYS_A_COMMAND):
            yield some[start : start + KEYS_A_COMMAND]


def _checked(replies: Sequence[Any], connection: Connection) -> Sequence[int]:
    for reply in replies:
        if isinstance(reply, ErrorReply):
            raise away(reply, str(connection.endpoint))
    return replies
