"""Finding the options of a choice in what a server says: in its tokens' log-probabilities, or in its text.

Models spell an option in many ways: ` (A)`, `(A)`, `A`, `**A**`, in one token or in several. So options are compared by
their cores, without the white space, brackets, quotes and stars around them, and the probabilities of all spellings
are added up.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cai.errors import EngineError

__all__ = ["Options", "Position"]

_OPENING: Final = " \t\r\n([{<\"'`*_#"
_CLOSING: Final = " \t\r\n)]}>\"'`*_.:,;!"
_OPEN: Final = -1  # may still become one of several options
_NOWHERE: Final = -2


@dataclass(frozen=True, slots=True)
class Position:
    """A token of an answer: what was said, and the log-probabilities of what could have been, itself included."""

    token: str
    top: Mapping[str, float]


class Options:
    """The options of one choice. Raises EngineError when their cores are empty or the same."""

    def __init__(self, texts: Sequence[str]) -> None:
        cores = [text.lstrip(_OPENING).rstrip(_CLOSING) for text in texts]
        # Yes is yes, but a token "a" is an article more often than it is option A.
        self._fold = all(len(core) > 1 for core in cores)
        self.texts = tuple(text.strip() for text in texts)
        self.cores = tuple(self._folded(core) for core in cores)
        if not all(self.cores) or len(set(self.cores)) < len(self.cores):
            raise EngineError(f"options {', '.join(map(repr, texts))}: cannot be told apart in a server's answer")

    def logps(self, positions: Sequence[Position]) -> list[float]:
        """Log-probability of each option, over all spellings among the tokens that the server names; -inf for none.

        Walks along the tokens that were said for as long as these may still become more than one option, and adds up
        the ones that decide it. What lies off that path and is undecided is nobody's, so the sum is a lower bound.
        """
        odds = [0.0] * len(self.cores)
        said, p_said = "", 1.0
        for position in positions:
            for token, logp in position.top.items():
                place = self._place(said + token)
                if place >= 0:
                    odds[place] += p_said * math.exp(logp)
            said += position.token
            p_said *= math.exp(position.top[position.token])
            if self._place(said) != _OPEN:
                break
        else:  # the answer ended, and is the shorter one of "1" and "10"
            core = self._folded(said.lstrip(_OPENING))
            if core in self.cores:
                odds[self.cores.index(core)] += p_said
        return [math.log(odd) if odd > 0 else -math.inf for odd in odds]

    def verdict(self, text: str) -> int | None:
        """Which option a text chooses: the one it begins with, or else the only one it names. None: neither."""
        text = self._folded(text)
        begins = text.lstrip(_OPENING)
        found = [i for i, core in enumerate(self.cores) if begins.startswith(core) and _ends(begins[len(core) :], core)]
        if found:
            return max(found, key=lambda i: len(self.cores[i]))
        named = [i for i, option in enumerate(self.texts) if self._names(text, self._folded(option), self.cores[i])]
        return named[0] if len(named) == 1 else None

    def _place(self, text: str) -> int:
        """The number of the option that a beginning of an answer has come down to, or _OPEN, or _NOWHERE."""
        text = self._folded(text.lstrip(_OPENING))
        if not text:
            return _OPEN
        begun = [i for i, core in enumerate(self.cores) if core.startswith(text)]
        if len(begun) > 1:
            return _OPEN
        whole = [
            i for i, core in enumerate(self.cores) if text.startswith(core) and not text[len(core) :][:1].isalnum()
        ]
        if whole:
            return max(whole, key=lambda i: len(self.cores[i]))
        # A piece that only one option begins with counts for it: its other pieces cannot be asked for.
        return begun[0] if begun else _NOWHERE

    def _folded(self, text: str) -> str:
        return text.casefold() if self._fold else text

    @staticmethod
    def _names(text: str, option: str, core: str) -> bool:
        """Whether an option is named in a text, as written; a bare letter would be found in any."""
        if option != core:
            return option in text
        return len(core) > 1 and re.search(rf"\b{re.escape(core)}\b", text) is not None


def _ends(rest: str, core: str) -> bool:
    """Whether `core` ends where `rest` begins. After a single letter a word may not follow: "A good answer is B"."""
    return not rest or (rest[0] in _CLOSING.strip() + "\n" if len(core) == 1 else not rest[0].isalnum())
