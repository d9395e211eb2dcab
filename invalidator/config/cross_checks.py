"""Mistakes that show only when keys or parts, each valid by itself, are compared: targets, channels, the API's address.

Each check runs only when all keys that it depends on are valid (`Partial.has`).
"""

from __future__ import annotations

from collections.abc import Mapping

from invalidator.config import models
from invalidator.config.defaults import follows
from invalidator.config.document import Path
from invalidator.config.partial import Partial
from invalidator.config.parts import Parts
from invalidator.config.redis_url import parse_redis_url
from invalidator.config.rule_checks import Report, check_rule
from invalidator.config.types import is_loopback, read_table
from invalidator.core.delivery.capabilities import FALLBACKS
from invalidator.core.protocol.channel import MAX_NAME_BYTES, holes, parse_text
from invalidator.core.protocol.hook_url import parse_hook_url
from invalidator.core.protocol.redis_endpoint import Endpoint
from invalidator.core.rules.suggest import did_you_mean
from invalidator.errors import InvalidValueError


def check_parts(parts: Parts, report: Report) -> None:
    """Report mistakes that show only between the parts of a configuration."""
    own = f"invalidator_{parts.config.value.name}" if parts.config.has("name") else None
    for name, channel in parts.channels.items():
        _check_channel(name, channel, own, report)
    if parts.listen is not None:
        _check_listen(parts.listen, report)
    if parts.targets is not None:
        _check_targets(parts.targets, parts.postgres, report)
    for rule in parts.rules:
        check_rule(rule, parts.targets, report)


def _check_listen(partial: Partial[models.Listen], report: Report) -> None:
    listen = partial.value
    if partial.has("api", "token") and not listen.token.get_secret_value() and not is_loopback(listen.api):
        what = f'"{listen.api}" can be reached from other machines, and any client can evict'
        report(("listen", "api"), what, "set listen.token, or listen on 127.0.0.1 or a Unix socket")


def _check_channel(name: str, partial: Partial[models.Channel], own: str | None, report: Report) -> None:
    """Report what is wrong with a channel; `own` is the channel of invalidator's triggers."""
    channel = partial.value
    path: Path = ("channels", name)
    _check_holes(name, partial, report)
    if not name:
        report(path, "the name of the channel is empty", "write the name that NOTIFY uses")
    if partial.has("each"):
        if not channel.each and "each_interval" in channel.model_fields_set:
            report((*path, "each_interval"), "there is no query to run", "remove it, or write the query in `each`")
        if not channel.each and len(name.encode()) > MAX_NAME_BYTES:
            report(path, "this name is too long", f"PostgreSQL's channels have at most {MAX_NAME_BYTES} bytes")
    if name == own:
        report(path, "this is the channel of invalidator's own triggers", "rename the installation, or the channel")
    if partial.has("table") and not read_table(channel.table).is_exact():
        report((*path, "table"), f'"{channel.table}" is not a single table', "name the schema without a *")


def _check_holes(name: str, partial: Partial[models.Channel], report: Report) -> None:
    """Report texts with holes that are wrong, and a name whose holes do not go with `each`."""
    channel = partial.value
    path: Path = ("channels", name)
    texts: list[tuple[Path, str]] = [((*path, "op"), channel.op)]
    if partial.has("columns"):
        texts += [((*path, "columns", column), text) for column, text in channel.columns.items()]
    for where, text in texts:
        try:
            parse_text(text)
        except InvalidValueError as error:
            report(where, *error.problem)
    try:
        named = holes(parse_text(name))
    except InvalidValueError as error:
        report(path, *error.problem)
        return
    if partial.has("each") and bool(named) != bool(channel.each):
        what = "the name has a hole, and no `each` to fill it" if named else "the name has no hole for `each`"
        report(path, what, "write a hole in the name and a query in `each`, or neither")


def _check_targets(
    targets: Mapping[str, Partial[models.Target] | None], postgres: Partial[models.Postgres] | None, report: Report
) -> None:
    """Report what is wrong within a target, between targets, and between a target and `postgres`."""
    by_alive_key: dict[tuple[str, str], str] = {}
    for name, partial in targets.items():
        if partial is None:
            continue
        target = partial.value
        path: Path = ("targets", name)
        if isinstance(target, models.RedisTarget):
            _check_redis(target, partial, path, report)
            if partial.has("url", "alive_key"):
                key = (target.url.get_secret_value(), target.alive_key or name)
                other = by_alive_key.setdefault(key, name)
                if other != name:
                    what = f'"{other}" is the same server, with the same key'
                    report((*path, "alive_key"), what, "give each target its own key")
        elif isinstance(target, models.HookTarget):
            _check_hook(target, partial, path, report)
        else:
            _check_stream(target, postgres, path, report)
    _check_after(targets, report)


def _check_redis(target: models.RedisTarget, partial: Partial[models.Target], path: Path, report: Report) -> None:
    if target.cluster and target.sentinel is not None:
        report((*path, "cluster"), "a Cluster has no Sentinels", "remove one of the two")
    endpoint = parse_redis_url(target.url.get_secret_value()) if partial.has("url") else Endpoint()
    _check_login(target, path, report, user=endpoint.user, password=endpoint.password)
    if target.sentinel is not None:
        sentinel = target.sentinel
        password = sentinel.password.get_secret_value()
        _check_login(sentinel, (*path, "sentinel"), report, user=sentinel.username, password=password)
    if target.cluster and endpoint.database:
        report((*path, "url"), "a Cluster has only database 0", "remove the database")


def _check_login(
    part: models.RedisTarget | models.Sentinel, path: Path, report: Report, *, user: str, password: str
) -> None:
    names = ("password_file", "password_command", "credential_provider")
    given = [name for name in names if getattr(part, name)]
    if given and password:
        report((*path, given[0]), "there is a password already", "remove one of the two")
    elif len(given) > 1:
        report((*path, given[1]), f"{given[0]} gives a password already", "remove one of the two")
    elif given == ["credential_provider"] and user:
        report((*path, given[0]), "there is a user already, and the provider gives one", "remove one of the two")


def _check_stream(
    target: models.StreamTarget, postgres: Partial[models.Postgres] | None, path: Path, report: Report
) -> None:
    if postgres is None or not postgres.has("canary", "canary_timeout") or target.stale_after is None:
        return
    least = postgres.value.canary + postgres.value.canary_timeout
    if target.stale_after <= least:
        what = f"as_of advances with each canary, so it may be {least:g} s old while all is well"
        report((*path, "stale_after"), what, f"write more than {least:g}s")


def _check_hook(target: models.HookTarget, partial: Partial[models.Target], path: Path, report: Report) -> None:
    if partial.has("format"):
        _check_format(target, partial, path, report)
    if partial.has("url") and target.token.get_secret_value() and parse_hook_url(target.url.get_secret_value()).user:
        report((*path, "token"), "the url has a user already", "remove one of the two")
    if bool(target.tls.cert) != bool(target.tls.key):
        report((*path, "tls"), "cert and key go together", "name both files")


def _check_format(target: models.HookTarget, partial: Partial[models.Target], path: Path, report: Report) -> None:
    fallbacks = FALLBACKS.get(target.format, ())
    if target.fallback is not None and target.fallback not in fallbacks:
        todo = f"name {' or '.join(fallbacks)}" if fallbacks else "remove it: the format needs none"
        report((*path, "fallback"), f'"{target.fallback}" is not a fallback of format {target.format}', todo)
    elif partial.has("fallback") and target.fallback is None and target.format in ("purge", "xkey"):
        what = f"format {target.format} has no form for a pattern or a flush, and every gap needs a flush"
        report((*path, "format"), what, f"name a fallback: {' or '.join(fallbacks)}")
    if target.format in ("purge", "xkey", "ban") and partial.has("site", "url") and not target.site:
        host = parse_hook_url(target.url.get_secret_value()).origin.partition("://")[2]
        what = f"a proxy keeps the pages of each site apart, and would evict those of {host}"
        report((*path, "site"), what, "set it, like https://shop.example")
    if target.secret.get_secret_value() and target.format != "json":
        report((*path, "secret"), "only json batches are signed", "remove it")


def _check_after(targets: Mapping[str, Partial[models.Target] | None], report: Report) -> None:
    """Report a target that follows one that does not exist, or itself."""
    valid = {name: partial for name, partial in targets.items() if partial is not None}
    order = follows({name: partial.value for name, partial in valid.items()})
    order = {name: before if valid[name].has("after") else [] for name, before in order.items()}
    for name, partial in valid.items():
        for index, before in enumerate(partial.value.after or ()):
            path: Path = ("targets", name, "after", index)
            if before not in targets:
                report(path, f'no target is named "{before}"', did_you_mean(before, targets))
            elif name in _with_predecessors(before, order):
                report(path, f'"{name}" would follow itself', "remove it")


def _with_predecessors(name: str, order: Mapping[str, list[str]]) -> set[str]:
    """The target and every target that it follows, directly or not."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found and one in order:
            found.add(one)
            waiting += order[one]
    return found
