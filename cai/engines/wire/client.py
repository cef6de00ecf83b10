"""One model on its servers: answers from the ledger or the wire, what they cost, and what can be asked."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cai.engines.base import EnginePrompt, Usage
from cai.engines.wire.ledger import Answer, Ledger
from cai.engines.wire.markers import inert
from cai.engines.wire.probe import Ability, find_abilities, find_ability
from cai.engines.wire.requests import Manner
from cai.engines.wire.session import Job, answers
from cai.engines.wire.transport import Handling, Spending, Tally
from cai.errors import EngineError
from cai.records import fingerprint

__all__ = ["Client"]


class Client:
    """Asks, keeps and counts. `mode` is how choices are to be answered: one of `MODES` of the probe, or auto."""

    def __init__(self, manner: Manner, handling: Handling, spending: Spending, mode: str) -> None:
        self.manner = manner
        self.usage = Usage()
        self._handling = handling
        self._spending = spending
        self._mode = mode
        self._ledger = Ledger()
        self._abilities: dict[bool, Ability] = {}

    def keep_in(self, folder: Path) -> None:
        """See `EndpointEngine.keep_in`."""
        path = folder / f"answers-{fingerprint(self.manner.model)[:8]}.journal"
        if path == self._ledger.path:
            return
        for answer in self._ledger.open(path):
            took = answer.provenance
            self._spending.cost += took.cost
            self._add(took.prompt_tokens, took.new_tokens, took.cost, took.num_attempts)

    def ask(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer]]:
        """See `cai.engines.wire.session.answers`."""
        return answers(jobs, self._ledger, self._handling, self.manner.model, self._spending, self._count)

    def ability(self, *, chat: bool) -> Ability:
        """What the servers can do for prompts with turns (`chat`) or of text alone; they are asked once."""
        if chat not in self._abilities:
            self._abilities[chat] = find_ability(
                self.manner, self._handling, self._spending, self._mode, chat=chat, count=self._count
            )
        return self._abilities[chat]

    def abilities(self, *, chat: bool) -> dict[str, Ability | None]:
        """See `EndpointEngine.abilities`."""
        return find_abilities(self.manner, self._handling, self._spending, chat=chat, count=self._count)

    def checked(self, prompts: Sequence[EnginePrompt]) -> list[EnginePrompt]:
        """The prompts with the special tokens that they quote broken up and counted. EngineError for an empty one."""
        for index, prompt in enumerate(prompts):
            if not prompt.turns and not prompt.text.strip(" "):
                raise EngineError(f"prompt {index} is empty: a model needs at least one token to go on from")
        made = [inert(prompt) for prompt in prompts]
        self.usage.num_broken += sum(number for _, number in made)
        return [prompt for prompt, _ in made]

    def _count(self, tally: Tally) -> None:
        self._add(tally.prompt_tokens, tally.new_tokens, tally.cost, len(tally.outcomes))

    def _add(self, prompt_tokens: int, new_tokens: int, cost: float, num_requests: int) -> None:
        self.usage.prompt_tokens += prompt_tokens
        self.usage.new_tokens += new_tokens
        self.usage.cost += cost
        self.usage.num_requests += num_requests
