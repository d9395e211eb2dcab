"""One connection to the primary of each node of a target, for one purpose.

Exact evictions, SCAN passes and the peer store each have connections of their own, so that none waits for another.
Before a connection is used, the identity of its server is read on it: no eviction goes to a server that the tracker
does not know (`identity.py`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, Final

from redis.crc import key_slot

from invalidator.core.protocol.redis_endpoint import Endpoint
from invalidator.errors import RetryReason, TargetAway, TargetChanged
from invalidator.targets.redis.connection import Command, Connection, connect
from invalidator.targets.redis.identity import Identity, IdentityTracker, read_identity
from invalidator.targets.redis.replies import ErrorReply, error_of
from invalidator.targets.redis.topology import Topology

KEYS_PER_COMMAND: Final = 500  # more gains nothing, and stalls the server's other clients
_COMMANDS_PER_CHUNK: Final = 100
_MAX_REDIRECTIONS: Final = 20
_TRYAGAIN_PAUSE: Final = 0.05
REDIRECTIONS: Final = frozenset({"MOVED", "ASK", "TRYAGAIN"})
_USED: ContextVar[set[Connection] | None] = ContextVar("used", default=None)  # the tasks of a call share the set


@contextmanager
def recorded() -> Iterator[set[Connection]]:
    """Collects the connections that are used in the `with` block, and by the tasks that it starts."""
    connections: set[Connection] = set()
    token = _USED.set(connections)
    try:
        yield connections
    finally:
        _USED.reset(token)


def _record(connection: Connection) -> Connection:
    if (connections := _USED.get()) is not None:
        connections.add(connection)
    return connection


class NodeConnections:
    """Each connection is opened when it is first used, and opened again after an error."""

    def __init__(self, topology: Topology, identities: IdentityTracker) -> None:
        self._topology, self._identities = topology, identities
        self._open: dict[str, Connection] = {}
        self._importing: dict[Endpoint, Connection] = {}  # to nodes that slots are moving to
        self._opening = asyncio.Lock()

    async def connection(self, node: str) -> Connection:
        """The connection to the primary of this node."""
        if (usable := self._usable(node)) is not None:
            return _record(usable)
        async with self._opening:
            return _record(self._usable(node) or await self._connect(node))

    def _usable(self, node: str) -> Connection | None:
        connection = self._open.get(node)
        if connection is None or not connection.is_open:
            return None
        return connection if connection.endpoint == self._topology.primaries.get(node) else None

    async def _connect(self, node: str) -> Connection:
        if (old := self._open.pop(node, None)) is not None:
            old.close()
        endpoint = self._topology.primaries.get(node)
        if endpoint is None:
            await self._topology.discover()
            endpoint = self._topology.primaries.get(node)
            if endpoint is None:
                raise TargetAway("the node has left the target", where=node, reason=RetryReason.MOVED)
        connection = await connect(endpoint)
        try:
            self._identities.note(node, await self.read_identity(connection))
        except BaseException:
            connection.close()
            raise
        self._open[node] = connection
        return connection

    async def read_identity(self, connection: Connection) -> Identity:
        """The identity of the server; TargetAway where it is not a primary, or not in the configured mode."""
        return await read_identity(connection, self._topology.mode)

    async def connections(self) -> list[tuple[str, Connection]]:
        """Each node, with the connection to its primary."""
        if not self._topology.primaries:
            await self._topology.discover()
        return [(node, await self.connection(node)) for node in self._topology.primaries]

    async def verify_identities(self) -> None:
        """Read each identity again: a server may change its history without closing a connection."""
        for node, connection in await self.connections():
            self._identities.note(node, await self.read_identity(connection))

    def node_of(self, key: str) -> str:
        return self._topology.node_of(key.encode())

    @property
    def is_cluster(self) -> bool:
        return self._topology.mode == "cluster"

    def close(self) -> None:
        for connection in (*self._open.values(), *self._importing.values()):
            connection.close()
        self._open.clear()
        self._importing.clear()

    async def unlink(self, keys: Iterable[bytes]) -> int:
        """Remove these keys; returns how many existed."""
        if self.is_cluster:
            return sum(await self.each([("UNLINK", *some) for some in by_slot(keys)]))
        connection = await self.connection("")
        replies = await connection.exchange([("UNLINK", *some)] for some in portions(keys))
        for reply in replies:
            if isinstance(reply, ErrorReply):
                raise error_of(reply, str(connection.endpoint))
        return sum(replies)

    async def each(self, commands: Sequence[Command], *, may_fail: str = "") -> list[Any]:
        """The reply to each command on a key. An error with the code `may_fail` is returned, any other is raised."""
        by_node: dict[str, list[int]] = defaultdict(list)
        if not self._topology.primaries:
            await self._topology.discover()
        for number, command in enumerate(commands):
            by_node[self._topology.node_of(_key(command))].append(number)
        replies: list[Any] = [None] * len(commands)

        async def call(node: str, numbers: list[int]) -> None:
            connection = await self.connection(node)
            chunks = (
                [commands[number] for number in numbers[start : start + _COMMANDS_PER_CHUNK]]
                for start in range(0, len(numbers), _COMMANDS_PER_CHUNK)
            )
            for number, reply in zip(numbers, await connection.exchange(chunks), strict=True):
                replies[number] = reply

        if len(by_node) == 1:
            ((node, numbers),) = by_node.items()
            await call(node, numbers)
        else:
            await all_of(call(node, numbers) for node, numbers in by_node.items())
        for number, reply in enumerate(replies):
            if isinstance(reply, ErrorReply) and reply.code in REDIRECTIONS:
                replies[number] = await self._redirected(commands[number])
            elif isinstance(reply, ErrorReply) and reply.code != may_fail:
                raise error_of(reply, self._topology.node_of(_key(commands[number])))
        return replies

    async def _redirected(self, command: Command) -> Any:
        """The reply to a command whose slot is moving; UNLINK is sent key by key, to the node that has the key."""
        if command[0] == "UNLINK" and len(command) > 2:
            return sum([await self._redirected(("UNLINK", key)) for key in command[1:]])
        importing = ""
        connection = await self.connection(self._topology.node_of(_key(command)))
        for _ in range(_MAX_REDIRECTIONS):
            if importing:
                host, _, port = importing.rpartition(":")
                endpoint = connection.endpoint.at(host or connection.endpoint.host, int(port))
                connection = await self._importing_connection(endpoint)
                _, reply = await connection.exchange([[("ASKING",), command]])  # on one connection, or it has no effect
            else:
                connection = await self.connection(self._topology.node_of(_key(command)))
                (reply,) = await connection.exchange([[command]])
            if not isinstance(reply, ErrorReply):
                return reply
            importing = str(reply).split()[2] if reply.code == "ASK" else ""
            if reply.code == "TRYAGAIN":
                await asyncio.sleep(_TRYAGAIN_PAUSE)
            elif reply.code == "MOVED":
                await self._topology.discover()
            elif reply.code != "ASK":
                raise error_of(reply, str(connection.endpoint))
        where = self._topology.node_of(_key(command))
        raise TargetAway(f"a slot of the Cluster still moves after {_MAX_REDIRECTIONS} redirections", where=where)

    async def _importing_connection(self, endpoint: Endpoint) -> Connection:
        """A connection to a node that a slot is moving to; it serves the slot only after ASKING."""
        async with self._opening:
            connection = self._importing.get(endpoint)
            if connection is None or not connection.is_open:
                if connection is not None:
                    connection.close()
                connection = self._importing[endpoint] = await connect(endpoint)
            return _record(connection)


async def all_of(calls: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run all calls at once; when all have ended, raise the first error, but a TargetChanged before any other."""
    ended = await asyncio.gather(*calls, return_exceptions=True)
    errors = [one for one in ended if isinstance(one, BaseException)]
    if errors:
        raise next((one for one in errors if isinstance(one, TargetChanged)), errors[0])


def _key(command: Command) -> bytes:
    key = command[3] if command[0] == "EVAL" else command[1]  # EVAL script count key
    return key if isinstance(key, bytes) else str(key).encode()


def portions(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The keys, as many at a time as one command may name."""
    rest = iter(keys)
    while some := list(islice(rest, KEYS_PER_COMMAND)):
        yield some


def by_slot(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The keys, as many at a time as one command may name in a Cluster: all in one slot."""
    slots: dict[int, list[bytes]] = defaultdict(list)
    for key in keys:
        slots[key_slot(key)].append(key)
    for some in slots.values():
        for start in range(0, len(some), KEYS_PER_COMMAND):
            yield some[start : start + KEYS_PER_COMMAND]
