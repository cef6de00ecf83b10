"""What can be held against the texts of a constitution without asking anybody: doubles, negations, length."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations
from typing import Final

from cai.constitution import Constitution, Principle

__all__ = ["Finding", "num_negations", "num_words", "text_findings"]

_ALIKE: Final = 0.85  # share of the words of two texts that are the same, in the same order
_MOST_COMPARED: Final = 1000  # principles; the pairs of more take too long
_MANY_NEGATIONS: Final = 2  # in one text: what it asks for is then a puzzle to a small judge
_LONG: Final = 60  # words; those that Bai et al. 2022b used have 15 to 45
_NEGATION: Final = re.compile(
    r"\b(?:no|not|never|none|nobody|nothing|neither|nor|without|cannot)\b|n['\u2019]t\b", re.I
)
_KEYS: Final = ("statement", "critique", "revision", "comparison")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at: what it is, the principles that it is about, the evidence in a sentence, and a case of it
    as (label, text) lines.
    """

    kind: str
    principles: tuple[str, ...]
    evidence: str
    example: tuple[tuple[str, str], ...] = ()


def num_words(text: str) -> int:
    """Words in a text."""
    return len(text.split())


def num_negations(text: str) -> int:
    """Words that turn a sentence round: not, no, never, without, ..."""
    return len(_NEGATION.findall(text))


def text_findings(constitution: Constitution) -> list[Finding]:
    """Duplicates and near-duplicates among principles, then texts that are long or hard to follow."""
    principles = constitution.principles
    return [*_doubles(principles), *(finding for p in principles for finding in _hard(p))]


def _doubles(principles: Sequence[Principle]) -> Iterator[Finding]:
    worded = [(p, {key: text.lower().split() for key, text in _texts(p)}) for p in principles]
    near = len(principles) <= _MOST_COMPARED
    for (a, ours), (b, theirs) in combinations(worded, 2):
        for key in _KEYS:
            if key not in ours or key not in theirs:
                continue
            if ours[key] == theirs[key]:
                yield Finding("duplicate", (a.id, b.id), f"{key}: the same words")
            elif near and (share := _alike(ours[key], theirs[key])) >= _ALIKE:
                words = f"{100 * share:.0f} % of the words are the same: {' '.join(ours[key])!r}"
                yield Finding("near-duplicate", (a.id, b.id), f"{key}: {words} and {' '.join(theirs[key])!r}")


def _alike(a: Sequence[str], b: Sequence[str]) -> float:
    """2 M / (len(a) + len(b)), where M words match in order; 0 where a quick look shows that it cannot matter."""
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if matcher.real_quick_ratio() < _ALIKE or matcher.quick_ratio() < _ALIKE:
        return 0.0
    return matcher.ratio()


def _hard(principle: Principle) -> Iterator[Finding]:
    for key, text in _texts(principle):
        if (negations := num_negations(text)) >= _MANY_NEGATIONS:
            yield Finding("negations", (principle.id,), f"{key}: {negations} negations in {text!r}")
        if (words := num_words(text)) > _LONG:
            yield Finding("length", (principle.id,), f"{key}: {words} words, of which a small judge may read the first")


def _texts(principle: Principle) -> Iterator[tuple[str, str]]:
    for key in _KEYS:
        text = getattr(principle, key)
        if text is not None:
            yield key, text
