"""The watch of one target: heartbeat, presence, and confirmations for other sidecars."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from invalidator import clock
from invalidator.cancellation import stop_if_cancelled
from invalidator.coordination.coordinator import Coordinator
from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.logs import Log
from invalidator.pipeline.target_health import TargetHealth
from invalidator.pipeline.wakeup import Wakeup
from invalidator.ports import Target

HEARTBEAT_INTERVAL: Final = 1.0
"""Seconds between two heartbeats: a replaced server may go unnoticed for as long."""


class TargetWatch:
    """Checks every second that the target is available and is the same server, independently of the deliveries.

    `queue` returns the lane's queue, which a restart of the lane replaces.
    """

    def __init__(
        self, target: Target, coordinator: Coordinator, health: TargetHealth, queue: Callable[[], DeliveryQueue]
    ) -> None:
        self._target = target
        self._coordinator = coordinator
        self._health = health
        self._queue = queue
        self._wakeup = Wakeup()
        self._has_news = False
        self._publishing = asyncio.Lock()
        self._log = Log(target=target.name)

    def publish_soon(self) -> None:
        """Publish the lane's state before the next heartbeat, because it may have become worse."""
        self._has_news = True
        self._wakeup.wake()

    def confirm_coverage_soon(self) -> None:
        """Look soon for coverage requests that may be confirmed."""
        self._wakeup.wake()

    async def run(self) -> None:
        """Watch the target, until cancelled."""
        heartbeat_at = clock.now()
        while True:
            stop_if_cancelled()
            self._wakeup.clear()  # before the look: a wake-up during it causes another look
            is_due = clock.now() >= heartbeat_at
            if is_due:
                heartbeat_at = clock.now() + HEARTBEAT_INTERVAL
            try:
                await self._look(with_heartbeat=is_due)
            except Exception as error:
                self._health.failed("watch", error)
                heartbeat_at = clock.now() + HEARTBEAT_INTERVAL
            else:
                self._health.succeeded("watch")
            await self._wakeup.sleep(heartbeat_at)

    async def _look(self, *, with_heartbeat: bool) -> None:
        if with_heartbeat:
            await self._target.heartbeat(self._queue().as_of)
        if with_heartbeat or self._has_news:
            await self.publish()
        await self._confirm_coverage()

    async def publish(self) -> None:
        """Publish the lane's state. Calls do not overlap, so the newest state is written last."""
        async with self._publishing:
            self._has_news = False
            queue = self._queue()
            as_of = queue.as_of if self._health.can_evict else None
            await self._coordinator.publish(is_in_sync=not queue.pending_flush, as_of=as_of)

    async def _confirm_coverage(self) -> None:
        nonces = self._queue().pop_covered_requests() if self._coordinator.can_confirm else []
        if nonces:
            await self._coordinator.confirm(nonces)
            self._log.debug("coverage_confirmed", "confirmed to peers that everything is evicted", requests=len(nonces))
