"""The settings on which two sidecars must agree before one may confirm the other's coverage requests at a target."""

from __future__ import annotations

from invalidator.config import models
from invalidator.config.defaults import follows
from invalidator.config.redis_url import parse_redis_url
from invalidator.core.coordination.digest import digest


def target_digest(config: models.Config, target: str) -> str:
    """A digest of everything that decides what is evicted from a target."""
    data = config.model_dump(mode="json", by_alias=True)
    return digest({
        "rules": [rule for rule in data["rules"] if rule["to"] is None or target in rule["to"]],
        "target": {
            key: value
            for key, value in data["targets"][target].items()
            if key in ("kind", "prefix", "flush", "format", "fallback", "site")
        },
        "source": data["source"],
        "triggers": {key: data["triggers"][key] for key in ("schema", "level", "bulk_limit")},
        "channels": data["channels"],
    })  # fmt: skip


def coverage_settings(config: models.Config, target: str) -> dict[str, object]:
    """The settings for one target: everything that decides what is evicted there, and what a confirmation means.

    A confirmation includes repeats, replicas and the targets named in `after`. It also depends on which server the
    lookups query.
    """
    part = config.targets[target]
    settings: dict[str, object] = {
        "digest": target_digest(config, target),
        "repeat_after": part.repeat_after,
        "after": {before: coverage_settings(config, before) for before in follows(config.targets)[target]},
        "lookups are pooled": bool(config.postgres.pooled_dsn.get_secret_value())
        and any(rule.lookup for rule in config.rules),
    }
    if isinstance(part, models.RedisTarget):
        database = parse_redis_url(part.url.get_secret_value()).database
        settings |= {"wait_replicas": part.wait_replicas, "database": database}
    return settings
