"""The meaning of a server's error replies, and what an operator has to do.

AWAY: the server will serve the command later. MOVED: another server has to be found. REFUSED: the server will not serve
the command until an operator changes something. The lane retries after each of them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from redis.exceptions import ResponseError

from invalidator.errors import RetryReason, TargetAway


class ErrorReply(ResponseError):
    """An error reply with its code. redis-py's own class removes the codes that it knows from the text."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class _Meaning(NamedTuple):
    reason: RetryReason
    todo: str = ""


_MEANINGS: Final = {
    "LOADING": _Meaning(RetryReason.AWAY),
    "BUSY": _Meaning(RetryReason.AWAY),
    "MASTERDOWN": _Meaning(RetryReason.AWAY),
    "CLUSTERDOWN": _Meaning(RetryReason.MOVED),
    "TRYAGAIN": _Meaning(RetryReason.AWAY),
    "MOVED": _Meaning(RetryReason.MOVED),
    "ASK": _Meaning(RetryReason.MOVED),
    "READONLY": _Meaning(RetryReason.MOVED, "name the primary, or its Sentinels"),
    "UNBLOCKED": _Meaning(RetryReason.AWAY),
    "OOM": _Meaning(RetryReason.REFUSED, "give it more memory, or a maxmemory-policy that evicts"),
    "MISCONF": _Meaning(RetryReason.REFUSED, "let it save to its disk, or set stop-writes-on-bgsave-error no"),
    "NOREPLICAS": _Meaning(RetryReason.REFUSED, "bring its replicas back, or lower min-replicas-to-write"),
    "NOAUTH": _Meaning(RetryReason.REFUSED, "put the password into the url"),
    "WRONGPASS": _Meaning(RetryReason.REFUSED, "correct the user or the password"),
    "NOPERM": _Meaning(RetryReason.REFUSED, "grant it with ACL SETUSER; docs/redis.md has the list"),
    "CROSSSLOT": _Meaning(RetryReason.REFUSED, "this is a Cluster: set cluster: true"),
}
_TEXTS: Final = {
    "invalid password": _MEANINGS["WRONGPASS"],
    "without any password configured": _Meaning(RetryReason.REFUSED, "take the password out of the url"),
    "DB index is out of range": _Meaning(RetryReason.REFUSED, "name a database that it has; a Cluster has only 0"),
    "SELECT is not allowed in cluster mode": _Meaning(RetryReason.REFUSED, "a Cluster has only database 0"),
    "cluster support disabled": _Meaning(RetryReason.REFUSED, "it is no Cluster: take cluster: true out"),
    "unknown command": _Meaning(RetryReason.REFUSED, "use a Redis from 6.2, or a Valkey"),
}


def error_of(reply: ErrorReply, where: str) -> TargetAway:
    """The exception for an error reply."""
    meaning = _MEANINGS.get(reply.code)
    if meaning is None:
        meaning = next((one for text, one in _TEXTS.items() if text in str(reply)), _Meaning(RetryReason.AWAY))
    return TargetAway(str(reply), where=where, todo=meaning.todo, reason=meaning.reason)
