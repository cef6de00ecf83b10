"""Asking a model through the slots of a rendered template.

Every choice slot but the last is marginalised: all ways through them are asked and weighted by the probability of the
options on the way. Text slots (chain of thought) are sampled once per way. The last slot is the label. So multiple
choice, verdict-then-choice and chain of thought are templates, not code paths.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cai.engines.base import Engine, Sampling
from cai.prompts import ChoiceSlot, Rendered, TextSlot

__all__ = ["Answer", "Branch", "Slots", "ask", "read"]

Slots = tuple[ChoiceSlot | TextSlot, ...]

_DECIMALS = 6  # of the log-probabilities and weights kept as evidence


@dataclass(frozen=True, slots=True)
class Branch:
    """A choice slot as it is reached by filling the slots before it with `given`; `logps` are of its options."""

    given: tuple[str, ...]
    logps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Probabilities of the last slot's options, which sum to 1, and how they came about.

    `mass` is the smallest, over the choice slots, of the expected probability on the slot's options before
    renormalising: near 0 when the model wanted to say something else. `rows` are the branches as plain JSON.
    """

    probabilities: tuple[float, ...]
    mass: float
    rows: list[dict[str, Any]]


def ask(
    engine: Engine, slots: Slots, questions: Sequence[Rendered], keys: Sequence[str], *, seed: int, temperature: float
) -> list[list[Branch]]:
    """The branches of every question, in slot order. Texts are sampled first, keyed by `keys[i]` and the way there;
    then all options of all branches of all questions are scored in one call, so that the engine can share prefixes.
    The same prompt is asked once: equal questions get equal answers, to the last bit.
    """
    paths: list[tuple[int, tuple[str, ...]]] = [(number, ()) for number in range(len(questions))]
    asked: list[tuple[int, tuple[str, ...], tuple[str, ...]]] = []
    for slot in slots:
        if isinstance(slot, ChoiceSlot):
            asked += [(number, given, slot.options) for number, given in paths]
            paths = [(number, (*given, option)) for number, given in paths for option in slot.options]
            continue
        generations = engine.generate(
            [questions[number].fill(given) for number, given in paths],
            Sampling(max_new_tokens=slot.max_new_tokens, temperature=temperature, stop=slot.stop),
            seed=seed,
            keys=["/".join([keys[number], *given]) for number, given in paths],
        )
        texts = {generation.index: generation.text for generation in generations}
        paths = [(number, (*given, texts[index])) for index, (number, given) in enumerate(paths)]
    asked.sort(key=lambda item: item[0])  # stable: the branches of a question side by side, in slot order
    requests = [(questions[number].fill(given), options) for number, given, options in asked]
    distinct = list(dict.fromkeys(requests))
    scores = engine.choice_logprobs([prompt for prompt, _ in distinct], [options for _, options in distinct])
    logps = {request: tuple(map(float, score)) for request, score in zip(distinct, scores, strict=True)}
    branches: list[list[Branch]] = [[] for _ in questions]
    for (number, given, _), request in zip(asked, requests, strict=True):
        branches[number].append(Branch(given, logps[request]))
    return branches


def read(slots: Slots, branches: Sequence[Branch]) -> Answer:
    """Marginalise: the weight of a branch is the product of the renormalised probabilities of the options before it,
    and the answer is the weighted mean of the last slot's renormalised probabilities.
    """
    weights: dict[tuple[str, ...], float] = {(): 1.0}
    start = 0  # slots up to and including the choice slot before this one
    masses, rows = [], []
    means: tuple[float, ...] = ()
    for place, group in itertools.groupby(branches, key=lambda branch: len(branch.given)):
        slot = slots[place]
        assert isinstance(slot, ChoiceSlot)
        mass, totals = 0.0, [0.0] * len(slot.options)
        for branch in group:
            weight = weights[branch.given[:start]]
            own_mass, probabilities = _normalised(branch.logps)
            mass += weight * own_mass
            for number, (option, p) in enumerate(zip(slot.options, probabilities, strict=True)):
                totals[number] += weight * p
                weights[(*branch.given, option)] = weight * p
            logps = [round(logp, _DECIMALS) if math.isfinite(logp) else None for logp in branch.logps]
            rows.append({"given": list(branch.given), "weight": round(weight, _DECIMALS), "logps": logps})
        masses.append(mass)
        means = tuple(totals)
        start = place + 1
    return Answer(means, min(masses), rows)


def _normalised(logps: Sequence[float]) -> tuple[float, list[float]]:
    """Total probability of the options, and their probabilities made to sum to 1 (evenly where all are impossible)."""
    top = max(logps)
    if not math.isfinite(top):
        return 0.0, [1 / len(logps)] * len(logps)
    odds = [math.exp(logp - top) for logp in logps]
    total = sum(odds)
    return math.exp(top) * total, [x / total for x in odds]
