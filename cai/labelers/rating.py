"""A judge that rates single responses: AI feedback as a reward, with no reward model in between."""

import math
from collections.abc import Sequence
from functools import cached_property

from cai.constitution import Constitution, Principle
from cai.engines.base import Engine, EngineFactory
from cai.errors import LabelerError
from cai.labelers.slots import Slots, ask, read
from cai.models.digest import model_digest
from cai.prompts import PromptFamily
from cai.records import fingerprint
from cai.rendered import Rendered
from cai.rewards import Rewarded
from cai.types import Prompt, Turn

__all__ = ["JudgeReward"]


class JudgeReward:
    """A model's rating of each response by the constitution, with no reward model in between (d-RLAIF, Lee et al. 2023,
    section 2.2.2).

    The template `rate` ends in a choice of ratings, from the worst to the best, which count as evenly spaced from 0 to
    1. The reward is their expectation under the model's probabilities, not a sampled rating, averaged over
    `num_principles` principles, drawn for each response among those that apply to its prompt; NaN when none does. A
    response on which less than `min_mass` of the probability is on the ratings gets NaN too: nothing is invented.
    """

    def __init__(
        self, *, engine: EngineFactory, model: str, prompts: PromptFamily, constitution: Constitution, seed: int,
        num_principles: int = 1, min_mass: float = 0.05, temperature: float = 1.0,
    ) -> None:  # fmt: skip
        if num_principles < 1:
            raise LabelerError(f"num_principles: must be at least 1, got {num_principles}")
        if not 0 <= min_mass < 1:
            raise LabelerError(f"min_mass: must be a probability from 0 to below 1, got {min_mass}")
        self._factory = engine
        self._model = model
        self._prompts = prompts
        self._constitution = constitution
        self._seed = seed
        self._num_principles = num_principles
        self._min_mass = min_mass
        self._temperature = temperature
        # Rendering once finds a family that cannot rate, before any model is loaded.
        self._slots: Slots = self._render((Turn("user", "x"),), "x", constitution.principles[0]).slots

    @cached_property
    def _engine(self) -> Engine:
        return self._factory(model=self._model)

    def texts(self) -> dict[str, str]:
        """Hashes of the constitution, the template and the judge's weights."""
        hashes = {f"prompts/{name}": sha for name, sha in self._prompts.hashes("rate").items()}
        return {"constitution": self._constitution.sha256, **hashes, "judge": model_digest(self._model, self._factory)}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Rewarded:
        """The expected rating of each response, in [0, 1]."""
        questions: list[Rendered] = []
        keys: list[str] = []
        owners: list[int] = []
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            key = f"{prompt.id}/{fingerprint(response)[:16]}"
            count = min(self._num_principles, len(self._constitution.for_tags(prompt.tags)))
            for principle in self._constitution.draw(self._seed, key, prompt.tags, count) if count else ():
                questions.append(self._render(prompt.turns, response, principle))
                keys.append(f"{key}/{principle.id}")
                owners.append(index)
        ratings: list[list[float]] = [[] for _ in responses]
        found = ask(self._engine, self._slots, questions, keys, seed=self._seed, temperature=self._temperature)
        for owner, asked in zip(owners, found, strict=True):
            answer = read(self._slots, asked)
            if answer.mass > 0 and answer.mass >= self._min_mass:
                top = len(answer.probabilities) - 1
                ratings[owner].append(sum(i / top * p for i, p in enumerate(answer.probabilities)))
        neutralised = [0.0] * len(responses)
        for owner, shown, asked in zip(owners, questions, found, strict=True):
            neutralised[owner] = max(neutralised[owner], float(asked.num_neutralised(shown) > 0))
        return Rewarded([sum(own) / len(own) if own else math.nan for own in ratings], neutralised)

    def _render(self, turns: tuple[Turn, ...], response: str, principle: Principle) -> Rendered:
        return self._prompts.render("rate", turns=turns, response=response, principle=principle)
