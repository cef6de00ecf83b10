"""The engine that says what it is told to: a public fake for tests, and for trying out a recipe without a model."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cai.engines.base import EnginePrompt, Generation, Sampling, Usage
from cai.errors import EngineError

__all__ = ["Request", "ScriptedEngine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt as the engine was given it: with `sampling`, `seed` and `key` to generate, with `choices` to score."""

    prompt: EnginePrompt
    choices: tuple[str, ...] = ()
    sampling: Sampling | None = None
    seed: int | None = None
    key: str | None = None


class ScriptedEngine:
    """Replies from a queue, in the order of the prompts, or from a function of the prompt; scores by a function.

    `history` has every request in order. Words count as tokens. Stop strings and `max_new_tokens` are kept as a model
    would keep them.

    >>> engine = ScriptedEngine(replies=["Yes.", "No."], logprob=lambda prompt, choice: -float(len(choice)))
    >>> sampling = Sampling(max_new_tokens=5)
    >>> [g.text for g in engine.generate([EnginePrompt(text="Really?")], sampling, seed=0, keys=["a"])]
    ['Yes.']
    >>> engine.choice_logprobs([EnginePrompt(text="Which?")], [["(A)", "both"]])
    [array([-3., -4.])]
    """

    def __init__(
        self,
        *,
        replies: Iterable[str] | Callable[[EnginePrompt], str] = (),
        logprob: Callable[[EnginePrompt, str], float] | None = None,
        model: str = "scripted",
    ) -> None:
        self.name = model
        self.usage = Usage()
        self.history: list[Request] = []
        self.queue: deque[str] = deque(() if callable(replies) else replies)
        self._reply = replies if callable(replies) else self._next
        self._logprob = logprob

    def enqueue(self, *replies: str) -> None:
        """Add replies at the end of the queue."""
        self.queue.extend(replies)

    def _next(self, prompt: EnginePrompt) -> str:
        if not self.queue:
            raise EngineError(f"{self.name}: no reply left in the queue for prompt {prompt.text!r}")
        return self.queue.popleft()

    def generate(
        self,
        prompts: Sequence[EnginePrompt],
        sampling: Sampling,
        *,
        seed: int,
        keys: Sequence[str],
        done: Collection[int] = (),
    ) -> Iterator[Generation]:
        """See `Engine.generate`. Raises EngineError when the queue is empty."""
        for index, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
            if index in done:
                continue
            self.history.append(Request(prompt=prompt, sampling=sampling, seed=seed, key=key))
            text = self._reply(prompt)
            text = text[: min([text.index(stop) for stop in sampling.stop if stop in text], default=len(text))]
            words = text.split()
            finished = len(words) <= sampling.max_new_tokens
            num_tokens = min(len(words), sampling.max_new_tokens)
            self.usage.prompt_tokens += _num_words(prompt)
            self.usage.new_tokens += num_tokens
            yield Generation(
                index=index,
                text=text if finished else " ".join(words[:num_tokens]),
                num_tokens=num_tokens,
                finished=finished,
            )

    def choice_logprobs(
        self, prompts: Sequence[EnginePrompt], choices: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float64]]:
        """See `Engine.choice_logprobs`. Raises EngineError when the engine was made without `logprob`."""
        if self._logprob is None:
            raise EngineError(f"{self.name}: made without `logprob`, so it cannot score choices")
        found = []
        for prompt, options in zip(prompts, choices, strict=True):
            self.history.append(Request(prompt=prompt, choices=tuple(options)))
            self.usage.prompt_tokens += _num_words(prompt)
            found.append(np.array([self._logprob(prompt, option) for option in options], dtype=np.float64))
        return found


def _num_words(prompt: EnginePrompt) -> int:
    return sum(len(turn.content.split()) for turn in prompt.turns) + len(prompt.text.split())
