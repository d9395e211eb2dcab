"""Formats turn evictions into requests to caching proxies and CDNs. Pure.

Values of a row can't break out of a request. In a path the template percent-encodes them. In a header, a name with a
separator or a control character is not sent. In a regular expression everything but `*` is literal, and no space
occurs, because Varnish splits ban expressions at spaces. JSON quotes its strings.

A format widens an eviction that it can't express: a pattern becomes its literal prefix, and a name that can't be sent
becomes a full purge. Where this would evict too much, the configuration names a fallback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from invalidator.core.delivery.capabilities import Fallback
from invalidator.core.rules import glob
from invalidator.core.rules.eviction import Eviction

_HEADER: Final = 3500
"""Bytes of names in one header; Varnish and nginx take some 8000."""

_PATH: Final = 4000
"""Bytes of a path; a longer one becomes a pattern of its start."""

_FASTLY_KEYS: Final = 256
_FASTLY_KEY: Final = 1024
_CLOUDFLARE_ITEMS: Final = 30
"""The number of names in one request that every Cloudflare plan permits."""

_T = TypeVar("_T")


class Call(NamedTuple):
    """One request. `path` is appended to the path of the hook's URL; if `whole`, it replaces that path. A 2xx status
    confirms the request, and so do those in `answers`.
    """

    method: str
    path: str = ""
    headers: Mapping[str, str] = {}
    body: bytes = b""
    answers: frozenset[int] = frozenset()
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """Evictions sorted by kind; `everything` is true where only a full purge includes all of them."""

    paths: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    everything: bool = False


EVERYTHING: Final = Names(everything=True)
Format = Callable[[Names], list[Call]]


def names(evictions: Iterable[Eviction]) -> Names:
    """Sort evictions by kind. A tag with an unknown part may be any tag, so it sets `everything`."""
    paths: dict[str, None] = {}
    patterns: dict[str, None] = {}
    tags: dict[str, None] = {}
    for one in evictions:
        if one.kind == "url":
            known = glob.anchor(one.key) if one.glob else one.key
            if not _is_plain(known):
                patterns[f"{glob.escape(_plain_part(known))}*"] = None
            else:
                (patterns if one.glob else paths)[one.key] = None
        elif one.glob:
            return Names(everything=True)
        else:
            tags[one.key] = None
    return Names(list(paths), list(patterns), list(tags))


def _is_plain(path: str) -> bool:
    """Whether servers use the path unchanged: not too long, and without dot segments."""
    return len(path) <= _PATH and not _DOTS.search(unquote(path))


_HALF: Final = re.compile(r"%[0-9A-Fa-f]?$")
_DOTS: Final = re.compile(r"(?:^|[/\\])\.\.?(?:[/\\?]|$)")


def _plain_part(path: str) -> str:
    """The longest start of the path that servers use unchanged."""
    kept = path[:_PATH]
    while not _is_plain(kept) or _HALF.search(kept):
        kept = kept[:-1]
    return kept


# Varnish and nginx

_ABSENT: Final = frozenset({404, 412})
"""The statuses of nginx for a page that is not in its cache."""


def purge(fallback: Fallback | None) -> Format:
    """PURGE of each path; patterns by BAN, or by PURGE of a path that ends in a star."""
    stand_in = ban if fallback == "ban" else _wildcards

    def calls(wanted: Names) -> list[Call]:
        rest = stand_in(Names(patterns=wanted.patterns, everything=wanted.everything))
        return rest if wanted.everything else [*(Call("PURGE", path, answers=_ABSENT) for path in wanted.paths), *rest]

    return calls


def xkey(fallback: Fallback | None) -> Format:
    """As `purge`; in addition, PURGE of tags, many in one header."""
    without_tags = purge(fallback)

    def calls(wanted: Names) -> list[Call]:
        if wanted.everything or not all(map(_is_one_word, wanted.tags)):
            return ban(Names(everything=True))
        return [
            *(Call("PURGE", "/", {"xkey-purge": " ".join(tags)}) for tags in _by_size(wanted.tags)),
            *without_tags(wanted),
        ]

    return calls


def ban(wanted: Names) -> list[Call]:
    """BAN, with a regular expression of paths in a header."""
    if wanted.everything:
        return [Call("BAN", "/", {"x-ban-url": "^/"})]
    expressions = [f"{_expression([path])}$" for path in wanted.paths]
    for pattern in wanted.patterns:
        pieces = list(glob.tokens(pattern))
        end = "" if pieces[-1] is None else "$"
        expressions.append(_expression(pieces[:-1] if pieces[-1] is None else pieces) + end)
    whole = [one if len(one) <= _HEADER else _cut(one) for one in expressions]
    return [Call("BAN", "/", {"x-ban-url": f"^(?:{'|'.join(some)})"}) for some in _by_size(whole)]


def _wildcards(wanted: Names) -> list[Call]:
    stars = ["/*"] if wanted.everything else [f"{glob.anchor(pattern)}*" for pattern in wanted.patterns]
    return [Call("PURGE", star, answers=_ABSENT) for star in dict.fromkeys(stars)]


def _expression(pieces: Iterable[str | None]) -> str:
    """A regular expression without backslashes, quotes or spaces, whatever the paths contain."""
    return "".join(
        ".*" if piece is None else re.sub(r"[^A-Za-z0-9/%_~=&:,@!'-]", _bracketed, piece) for piece in pieces
    )


def _bracketed(found: re.Match[str]) -> str:
    char = found[0]
    return "." if char in "^[]\\" or not char.isascii() or not char.isprintable() or char in ' "' else f"[{char}]"


def _cut(expression: str) -> str:
    """The start of an expression that is too long for a header."""
    return re.sub(r"\[[^\]]*$", "", _HALF.sub("", expression[:_HEADER]))


def _is_one_word(tag: str) -> bool:
    return bool(tag) and len(tag.encode()) <= _FASTLY_KEY and tag.isprintable() and not set(tag) & set(" ,")


# CDNs


def fastly(site: str) -> Format:
    """A purge of many surrogate keys, of one path, or of the whole service."""
    host = urlsplit(site).netloc

    def calls(wanted: Names) -> list[Call]:
        if wanted.everything or wanted.patterns or not all(map(_is_one_word, wanted.tags)):
            return [Call("POST", "/purge_all")]
        keys = [
            Call("POST", "/purge", _JSON, _json({"surrogate_keys": some})) for some in _some(wanted.tags, _FASTLY_KEYS)
        ]
        return [*keys, *(Call("POST", f"/purge/{host}{path}", whole=True) for path in wanted.paths)]

    return calls


def cloudflare(site: str) -> Format:
    """A purge of cache tags, of files, of prefixes, or of the whole zone."""
    host = urlsplit(site).netloc

    def calls(wanted: Names) -> list[Call]:
        folders = dict.fromkeys(_folder(pattern) for pattern in wanted.patterns)
        if wanted.everything or "" in folders or not all(map(_is_cache_tag, wanted.tags)):
            return [Call("POST", "/purge_cache", _JSON, _json({"purge_everything": True}))]
        listed_by_kind = {
            "tags": wanted.tags,
            "files": [f"{site}{path}" for path in wanted.paths],
            "prefixes": [f"{host}{folder}" for folder in folders],
        }
        return [
            Call("POST", "/purge_cache", _JSON, _json({what: some}))
            for what, listed in listed_by_kind.items()
            for some in _some(listed, _CLOUDFLARE_ITEMS)
        ]

    return calls


def _folder(pattern: str) -> str:
    """The folder that holds all that a pattern matches; empty for the root."""
    return glob.anchor(pattern).partition("?")[0].rpartition("/")[0]


_JSON: Final = {"content-type": "application/json"}


def _is_cache_tag(tag: str) -> bool:
    return _is_one_word(tag) and tag.isascii()


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data).encode()


def _some(items: Sequence[_T], number: int) -> Iterator[list[_T]]:
    left = iter(items)
    while some := list(islice(left, number)):
        yield some


def _by_size(words: Iterable[str]) -> Iterator[list[str]]:
    """Split words into lists that fit in a header."""
    some: list[str] = []
    size = 0
    for word in words:
        cost = len(word.encode()) + 1
        if some and size + cost > _HEADER:
            yield some
            some, size = [], 0
        some.append(word)
        size += cost
    if some:
        yield some
