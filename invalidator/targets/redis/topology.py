"""Where a target's primaries are: one server, one that Sentinels name, or the nodes of a Cluster.

A *place* is a part of the target that has one primary at a time: the whole of it, or, in a Cluster, an address. `find`
looks again; it is asked before the first connection, where a Cluster says MOVED, and every second. With several
Sentinels, or several nodes, all are asked at once and the one with the highest epoch is believed: one that was split
off from the rest goes on saying what it knew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from invalidator.core.protocol.redis_endpoint import Endpoint
from invalidator.errors import Problem, RetryReason, TargetAway
from invalidator.targets.redis.connection import Command, Connection, connect

SENTINEL_PORT: Final = 26379
_TIMEOUT: Final = 1.5
_MODES: Final = {
    "cluster": Problem("it is a node of a Cluster", "set cluster: true"),
    "sentinel": Problem("it is a Sentinel", "name it under sentinel.nodes"),
}


class Topology(Protocol):
    """Where each part of the target is."""

    primaries: Mapping[str, Endpoint]
    mode: str

    async def find(self) -> None:
        """Look where they are; TargetAway when nobody can say."""
        ...

    def place(self, key: bytes) -> str: ...

    def close(self) -> None: ...


class Single:
    """One server, always at the same address."""

    mode = "standalone"

    def __init__(self, endpoint: Endpoint) -> None:
        self.primaries: Mapping[str, Endpoint] = {"": endpoint}

    async def find(self) -> None:
        return

    def place(self, key: bytes) -> str:
        return ""

    def close(self) -> None:
        return


class _QueryConnections:
    """Connections to those who know where the primaries are, kept open."""

    def __init__(self) -> None:
        self._open: dict[Endpoint, Connection] = {}
        self._turn = asyncio.Lock()

    async def ask(self, endpoints: Iterable[Endpoint], *commands: Command) -> dict[Endpoint, list[Any]]:
        """What each of them says, of those that answer; TargetAway when none does."""
        asked = list(dict.fromkeys(endpoints))
        async with self._turn:
            calls = [self._one(endpoint, commands) for endpoint in asked]
            answers = await asyncio.gather(*calls, return_exceptions=True)
        told: dict[Endpoint, list[Any]] = {}
        errors: list[TargetAway] = []
        for endpoint, answer in zip(asked, answers, strict=True):
            if isinstance(answer, TargetAway):
                errors.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                told[endpoint] = answer
        if not told:
            raise next((error for error in errors if error.reason == RetryReason.REFUSED), errors[0])
        return told

    async def _one(self, endpoint: Endpoint, commands: Sequence[Command]) -> list[Any]:
        connection = self._open.get(endpoint)
        if connection is None or not connection.is_open:
            connection = self._open[endpoint] = await connect(endpoint, _TIMEOUT)
        return await connection.ask(*commands)

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()
        self._open.clear()


class Sentinel:
    """The primary of a service, as its Sentinels name it; `endpoint` says who we are there."""

    mode = "standalone"

    def __init__(self, sentinels: Sequence[Endpoint], service: str, endpoint: Endpoint) -> None:
        self._sentinels, self._service, self._endpoint = sentinels, service, endpoint
        self._query_connections = _QueryConnections()
        self.primaries: Mapping[str, Endpoint] = {}

    async def find(self) -> None:
        try:
            told = await self._query_connections.ask(self._sentinels, ("SENTINEL", "MASTER", self._service))
        except TargetAway as error:
            what = error.what
            if "No such master" in what:
                raise TargetAway(
                    f'no Sentinel knows the service "{self._service}"',
                    where=error.where,
                    todo="correct sentinel.service",
                    reason=RetryReason.REFUSED,
                ) from error
            todo = "name the Sentinels under sentinel.nodes" if "unknown command" in what else error.todo
            raise TargetAway(
                f"no Sentinel answers: {what}", where=error.where, todo=todo, reason=error.reason
            ) from error
        facts = [_pairs(answer[0]) for answer in told.values()]
        newest = max(facts, key=lambda one: int(one.get("config-epoch", "0")))
        self.primaries = {"": self._endpoint.at(newest["ip"], int(newest["port"]))}

    def place(self, key: bytes) -> str:
        return ""

    def close(self) -> None:
        self._query_connections.close()


class Layout(NamedTuple):
    """What must stay as it is while a SCAN pass runs: the epoch, who has which slots, and which are being moved."""

    epoch: int
    slots: tuple[str, ...]
    moving: frozenset[str]


class Cluster:
    """The nodes of a Cluster that hold slots; `seed` is any of its nodes."""

    mode = "cluster"

    def __init__(self, seed: Endpoint) -> None:
        self._seed, self._query_connections = seed, _QueryConnections()
        self.primaries: Mapping[str, Endpoint] = {}
        self.layout = Layout(0, (), frozenset())

    async def find(self) -> None:
        commands: list[Command] = [("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"), ("CLUSTER", "NODES")]
        told = await self._query_connections.ask([*self.primaries.values(), self._seed], *commands)
        epoch, asked, ranges = max(
            ((_epoch(info), endpoint, slots) for endpoint, (info, slots, _) in told.items()), key=lambda one: one[0]
        )
        places = [""] * SLOTS
        primaries: dict[str, Endpoint] = {}
        for first, last, (host, port, *_), *_replicas in ranges:
            endpoint = self._seed.at(host.decode() if host else asked.host, port)
            primaries[str(endpoint)] = endpoint
            places[first : last + 1] = [str(endpoint)] * (last + 1 - first)
        if missing := places.count(""):
            raise TargetAway(f"the Cluster is down: nobody serves {missing} of its {SLOTS} slots", where=str(asked))
        moving = frozenset(one for _, _, nodes in told.values() for one in _moving(nodes))
        self.primaries, self.layout = primaries, Layout(epoch, tuple(places), moving)

    def place(self, key: bytes) -> str:
        return self.layout.slots[key_slot(key)]

    def close(self) -> None:
        self._query_connections.close()


def wrong_mode(expected: str, found: str) -> Problem | None:
    """What is wrong with a server whose mode is not the configured one; None when it is."""
    if found == expected:
        return None
    return _MODES.get(found, Problem("it is no Cluster", "take cluster: true out"))


def has_hash_tag(prefix: str) -> bool:
    """Whether all keys with this prefix lie in one slot."""
    return key_slot(prefix.encode() + b"1") == key_slot(prefix.encode() + b"2")


def _pairs(flat: Sequence[bytes]) -> dict[str, str]:
    texts = [text.decode() for text in flat]
    return dict(zip(texts[::2], texts[1::2], strict=False))


def _epoch(info: bytes) -> int:
    return int(read_info(info).get("cluster_current_epoch", "0"))


def _moving(nodes: bytes) -> list[str]:
    """The slots that a node says it is giving or taking: [slot->-node], [slot-<-node]."""
    own = next((line for line in nodes.decode().splitlines() if "myself" in line), "")
    return [word for word in own.split()[8:] if word.startswith("[")]


def read_info(info: bytes) -> dict[str, str]:
    """INFO's lines."""
    lines = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
