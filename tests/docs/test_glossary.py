"""The glossary and the code agree: a word that docs/glossary.md retires does not return as a name, nor in the docs."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

RETIRED = {
    *("debt", "debts", "debtor", "debtors", "owe", "owes", "owed", "owing", "told", "tell", "tells", "telling"),
    *("asked", "asks", "claims", "facts", "able", "board", "met", "are", "way", "ways", "held", "early", "mark"),
    *("marks", "beat", "beats", "patience", "reach", "doubt", "doubts", "doubted", "mend", "mends", "mended"),
    *("hear", "hears", "heard", "say", "says", "said"),
}

RETIRED_IN = {
    "coordination/": {"cover", "covers", "answer", "answers", "answered", "ask", "asking", "settle", "pay", "paid"},
    "core/coordination/": {"cover", "covers", "answer", "answers", "answered", "ask", "asking", "settle", "pay"},
    "targets/": {"place", "places", "line", "lines"},
    "sources/": {"place", "places", "line", "lines"},
    "pipeline/": {"place", "places", "line", "lines"},
}
"""Words with an ordinary meaning elsewhere: the line of a text, the answer to an HTTP request."""

ALLOWED = {
    "flush_owed": "a metric that users query",
    "problem_mark": "PyYAML's: where in the text a mistake is",
    "context_mark": "PyYAML's, too",
}
"""Names with a retired word in them, each with its reason."""

RETIRED_IN_PROSE = re.compile(
    r"\b(debts?|debtors?|ow(?:e|es|ed)|told|tells?|hears|heard|mend(?:s|ed|ing)?|doubt(?:s|ed)?|patience|beats?)\b",
    re.IGNORECASE,
)

LEFT_IN_PROSE: set[str] = set()
"""Pages that still use a retired word. This only shrinks."""


def names(tree):
    """Every name that a module binds, and each log event, field or key that it spells as an identifier."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname
        elif isinstance(node, ast.Constant) and re.fullmatch(r"[a-z]+(_[a-z]+)+", str(node.value)):
            yield node.value


def split(name):
    """The words of an identifier, split at underscores and at capital letters."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def retired_names(package):
    found = defaultdict(dict)
    for file in sorted(package.rglob("*.py")):
        module = str(file.relative_to(package))
        retired = RETIRED.union(*(words for package, words in RETIRED_IN.items() if module.startswith(package)))
        tree = ast.parse(file.read_text())
        for name in {*names(tree), *module.removesuffix(".py").split("/")}:
            for word in split(name) & retired:
                found[module].setdefault(word, set()).add(name)
    return found


def test_a_name_is_split_into_words():
    assert split("_is_owed") == {"is", "owed"}
    assert split("DebtorBoard") == {"debtor", "board"}
    assert split("EVICTING_OWING") == {"evicting", "owing"}
    assert split("HTTPLine") == {"http", "line"}


def test_names_are_what_a_module_binds():
    tree = ast.parse("def f(a, *, b): x.c = d; [e for e in y]\nclass G: h: int = 1\nlog('i_j', k=1)")
    assert set(names(tree)) == {"f", "a", "b", "c", "e", "G", "h", "i_j", "k"}


def test_no_retired_word_is_a_name_in_the_package(repo):
    found = {
        f"{module}: {name} ({word})"
        for module, by_word in retired_names(repo / "invalidator").items()
        for word, spelled in by_word.items()
        for name in spelled
        if name not in ALLOWED
    }
    assert not found


def test_what_is_allowed_is_still_used(repo):
    spelled = {name for found in retired_names(repo / "invalidator").values() for s in found.values() for name in s}
    assert set(ALLOWED) <= spelled


def test_no_retired_word_is_in_the_docs(repo):
    found = set()
    for page in [*repo.glob("*.md"), *repo.glob("docs/**/*.md")]:
        name = str(page.relative_to(repo))
        if name in LEFT_IN_PROSE or page.name in ("CHANGELOG.md", "glossary.md"):
            continue
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
        found |= {f"{name}: {match.group()}" for match in RETIRED_IN_PROSE.finditer(text)}
    assert not found


def test_every_word_that_the_glossary_retires_is_tested(repo):
    table = (repo / "docs/glossary.md").read_text().partition("## Retired words")[2]
    cells = re.findall(r"^\| (?!retired|-)([^|]+) \|", table, re.MULTILINE)
    retired = {word for cell in cells for word in re.findall(r"\w+", re.sub(r"\(.*?\)", "", cell))}
    assert retired
    assert retired <= RETIRED.union(*RETIRED_IN.values())
