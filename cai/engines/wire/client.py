"""One model on its servers: answers from the ledger or the wire, what they cost, and what can be asked."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cai.engines.base import EnginePrompt
from cai.engines.wire.ledger import Answer, Ledger
from cai.engines.wire.markers import inert
from cai.engines.wire.probe import Ability, find_abilities, find_ability
from cai.engines.wire.requests import Manner
from cai.engines.wire.session import Job, answers
from cai.engines.wire.transport import Handling, Spending
from cai.errors import EngineError
from cai.records import fingerprint

__all__ = ["Client"]


class Client:
    """Asks, keeps and counts. `mode` is how choices are to be answered: one of `MODES` of the probe, or auto."""

    def __init__(self, manner: Manner, handling: Handling, spending: Spending, mode: str) -> None:
        self.manner = manner
        self.usage = spending.usage
        self._handling = handling
        self._spending = spending
        self._mode = mode
        self._ledger = Ledger()
        self._abilities: dict[bool, Ability] = {}

    def keep_in(self, folder: Path) -> None:
        """See `EndpointEngine.keep_in`."""
        if folder == self._ledger.folder:
            return
        for attempt in self._ledger.open(folder, fingerprint(self.manner.model)[:8]):
            self._spending.add(attempt)

    def ask(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer]]:
        """See `cai.engines.wire.session.answers`."""
        return answers(jobs, self._ledger, self._handling, self.manner.model, self._spending)

    def ability(self, *, chat: bool) -> Ability:
        """What the servers can do for prompts with turns (`chat`) or of text alone; they are asked once."""
        if chat not in self._abilities:
            self._abilities[chat] = find_ability(
                self.manner, self._handling, self._spending, self._ledger, self._mode, chat=chat
            )
        return self._abilities[chat]

    def abilities(self, *, chat: bool) -> dict[str, Ability | None]:
        """See `EndpointEngine.abilities`."""
        return find_abilities(self.manner, self._handling, self._spending, self._ledger, chat=chat)

    def checked(self, prompts: Sequence[EnginePrompt]) -> list[EnginePrompt]:
        """The prompts with the special tokens that they quote broken up and counted. EngineError for an empty one."""
        for index, prompt in enumerate(prompts):
            if not prompt.turns and not prompt.text.strip(" "):
                raise EngineError(
                    f"prompt {index} is empty: a model needs at least one token to go on from", prompt=index
                )
        made = [inert(prompt) for prompt in prompts]
        self.usage.num_broken += sum(number for _, number in made)
        return [prompt for prompt, _ in made]
