"""The configuration as frozen models: every key with its type, default and meaning.

`invalidator config schema` and docs/reference.md are generated from these models (`make docs`). A default that depends
on other keys is in `defaults.py`; the description of its key ends with a sentence that begins with "Default:".
"""

from invalidator.config.models.file import Config, Listen, Postgres, Source, Triggers
from invalidator.config.models.rules import Channel, Evict, Lookup, Rule
from invalidator.config.models.targets import TARGETS, HookTarget, RedisTarget, Sentinel, StreamTarget, Target, Tls

__all__ = [
    "TARGETS",
    "Channel",
    "Config",
    "Evict",
    "HookTarget",
    "Listen",
    "Lookup",
    "Postgres",
    "RedisTarget",
    "Rule",
    "Sentinel",
    "Source",
    "StreamTarget",
    "Target",
    "Tls",
    "Triggers",
]
