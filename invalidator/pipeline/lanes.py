"""All lanes of a pipeline: what is put on them is numbered, and reaches each behind the lanes that it follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from invalidator.broadcast import Broadcast
from invalidator.coordination.coordinator import Coordinator
from invalidator.coordination.fingerprint import Fingerprints
from invalidator.core.protocol.batch import CoverageRequest
from invalidator.core.protocol.reasons import NEVER_COVERED, FlushReason
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.internal_errors import InternalErrors
from invalidator.metrics import Metrics
from invalidator.pipeline.followers import Followers
from invalidator.pipeline.lane import Lane
from invalidator.ports import Target


class Lanes:
    """`owned`, `repeat_after` and `after` are by target; `send` sends a coverage request to the peers.

    `on_advance` is called when a lane, or its `as_of`, has advanced; `on_restart` when a lane has lost its state.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        owned: Mapping[str, Sequence[Eviction]],
        *,
        repeat_after: Mapping[str, float],
        after: Mapping[str, Sequence[str]],
        give_up_after: float,
        bound: int,
        fingerprints: Fingerprints,
        send: Callable[[CoverageRequest], bool],
        on_advance: Callable[[], None],
        on_restart: Callable[[], None],
        metrics: Metrics,
        errors: InternalErrors,
    ) -> None:
        self.number = 0
        """The number of what was put on the lanes last."""
        self.progress = Broadcast()
        self._on_advance, self._fingerprints = on_advance, fingerprints
        self.all: list[Lane] = []
        for target in targets:
            repeats = repeat_after.get(target.name, 0.0)
            lane = Lane(
                target,
                Coordinator(target, owned[target.name], fingerprints=fingerprints, send=send, repeat_after=repeats),
                repeat_after=repeats,
                follows=bool(after.get(target.name)),
                bound=bound,
                metrics=metrics.lane(target.name),
                on_confirm=self.advanced,
                on_change=self.target_changed,
                on_restart=on_restart,
                errors=errors,
            )
            self.all.append(lane)
        self._followers = Followers(self.all, after, give_up_after)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self.all)

    def put(self, evictions: Mapping[str, Evictions], *, unshared: bool = False) -> None:
        """Put the evictions of each target on its lane; `unshared` where no peer received what they are for."""
        self.number += 1
        for lane in self._followers.in_order:
            lane.put(evictions.get(lane.target.name), self.number, self._defer_until(lane), unshared=unshared)

    def require_flush(self, reason: FlushReason) -> None:
        """Every target has a pending flush from now on."""
        self.number += 1
        for lane in self._followers.in_order:
            lane.require_flush(reason, self.number, self._defer_until(lane), must=reason in NEVER_COVERED)

    def target_changed(self, changed: Lane, reason: FlushReason) -> None:
        """A target may be another than before: it is flushed, and so are those that may have refilled from it."""
        self.number += 1
        affected = self._followers.affected_by(changed)
        for lane in self._followers.in_order:
            if lane in affected:
                lane.require_flush(reason, self.number, self._defer_until(lane))
            else:
                lane.put(None, self.number, self._defer_until(lane))

    def watermark(self, as_of: float) -> None:
        """All that was committed before this moment is on the lanes."""
        for lane in self.all:
            lane.queue.add_watermark(self.number, as_of)

    def request_coverage(self, request: CoverageRequest) -> None:
        """A peer requests the confirmation that everything so far is evicted from a target."""
        for lane in self.all:
            if lane.target.name == request.target:
                lane.request_coverage(self.number, request)

    def discard_requests(self) -> None:
        """Changes may have been missed before the coverage requests that have come: none of them is confirmed."""
        for lane in self.all:
            lane.discard_requests()

    def publish_soon(self) -> None:
        """What this sidecar receives may be more or less than before: its fingerprints may have changed."""
        self._fingerprints.changed()
        for lane in self.all:
            lane.publish_soon()

    def advanced(self) -> None:
        """A target has confirmed evictions, or a lane has passed a watermark."""
        self._followers.release()
        self._on_advance()
        self.progress.notify()

    def _defer_until(self, lane: Lane) -> float | None:
        return self._followers.defer_until(lane, self.number)
