"""Multiple choice by the log-probabilities of the options, as the authors of Constitutional AI ask HHH questions."""

from collections.abc import Sequence
from typing import Any

from cai.codec import shown
from cai.datasets.rows import Row
from cai.engines.base import EnginePrompt
from cai.errors import DataError
from cai.evaluation_sets.base import Asked, existing, log_probabilities, questions, shares, text_of, texts_of
from cai.records import digest_file
from cai.types import Turn

__all__ = ["MultipleChoice"]


class MultipleChoice:
    """Rows with `prompt`, and either `corrects` and `incorrects` (options), or `choices` and `answer` (a place, from
    0). In a CSV file the lists are JSON.

    Measures `correct` (1 if the most probable option is a right one; options that tie share it), `p_correct` (the
    right ones' share of the options' probability) and `first` (1 if the most probable option is the one that stands
    first, or comes first by its letter: half of them where the set is balanced and position does not matter). `chat`
    asks through the model's chat template; otherwise the prompt is a text to go on with. `group` names the key, if
    any, by which figures are shown apart.
    """

    def __init__(self, *, path: str, chat: bool = False, group: str | None = None) -> None:
        self._path = existing(path)
        self._chat = chat
        self._group = group

    def texts(self) -> dict[str, str]:
        """The digest of the file."""
        return {self._path.name: digest_file(self._path)}

    def measure(self, asked: Asked) -> list[dict[str, Any]]:
        """See `EvaluationSet`."""
        found = list(questions(self._path))
        texts = [text_of(row, "prompt", where) for where, row in found]
        options = [_options(row, where) for where, row in found]
        groups = ["" if self._group is None else text_of(row, self._group, where) for where, row in found]
        prompts = [EnginePrompt(turns=(Turn("user", t),)) if self._chat else EnginePrompt(text=t) for t in texts]
        places = [where for where, _ in found]
        logps = log_probabilities(asked, prompts, [list(o) for o in options], places, title="multiple choice")
        return [
            {"item": f"q{i}", "group": groups[i], **_verdict(list(options[i].values()), own)}
            for i, own in enumerate(logps)
        ]


def _options(row: Row, where: str) -> dict[str, bool]:
    """The options in order, and whether each is right."""
    if "choices" in row:
        choices = texts_of(row, "choices", where)
        answer = row.get("answer")
        if isinstance(answer, str) and answer.isdecimal():  # a cell of a table
            answer = int(answer)
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise DataError(f"{where}: key 'answer' must be a place from 0 to {len(choices) - 1}, got {shown(answer)}")
        options = {choice: place == answer for place, choice in enumerate(choices)}
        given = len(choices)
    elif "corrects" in row and "incorrects" in row:
        right, wrong = (texts_of(row, key, where) for key in ("corrects", "incorrects"))
        options = dict(sorted([*((text, True) for text in right), *((text, False) for text in wrong)]))
        given = len(right) + len(wrong)
    else:
        raise DataError(f"{where}: needs 'corrects' and 'incorrects', or 'choices' and 'answer'; has {', '.join(row)}")
    if len(options) < given or len(set(options.values())) < 2:
        raise DataError(f"{where}: options must be different, some right and some wrong, got {shown(list(options))}")
    return options


def _verdict(right: Sequence[bool], logps: Sequence[float]) -> dict[str, float]:
    best = [place for place, logp in enumerate(logps) if logp == max(logps)]
    return {
        "correct": sum(right[place] for place in best) / len(best),
        "p_correct": sum(share for share, is_right in zip(shares(logps), right, strict=True) if is_right),
        "first": (0 in best) / len(best),
    }
