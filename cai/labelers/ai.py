"""The AI labeler: a language model that judges by the principle it is given (Bai et al. 2022b, section 4.1)."""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from cai.constitution import Constitution, Principle
from cai.engines.base import EngineFactory, Receipt, RemoteEngine
from cai.engines.journaled import cost_facts, tell_unknown, tell_unused
from cai.errors import LabelerError
from cai.labelers.judge import Judge, Order, Question, Row
from cai.labelers.panel import NumPrinciples, Panel, shots
from cai.labelers.slots import combined
from cai.labelers.verdict import decided, pairs_of_rows, why_not
from cai.prompts import PromptFamily
from cai.records import seed_of
from cai.types import Comparison, Judgment

__all__ = ["AILabeler"]

_CHUNK: Final = 256  # comparisons whose questions go to the engine together; resuming computes whole chunks
# The same for a server, which keeps its answers one by one, and whose slowest answer every chunk waits for.
_REMOTE_CHUNK: Final = 4096


class AILabeler:
    """Soft labels from a model's option probabilities, averaged over both orders and over principles.

    Per comparison `num_principles` (see `Panel`) judge, among those of the constitution, or those in `principles`, that
    apply to its prompt; the model is asked about each as `cai.labelers.judge.Judge` does, and about every pair of its
    responses. With `both_orders`, p = (p(i | i first) + 1 - p(j | j first)) / 2, which swapping the responses turns
    into 1 - p; without, the order is a seeded coin flip. `clamp` = (low, 1 - low) limits every answer before averaging
    (the paper's 0.4 to 0.6 for chain of thought). The judge is shown the first `num_examples` examples of the
    constitution, or of the one in `examples`.

    A principle counts only if its answers are well-formed in every order asked (one order alone would let position bias
    in), a pair without such a principle gets no label, nor does one whose p is nearer to 1/2 than `min_distance`, and a
    comparison without a labelled pair is an abstention. Nothing is ever replaced by a random label.

    What is judged is inert (`cai.prompts`): an evidence row counts under `neutralised` the reserved markers that were
    broken up in what that question showed, where there were any.
    """

    name = "ai"

    def __init__(
        self, *, engine: EngineFactory, model: str, prompts: PromptFamily, constitution: Constitution, seed: int,
        template: str = "judge", num_principles: NumPrinciples = 1, principles: Sequence[str] | None = None,
        num_examples: int = 0, examples: Constitution | None = None, clamp: Sequence[float] | None = None,
        both_orders: bool = True, min_mass: float = 0.05, min_distance: float = 0.0, temperature: float = 1.0,
    ) -> None:  # fmt: skip
        if clamp is not None and not (len(clamp) == 2 and 0 <= clamp[0] < 0.5 and math.isclose(sum(clamp), 1)):
            raise LabelerError(f"clamp: must be [low, 1 - low] with low from 0 to below 0.5, got {clamp}")
        limit = 0.5 - clamp[0] if clamp else 0.5
        if not 0 <= min_distance <= limit:
            raise LabelerError(f"min_distance: must be from 0 to {limit:g}, the furthest from 1/2, got {min_distance}")
        self._panel = Panel(constitution, num_principles, only=principles, seed=seed)
        self.judge = Judge(
            engine=engine, model=model, prompts=prompts, template=template, seed=seed, min_mass=min_mass,
            temperature=temperature, examples=shots(examples or constitution, num_examples, seed=seed),
        )  # fmt: skip
        self._seed = seed
        self._clamp = (clamp[0], clamp[1]) if clamp else (0.0, 1.0)
        self._both_orders = both_orders
        self._min_distance = min_distance
        self._num_unused = 0
        self._folder: Path | None = None

    def keep_in(self, folder: Path) -> None:
        """See `cai.labelers.base.Keeper`."""
        self._folder = folder

    def texts(self) -> dict[str, str]:
        """Hashes of the constitution, and what the judge depends on."""
        return {"constitution": self._panel.constitution.sha256, **self.judge.texts()}

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """One judgment per comparison not in `done`, a chunk at a time, with all its pairs i < j."""
        unused = self._panel.unused({tag for comparison in comparisons for tag in comparison.prompt.tags})
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
        return self._panel.judges_of(comparison)

    def weights(self) -> Mapping[str, float]:
        """How much each principle counts in a label, by id."""
        return self._panel.weights()

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
        answered = pairs_of_rows(rows, clamp=self._clamp, weights=self.weights())
        pairs = decided(answered, self._min_distance)
        return Judgment(
            id=f"{comparison.id}/0",
            comparison_id=comparison.id,
            labeler=self.name,
            person="",
            pairs=pairs,
            principle_ids=tuple(dict.fromkeys(row["principle"] for row in rows)),
            templates=self.judge.hashes,
            evidence=tuple(rows),
            abstained=None if pairs else why_not(rows, answered),
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
