"""The fingerprint of what this sidecar receives and evicts, for each of its targets."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from invalidator.broadcast import Broadcast
from invalidator.core.coordination.coverage import Fingerprint
from invalidator.core.coordination.digest import digest
from invalidator.ports import Target

KNOWN_WITHIN: Final = 3.0
"""Seconds for which a pending flush waits for the fingerprint: a check of the triggers rarely takes longer."""

NO_FINGERPRINT: Final = Fingerprint()


class Reception(NamedTuple):
    """How completely this sidecar receives the changes that the rules are about."""

    triggers: str | None  # their fingerprint; None until they have been checked after the source was opened
    is_trigger_check_pending: bool
    channels: object  # a value that differs between sets of channels; None while they are not known
    is_degraded: bool  # some changes may not be received


class Fingerprints:
    """`reception` returns None while there is no fingerprint; call `changed` when its result may be another.

    `settings` are what peers must share at each target; `follows` names the targets that each target follows.
    """

    def __init__(
        self,
        targets: Iterable[Target] = (),
        *,
        reception: Callable[[], Reception | None] = lambda: None,
        settings: Mapping[str, object] | None = None,
        follows: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._peer_stores = {target.name: target.peer_store for target in targets}
        self._reception, self._settings, self._follows = reception, settings or {}, follows or {}
        self._private = secrets.token_hex(8)  # stands for targets that no peer shares
        self._changed = Broadcast()

    def changed(self) -> None:
        """Wake the tasks that wait in `known`."""
        self._changed.notify()

    def of(self, target: str) -> Fingerprint:
        """The current fingerprint at this target."""
        reception = self._reception()
        if reception is None:
            return NO_FINGERPRINT
        if reception.triggers is None:
            return Fingerprint(is_pending=reception.is_trigger_check_pending)
        if reception.channels is None or reception.is_degraded:
            return NO_FINGERPRINT
        parts = [self._settings[target], reception.triggers, reception.channels, self._ahead(target)]
        return Fingerprint(digest(parts))

    async def known(self, target: str) -> None:
        """Wait until the fingerprint is no longer pending, or was pending for too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(KNOWN_WITHIN):
                await self._changed.until(lambda: not self.of(target).is_pending)

    def _ahead(self, target: str) -> dict[str, str]:
        """The servers of the targets that this one follows."""
        stores = {name: self._peer_stores[name] for name in self._follows[target]}
        return {name: store.fingerprint("") if store else self._private for name, store in stores.items()}
