"""YAML as plain data, with the line and column of each key and value.

Every scalar is text or null; the models decide which text is a number. So `1.50` in a condition stays "1.50", `on` is
not a boolean, `12:30` is not a number, and a substituted variable means the same as its text written out. Variables are
substituted after the document is composed, so a value cannot add a key or end a string.

A document that nests too deeply, or whose aliases expand without bound, is refused before it is walked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import yaml

from invalidator.errors import InvalidValueError, Mistake

Path = tuple[str | int, ...]
Data = dict[str, "Data"] | list["Data"] | str | None

_MAX_LENGTH: Final = 1 << 20
_MAX_DEPTH: Final = 50
_MAX_VALUES: Final = 100_000
_NULLS: Final = re.compile(r"^(?:~|null|Null|NULL|)$")
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BASE):  # type: ignore[misc]
    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {
        first: [("tag:yaml.org,2002:null", _NULLS)] for first in ("~", "n", "N", "")
    }


@dataclass
class Document:
    """`data` is the document; `value_at` and `key_at` have the line and column of each value and key, by path."""

    text: str = ""

    data: Data = None
    value_at: dict[Path, tuple[int, int]] = field(default_factory=dict)
    key_at: dict[Path, tuple[int, int]] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def mistake(self, path: Path, what: str, todo: str = "", *, at_key: bool = False) -> None:
        """Add a mistake at the path, or at its nearest ancestor that is in the text."""
        known = tuple(path)
        while known and known not in self.value_at:
            known = known[:-1]
        key = self.key_at.get(known) if at_key else None
        line, column = key or self.value_at.get(known, (0, 0))
        self.mistakes.append(Mistake(line, column, spell(path), what, todo))

    def mistake_within(self, path: Path, value: str, offset: int, what: str, todo: str) -> None:
        """Add a mistake at a character of a value, if the value stands unchanged in the text, quoted or not."""
        self.mistake(path, what, todo)
        found = self.mistakes[-1]
        lines = self.text.splitlines()
        line = lines[found.line - 1] if 0 < found.line <= len(lines) else ""
        for quote in (0, 1):
            if line[found.column - 1 + quote :].startswith(value):
                self.mistakes[-1] = found._replace(column=found.column + quote + offset)
                return

    def is_wrong(self, path: Path) -> bool:
        """Whether there is a mistake at the path or below it."""
        name = spell(path)
        below = (f"{name}.", f"{name}[")
        return any(mistake.path == name or mistake.path.startswith(below) for mistake in self.mistakes)


class _TooMuchError(Exception):
    pass


def read(text: str, substitute: Callable[[str], str]) -> Document:
    """Read a document; `substitute` maps each scalar, or raises InvalidValueError for an invalid one."""
    document = Document(text)
    if len(text) > _MAX_LENGTH:
        document.mistakes.append(Mistake(0, 0, "", "the file is larger than 1 MiB", "name the configuration file"))
        return document
    try:
        _bound_depth(text)
        node = _single(text)
        if node is not None:
            document.data = _Walk(document, substitute).value(node, ())
    except yaml.YAMLError as error:
        document.mistakes.append(_syntax(error, text))
    except _TooMuchError as error:
        document.mistakes.append(Mistake(0, 0, "", str(error), "write out what the aliases (*name) stand for"))
    return document


def spell(path: Path) -> str:
    """The path as users read it: `rules[2].evict[0]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _single(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _bound_depth(text: str) -> None:
    """Refuse deep nesting; this reads the flat stream of parse events, because all later steps recurse."""
    depth = 0
    for token in yaml.parse(text, Loader=_Loader):
        if isinstance(token, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise _TooMuchError(f"the document nests deeper than {_MAX_DEPTH} levels")
        elif isinstance(token, yaml.CollectionEndEvent):
            depth -= 1


class _Walk:
    def __init__(self, document: Document, substitute: Callable[[str], str]) -> None:
        self.document, self.substitute, self.values = document, substitute, 0

    def value(self, node: yaml.Node, path: Path) -> Data:
        self.values += 1
        if self.values > _MAX_VALUES or len(path) > _MAX_DEPTH:
            raise _TooMuchError("the document's aliases expand without bound")
        self.document.value_at.setdefault(path, _position(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, number)) for number, item in enumerate(node.value)]
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path) -> Data:
        data: dict[str, Data] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                line, column = _position(key_node)
                self.document.mistakes.append(
                    Mistake(line, column, spell(path), "a key that is not text", 'quote it, if it begins with "{"')
                )
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in data:
                line, column = _position(key_node)
                first = self.document.key_at[here][0]
                what = f"this key is already on line {first}"
                self.document.mistakes.append(Mistake(line, column, spell(here), what, "keep one of them"))
                continue
            self.document.key_at[here] = _position(key_node)
            data[key] = self.value(value_node, here)
        return data

    def scalar(self, node: yaml.Node, path: Path) -> Data:
        if node.tag == "tag:yaml.org,2002:null":
            return None
        try:
            return self.substitute(node.value)
        except InvalidValueError as error:
            self.document.mistake(path, *error.problem)
            return str(node.value)


def _position(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


_UNQUOTED_TEMPLATE = re.compile(r"""^\s*-\s+[^"'#]*\{""")


def _syntax(error: yaml.YAMLError, text: str) -> Mistake:
    """PyYAML's four-line error as one line, with a remedy where the cause is known."""
    if isinstance(error, yaml.reader.ReaderError):
        return Mistake(0, 0, "", "the file holds a character that YAML does not allow", "save it as plain UTF-8 text")
    position = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if position is None:
        return Mistake(0, 0, "", " ".join(str(error).split()), "")
    what = getattr(error, "problem", None) or "this is not YAML"
    lines = text.splitlines()
    line = lines[position.line] if position.line < len(lines) else ""
    before = lines[position.line - 1] if 0 < position.line <= len(lines) else ""
    if "\t" in line[: position.column + 1] and "token" in what:
        return Mistake(
            position.line + 1, position.column + 1, "", "a tab where YAML wants spaces", "indent with spaces"
        )
    unquoted = next((guess for guess in (line, before) if _UNQUOTED_TEMPLATE.match(guess)), None)
    if unquoted is not None:
        quoted = unquoted.strip().removeprefix("-").strip()
        return Mistake(
            position.line + 1, position.column + 1, "", f"not YAML: {what}", f'quote the template: - "{quoted}"'
        )
    todo = "close what was opened, with ] or }" if "flow" in str(getattr(error, "context", "")) else ""
    return Mistake(position.line + 1, position.column + 1, "", f"not YAML: {what}", todo)
