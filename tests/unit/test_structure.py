"""The shape of the code base: small files, no import cycle, and tests that read public names only."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

REPO = Path(__file__).parents[2]
PACKAGE = REPO / "invalidator"
MAX_LINES = 350
PRIVATE = re.compile(r"_[a-z]\w*|_[A-Z]\w*")


def modules():
    """Each module of the package with its path."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(REPO).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(tree, known):
    """The modules of the package that a module imports, also those that it imports late or for annotations."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def defined(tree):
    """The names that a module defines: functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name
            case _:
                pass


def private_names():
    names = {name for _, path in modules() for name in defined(ast.parse(path.read_text()))}
    return {name for name in names if PRIVATE.fullmatch(name)}


def reads(tree, private):
    """The private names of the package that a test reads: by attribute, by import, or by name in a string.

    A name that the test defines is its own, unless it is defined in a subclass of a class of the package.
    """
    ours = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("invalidator"):
            ours |= {alias.asname or alias.name: node.module for alias in node.names}
    inherited = {
        inner: base_names(ours[base.id])
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in ours
        for inner in ast.walk(node)
    }
    own = set(defined(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if name in private and name in inherited.get(node, private - own):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                if name in private and name in inherited.get(node, ()):
                    yield node.lineno, name
            case ast.ImportFrom(module=module) if module and module.startswith("invalidator"):
                yield from ((node.lineno, alias.name) for alias in node.names if alias.name in private)
            case ast.Constant(value=str(name)) if name in private:
                yield node.lineno, name
            case _:
                pass


@cache
def base_names(module):
    """The private names of a module, and of the modules that it takes base classes from."""
    path = dict(modules())[module]
    tree = ast.parse(path.read_text())
    names = {name for name in defined(tree) if PRIVATE.fullmatch(name)}
    bases = {
        base.id
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and bases & {alias.asname or alias.name for alias in node.names}:
            names |= base_names(node.module) if node.module in dict(modules()) else frozenset()
    return frozenset(names)


def test_no_file_of_the_package_is_too_long_to_read_at_once():
    lines = {str(path.relative_to(REPO)): len(path.read_text().splitlines()) for _, path in modules()}
    assert {path for path, count in lines.items() if count > MAX_LINES} == set()


def test_no_two_modules_import_each_other_even_by_way_of_others():
    known = dict(modules())
    graph = {name: set(imports(ast.parse(path.read_text()), known)) - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_no_test_reads_a_private_name_of_the_package():
    private = private_names()
    found = set()
    for path in sorted((REPO / "tests").rglob("*.py")):
        if path != Path(__file__):
            name = str(path.relative_to(REPO))
            found |= {(name, line, read) for line, read in reads(ast.parse(path.read_text()), private)}
    assert sorted(found) == []
