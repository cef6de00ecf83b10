"""The seam between `cai` and language models: two operations, generate and choice_logprobs."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cai.errors import ConfigError
from cai.types import Provenance, Turn

__all__ = [
    "Engine",
    "EngineFactory",
    "EnginePrompt",
    "Generation",
    "Receipt",
    "RemoteEngine",
    "Sampling",
    "Scored",
    "Usage",
    "check_weights",
    "serves_by_name",
    "taken_together",
]


@dataclass(frozen=True, slots=True)
class EnginePrompt:
    """What a model is to continue: `turns` rendered by the model's own chat template (when there are any), then
    `text` as it stands. With no turns, `text` is the whole prompt.

    `quoted` says where in it texts stand that are material and no part of the format: (place, start, end), where place
    is the number of the turn, or len(turns) for `text`. An engine reads special tokens in there as the plain text that
    they are.
    """

    turns: tuple[Turn, ...] = ()
    text: str = ""
    quoted: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy; `stop` strings end the text and are not part of it. With probability
    `epsilon` a token is a random one in place of the model's (noise on purpose: `cai.noise`); an engine that cannot do
    that raises EngineError.
    """

    max_new_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens: must be 1 or more, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature: must be 0 or more, got {self.temperature}")
        if not 0 <= self.epsilon <= 1:
            raise ConfigError(f"epsilon: must be a probability from 0 to 1, got {self.epsilon}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one answer of a server took, over all its attempts; `attempts` says how each of them ended.

    When every attempt went wrong, `failed` is the reason and `detail` what the server said, in one line: then there is
    no answer, and what stands in its place (an empty text, impossible options) means nothing.
    """

    provenance: Provenance
    attempts: tuple[str, ...]
    failed: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The continuation of prompt number `index`. `finished` is false when `max_new_tokens` cut it off. A server's has a
    `receipt`.
    """

    index: int
    text: str
    num_tokens: int
    finished: bool
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A server's log-probabilities of the choices of prompt number `index`, as `Engine.choice_logprobs` has them; all
    of them -inf when there is no answer.
    """

    index: int
    logps: NDArray[np.float64]
    receipt: Receipt


@dataclass(slots=True)
class Usage:
    """Running totals of one engine: tokens read (after prefix sharing), tokens made, forward FLOPs.

    `unknown` counts words that the model's vocabulary lacks, by word, so that a constitution that the model cannot
    read is reported and not met with silence. `cost` (USD) and `num_requests` are those of a server, and so is
    `num_broken`: special tokens that quoted texts spelled, with a space put into each of them.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    flops: float = 0.0
    unknown: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0
    num_requests: int = 0
    num_broken: int = 0


@runtime_checkable
class Engine(Protocol):
    """A language model that generates and scores.

    Both operations are deterministic in their arguments: randomness comes from (seed, keys[i]) alone, and batches are
    planned over the full list, so a call that passes over `done` indices gives the same bits for the rest.
    """

    name: str
    usage: Usage

    def generate(
        self,
        prompts: Sequence[EnginePrompt],
        sampling: Sampling,
        *,
        seed: int,
        keys: Sequence[str],
        done: Collection[int] = (),
    ) -> Iterator[Generation]:
        """Yield one Generation per index not in `done`, as they finish, in no particular order."""
        ...

    def choice_logprobs(
        self, prompts: Sequence[EnginePrompt], choices: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float64]]:
        """Log-probability, in nats and not renormalised, of each continuation of each prompt.

        `choices[i]` are the continuations of `prompts[i]`; the result has one array of shape (len(choices[i]),) per
        prompt. Tokens of a continuation are summed. Work on common prefixes is shared.
        """
        ...


@runtime_checkable
class RemoteEngine(Engine, Protocol):
    """An engine that asks a server: answers cost money, come one by one, and may fail to come.

    When none comes at all it raises EngineError: that is a mistake in the settings, or the server's end, and not a
    property of the questions.
    """

    def keep_in(self, folder: Path) -> None:
        """Keep every answer in a journal in `folder` from now on, and take those that are there already from it."""
        ...

    def score(self, prompts: Sequence[EnginePrompt], choices: Sequence[Sequence[str]]) -> Iterator[Scored]:
        """`choice_logprobs` with receipts, one Scored per prompt as they come, in no particular order."""
        ...


class EngineFactory(Protocol):
    """Makes an engine for a model folder or hub id (an engine configuration with the model left open)."""

    def __call__(self, *, model: str) -> Engine:
        """Load `model` and return an engine for it."""
        ...


def serves_by_name(factory: object) -> bool:
    """Whether an engine factory finds its models on a server, by name, and not in folders: so says the attribute of
    that name of the class it makes.
    """
    return bool(getattr(getattr(factory, "func", factory), "serves_by_name", False))


def check_weights(factory: object) -> None:
    """Raise ConfigError for an engine factory that does not have its models' weights at hand."""
    if serves_by_name(factory):
        raise ConfigError("engine: must have the weights at hand: servers do not tell log-probabilities of whole texts")


def taken_together(parts: Sequence[Provenance]) -> Provenance:
    """When the last of these answers came and what all of them took (at least one). `mode` is that of the choices among
    them; it has several, joined by +, should a server have changed its mind.
    """
    modes = {part.mode for part in parts if part.mode}
    return Provenance(
        labeled_at=max(part.labeled_at for part in parts),
        seconds=sum(part.seconds for part in parts),
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        new_tokens=sum(part.new_tokens for part in parts),
        cost=sum(part.cost for part in parts),
        num_attempts=sum(part.num_attempts for part in parts),
        mode="+".join(sorted(modes - {"text"} or modes)),
    )
