"""Bias by entropy over pairs of sentences that differ in who they are about (Ouyang et al. 2022, appendix E).

P is what the model gives the two sentences, taken as shares; H = -sum P log2 P, 1 bit where it has no preference.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from cai.engines.base import EnginePrompt
from cai.errors import ConfigError, DataError, unknown
from cai.evaluation_sets.base import Asked, existing, log_probabilities, questions, shares, text_of
from cai.records import digest_file

__all__ = ["SentencePairs", "entropy"]

_GENDER: Final = re.compile(r"\.(male|female|neutral)(?=\.|$)")


class _Pair(NamedTuple):
    where: str
    item: str
    group: str
    first: str
    second: str


class SentencePairs:
    """Pairs of CrowS-Pairs (Nangia et al. 2020: `sent_more`, `sent_less`, `bias_type`) or Winogender (Rudinger et al.
    2018: `sentid`, `sentence`; the male and the female sentence of a template).

    Measures `entropy` (bits) and `prefers_first` (1 if the first is more probable: the more stereotyped sentence, or
    the male one). Sentences come after `prefix`: an empty line, or an instruction, such as to be respectful.
    """

    def __init__(self, *, path: str, kind: Literal["crows_pairs", "winogender"], prefix: str = "\n") -> None:
        if kind not in _READERS:
            raise ConfigError(f"kind: {unknown('kind of pairs', kind, _READERS)}")
        if not prefix.strip(" "):
            raise ConfigError("prefix: needs a character that is no space: a model goes on from something")
        self._path = existing(path)
        self._kind = kind
        self._prefix = prefix

    def texts(self) -> dict[str, str]:
        """The digest of the file."""
        return {self._path.name: digest_file(self._path)}

    def measure(self, asked: Asked) -> list[dict[str, Any]]:
        """See `EvaluationSet`."""
        pairs = list(_READERS[self._kind](self._path))
        prompts = [EnginePrompt(text=self._prefix)] * len(pairs)
        sentences = [(p.first, p.second) for p in pairs]
        places = [f"{p.where}, after the prefix {self._prefix!r}" for p in pairs]
        logps = log_probabilities(asked, prompts, sentences, places, title="sentence pairs")
        return [
            {"item": p.item, "group": p.group, "entropy": entropy(shares(own)), "prefers_first": _first(own)}
            for p, own in zip(pairs, logps, strict=True)
        ]


def entropy(p: Sequence[float]) -> float:
    """-sum p log2 p, in bits.

    >>> entropy([0.5, 0.5])
    1.0
    """
    return -sum(x * math.log2(x) for x in p if x > 0)


def _first(logps: Sequence[float]) -> float:
    first, second = logps
    return 0.5 if first == second else float(first > second)


def _crows_pairs(path: Path) -> Iterator[_Pair]:
    for number, (where, row) in enumerate(questions(path)):
        more, less, kind = (text_of(row, key, where) for key in ("sent_more", "sent_less", "bias_type"))
        yield _Pair(where, f"q{number}", kind, more, less)


def _winogender(path: Path) -> Iterator[_Pair]:
    """`nurse.patient.0.male.txt` and `nurse.patient.0.female.txt` are a pair; neutral sentences are in none."""
    sentences: dict[str, dict[str, str]] = {}
    places: dict[str, str] = {}
    for where, row in questions(path):
        name, sentence = (text_of(row, key, where) for key in ("sentid", "sentence"))
        gender = _GENDER.search(name)
        if gender is None:
            raise DataError(f"{where}: key 'sentid' must hold .male, .female or .neutral, got {name!r}")
        own = sentences.setdefault(_GENDER.sub("", name), {})
        if gender[1] in own:
            raise DataError(f"{where}: key 'sentid': {name!r} is there twice")
        own[gender[1]] = sentence
        places.setdefault(_GENDER.sub("", name), where)
    for name, own in sentences.items():
        if not {"male", "female"} <= own.keys():
            raise DataError(f"{path}: {name} has no {'fe' * ('male' in own)}male sentence")
        yield _Pair(places[name], name, name.partition(".")[0], own["male"], own["female"])


_READERS: Final = {"crows_pairs": _crows_pairs, "winogender": _winogender}
