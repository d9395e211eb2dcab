"""Defaults that depend on other keys: the models hold None, and repeat these rules in their descriptions."""

from __future__ import annotations

from collections.abc import Mapping

from invalidator.config import models
from invalidator.config.cdn_rates import CDN_RATES


def alive_key(installation: str, targets: Mapping[str, models.Target], name: str) -> str:
    """The alive key of a Redis target; empty when it has none.

    The first Redis target's default does not contain the target's name, so a Redis that is added after it
    leaves its key as it is.
    """
    target = targets[name]
    assert isinstance(target, models.RedisTarget)
    if target.alive_key is not None:
        return target.alive_key
    first = next(other for other, part in targets.items() if isinstance(part, models.RedisTarget))
    return f"invalidator:{installation}:alive" if name == first else f"invalidator:{installation}:{name}:alive"


def follows(targets: Mapping[str, models.Target]) -> dict[str, list[str]]:
    """The targets that each target follows (`after`): by default, hooks and streams follow every Redis."""
    shared = [name for name, target in targets.items() if isinstance(target, models.RedisTarget)]
    return {
        name: ([] if name in shared else shared) if target.after is None else target.after
        for name, target in targets.items()
    }


def rate(hook: models.HookTarget) -> float | None:
    """Requests per second that a hook may receive; None for no limit."""
    return hook.rate or CDN_RATES.get(hook.format)


def stale_after(postgres: models.Postgres) -> float:
    """Seconds after which `as_of` must have advanced: a canary's interval, its time limit, and a second to spare."""
    return postgres.canary + postgres.canary_timeout + 1.0
