"""What property tests draw from: values with every trap in them, templates, rows and changes."""

from __future__ import annotations

from hypothesis import strategies as st

from invalidator.core.rules.change import OPS, Change, Table
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.core.rules.glob import matcher, tokens
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.template import parse
from invalidator.core.rules.values import UNKNOWN

TABLE = Table("public", "products")
COLUMNS = ("a", "b", "doc")

# Short, so that collisions are likely; full of what means something to globs, JSON, URLs and terminals.
tricky = st.text(alphabet="ab*?[]\\^-!{}:%_'\"\x00\n\x7fé\U0001f600", max_size=4)
texts = st.one_of(tricky, st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8))

known = st.one_of(st.none(), texts)
rows = st.fixed_dictionaries({"a": known, "b": known, "doc": st.one_of(known, st.just('{"k": "v"}'))})

literals = st.text(alphabet="xy:?[]\\", max_size=3)
HOLES = "{a} {b} {old.a} {new.b} {pk} {op} {schema} {table} {a|lower} {a|default:none} {b|md5} {doc->>k}"
holes = st.sampled_from(HOLES.split())
sources = st.lists(st.one_of(literals, holes, st.just("*")), min_size=1, max_size=5).map(lambda p: "k:" + "".join(p))
loose_sources = st.lists(st.one_of(literals, holes), min_size=1, max_size=4).map("".join).filter(bool)


def evicts(source=sources):
    plain = st.builds(
        lambda kind, text: Evict(kind, parse(text)), st.sampled_from(["key", "key", "key", "tag", "version"]), source
    )
    hashed = st.builds(lambda text, inner: Evict("hash", parse(text), parse(inner)), source, loose_sources)
    return st.one_of(plain, plain, hashed)


def rules(**kwargs):
    return st.builds(
        lambda entries: Rule(0, TablePattern(*TABLE), tuple(entries), to=("cache",), **kwargs),
        st.lists(evicts(), min_size=1, max_size=3),
    )


@st.composite
def changes(draw):
    op = draw(st.sampled_from([op for op in OPS if op != "truncate"]))
    key = draw(st.sampled_from([("a",), ("a", "b"), None]))
    old = None if op == "insert" else draw(rows)
    new = None if op == "delete" else draw(rows)
    return Change(TABLE, op, old, new, key)


@st.composite
def blurred(draw, change: Change):
    """The same change with some of what was known about it unknown."""

    def blur(row):
        if row is None:
            return None
        kept = {name: value for name, value in row.items() if draw(st.booleans())}
        return {name: draw(st.sampled_from([value, UNKNOWN])) for name, value in kept.items()}

    key = draw(st.sampled_from([change.key, None]))
    op = draw(st.sampled_from([change.op, None]))
    return change._replace(old=blur(change.old), new=blur(change.new), key=key, op=op)


def evicted(rule: Rule, *some: Change) -> Evictions:
    out = Evictions()
    for change in some:
        if change.wide:
            rule.evict_wide(change, out)
        else:
            rule.evict([change], out)
    return out


def instances(eviction: Eviction) -> list[str]:
    """Some of the keys that an eviction is about: itself, or what its wildcards could stand for."""
    if not eviction.glob:
        return [eviction.key]
    pieces = list(tokens(eviction.key))
    return ["".join(fill if piece is None else piece for piece in pieces) for fill in ("", "x", "*", "a:\\", "é\n")]


def covers(wider: Evictions, narrower: Evictions) -> bool:
    """Whether every key that the one evicts is evicted, in the same way or a stronger one, by the other."""
    return all(_covered(wider, eviction) for eviction in narrower)


def _covered(wider: Evictions, eviction: Eviction) -> bool:
    # Removing a whole hash is stronger than removing a field of it.
    same = [w for w in wider if (w.kind, w.field) == (eviction.kind, eviction.field)]
    stronger = [w for w in wider if eviction.kind == "hash" and w.kind == "key"]
    candidates = [*same, *stronger]
    matches = matcher([w.key for w in candidates if w.glob])
    exact = {w.key for w in candidates if not w.glob}
    return all(key in exact or matches.fullmatch(key.encode()) for key in instances(eviction))
