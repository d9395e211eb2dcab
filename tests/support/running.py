"""Running a pipeline until the test is over."""

from __future__ import annotations

import asyncio


def forever(pipeline):
    """Run it until it is cancelled."""
    return pipeline.run_until(asyncio.Event(), lambda: 0.0)
