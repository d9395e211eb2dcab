"""All lanes of a pipeline. Each batch gets a number, and is put on a lane after the lanes that it follows."""

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
    """`owned`, `repeat_after` and `after` map target names; `send` sends a coverage request to the peers.

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
        """The number of the last batch or flush that was put on the lanes."""
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
        """Put the evictions of each target on its lane; `unshared`: no peer received the changes that they are for."""
        self.number += 1
        for lane in self._followers.in_order:
            lane.put(evictions.get(lane.target.name), self.number, self._defer_until(lane), unshared=unshared)

    def require_flush(self, reason: FlushReason) -> None:
        """Require a flush of every target."""
        self.number += 1
        for lane in self._followers.in_order:
            lane.require_flush(reason, self.number, self._defer_until(lane), must=reason in NEVER_COVERED)

    def target_changed(self, changed: Lane, reason: FlushReason) -> None:
        """Flush a target that may be another server than before, and the targets that may have refilled from it."""
        self.number += 1
        affected = self._followers.affected_by(changed)
        for lane in self._followers.in_order:
            if lane in affected:
                lane.require_flush(reason, self.number, self._defer_until(lane))
            else:
                lane.put(None, self.number, self._defer_until(lane))

    def watermark(self, as_of: float) -> None:
        """Add a watermark: everything committed before this moment is on the lanes."""
        for lane in self.all:
            lane.queue.add_watermark(self.number, as_of)

    def request_coverage(self, request: CoverageRequest) -> None:
        """Give a peer's request to the lane of its target; it covers everything put so far."""
        for lane in self.all:
            if lane.target.name == request.target:
                lane.request_coverage(self.number, request)

    def discard_requests(self) -> None:
        """Drop the coverage requests received so far: changes before them may have been missed."""
        for lane in self.all:
            lane.discard_requests()

    def publish_soon(self) -> None:
        """Publish the state of every lane: the fingerprints may have changed."""
        self._fingerprints.changed()
        for lane in self.all:
            lane.publish_soon()

    def advanced(self) -> None:
        """To be called when a target has confirmed evictions, or a lane has passed a watermark."""
        self._followers.release()
        self._on_advance()
        self.progress.notify()

    def _defer_until(self, lane: Lane) -> float | None:
        return self._followers.defer_until(lane, self.number)
