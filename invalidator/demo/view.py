"""The demo's output: a screen that refreshes on a terminal, a line per second elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Final

from invalidator.demo.sidecar import LogCounts
from invalidator.demo.traffic import BOUND, Counts

STALE: Final = (
    f"A stale read is a value that the cache still has {BOUND:g} s after the database had another one.\n"
    "The time in which PostgreSQL, Redis or the sidecar is down does not count: nothing is promised then."
)

KEYS: Final = {
    "c": "kill our connection",
    "p": "restart PostgreSQL",
    "r": "freeze Redis for 2 s",
    "k": "kill the sidecar",
    "q": "quit",
}


def percentile(values: Sequence[float], share: float) -> float:
    """The percentile of the values for this share."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def latency(counts: Counts) -> str:
    if not counts.latencies:
        return "-"
    p50, p99 = percentile(counts.latencies, 0.5), percentile(counts.latencies, 0.99)
    return f"p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms"


def line(seconds: float, counts: Counts, log_counts: LogCounts) -> str:
    """The counts as one line of a log."""
    return (
        f"{seconds:5.1f} s  writes {counts.writes:,}  reads {counts.reads:,}  changes {log_counts.changes:,}  "
        f"evictions {log_counts.evictions:,}  flushes {log_counts.flushes}  commit to evicted: {latency(counts)}  "
        f"stale reads {counts.stale}"
    )


class Screen:
    """A refreshing screen; `servers` names the servers' versions, `keys` has the keys that can be pressed."""

    def __init__(self, servers: str, keys: Sequence[str]) -> None:
        self._servers, self._keys = servers, keys
        self._color = "NO_COLOR" not in os.environ

    def show(self, seconds: float, counts: Counts, log_counts: LogCounts, fault: str) -> None:
        sys.stdout.write(
            "\x1b[H" + "".join(f"{row}\x1b[K\n" for row in self._rows(seconds, counts, log_counts, fault)) + "\x1b[J"
        )
        sys.stdout.flush()

    def _rows(self, seconds: float, counts: Counts, log_counts: LogCounts, fault: str) -> list[str]:
        hits = 100 * counts.hits / counts.reads if counts.reads else 0
        verdict = self._styled("31;1" if counts.stale else "32;1", f"{counts.stale:>10,}")
        width = shutil.get_terminal_size().columns - 4
        keys = [f"[{self._styled('1', key)}] {what}" for key, what in KEYS.items() if key in self._keys]
        return [
            self._styled("1", "invalidator demo") + f"   {self._servers}   {seconds:.0f} s",
            "",
            f"  writes               {counts.writes:>10,}   {counts.writes / max(seconds, 1):,.0f}/s",
            f"  reads                {counts.reads:>10,}   {hits:.0f} % from the cache",
            f"  changes received     {log_counts.changes:>10,}",
            f"  evictions            {log_counts.evictions:>10,}   {log_counts.removed:,} keys were there",
            f"  flushes              {log_counts.flushes:>10,}",
            f"  commit to evicted                {latency(counts)}",
            "",
            f"  stale reads          {verdict}   of {counts.checks:,} comparisons",
            *(self._styled("2", f"    {text}") for text in STALE.splitlines()),
            *([f"    {key}" for key in counts.stale_keys[-3:]]),
            "",
            self._styled("33", f"  {fault}") if fault else "",
            *(f"  {news if len(news) <= width else news[: width - 3] + '...'}" for news in log_counts.news),
            "",
            *("  " + "   ".join(keys[start : start + 3]) for start in range(0, len(keys), 3)),
        ]

    def _styled(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text
