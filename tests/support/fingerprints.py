"""Fingerprints that a test sets: what `coordination.fingerprint.Fingerprints` computes from the triggers and more."""

from __future__ import annotations

from invalidator.core.coordination.coverage import Fingerprint


class FixedFingerprints:
    """The same at each target; `text` may be changed, and is empty where no fingerprint may be given."""

    def __init__(self, text: str = "same") -> None:
        self.text = text

    def changed(self) -> None:
        pass

    def of(self, target: str) -> Fingerprint:
        return Fingerprint(self.text)

    async def known(self, target: str) -> None:
        pass
