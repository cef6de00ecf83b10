"""YAML for files that people edit: every value keeps its line, and what only does harm there is refused.

Anchors and aliases (YAML bombs), tags (Python objects), several documents, deep nesting and very large files end the
reading with a line number; the parser's events are read one by one, so a hostile file is given up early. A `Checker`
then takes the values out, and collects everything that is wrong with them: unknown and duplicate keys, wrong types.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from yaml.resolver import Resolver

from cai.errors import unknown

__all__ = ["Checker", "Mapping", "Node", "Scalar", "Sequence", "YamlProblem", "describe", "parse_file"]

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 12
MAX_NODES: Final = 300_000
MAX_PROBLEMS: Final = 100

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is some ten times faster
_RESOLVER: Final = Resolver()
_UNPRINTABLE: Final = re.compile("[^\x09\x0a\x0d\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NUMBER: Final = re.compile(r"\d{1,15}(\.\d{1,15})?")
_KINDS: Final = {
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
    "timestamp": "a date",
}


class YamlProblem(Exception):
    """What is wrong with the file, and in which line (from 1)."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value as written. `kind` is what YAML takes it for: `text`, `a number`, `true or false`, ..."""

    line: int
    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    line: int
    items: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys with their values, in the order of the file."""

    line: int
    entries: "tuple[tuple[Scalar, Node], ...]"


Node = Scalar | Sequence | Mapping


def describe(node: Node) -> str:
    """What a node is, for an error message that says what was found.

    >>> describe(Scalar(1, "yes", "true or false"))
    "'yes', which YAML takes for true or false"
    """
    if isinstance(node, Scalar):
        if node.kind == "nothing":
            return "nothing"
        shown = node.text if len(node.text) <= 40 else node.text[:37] + "..."
        return repr(shown) if node.kind == "text" else f"{shown!r}, which YAML takes for {node.kind}"
    if isinstance(node, Sequence):
        return "a list" if node.items else "an empty list"
    return "a mapping (keys with values)"


def parse_file(path: Path) -> Node:
    """The one document of a YAML file; YamlProblem says what is wrong and where. OSError when it cannot be read."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise YamlProblem(1, f"the file is larger than {MAX_BYTES:,} bytes, which is the most that is allowed")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlProblem(data.count(b"\n", 0, error.start) + 1, "not UTF-8; save the file as UTF-8 text") from None
    if found := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise YamlProblem(line, f"control character U+{ord(found[0]):04X} is not allowed")
    try:
        return _Reader(yaml.parse(text, Loader=_LOADER)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        told = f"not valid YAML: {error.problem or error.context}{_hint(error)}"
        raise YamlProblem(mark.line + 1 if mark else 1, told) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the parser in Python trips over some escapes
        raise YamlProblem(1, f"not valid YAML: {str(error).splitlines()[0]}") from None


def _hint(error: yaml.MarkedYAMLError) -> str:
    """What to look at, where the parser's words name what it wanted and not what is usually wrong."""
    if "mapping values" in (error.problem or ""):
        return "; check the indentation of that line, and put a text with a colon in it in quotes"
    said = f"{error.context} {error.problem}"
    is_block = any(words in said for words in ("parsing a block", "document start", "simple key"))
    return "; check the indentation of that line" if is_block else ""


class _Reader:
    """Builds nodes from parser events, refusing what the module docstring lists."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self._num_nodes = 0

    def document(self) -> Node:
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            raise YamlProblem(1, "the file is empty")
        node = self._node(next(self._events), depth=0)
        next(self._events)  # the end of the document
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise YamlProblem(_line(after), "a second document starts here; the file must hold one")
        return node

    def _node(self, event: yaml.Event, depth: int) -> Node:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise YamlProblem(
                line, "anchors (&) and aliases (*) are not allowed; write the text out, or put it in quotes"
            )
        if getattr(event, "tag", None) is not None:
            raise YamlProblem(line, "tags (!) are not allowed; remove it, or put the text in quotes")
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES or depth > MAX_DEPTH:
            limit = f"nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else f"more than {MAX_NODES:,} values"
            raise YamlProblem(line, f"{limit}, which is the most that is allowed")
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(line, event.value, _kind(event))
        if isinstance(event, yaml.SequenceStartEvent):
            return Sequence(line, tuple(self._node(e, depth + 1) for e in self._until(yaml.SequenceEndEvent)))
        return Mapping(line, tuple(self._entries(depth)))

    def _entries(self, depth: int) -> Iterator[tuple[Scalar, Node]]:
        for event in self._until(yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            if not isinstance(key, Scalar):
                raise YamlProblem(key.line, f"a key must be text, got {describe(key)}")
            yield key, self._node(next(self._events), depth + 1)

    def _until(self, end: type[yaml.Event]) -> Iterator[yaml.Event]:
        while not isinstance(event := next(self._events), end):
            yield event


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _kind(event: yaml.ScalarEvent) -> str:
    tag: str = _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
    return _KINDS.get(tag.rpartition(":")[2], "text")


class Checker:
    """Takes values out of nodes. What is wrong is added to `problems`, one line each: `file:line: key: problem`; the
    value is then None (or lacks the part that is wrong), so that one pass finds everything.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: list[tuple[int, str]] = []

    @property
    def problems(self) -> list[str]:
        """Everything found so far, in the order of lines."""
        return [problem for _, problem in sorted(self._found, key=lambda found: found[0])]

    def add(self, line: int, key: str, problem: str) -> None:
        """Note a problem; a hundred are enough, then YamlProblem ends the reading."""
        if len(self._found) >= MAX_PROBLEMS:
            raise YamlProblem(line, "and more problems from here on")
        self._found.append((line, f"{self.path}:{line}: {key}: {problem}" if key else f"{self.path}:{line}: {problem}"))

    def mapping(self, node: Node, key: str, known: Collection[str], required: Collection[str]) -> dict[str, Node]:
        """The values by key; keys that are unknown, doubled or missing are problems."""
        if not isinstance(node, Mapping):
            self.add(
                node.line, key, f"must be a mapping with the keys {', '.join(required or known)}; got {describe(node)}"
            )
            return {}
        values: dict[str, Node] = {}
        for name, value in node.entries:
            place = f"{key}.{name.text}" if key else name.text
            if name.text not in known:
                self.add(name.line, place, unknown("key", name.text, known))
            elif name.text in values:
                self.add(name.line, place, f"is there twice (first with its value in line {values[name.text].line})")
            else:
                values[name.text] = value
        for name_required in required:
            if name_required not in values:
                self.add(node.line, f"{key}.{name_required}" if key else name_required, "missing")
        return values

    def sequence(self, node: Node | None, key: str) -> tuple[Node, ...]:
        """The items of a list that is not empty."""
        if node is None:
            return ()
        if not isinstance(node, Sequence) or not node.items:
            self.add(node.line, key, f"must be a list with at least one entry, got {describe(node)}")
            return ()
        return node.items

    def text(self, node: Node | None, key: str) -> str | None:
        """Text that is not empty, without the white space around it."""
        if node is None:
            return None
        if not isinstance(node, Scalar) or node.kind != "text":
            quote = "; put it in quotes" if isinstance(node, Scalar) and node.kind != "nothing" else ""
            self.add(node.line, key, f"must be text, got {describe(node)}{quote}")
            return None
        if not node.text.strip():
            self.add(node.line, key, "must not be empty")
            return None
        if found := _UNPRINTABLE.search(node.text):  # written as an escape
            self.add(node.line, key, f"control character U+{ord(found[0]):04X} is not allowed")
            return None
        return node.text.strip()

    def positive(self, node: Node | None, key: str, default: float) -> float:
        """A finite number above 0."""
        if node is None:
            return default
        if (
            isinstance(node, Scalar)
            and node.kind == "a number"
            and _NUMBER.fullmatch(node.text)
            and float(node.text) > 0
        ):
            return float(node.text)
        found = repr(node.text) if isinstance(node, Scalar) else describe(node)
        self.add(node.line, key, f"must be a number above 0 (without quotes), got {found}")
        return default
