"""Constitutions: YAML files of principles that people edit. Loading, checking, hashing, and the seeded draw.

The text of a principle is data: `${...}` and `{{ ... }}` in it are literal, here and wherever it is rendered.
"""

import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cai import paths
from cai.errors import ConstitutionError, unknown
from cai.records import fingerprint, seed_of
from cai.strict_yaml import Checker, Node, YamlProblem, describe, parse_file

__all__ = ["Constitution", "Example", "Principle", "check", "load"]

MAX_PRINCIPLES: Final = 10_000

_KEYS: Final = ("name", "description", "principles", "examples")
_PRINCIPLE_KEYS: Final = ("id", "axis", "statement", "critique", "revision", "comparison", "weight", "applies_to")
_EXAMPLE_KEYS: Final = ("prompt", "better", "worse", "principle")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Principle:
    """One principle. `critique`, `revision` and `comparison` are its own wordings of the three requests, or None when
    the prompt family is to make them from `statement`. Empty `applies_to` means every prompt.
    """

    id: str
    axis: str
    statement: str
    critique: str | None = None
    revision: str | None = None
    comparison: str | None = None
    weight: float = 1.0
    applies_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A test of the constitution: under `principle`, `better` should be preferred to `worse`."""

    prompt: str
    better: str
    worse: str
    principle: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Constitution:
    """The checked content of a file. `sha256` is of the principles as read, so that a comment, the description or an
    example may change without making what was computed under the constitution stale.
    """

    name: str
    description: str
    principles: tuple[Principle, ...]
    examples: tuple[Example, ...]
    path: Path
    sha256: str

    def for_tags(self, tags: Collection[str]) -> tuple[Principle, ...]:
        """The principles that apply to a prompt with these tags, in the order of the file."""
        return tuple(p for p in self.principles if not p.applies_to or not set(p.applies_to).isdisjoint(tags))

    def unused(self, tags: Collection[str]) -> dict[str, str]:
        """Why principles apply to no prompt, by id, when `tags` are those of all the prompts there are."""
        return {
            p.id: unknown("tag", ", ".join(p.applies_to), tags)
            for p in self.principles
            if p.applies_to and set(p.applies_to).isdisjoint(tags)
        }

    def draw(self, seed: int, key: str, tags: Collection[str], count: int = 1) -> tuple[Principle, ...]:
        """`count` different principles that apply, each next one drawn in proportion to weight.

        Depends on (seed, key) and the principles alone. Every principle runs its own race against the clock
        (Efraimidis and Spirakis 2006: ranking by -log(u)/weight is sequential weighted drawing without replacement),
        so a principle that is added or removed changes only the draws that it wins or won.

        ConstitutionError when fewer than `count` apply.
        """
        candidates = self.for_tags(tags)
        if len(candidates) < count:
            raise ConstitutionError(
                f"{self.path}: {count} principles are asked for, but {len(candidates)} apply to a prompt with the tags "
                f"{', '.join(sorted(tags)) or '(none)'}; add principles, or widen applies_to"
            )
        return tuple(sorted(candidates, key=lambda p: (_arrival(seed, key, p), p.id))[:count])


def _arrival(seed: int, key: str, principle: Principle) -> float:
    u = (seed_of(seed, "principle", key, principle.id) + 0.5) / 2**63  # in (0, 1]; never 0, whose log is infinite
    return -math.log(u) / principle.weight


def load(path: str) -> Constitution:
    """The constitution in a file, or the one with a name: `./constitutions/NAME.yaml`, then the shipped one.

    ConstitutionError names the first problem (file, line, key), how many more there are, and what lists them.
    """
    constitution, problems = _read(_find(path))
    if problems:
        others = f"{len(problems) - 1} more; all of them: cai constitution check {path}"
        more = f" (and {others})" if len(problems) > 1 else ""
        raise ConstitutionError(problems[0] + more)
    assert constitution is not None
    return constitution


def check(path: str) -> list[str]:
    """Every problem of the file (or name), one line each; empty when `load` would succeed."""
    try:
        return _read(_find(path))[1]
    except ConstitutionError as error:
        return [str(error)]


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConstitutionError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
        return path
    found = paths.search("constitutions", name, ".yaml")
    if found is None:
        raise ConstitutionError(unknown("constitution", name, paths.names("constitutions", ".yaml")))
    return found


def _read(path: Path) -> tuple[Constitution | None, list[str]]:
    """The constitution, or None with its problems."""
    checker = Checker(path)
    try:
        constitution = _build(checker, parse_file(path))
    except YamlProblem as problem:
        return None, [*checker.problems, f"{path}:{problem.line}: {problem.problem}"]
    except OSError as error:
        return None, [f"{path}: cannot be read: {error.strerror}"]
    return (None if checker.problems else constitution), checker.problems


def _build(checker: Checker, root: Node) -> Constitution:
    """The constitution; not to be used when the checker has problems."""
    values = checker.mapping(root, "", known=_KEYS, required=("principles",))
    principles = _read_principles(checker, values.get("principles"))
    return Constitution(
        name=checker.text(values.get("name"), "name") or checker.path.stem,
        description=checker.text(values.get("description"), "description") or "",
        principles=principles,
        examples=_read_examples(checker, values.get("examples"), {p.id for p in principles}),
        path=checker.path,
        sha256=fingerprint([asdict(p) for p in principles]),
    )


def _read_principles(checker: Checker, node: Node | None) -> tuple[Principle, ...]:
    items = checker.sequence(node, "principles")
    if node is not None and len(items) > MAX_PRINCIPLES:
        checker.add(node.line, "principles", f"at most {MAX_PRINCIPLES:,} are allowed, got {len(items):,}")
        return ()
    lines: dict[str, int] = {}
    principles = []
    for index, item in enumerate(items):
        principle = _read_principle(checker, item, f"principles[{index}]")
        if principle.id in lines:
            first = lines[principle.id]
            checker.add(
                item.line, f"principles[{index}].id", f"{principle.id!r} is there twice (first in line {first})"
            )
        elif principle.id:
            lines[principle.id] = item.line
        principles.append(principle)
    return tuple(principles)


def _read_principle(checker: Checker, node: Node, key: str) -> Principle:
    """The principle, with empty texts where there are problems."""
    values = checker.mapping(node, key, known=_PRINCIPLE_KEYS, required=("id", "axis", "statement"))
    return Principle(
        id=_name(checker, values.get("id"), f"{key}.id"),
        axis=_name(checker, values.get("axis"), f"{key}.axis"),
        statement=checker.text(values.get("statement"), f"{key}.statement") or "",
        critique=checker.text(values.get("critique"), f"{key}.critique"),
        revision=checker.text(values.get("revision"), f"{key}.revision"),
        comparison=checker.text(values.get("comparison"), f"{key}.comparison"),
        weight=checker.positive(values.get("weight"), f"{key}.weight", default=1.0),
        applies_to=_read_tags(checker, values.get("applies_to"), f"{key}.applies_to"),
    )


def _read_tags(checker: Checker, node: Node | None, key: str) -> tuple[str, ...]:
    tags: list[str] = []
    for index, item in enumerate(checker.sequence(node, key)):
        tag = _name(checker, item, f"{key}[{index}]")
        if tag in tags:
            checker.add(item.line, f"{key}[{index}]", f"{tag!r} is there twice")
        tags.append(tag)
    return tuple(tags)


def _read_examples(checker: Checker, node: Node | None, ids: set[str]) -> tuple[Example, ...]:
    examples = []
    for index, item in enumerate(checker.sequence(node, "examples")):
        key = f"examples[{index}]"
        values = checker.mapping(item, key, known=_EXAMPLE_KEYS, required=_EXAMPLE_KEYS)
        texts = {name: checker.text(value, f"{key}.{name}") or "" for name, value in values.items()}
        example = Example(**{name: texts.get(name, "") for name in _EXAMPLE_KEYS})
        if example.principle and example.principle not in ids:
            line = values["principle"].line
            few = len(ids) <= 200  # the nearest of ten thousand takes too long to find, and too long to read
            problem = (
                unknown("principle", example.principle, ids) if few else f"unknown principle {example.principle!r}"
            )
            checker.add(line, f"{key}.principle", problem)
        if example.better and example.better == example.worse:
            checker.add(values["worse"].line, f"{key}.worse", "is the same text as better")
        examples.append(example)
    return tuple(examples)


def _name(checker: Checker, node: Node | None, key: str) -> str:
    """A short name that can stand in file names, tables and keys."""
    name = checker.text(node, key)
    if name is None:
        return ""
    if node is not None and not _NAME.fullmatch(name):
        checker.add(node.line, key, f"must be letters, digits, _ . or - (at most 64), got {describe(node)}")
        return ""
    return name
