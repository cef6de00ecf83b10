"""The AI labeler: a language model that judges by the principle it is given (Bai et al. 2022b, section 4.1)."""

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cai.constitution import Constitution, Principle
from cai.engines.base import Engine, EngineFactory, Receipt, RemoteEngine
from cai.engines.journaled import cost_facts, tell_unknown, tell_unused
from cai.errors import LabelerError
from cai.labelers.slots import Asked, Slots, ask, combined, read
from cai.models.digest import model_digest
from cai.prompts import PromptFamily, Rendered
from cai.records import fingerprint, seed_of
from cai.types import Comparison, Judgment, Pair, Turn

__all__ = ["FAILED", "ILL_FORMED", "NO_PRINCIPLE", "AILabeler"]

_CHUNK: Final = 256  # comparisons whose questions go to the engine together; resuming computes whole chunks
# The same for a server, which keeps its answers one by one, and whose slowest answer every chunk waits for.
_REMOTE_CHUNK: Final = 4096

FAILED: Final = "failed"  # followed by : and the server's reason
ILL_FORMED: Final = "ill_formed_answer"
NO_PRINCIPLE: Final = "no_principle_applies"

Order = tuple[int, int]  # indices of the responses shown first and second


@dataclass(frozen=True, slots=True)
class _Question:
    """One pair of a comparison, under one principle, in one order."""

    comparison: Comparison
    principle: Principle
    shown: Order

    @property
    def texts(self) -> tuple[str, str]:
        """The two responses, in the order shown."""
        first, second = (self.comparison.responses[index].text for index in self.shown)
        return first, second

    @property
    def key(self) -> str:
        """Names what is shown, not its place: swapping the responses asks the same two questions."""
        return "/".join([self.comparison.id, self.principle.id, fingerprint(self.texts)[:16]])


class AILabeler:
    """Soft labels from a model's option probabilities, averaged over both orders and over principles.

    The judge `template` ends in a choice slot whose options stand for the responses in the order shown. Per comparison
    `num_principles` are drawn from the constitution, seeded by the comparison's id, among those that apply to its
    prompt. With `both_orders`, p = (p(i | i first) + 1 - p(j | j first)) / 2, which swapping the responses turns into
    1 - p; without, the order is a seeded coin flip. `clamp` = (low, 1 - low) limits every answer before averaging (the
    paper's 0.4 to 0.6 for chain of thought).

    An answer is ill-formed when less than `min_mass` of the probability is on the options of some choice slot: the
    model wanted to say something else. A principle counts only if its answers are well-formed in every order asked
    (one order alone would let position bias in), a pair without such a principle gets no label, and a comparison
    without a labelled pair is an abstention. A question that a server failed to answer counts as ill-formed and keeps
    its reason. Nothing is ever replaced by a random label.

    What is judged is inert (`cai.prompts`): an evidence row counts under `neutralised` the reserved markers that were
    broken up in what that question showed, where there were any.
    """

    name = "ai"

    def __init__(
        self, *, engine: EngineFactory, model: str, prompts: PromptFamily, constitution: Constitution, seed: int,
        template: str = "judge", num_principles: int = 1, clamp: Sequence[float] | None = None,
        both_orders: bool = True, min_mass: float = 0.05, temperature: float = 1.0,
    ) -> None:  # fmt: skip
        if num_principles < 1:
            raise LabelerError(f"num_principles: must be at least 1, got {num_principles}")
        if not 0 <= min_mass < 1:
            raise LabelerError(f"min_mass: must be a probability from 0 to below 1, got {min_mass}")
        if clamp is not None and not (len(clamp) == 2 and 0 <= clamp[0] < 0.5 and math.isclose(sum(clamp), 1)):
            raise LabelerError(f"clamp: must be [low, 1 - low] with low from 0 to below 0.5, got {clamp}")
        if not 0 <= temperature < math.inf:
            raise LabelerError(f"temperature: must be 0 or more, got {temperature}")
        self._factory = engine
        self._model = model
        self._prompts = prompts
        self._constitution = constitution
        self._seed = seed
        self._template = template
        self._num_principles = num_principles
        self._clamp = (clamp[0], clamp[1]) if clamp else (0.0, 1.0)
        self._both_orders = both_orders
        self._min_mass = min_mass
        self._temperature = temperature
        self._num_unused = 0
        self._folder: Path | None = None
        # Rendering once finds a template that cannot judge, before any model is loaded.
        self._slots: Slots = self._render((Turn("user", "x"),), ("x", "x"), constitution.principles[0]).slots

    @cached_property
    def _engine(self) -> Engine:
        return self._factory(model=self._model)

    def keep_in(self, folder: Path) -> None:
        """See `cai.labelers.base.Keeper`."""
        self._folder = folder

    def texts(self) -> dict[str, str]:
        """Hashes of the constitution, the judge template and the judge's weights."""
        hashes = {f"prompts/{name}": sha for name, sha in self._prompts.hashes(self._template).items()}
        judge = model_digest(self._model, self._factory)
        return {"constitution": self._constitution.sha256, **hashes, "judge": judge}

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """One judgment per comparison not in `done`, a chunk at a time, with all its pairs i < j."""
        unused = self._constitution.unused({tag for comparison in comparisons for tag in comparison.prompt.tags})
        tell_unused(unused, "label")
        self._num_unused = len(unused)
        size = _CHUNK
        if isinstance(self._engine, RemoteEngine):
            size = _REMOTE_CHUNK
            if self._folder is not None:
                self._engine.keep_in(self._folder)
        for start in range(0, len(comparisons), size):
            chunk = comparisons[start : start + size]
            if not all(comparison.id in done for comparison in chunk):
                yield from (judgment for judgment in self._judge(chunk) if judgment.comparison_id not in done)
        tell_unknown(self._engine.usage, "label")

    def facts(self) -> dict[str, float]:
        """Principles that applied to no prompt of the last call; and what the judge has cost so far: tokens read and
        made, FLOPs, words it does not know.
        """
        return {"num_unused_principles": self._num_unused, **cost_facts(self._engine.usage)}

    def _render(self, turns: tuple[Turn, ...], responses: tuple[str, str], principle: Principle) -> Rendered:
        return self._prompts.render(self._template, turns=turns, responses=responses, principle=principle)

    def _questions(self, comparison: Comparison) -> Iterator[_Question]:
        """Every principle drawn, pair and order of a comparison."""
        tags = comparison.prompt.tags
        count = min(self._num_principles, len(self._constitution.for_tags(tags)))
        principles = self._constitution.draw(self._seed, comparison.id, tags, count) if count else ()
        for principle in principles:
            for i, j in itertools.combinations(range(len(comparison.responses)), 2):
                orders: tuple[Order, ...] = ((i, j), (j, i))
                if not self._both_orders:
                    heads = seed_of(self._seed, "order", comparison.id, i, j) % 2
                    orders = orders[heads : heads + 1]
                for shown in orders:
                    yield _Question(comparison, principle, shown)

    def _judge(self, comparisons: Sequence[Comparison]) -> Iterator[Judgment]:
        """Ask every question of these comparisons at once, then put the answers together."""
        questions = [question for comparison in comparisons for question in self._questions(comparison)]
        rendered = [self._render(q.comparison.prompt.turns, q.texts, q.principle) for q in questions]
        keys = [question.key for question in questions]
        found = ask(self._engine, self._slots, rendered, keys, seed=self._seed, temperature=self._temperature)
        evidence: dict[str, list[dict[str, Any]]] = {comparison.id: [] for comparison in comparisons}
        receipts: dict[str, list[Receipt]] = {comparison.id: [] for comparison in comparisons}
        for question, shown, asked in zip(questions, rendered, found, strict=True):
            evidence[question.comparison.id].append(self._row(question, shown, asked))
            receipts[question.comparison.id] += asked.receipts
        hashes = self._prompts.hashes(self._template)
        for comparison in comparisons:
            rows = evidence[comparison.id]
            pairs = _pairs(rows, *self._clamp)
            yield Judgment(
                id=f"{comparison.id}/0",
                comparison_id=comparison.id,
                labeler=self.name,
                person="",
                pairs=pairs,
                principle_ids=tuple(dict.fromkeys(row["principle"] for row in rows)),
                templates=hashes,
                evidence=tuple(rows),
                abstained=None if pairs else _why(rows),
                provenance=combined(receipts[comparison.id]),
            )

    def _row(self, question: _Question, shown: Rendered, asked: Asked) -> dict[str, Any]:
        """What is kept of one question, as plain JSON."""
        answer = read(self._slots, asked)
        well_formed = answer.mass > 0 and answer.mass >= self._min_mass
        failed = asked.failed
        why = {"failed": failed.failed, "detail": failed.detail, "attempts": list(failed.attempts)} if failed else {}
        return {
            "pair": sorted(question.shown),
            "principle": question.principle.id,
            "shown": list(question.shown),
            "p": answer.probabilities[0] if well_formed else None,
            "mass": answer.mass,
            "branches": answer.rows,
            **({"neutralised": shown.num_neutralised} if shown.num_neutralised else {}),
            **why,
        }


def _why(rows: Sequence[dict[str, Any]]) -> str:
    """Why no pair has a label."""
    failed = next((row["failed"] for row in rows if "failed" in row), None)
    return f"{FAILED}:{failed}" if failed else ILL_FORMED if rows else NO_PRINCIPLE


def _pairs(rows: Sequence[dict[str, Any]], low: float, high: float) -> tuple[Pair, ...]:
    """The labelled pairs: mean over principles of the mean over orders, swaps undone, answers clamped."""
    by_pair: dict[Order, dict[str, list[float | None]]] = {}
    for row in rows:
        i, j = row["pair"]
        p = row["p"]
        if p is not None:
            p = min(max(p, low), high)
            p = p if row["shown"] == row["pair"] else 1 - p
        by_pair.setdefault((i, j), {}).setdefault(row["principle"], []).append(p)
    pairs = []
    for (i, j), by_principle in by_pair.items():
        whole = [[p for p in orders if p is not None] for orders in by_principle.values() if None not in orders]
        if whole:
            pairs.append(Pair(i, j, sum(sum(orders) / len(orders) for orders in whole) / len(whole)))
    return tuple(pairs)
