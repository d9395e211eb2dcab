"""The documents agree with the code."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from pydantic import BaseModel

from invalidator import __version__
from invalidator.cli.main import COMMANDS
from invalidator.cli.triggers import FORMATS, install_triggers
from invalidator.config import models
from invalidator.config.cdn_rates import CDN_RATES
from invalidator.config.defaults import alive_key, follows, stale_after
from invalidator.config.find import DEFAULT_PATHS
from invalidator.config.parse import parse
from invalidator.config.show import schema
from invalidator.core.delivery import capabilities as reach
from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.core.protocol.hook_url import parse_hook_url
from invalidator.core.protocol.reasons import GAP_REASONS, LANE_REASONS, FlushReason, PayloadReason
from invalidator.core.rules import filters
from invalidator.core.rules.eviction import Evictions
from invalidator.errors import AwayError, ConfigError, InvalidatorError, LossReason, RetryReason, UsageError
from invalidator.metrics import HELP, Metrics, lane_gauges
from invalidator.service.observe import Observer
from invalidator.targets.hook import HookTarget
from invalidator.triggers.drift import STATES
from tests.support.apps import App
from tools.reference import reference as generated


def keys(model, prefix=""):
    """The configuration's keys as the reference spells them."""
    for name, info in model.model_fields.items():
        path = f"{prefix}{info.alias or name}"
        inner = _models(info.annotation)
        if not inner or path.endswith(".evict"):
            yield path
        if path.endswith(".evict"):
            continue
        for part in inner:
            step = "[]" if path == "rules" else ".<name>" if path in ("targets", "channels") else ""
            yield from keys(part, f"{path}{step}.")
        if path == "rules":
            yield from keys(models.Evict, "rules[].evict[].")


def _models(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


@pytest.fixture
def reference(repo):
    return (repo / "docs/reference.md").read_text()


def test_every_key_is_in_the_reference_and_no_other(reference):
    documented = re.findall(r"^\| `([a-z_.\[\]<>]+)` \|", reference, re.MULTILINE)
    assert documented == list(keys(models.Config))


def test_the_committed_reference_is_the_current_one(reference):
    assert generated(schema()) == reference


def test_a_default_that_depends_on_other_keys_is_described(reference):
    defaults = dict(re.findall(r"^\| `([a-z_.\[\]<>]+)` \| ([^|]+) \|", reference, re.MULTILINE))
    computed = ("instance", "postgres.pooled_dsn", "targets.<name>.alive_key", "targets.<name>.rate")
    computed += ("targets.<name>.after", "targets.<name>.stale_after", "rules[].triggers")
    assert not {"none", "empty"} & {defaults[key] for key in computed}
    for format_, rate in CDN_RATES.items():
        assert f"{rate:g} for `{format_}`" in defaults["targets.<name>.rate"]


def test_every_key_is_in_the_example(repo):
    example = (repo / "config.example.yaml").read_text()
    for key in keys(models.Config):
        assert re.search(rf"\b{key.rpartition('.')[2]}:", example), key


def test_the_example_has_the_defaults(repo):
    config = parse((repo / "config.example.yaml").read_text(), {}, None)
    for part in (config.postgres, config.source, config.triggers, config.listen):
        assert part == type(part)()
    cache, local = config.targets["cache"], config.targets["local"]
    assert cache == models.RedisTarget(kind="redis", alive_key=cache.alive_key, after=cache.after)
    unsaid = config.targets | {"cache": models.RedisTarget(kind="redis"), "local": models.StreamTarget(kind="stream")}
    assert cache.alive_key == alive_key(config.name, unsaid, "cache")
    assert {"cache": cache.after, "local": local.after} == follows(unsaid)
    assert local.stale_after == stale_after(config.postgres)
    (channel,) = (channel for channel in config.channels.values() if channel.each)
    assert channel.each_interval == models.Channel.model_fields["each_interval"].default


def test_the_defaults_in_the_reference_are_the_codes(reference):
    defaults = dict(re.findall(r"^\| `([a-z_.\[\]<>]+)` \| `([^`]+)` \|", reference, re.MULTILINE))
    config = models.Config.model_validate(
        {
            "version": "1",
            "name": "x",
            "targets": {"t": {"kind": "redis"}, "h": {"kind": "hook", "url": "http://x"}, "s": {"kind": "stream"}},
            "rules": [{"table": "a.b", "evict": "c", "lookup": {"sql": "select 1", "none": "skip"}}],
            "channels": {"t": {"table": "a.b", "columns": {"a": "b"}}},
        }
    ).model_dump(mode="json", by_alias=True)
    for key, default in defaults.items():
        value = config
        if key.startswith("targets."):
            at = key.split(".")[2]
            value = {"targets": {"t": next(target for target in config["targets"].values() if at in target)}}
        for step in key.replace("<name>", "t").replace("[]", "").split("."):
            value = value[0][step] if isinstance(value, list) else value[step]
        assert (str(value).lower() if isinstance(value, bool) else str(value)) == default, key


def test_every_filter_and_eviction_is_explained(repo):
    text = (repo / "docs/configuration.md").read_text()
    for name in filters.NAMES:
        assert re.search(rf"`({{name\|)?{name}[:x}}]*`", text), name
    for name in models.Evict.model_fields:
        assert f"`{name}:" in text, name


async def test_a_hooks_message_is_as_it_is_documented(repo):
    (block,) = re.findall(r"^```json\n(.*?)^```", (repo / "docs/local.md").read_text(), re.MULTILINE | re.DOTALL)
    app = App()
    async with app.serving() as url, HookTarget("app", parse_hook_url(url)) as target:
        await target.evict(Evictions({"product:42": None}))
    (message,) = app.cache.messages
    documented = json.loads(block)
    assert list(message) == list(documented)
    assert {name: type(value) for name, value in message.items() if name != "as_of"} == {
        name: type(value) for name, value in documented.items() if name != "as_of"
    }


def test_every_format_of_a_hook_is_documented_with_what_stands_in(repo):
    text = (repo / "docs/proxies.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE))
    assert ["json", *rows] == list(reach.FORMAT_KINDS)
    for format_, in_sync in reach.FALLBACKS.items():
        assert all(
            f"`{fallback}`" in rows[format_] or f"`fallback: {fallback}`" in rows[format_] for fallback in in_sync
        )
    for format_, kinds in reach.FORMAT_KINDS.items():
        if format_ != "json":
            assert (rows[format_].split("|")[2].strip() != "-") == ("tag" in kinds), format_


def test_every_state_of_a_table_and_every_option_of_installing_is_documented(repo):
    text = (repo / "docs/triggers.md").read_text()
    assert re.findall(r"^\| `([a-z ]+)` \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE) == [
        "ok", "missing", "outdated", "tampered", "disabled", "table missing", "orphaned"
    ]  # fmt: skip
    assert set(STATES) == set(re.findall(r"^\| `([a-z ]+)` \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE))
    options = {option for parameter in install_triggers.params for option in parameter.opts if option.startswith("--")}
    assert {option for option in options if option not in text} == {"--config", "--output"}
    assert "psql\\|" + "\\|".join(FORMATS[1:]) in text


def test_every_command_and_place_is_documented(repo):
    commands = (repo / "docs/commands.md").read_text()
    documented = {match.split()[0] for match in re.findall(r"^\| `([^`]+)` \|", commands, re.MULTILINE)}
    assert set(COMMANDS) <= documented
    assert all(f"`{place}`" in commands for place in DEFAULT_PATHS)


def test_every_exit_code_is_documented(repo):
    commands = (repo / "docs/commands.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d) \|", commands, re.MULTILINE)}
    assert documented == {0, 1, 2, 3, 4}
    assert {kind.exit_code for kind in (InvalidatorError, ConfigError, UsageError, AwayError)} <= documented


def test_every_log_event_is_documented_with_its_level_and_fields(repo):
    rows = re.findall(
        r"^\| `([a-z_]+)` \| (error|warning|info|debug) \| .+ \| *(.*) \|$",
        (repo / "docs/logs.md").read_text(),
        re.MULTILINE,
    )
    documented = {event: (level, set(re.findall(r"`([a-z_]+)`", fields))) for event, level, fields in rows}
    written = {}
    for file in (repo / "invalidator").rglob("*.py"):
        for event, level, fields in log_events(file.read_text()):
            assert written.setdefault(event, (level, fields)) == (level, fields)
    assert written == documented
    assert len(rows) == len(documented)


def log_events(text):
    """The events that a module logs, each with its level and the names of its fields."""
    tree = ast.parse(text)
    common = {
        keyword.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Log"
        for keyword in node.keywords
    }
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        found = re.fullmatch(r"(?:(?:self\.)?_?log|Log\(.*\))(?:\.(error|warning|info|debug))?", called)
        if found and node.args and isinstance(node.args[0], ast.Constant):
            event, fields = node.args[0].value, set(common)
            for keyword in node.keywords:
                if keyword.arg:
                    fields.add(keyword.arg)
                elif ast.unparse(keyword.value) == "observer.counts()":
                    fields |= set(Observer("", None, "").counts())
                else:
                    fields |= {
                        key.value for one in ast.walk(keyword.value) if isinstance(one, ast.Dict) for key in one.keys
                    }
            yield event, found[1] or "warning", fields  # `log` is `warning` the first time, then `debug`


def test_every_metric_is_documented_with_its_labels_and_no_other(repo):
    text = (repo / "docs/http.md").read_text()
    documented = set(re.findall(r"^\| `invalidator_([a-z_]+(?:\{[a-z,]+\})?)` \|", text, re.MULTILINE))
    metrics = Metrics(["cache"], ["public.t"])
    state = DeliveryQueue()
    metrics.state = lambda: [
        *lane_gauges("cache", state, 0.0, up=True),
        ("source_up", {}, 1.0),
        ("config_reload_success", {}, 1.0),
        ("stream_clients", {}, 1.0),
        ("trigger_drift", {"state": "ok"}, 0.0),
    ]
    there = set()
    for family in metrics.registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        for labels in {tuple(sample.labels) for sample in family.samples if not sample.name.endswith("_created")}:
            names = ",".join(name for name in labels if name != "le")
            there.add(family.name.removeprefix("invalidator_") + suffix + (f"{{{names}}}" if names else ""))
    assert there == documented


def test_the_meaning_of_each_metric_begins_with_its_help_text(repo):
    rows = re.findall(
        r"^\| `invalidator_([a-z_]+)(?:\{.*\})?` \| (.*) \|$", (repo / "docs/http.md").read_text(), re.MULTILINE
    )
    meanings = {name.removesuffix("_total"): meaning for name, meaning in rows}
    assert set(meanings) == set(HELP)
    assert {name for name, meaning in meanings.items() if not meaning.startswith(HELP[name])} == set()


def test_every_reason_is_documented_with_what_counts_it_and_no_other(repo):
    rows = re.findall(
        r"^\| `([a-z ]+)` \| ([^|]+) \|", (repo / "docs/http.md").read_text().split("### Reasons")[1], re.MULTILINE
    )
    documented = {reason: set(counted.split(", ")) for reason, counted in rows}
    assert set(documented) == set(FlushReason)
    assert {reason for reason, counted in documented.items() if "gap" in counted} == set(GAP_REASONS)
    assert {reason for reason, counted in documented.items() if "flush" in counted} == set(LANE_REASONS)


@pytest.mark.parametrize(
    ("metric", "reasons"),
    [
        ("source_reconnects_total{reason}", LossReason),
        ("payload_errors_total{reason}", PayloadReason),
        ("target_retries_total{target,reason}", RetryReason),
    ],
)
def test_every_value_of_a_reason_label_is_documented_and_no_other(repo, metric, reasons):
    (meaning,) = re.findall(
        rf"^\| `invalidator_{re.escape(metric)}` \| (.*) \|$", (repo / "docs/http.md").read_text(), re.MULTILINE
    )
    assert set(re.findall("`([a-z]+)`", meaning)) == set(reasons)


def test_every_route_is_documented_and_no_other(repo):
    documented = set(re.findall(r"^\| `((?:GET|POST) /[^`]+)` \|", (repo / "docs/http.md").read_text(), re.MULTILINE))
    source = "".join((repo / f"invalidator/http/{module}.py").read_text() for module in ("api", "probes"))
    there = {f"{method.upper()} {path}" for method, path in re.findall(r'web\.(get|post)\("([^"]+)"', source)}
    assert there == documented


def test_the_commands_in_the_readme_print_what_it_says(repo):
    (block,) = re.findall(r"```console\n(.*?)```", (repo / "README.md").read_text(), re.DOTALL)
    sessions = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    assert len(sessions) == 2
    for command, printed in sessions:
        program, *arguments = shlex.split(command)
        assert program == "invalidator"
        done = subprocess.run(
            [sys.executable, "-m", "invalidator", *arguments], capture_output=True, text=True, cwd=repo, check=True
        )
        assert done.stdout == printed


def test_every_make_target_that_documents_name_exists(repo):
    makefile = (repo / "Makefile").read_text()
    for document in (repo / "README.md", repo / "CONTRIBUTING.md", repo / "docs/measurements.md"):
        for target in re.findall(r"\bmake ([a-z-]+)", document.read_text()):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (document.name, target)


def test_every_file_that_documents_name_exists(repo):
    for document in [*repo.glob("*.md"), *repo.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), (document.name, link)
    architecture = (repo / "ARCHITECTURE.md").read_text()
    for path in re.findall(r"`([a-z_]+/[a-z_/]*(?:\.[a-z]+)?)`", architecture):
        assert (repo / "invalidator" / path).exists() or (repo / path).exists(), path


def test_the_layers_in_the_architecture_are_the_checked_ones(repo):
    (contract, *_) = tomllib.loads((repo / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (block,) = re.findall(r"## Layers.*?```text\n(.*?)```", (repo / "ARCHITECTURE.md").read_text(), re.DOTALL)
    assert block.splitlines() == contract["layers"]


def test_every_heading_that_documents_link_to_exists(repo):
    def anchor(heading):
        return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")

    for document in [*repo.glob("*.md"), *repo.glob("docs/**/*.md")]:
        for link, name in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text()):
            text = (document.parent / link if link else document).read_text()
            assert name in {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}, (
                document.name, link, name
            )  # fmt: skip


def test_the_changelog_knows_the_version(repo):
    changelog = (repo / "CHANGELOG.md").read_text()
    assert f"## {__version__}" in changelog or "(unreleased)" in changelog


def test_no_document_has_the_two_sides_of_a_merge_conflict(repo):
    for document in [*repo.glob("*.md"), *repo.glob("docs/**/*.md"), *repo.glob("*.yaml")]:
        assert not re.search(r"^(<{7}|>{7}) ", document.read_text(), re.MULTILINE), document


def test_no_document_or_code_names_a_place_of_one_machine(repo):
    names = subprocess.run(["git", "ls-files"], cwd=repo, capture_output=True, text=True, check=True).stdout.split("\n")
    places = re.compile("/(?:" + "|".join(["root", "home", "work"]) + ")/")
    for name in filter(None, names):
        text = (repo / name).read_text(errors="replace")
        assert not places.search(text), name
        assert not name.startswith("requirements/") or "://" not in text, name


def test_there_is_one_version(repo):
    for path in [*(repo / "docs").glob("*.md"), *(repo / "deploy").iterdir(), repo / "README.md"]:
        assert set(re.findall(r"\binvalidator[:-](\d+\.\d+\.\d+)", path.read_text())) <= {__version__}, path
