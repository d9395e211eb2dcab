"""The command line with every long period cut short: `python -m tests.support.hurried run ...` crosses in a second
what takes minutes otherwise. A period that is longer than any test is one that no test has seen end.
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
