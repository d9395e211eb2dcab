"""The delivery loop of one outbox: it sends one delivery at a time, and retries after a failure.

A retry does not repeat the same call. A failed delivery goes back into its outbox at once; after the wait the loop
sends what is queued by then: the failed evictions together with newer ones, or the flush that replaced them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from invalidator import clock
from invalidator.cancellation import stop_if_cancelled
from invalidator.coordination.flush_coordinator import FlushOutcome
from invalidator.core.backoff import Backoff
from invalidator.core.delivery.delivery import Delivery
from invalidator.pipeline.wakeup import Wakeup

_BACKOFF: Final = Backoff()


@dataclass(frozen=True, slots=True)
class DeliveryLoop:
    """`next`, `confirm`, `fail` and `due` are the queue's; `send` calls the target."""

    next: Callable[[float], Delivery | None]
    send: Callable[[Delivery], Awaitable[FlushOutcome]]
    confirm: Callable[..., None]
    fail: Callable[[float], None]
    due: Callable[[], float | None]
    wakeup: Wakeup
    on_next: Callable[[], None]
    """Called after each `next`: what fell due may be for the other loop of the same queue."""
    on_confirm: Callable[[Delivery, FlushOutcome], Awaitable[None]]
    on_fail: Callable[[Exception, float], None]
    """Called with the exception, and the moment since which no delivery has succeeded."""

    async def run(self) -> None:
        """Deliver until cancelled."""
        failures, failing_since = 0, 0.0
        while True:
            stop_if_cancelled()
            delivery = self.next(clock.now())
            self.on_next()
            if delivery is None:
                self.wakeup.clear()
                await self.wakeup.sleep(self.due())
                continue
            try:
                outcome = await self.send(delivery)
            except Exception as error:
                failing_since = failing_since if failures else clock.now()
                failures += 1
                self.fail(clock.now())
                self.on_fail(error, failing_since)
                await asyncio.sleep(_BACKOFF.wait(failures, random.random()))
            else:
                failures = 0
                self.confirm(clock.now(), covered=outcome.is_covered)
                await self.on_confirm(delivery, outcome)
