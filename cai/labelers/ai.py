"""The AI labeler: a language model that judges by the principle it is given (Bai et al. 2022b, section 4.1)."""

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from cai.constitution import Constitution, Principle
from cai.engines.base import EngineFactory, Receipt, RemoteEngine
from cai.engines.journaled import cost_facts, tell_unknown, tell_unused
from cai.errors import LabelerError
from cai.labelers.judge import Judge, Order, Question, Row
from cai.labelers.slots import combined
from cai.prompts import PromptFamily
from cai.records import seed_of
from cai.types import Comparison, Judgment, Pair

__all__ = ["FAILED", "ILL_FORMED", "NO_PRINCIPLE", "AILabeler"]

_CHUNK: Final = 256  # comparisons whose questions go to the engine together; resuming computes whole chunks
# The same for a server, which keeps its answers one by one, and whose slowest answer every chunk waits for.
_REMOTE_CHUNK: Final = 4096

FAILED: Final = "failed"  # followed by : and the server's reason
ILL_FORMED: Final = "ill_formed_answer"
NO_PRINCIPLE: Final = "no_principle_applies"


class AILabeler:
    """Soft labels from a model's option probabilities, averaged over both orders and over principles.

    Per comparison `num_principles` (None: all) are drawn from the constitution, seeded by the comparison's id, among
    those that apply to its prompt; the model is asked about each as `cai.labelers.judge.Judge` does. With
    `both_orders`, p = (p(i | i first) + 1 - p(j | j first)) / 2, which swapping the responses turns into 1 - p;
    without, the order is a seeded coin flip. `clamp` = (low, 1 - low) limits every answer before averaging (the paper's
    0.4 to 0.6 for chain of thought).

    A principle counts only if its answers are well-formed in every order asked (one order alone would let position bias
    in), a pair without such a principle gets no label, and a comparison without a labelled pair is an abstention.
    Nothing is ever replaced by a random label.

    What is judged is inert (`cai.prompts`): an evidence row counts under `neutralised` the reserved markers that were
    broken up in what that question showed, where there were any.
    """

    name = "ai"

    def __init__(
        self, *, engine: EngineFactory, model: str, prompts: PromptFamily, constitution: Constitution, seed: int,
        template: str = "judge", num_principles: int | None = 1, clamp: Sequence[float] | None = None,
        both_orders: bool = True, min_mass: float = 0.05, temperature: float = 1.0,
    ) -> None:  # fmt: skip
        if num_principles is not None and num_principles < 1:
            raise LabelerError(f"num_principles: must be at least 1, or null for all, got {num_principles}")
        if clamp is not None and not (len(clamp) == 2 and 0 <= clamp[0] < 0.5 and math.isclose(sum(clamp), 1)):
            raise LabelerError(f"clamp: must be [low, 1 - low] with low from 0 to below 0.5, got {clamp}")
        self.judge = Judge(
            engine=engine, model=model, prompts=prompts, template=template, seed=seed, min_mass=min_mass,
            temperature=temperature,
        )  # fmt: skip
        self._constitution = constitution
        self._seed = seed
        self._num_principles = num_principles
        self._clamp = (clamp[0], clamp[1]) if clamp else (0.0, 1.0)
        self._both_orders = both_orders
        self._num_unused = 0
        self._folder: Path | None = None

    def keep_in(self, folder: Path) -> None:
        """See `cai.labelers.base.Keeper`."""
        self._folder = folder

    def texts(self) -> dict[str, str]:
        """Hashes of the constitution, the judge template and the judge's weights."""
        return {"constitution": self._constitution.sha256, **self.judge.texts()}

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """One judgment per comparison not in `done`, a chunk at a time, with all its pairs i < j."""
        unused = self._constitution.unused({tag for comparison in comparisons for tag in comparison.prompt.tags})
        tell_unused(unused, "label")
        self._num_unused = len(unused)
        engine, size = self.judge.engine, _CHUNK
        if isinstance(engine, RemoteEngine):
            size = _REMOTE_CHUNK
            if self._folder is not None:
                engine.keep_in(self._folder)
        for start in range(0, len(comparisons), size):
            chunk = comparisons[start : start + size]
            if not all(comparison.id in done for comparison in chunk):
                yield from (judgment for judgment in self._label(chunk) if judgment.comparison_id not in done)
        tell_unknown(engine.usage, "label")

    def facts(self) -> dict[str, float]:
        """Principles that applied to no prompt of the last call; and what the judge has cost so far: tokens read and
        made, FLOPs, words it does not know.
        """
        return {"num_unused_principles": self._num_unused, **cost_facts(self.judge.engine.usage)}

    def drawn(self, comparison: Comparison) -> tuple[Principle, ...]:
        """The principles that this comparison is judged under."""
        tags = comparison.prompt.tags
        num_applying = len(self._constitution.for_tags(tags))
        count = num_applying if self._num_principles is None else min(self._num_principles, num_applying)
        return self._constitution.draw(self._seed, comparison.id, tags, count) if count else ()

    def questions(self, comparison: Comparison) -> Iterator[Question]:
        """Every principle drawn, pair and order of a comparison."""
        for principle in self.drawn(comparison):
            for i, j in itertools.combinations(range(len(comparison.responses)), 2):
                orders: tuple[Order, ...] = ((i, j), (j, i))
                if not self._both_orders:
                    heads = seed_of(self._seed, "order", comparison.id, i, j) % 2
                    orders = orders[heads : heads + 1]
                for shown in orders:
                    yield Question(comparison, principle, shown)

    def judgment(self, comparison: Comparison, rows: Sequence[Row], receipts: Sequence[Receipt] = ()) -> Judgment:
        """The verdict on a comparison that follows from the answers to its questions."""
        pairs = _pairs(rows, *self._clamp)
        return Judgment(
            id=f"{comparison.id}/0",
            comparison_id=comparison.id,
            labeler=self.name,
            person="",
            pairs=pairs,
            principle_ids=tuple(dict.fromkeys(row["principle"] for row in rows)),
            templates=self.judge.hashes,
            evidence=tuple(rows),
            abstained=None if pairs else _why(rows),
            provenance=combined(receipts),
        )

    def _label(self, comparisons: Sequence[Comparison]) -> Iterator[Judgment]:
        """Ask every question of these comparisons at once, then put the answers together."""
        questions = [question for comparison in comparisons for question in self.questions(comparison)]
        rows: dict[str, list[Row]] = {comparison.id: [] for comparison in comparisons}
        receipts: dict[str, list[Receipt]] = {comparison.id: [] for comparison in comparisons}
        for question, (row, taken) in zip(questions, self.judge.ask(questions), strict=True):
            rows[question.comparison.id].append(row)
            receipts[question.comparison.id] += taken
        for comparison in comparisons:
            yield self.judgment(comparison, rows[comparison.id], receipts[comparison.id])


def _why(rows: Sequence[Row]) -> str:
    """Why no pair has a label."""
    failed = next((row["failed"] for row in rows if "failed" in row), None)
    return f"{FAILED}:{failed}" if failed else ILL_FORMED if rows else NO_PRINCIPLE


def _pairs(rows: Sequence[Row], low: float, high: float) -> tuple[Pair, ...]:
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
