"""The identity of each server, and the tracker that notices when it changes.

A server's identity is its process (`run_id`) and its replication history (`master_replid`). A node whose process or
history has changed may hold keys that were evicted before. The first call that reads the new identity raises
`TargetChanged`, and the lane has a pending flush from then on, whatever other calls are under way.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple, Protocol

from invalidator.core.protocol.redis_endpoint import Endpoint
from invalidator.errors import RetryReason, TargetAway, TargetChanged


class Identity(NamedTuple):
    """A server's process, and the history that it continues."""

    run_id: str
    replication_id: str


class CanCall(Protocol):
    """A connection to one server."""

    @property
    def endpoint(self) -> Endpoint: ...

    async def call(self, *commands: tuple[str | bytes | int, ...]) -> list[Any]: ...


class IdentityTracker:
    """The last identity of each node of a target.

    The nodes may change at any await, when another connection receives MOVED and looks for the primaries. So a node may
    have no identity yet; the tracker is complete when every node has one.
    """

    def __init__(self) -> None:
        self._known: dict[str, Identity] = {}
        self._is_complete = False
        self._was_complete = False

    def note(self, node: str, identity: Identity) -> None:
        """Keep the identity; TargetChanged when the node had another one, or is new to a target that was complete."""
        before = self._known.get(node)
        self._known[node] = identity
        if before is None and not self._was_complete:
            return
        if before != identity:
            raise TargetChanged("the server was replaced, or restarted from saved data", where=node)

    def keep_only(self, nodes: Collection[str]) -> None:
        """Forget the nodes that are not among these, which are all nodes of the target now."""
        self._known = {node: identity for node, identity in self._known.items() if node in nodes}
        self._is_complete = len(self._known) == len(nodes)
        self._was_complete |= self._is_complete

    @property
    def is_complete(self) -> bool:
        """Whether the identity of every node was known at the last look."""
        return self._is_complete

    def __str__(self) -> str:
        return " ".join(f"{node}={':'.join(identity)}" for node, identity in sorted(self._known.items()))


async def read_identity(connection: CanCall, mode: str) -> Identity:
    """The identity of the server; TargetAway where it is not a primary, or does not run in this mode."""
    info = read_info(b"\n".join(await connection.call(("INFO", "server"), ("INFO", "replication"))))
    where = str(connection.endpoint)
    found = info.get("redis_mode") or info.get("server_mode", "standalone")  # Valkey's name for it
    if found != mode:
        what, todo = _WRONG_MODE.get(found, ("it is no Cluster", "take cluster: true out"))
        raise TargetAway(what, where=where, todo=todo, reason=RetryReason.REFUSED)
    if info.get("role") != "master":
        todo = "name the primary, or its Sentinels"
        raise TargetAway("it is a replica", where=where, todo=todo, reason=RetryReason.MOVED)
    try:
        return Identity(info["run_id"], info["master_replid"])
    except KeyError as error:
        what = f"its INFO has no {error}: another server would not be noticed"
        todo = "connect to the server itself, not through a proxy that leaves it out"
        raise TargetAway(what, where=where, todo=todo, reason=RetryReason.REFUSED) from error


_WRONG_MODE = {
    "cluster": ("it is a node of a Cluster", "set cluster: true"),
    "sentinel": ("it is a Sentinel", "name it under sentinel.nodes"),
}


def read_info(info: bytes) -> dict[str, str]:
    """The fields of a reply to INFO."""
    fields = (text.partition(":") for text in info.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in fields if colon}
