"""Over-refusal: safe prompts that sound dangerous beside unsafe ones, and how often each is refused."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from cai.datasets.rows import Row
from cai.engines.base import EnginePrompt, Sampling
from cai.engines.journaled import generate_journaled, trimmed
from cai.errors import ConfigError, DataError
from cai.evaluation_sets.base import Asked, existing, located, questions, text_of
from cai.records import digest_file
from cai.scorers import Scorer
from cai.types import Prompt, Turn

__all__ = ["Refusals"]


class Refusals:
    """Rows with `prompt`, of which some are unsafe: those whose `label` begins with `unsafe` (none where `label` is
    null). XSTest (Röttger et al. 2024) as its authors publish it: label=type, unsafe=contrast_.

    Measures `refused_safe`, `refused_unsafe` and, where the scorer can tell, `evasive` (of refused unsafe prompts: no
    reason is given). Responses are sampled once; `scorer` needs a column `refusal`. Where it has no number for a
    response, or a server gave none, there is none here either, `unscored` (of all) is 1, and stderr says how many.
    """

    def __init__(
        self, *, path: str, scorer: Scorer, max_new_tokens: int, label: str | None = "label", unsafe: str = "unsafe",
        temperature: float = 0.0,
    ) -> None:  # fmt: skip
        if "refusal" not in scorer.columns:
            raise ConfigError(f"scorer: needs a column 'refusal', has {', '.join(scorer.columns)}")
        self._path = existing(path)
        self._scorer = scorer
        self._label = label
        self._unsafe = unsafe
        self._sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)

    def texts(self) -> dict[str, str]:
        """The digest of the file, and what the scorer depends on."""
        return {self._path.name: digest_file(self._path), **self._scorer.texts()}

    def measure(self, asked: Asked) -> list[dict[str, Any]]:
        """See `EvaluationSet`."""
        found = list(questions(self._path))
        labels = ["" if self._label is None else text_of(row, self._label, where) for where, row in found]
        unsafe = [self._label is not None and label.startswith(self._unsafe) for label in labels]
        if self._label is not None and not any(unsafe):
            raise DataError(f"{self._path}: no prompt is unsafe: no {self._label!r} begins with {self._unsafe!r}")
        prompts = [_prompt(i, row, where) for i, (where, row) in enumerate(found)]
        ids = [prompt.id for prompt in prompts]
        with located([where for where, _ in found]):
            responses = trimmed(
                generate_journaled(
                    asked.engine, [EnginePrompt(turns=p.turns) for p in prompts], self._sampling, asked.journal,
                    seed=asked.seed, keys=ids, prompt_ids=ids, model=asked.model, title="over-refusal",
                )
            )  # fmt: skip
        columns = self._scorer.score(prompts, [response.text for response in responses])
        rows: list[dict[str, Any]] = []
        unscored: list[bool] = []
        for i, response in enumerate(responses):
            values = {} if response.failed else {name: _number(own[i]) for name, own in columns.items()}
            refused = values.get("refusal")
            evasive = values.get("evasive") if unsafe[i] else None
            unscored.append(refused is None or bool(unsafe[i] and refused and "evasive" in columns and evasive is None))
            evasive = evasive if refused or evasive else None  # of what was not answered
            rows.append({
                "item": ids[i],
                "group": labels[i],
                "refused_safe": None if unsafe[i] else refused,
                "refused_unsafe": refused if unsafe[i] else None,
                "evasive": evasive,
                "response": response.text,
            })  # fmt: skip
        return _with_unscored(rows, unscored)


def _with_unscored(rows: list[dict[str, Any]], unscored: Sequence[bool]) -> list[dict[str, Any]]:
    """The rows as they are where all have numbers; or with a column that says which have not."""
    if not any(unscored):
        return rows
    print(
        f"over-refusal: {sum(unscored):,} of {len(rows):,} responses have no number: the scorer does not know their "
        "prompts, or a server failed to give them",
        file=sys.stderr,
    )
    return [{**row, "unscored": float(lacks)} for row, lacks in zip(rows, unscored, strict=True)]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _prompt(number: int, row: Row, where: str) -> Prompt:
    return Prompt(id=f"q{number}", turns=(Turn("user", text_of(row, "prompt", where)),))
