"""Asking a model through the slots of a rendered template.

Every choice slot but the last is marginalised: all ways through them are asked and weighted by the probability of the
options on the way. Text slots (chain of thought) are sampled once per way. The last slot is the label. So multiple
choice, verdict-then-choice and chain of thought are templates, not code paths.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cai.engines.base import Engine, EnginePrompt, Receipt, RemoteEngine, Sampling, taken_together
from cai.progress import progress
from cai.rendered import ChoiceSlot, Rendered, TextSlot
from cai.types import Provenance

__all__ = ["Answer", "Asked", "Branch", "Slots", "ask", "combined", "read"]

Slots = tuple[ChoiceSlot | TextSlot, ...]

_DECIMALS = 6  # of the log-probabilities and weights kept as evidence


@dataclass(frozen=True, slots=True)
class Branch:
    """A choice slot as it is reached by filling the slots before it with `given`; `logps` are of its options."""

    given: tuple[str, ...]
    logps: tuple[float, ...]


@dataclass(slots=True)
class Asked:
    """What came back for one question: its branches in slot order, and the receipts of a server's answers. Once one of
    these has failed, nothing more is asked and the branches are incomplete.
    """

    branches: list[Branch] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)

    @property
    def failed(self) -> Receipt | None:
        """The receipt of the answer that did not come, if there is one."""
        return next((receipt for receipt in self.receipts if receipt.failed), None)

    def num_neutralised(self, shown: Rendered) -> int:
        """Reserved markers that were broken up in what was `shown`: in its values, and in the longest way's texts."""
        return shown.num_neutralised + max((shown.num_broken(branch.given) for branch in self.branches), default=0)


@dataclass(frozen=True, slots=True)
class Answer:
    """Probabilities of the last slot's options, which sum to 1, and how they came about.

    `mass` is the smallest, over the choice slots, of the expected probability on the slot's options before
    renormalising: near 0 when the model wanted to say something else, 0 when a server gave no answer. `rows` are the
    branches as plain JSON.
    """

    probabilities: tuple[float, ...]
    mass: float
    rows: list[dict[str, Any]]


def ask(
    engine: Engine, slots: Slots, questions: Sequence[Rendered], keys: Sequence[str], *, seed: int, temperature: float
) -> list[Asked]:
    """What is answered to every question. Texts are sampled first, keyed by `keys[i]` and the way there; then all
    options of all branches of all questions are scored in one call, so that the engine can share prefixes. The same
    prompt is asked once: equal questions get equal answers, to the last bit.
    """
    found = [Asked() for _ in questions]
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
        texts = {}
        for generation in generations:
            texts[generation.index] = generation.text
            if generation.receipt is not None:
                found[paths[generation.index][0]].receipts.append(generation.receipt)
        paths = [(number, (*given, texts[index])) for index, (number, given) in enumerate(paths)]
        paths = [(number, given) for number, given in paths if not found[number].failed]
    asked = [item for item in asked if not found[item[0]].failed]
    asked.sort(key=lambda item: item[0])  # stable: the branches of a question side by side, in slot order
    requests = [(questions[number].fill(given), options) for number, given, options in asked]
    distinct = list(dict.fromkeys(requests))
    scores = dict(zip(distinct, _scored(engine, distinct), strict=True))
    for (number, given, _), request in zip(asked, requests, strict=True):
        logps, receipt = scores[request]
        found[number].branches.append(Branch(given, logps))
        found[number].receipts += [receipt] if receipt else []
        scores[request] = logps, _shared(receipt)  # the first question that it answers pays for it
    return found


def _scored(
    engine: Engine, requests: Sequence[tuple[EnginePrompt, tuple[str, ...]]]
) -> Iterable[tuple[tuple[float, ...], Receipt | None]]:
    """Log-probabilities of every request's options, with a receipt where a server was asked."""
    prompts, options = [prompt for prompt, _ in requests], [options for _, options in requests]
    if not isinstance(engine, RemoteEngine):
        return [(tuple(map(float, logps)), None) for logps in engine.choice_logprobs(prompts, options)]
    answers: dict[int, tuple[tuple[float, ...], Receipt | None]] = {}
    with progress("ask", total=len(requests), unit="questions") as bar:
        for scored in engine.score(prompts, options):
            answers[scored.index] = tuple(map(float, scored.logps)), scored.receipt
            bar.advance()
    return [answers[index] for index in range(len(requests))]


def _shared(receipt: Receipt | None) -> Receipt | None:
    """The receipt for the other questions that the same answer is for: it took nothing more."""
    if receipt is None:
        return None
    nothing = replace(receipt.provenance, seconds=0.0, prompt_tokens=0, new_tokens=0, cost=0.0, num_attempts=0)
    return replace(receipt, provenance=nothing)


def read(slots: Slots, asked: Asked) -> Answer:
    """Marginalise: the weight of a branch is the product of the renormalised probabilities of the options before it,
    and the answer is the weighted mean of the last slot's renormalised probabilities.
    """
    if asked.failed:
        last = slots[-1]
        assert isinstance(last, ChoiceSlot)
        return Answer((1 / len(last.options),) * len(last.options), 0.0, [])
    weights: dict[tuple[str, ...], float] = {(): 1.0}
    start = 0  # slots up to and including the choice slot before this one
    masses, rows = [], []
    means: tuple[float, ...] = ()
    for place, group in itertools.groupby(asked.branches, key=lambda branch: len(branch.given)):
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


def combined(receipts: Iterable[Receipt]) -> Provenance | None:
    """What these answers took together; None without receipts."""
    parts = [receipt.provenance for receipt in receipts]
    return taken_together(parts) if parts else None
