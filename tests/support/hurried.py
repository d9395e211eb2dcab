"""The command line with every long period shortened: `python -m tests.support.hurried run ...` crosses in a second
what otherwise takes minutes. So tests also see the end of periods that are longer than any test.
"""

from __future__ import annotations

import sys

from invalidator.cli import main
from invalidator.service import observe, trigger_watch
from invalidator.sources import canary

PERIODS = [(trigger_watch, "PERIOD"), (observe, "PERIOD"), (canary, "RENEW_AFTER"), (canary, "SAMPLE_EVERY")]
SECONDS = 0.25

if __name__ == "__main__":
    for module, name in PERIODS:
        assert getattr(module, name) >= 10, f"{module.__name__}.{name} is no long period"
        setattr(module, name, SECONDS)
    sys.exit(main())
