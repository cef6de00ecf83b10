"""A model as a judge: one pair of responses, one principle, one order at a time (Bai et al. 2022b, section 4.1)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from cai.constitution import Principle
from cai.engines.base import Engine, EngineFactory, Receipt
from cai.errors import LabelerError
from cai.labelers.slots import Asked, Slots, ask, read
from cai.models.digest import model_digest
from cai.prompts import PromptFamily, Shot
from cai.records import fingerprint
from cai.rendered import Rendered
from cai.types import Comparison, Turn

__all__ = ["Judge", "Order", "Question", "Row"]

Order = tuple[int, int]  # indices of the responses shown first and second
Row = dict[str, Any]  # what is kept of one question, as plain JSON


@dataclass(frozen=True, slots=True)
class Question:
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


class Judge:
    """Asks a model by a `template` that ends in a choice slot: an option for each response, in the order shown. Worked
    `examples` come first, where the template makes use of them.

    An answer is ill-formed when less than `min_mass` of the probability is on the options of some choice slot: the
    model wanted to say something else. So is one that a server failed to give, which keeps its reason.
    """

    def __init__(
        self, *, engine: EngineFactory, model: str, prompts: PromptFamily, template: str, seed: int, min_mass: float,
        temperature: float, examples: Sequence[Shot] = (),
    ) -> None:  # fmt: skip
        if not 0 <= min_mass < 1:
            raise LabelerError(f"min_mass: must be a probability from 0 to below 1, got {min_mass}")
        if not 0 <= temperature < math.inf:
            raise LabelerError(f"temperature: must be 0 or more, got {temperature}")
        self._factory = engine
        self._model = model
        self._prompts = prompts
        self._template = template
        self._examples = examples
        self._seed = seed
        self._min_mass = min_mass
        self._temperature = temperature
        self.hashes = prompts.hashes(template)
        # Rendering once finds a template that cannot judge, before any model is loaded.
        sample = Principle(id="sample", axis="sample", statement="x")
        self._slots: Slots = self._render((Turn("user", "x"),), ("x", "x"), sample).slots

    @cached_property
    def engine(self) -> Engine:
        """Made at the first use."""
        return self._factory(model=self._model)

    def texts(self) -> dict[str, str]:
        """Hashes of the template, the model's weights and the examples that it is shown."""
        hashes = {f"prompts/{name}": sha for name, sha in self.hashes.items()}
        shown = {"examples": fingerprint([asdict(shot) for shot in self._examples])} if self._examples else {}
        return {**hashes, "judge": model_digest(self._model, self._factory), **shown}

    def settings(self) -> dict[str, object]:
        """Everything that decides the answer to a question besides what `render` shows."""
        own = {"seed": self._seed, "min_mass": self._min_mass, "temperature": self._temperature}
        return {"texts": self.texts(), **own}

    def render(self, question: Question) -> Rendered:
        """What the model is shown."""
        return self._render(question.comparison.prompt.turns, question.texts, question.principle)

    def ask(self, questions: Sequence[Question]) -> list[tuple[Row, Sequence[Receipt]]]:
        """Ask all of these questions at once: an evidence row for each, and the receipts of a server.

        `p` of a row is the probability of the response that was shown first, None where the answer is ill-formed.
        """
        rendered = [self.render(question) for question in questions]
        keys = [question.key for question in questions]
        found = ask(self.engine, self._slots, rendered, keys, seed=self._seed, temperature=self._temperature)
        answered = zip(questions, rendered, found, strict=True)
        return [(self._row(question, shown, asked), asked.receipts) for question, shown, asked in answered]

    def _render(self, turns: tuple[Turn, ...], responses: tuple[str, str], principle: Principle) -> Rendered:
        values: dict[str, Any] = {"turns": turns, "responses": responses, "principle": principle}
        return self._prompts.render(self._template, **values, examples=self._examples)

    def _row(self, question: Question, shown: Rendered, asked: Asked) -> Row:
        answer = read(self._slots, asked)
        num_neutralised = asked.num_neutralised(shown)
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
            **({"neutralised": num_neutralised} if num_neutralised else {}),
            **why,
        }
