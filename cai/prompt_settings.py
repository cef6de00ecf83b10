"""`family.yaml`: how a prompt family words the requests of plain principles, and which markers values must not hold."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cai.constitution import Principle
from cai.errors import PromptError
from cai.strict_yaml import Checker, Node, Scalar, YamlProblem, parse_file

__all__ = ["Settings", "Wording", "broken_up", "read_settings"]

_REQUESTS: Final = ("critique", "revision", "comparison")
_BREAKS: Final = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"


@dataclass(frozen=True, slots=True)
class Wording:
    """A principle as templates see it: every wording filled in."""

    id: str
    axis: str
    statement: str
    critique: str
    revision: str
    comparison: str


@dataclass(frozen=True, slots=True)
class Settings:
    """`requests` has a text with `{statement}` for each kind of request; `reserved` finds the reserved markers."""

    requests: dict[str, str]
    reserved: re.Pattern[str] | None

    def inert(self, value: str) -> tuple[str, int]:
        """The value with its reserved markers broken up, and how many there were."""
        return broken_up(value, self.reserved)

    def worded(self, principle: Principle) -> Wording:
        """The principle with its own wording of each request, or else the family's."""
        given = {"critique": principle.critique, "revision": principle.revision, "comparison": principle.comparison}
        filled = {
            request: self.inert(text or self.requests[request].replace("{statement}", principle.statement))[0]
            for request, text in given.items()
        }
        return Wording(id=principle.id, axis=principle.axis, statement=self.inert(principle.statement)[0], **filled)


def broken_up(value: str, reserved: re.Pattern[str] | None) -> tuple[str, int]:
    """The value with a space before the last character of everything that `reserved` finds, and how much it found."""
    if reserved is None:
        return value, 0
    total = 0
    for _ in range(8):  # breaking one marker up may, in odd sets of markers, make another
        value, number = reserved.subn(lambda found: f"{found[0][:-1]} {found[0][-1]}", value)
        if not number:
            return value, total
        total += number
    raise PromptError("family.yaml: reserved: breaking up some of these markers makes others without end")


def read_settings(path: Path | None) -> Settings:
    """The settings in a file; without one, the statement itself is the wording and nothing is reserved."""
    if path is None:
        return Settings(dict.fromkeys(_REQUESTS, "{statement}"), None)
    checker = Checker(path)
    try:
        values = checker.mapping(parse_file(path), "", known=(*_REQUESTS, "reserved"), required=())
        requests = {request: _request(checker, values.get(request), request) for request in _REQUESTS}
        items = checker.sequence(values.get("reserved"), "reserved")
        markers = [_marker(checker, item, f"reserved[{index}]") for index, item in enumerate(items)]
    except YamlProblem as problem:
        raise PromptError(f"{path}:{problem.line}: {problem.problem}") from None
    if checker.problems:
        raise PromptError(checker.problems[0])
    return Settings(requests, _finder(markers))


def _request(checker: Checker, node: Node | None, key: str) -> str:
    text = checker.text(node, key) or "{statement}"
    if node is not None and "{statement}" not in text:
        checker.add(node.line, key, "must hold {statement}, the place of the principle")
    return text


def _marker(checker: Checker, node: Node, key: str) -> str:
    """The marker as written, line breaks at its start included."""
    marker = node.text if isinstance(node, Scalar) and checker.text(node, key) else ""
    if marker and (len(marker) < 2 or marker[-2] == " "):
        checker.add(node.line, key, "must be two characters or more, with no space before the last")
    return marker


def _finder(markers: Iterable[str]) -> re.Pattern[str] | None:
    """Finds any of the markers, longer ones first. One that starts a line is found after whatever Unicode counts as a
    line break, with white space before it or without; and at the start of a value, for which the template may have
    begun the line.
    """
    longest_first = sorted(markers, key=len, reverse=True)
    begins = rf"(?:\A\s*|[{_BREAKS}][^\S{_BREAKS}]*)"
    patterns = [
        begins + re.escape(marker[1:]) if marker.startswith("\n") else re.escape(marker) for marker in longest_first
    ]
    return re.compile("|".join(patterns)) if patterns else None
