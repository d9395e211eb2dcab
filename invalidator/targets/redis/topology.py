"""The topology of a target: the address of the primary of each node.

A *node* is a part of the target that has one primary at a time: the whole target, named "", or, in a Cluster, an
address. `discover` runs before the first connection, when a Cluster replies MOVED, and every second. With several
Sentinels or cluster nodes, all are queried at once, and the report with the highest epoch is used: a Sentinel or node
that is cut off from the others keeps reporting an old topology.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from invalidator.core.protocol.redis_endpoint import Endpoint
from invalidator.errors import RetryReason, TargetAway
from invalidator.targets.redis.connection import Command, Connection, connect
from invalidator.targets.redis.identity import read_info

SENTINEL_PORT: Final = 26379
DISCOVERY_TIMEOUT: Final = 1.5
"""Seconds that one Sentinel or node may take."""


class Topology(Protocol):
    """The nodes of a target, each with the address of its primary."""

    primaries: Mapping[str, Endpoint]
    mode: str

    async def discover(self) -> None:
        """Look for the primaries; TargetAway when no server knows them."""
        ...

    def node_of(self, key: bytes) -> str: ...

    def close(self) -> None: ...


class SingleServer:
    """One server, always at the same address."""

    mode = "standalone"

    def __init__(self, endpoint: Endpoint) -> None:
        self.primaries: Mapping[str, Endpoint] = {"": endpoint}

    async def discover(self) -> None:
        return

    def node_of(self, key: bytes) -> str:
        return ""

    def close(self) -> None:
        return


class _QueryConnections:
    """Connections to the servers that know where the primaries are, kept open."""

    def __init__(self) -> None:
        self._open: dict[Endpoint, Connection] = {}
        self._turn = asyncio.Lock()

    async def call_all(self, endpoints: Iterable[Endpoint], *commands: Command) -> dict[Endpoint, list[Any]]:
        """The replies of each server that answers; TargetAway when none does."""
        servers = list(dict.fromkeys(endpoints))
        async with self._turn:
            calls = [self._call(endpoint, commands) for endpoint in servers]
            results = await asyncio.gather(*calls, return_exceptions=True)
        replies: dict[Endpoint, list[Any]] = {}
        errors: list[TargetAway] = []
        for endpoint, result in zip(servers, results, strict=True):
            if isinstance(result, TargetAway):
                errors.append(result)
            elif isinstance(result, BaseException):
                raise result
            else:
                replies[endpoint] = result
        if not replies:
            raise next((error for error in errors if error.reason == RetryReason.REFUSED), errors[0])
        return replies

    async def _call(self, endpoint: Endpoint, commands: Sequence[Command]) -> list[Any]:
        connection = self._open.get(endpoint)
        if connection is None or not connection.is_open:
            if connection is not None:
                connection.close()
            connection = self._open[endpoint] = await connect(endpoint, DISCOVERY_TIMEOUT)
        return await connection.call(*commands)

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()
        self._open.clear()


class Sentinel:
    """The primary of a service, as its Sentinels report it; `endpoint` has the primary's login, its host is unused."""

    mode = "standalone"

    def __init__(self, sentinels: Sequence[Endpoint], service: str, endpoint: Endpoint) -> None:
        self._sentinels, self._service, self._endpoint = sentinels, service, endpoint
        self._query_connections = _QueryConnections()
        self.primaries: Mapping[str, Endpoint] = {}

    async def discover(self) -> None:
        try:
            replies = await self._query_connections.call_all(self._sentinels, ("SENTINEL", "MASTER", self._service))
        except TargetAway as error:
            raise self._no_sentinel(error) from error
        reports = [_pairs(reply) for (reply,) in replies.values()]
        newest = max(reports, key=lambda report: int(report.get("config-epoch", "0")))
        self.primaries = {"": self._endpoint.at(newest["ip"], int(newest["port"]))}

    def _no_sentinel(self, error: TargetAway) -> TargetAway:
        if "No such master" in error.what:
            what, todo = f'no Sentinel knows the service "{self._service}"', "correct sentinel.service"
            return TargetAway(what, where=error.where, todo=todo, reason=RetryReason.REFUSED)
        todo = "name the Sentinels under sentinel.nodes" if "unknown command" in error.what else error.todo
        return TargetAway(f"no Sentinel answers: {error.what}", where=error.where, todo=todo, reason=error.reason)

    def node_of(self, key: bytes) -> str:
        return ""

    def close(self) -> None:
        self._query_connections.close()


class Layout(NamedTuple):
    """The slots of a Cluster, which must not change while a SCAN pass runs; `slots` has the node of each slot."""

    epoch: int
    slots: tuple[str, ...]
    moving: frozenset[str]


class Cluster:
    """The nodes of a Cluster that serve slots; `seed` is any of its nodes."""

    mode = "cluster"

    def __init__(self, seed: Endpoint) -> None:
        self._seed, self._query_connections = seed, _QueryConnections()
        self.primaries: Mapping[str, Endpoint] = {}
        self.layout = Layout(0, (), frozenset())

    async def discover(self) -> None:
        commands: list[Command] = [("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"), ("CLUSTER", "NODES")]
        replies = await self._query_connections.call_all([*self.primaries.values(), self._seed], *commands)
        epoch, source, ranges = max(
            ((_epoch(info), endpoint, slots) for endpoint, (info, slots, _) in replies.items()),
            key=lambda report: report[0],
        )
        slots = [""] * REDIS_CLUSTER_HASH_SLOTS
        primaries: dict[str, Endpoint] = {}
        for first, last, (host, port, *_), *_replicas in ranges:
            endpoint = self._seed.at(host.decode() if host else source.host, port)
            primaries[str(endpoint)] = endpoint
            slots[first : last + 1] = [str(endpoint)] * (last + 1 - first)
        if missing := slots.count(""):
            what = f"the Cluster is down: no node serves {missing} of its {REDIS_CLUSTER_HASH_SLOTS} slots"
            raise TargetAway(what, where=str(source))
        moving = frozenset(slot for _, _, nodes in replies.values() for slot in _moving_slots(nodes))
        self.primaries, self.layout = primaries, Layout(epoch, tuple(slots), moving)

    def node_of(self, key: bytes) -> str:
        return self.layout.slots[key_slot(key)]

    def close(self) -> None:
        self._query_connections.close()


def has_hash_tag(prefix: str) -> bool:
    """Whether all keys with this prefix lie in one slot."""
    return key_slot(prefix.encode() + b"1") == key_slot(prefix.encode() + b"2")


def _pairs(flat: Sequence[bytes]) -> dict[str, str]:
    texts = [text.decode() for text in flat]
    return dict(zip(texts[::2], texts[1::2], strict=False))


def _epoch(info: bytes) -> int:
    return int(read_info(info).get("cluster_current_epoch", "0"))


def _moving_slots(nodes: bytes) -> list[str]:
    """The slots that a node reports to be migrating or importing: [slot->-node], [slot-<-node]."""
    own = next((node for node in nodes.decode().splitlines() if "myself" in node), "")
    return [word for word in own.split()[8:] if word.startswith("[")]
