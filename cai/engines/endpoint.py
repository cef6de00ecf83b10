"""The engine that asks OpenAI-compatible servers: vLLM, SGLang, llama.cpp, `transformers serve`, hosted ones."""

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, get_type_hints
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from cai.engines.base import EnginePrompt, Generation, Sampling, Scored
from cai.engines.wire.choices import receipt_of, scores, text_job
from cai.engines.wire.client import Client
from cai.engines.wire.probe import Ability
from cai.engines.wire.requests import Manner
from cai.engines.wire.transport import Handling, Spending
from cai.errors import EngineError, unknown

__all__ = ["EndpointEngine"]

_PRICES: Final = ("input", "output", "cached")


def _at_least(name: str, low: float) -> Callable[[float | None], None]:
    def check(value: float | None) -> None:
        if value is not None and not low <= value < math.inf:
            raise EngineError(f"{name}: must be {low:g} or more, got {value}")

    return check


def _check_urls(urls: Sequence[str]) -> None:
    if not urls:
        raise EngineError("base_urls: needs at least one URL, got []")
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EngineError(f"base_urls: must be like http://localhost:8000/v1, got {url!r}")
        if parts.username or parts.password:
            raise EngineError("base_urls: must not hold a password; name a variable of the environment in api_key_env")
        if parts.query or parts.fragment:  # ?api-key=..., which would be in every file
            raise EngineError("base_urls: must not have a query; a key is named in api_key_env")


def _check_key(name: str | None) -> None:
    if name is not None and not os.environ.get(name):
        raise EngineError(f"api_key_env: the environment has no variable {name!r}")


def _check_prices(prices: Mapping[str, Mapping[str, float]]) -> None:
    for model, price in prices.items():
        if not isinstance(price, Mapping) or not {"input", "output"} <= set(price):
            raise EngineError(f"prices.{model}: needs input and output, in USD per million tokens, got {price!r}")
        for name, value in price.items():
            if name not in _PRICES:
                raise EngineError(f"prices.{model}: {unknown('price', name, _PRICES)}")
            _at_least(f"prices.{model}.{name}", 0)(value)


class EndpointEngine:
    """Asks the model called `model` on one or several servers (`base_urls`, the least busy first).

    Options are scored in the best `mode` that the server can, or in the one asked for: `logprob` reads them among the
    `top_logprobs` of the answer's first tokens, `decision` asks a decision endpoint, `sampled` counts the verdicts of
    `num_samples` answers, `parsed` takes one answer at its word. Which one it was is in every receipt.

    Raises EngineError when a setting cannot be right, and while asking when nothing comes, when the server is down for
    `outage_seconds`, refuses the key or the model, or when `max_cost` is spent; answers are kept until then.
    """

    serves_by_name: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset(
        {
            *("base_urls", "api_key_env", "concurrency", "requests_per_minute", "timeout_seconds", "max_attempts"),
            *("retry_seconds", "outage_seconds", "prices", "max_cost", "reported_as"),
        }
    )

    def __init__(
        self, *, model: str, base_urls: Annotated[Sequence[str], _check_urls],
        api_key_env: Annotated[str | None, _check_key] = None,
        mode: Literal["auto", "logprob", "decision", "sampled", "parsed"] = "auto",
        prefill: Literal["ask", "message", "continue"] = "ask",
        num_samples: Annotated[int, _at_least("num_samples", 1)] = 8,
        top_logprobs: Annotated[int, _at_least("top_logprobs", 2)] = 20,
        verdict_tokens: Annotated[int, _at_least("verdict_tokens", 1)] = 8,
        max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: Mapping[str, Any] | None = None,
        concurrency: Annotated[int, _at_least("concurrency", 1)] = 32,
        requests_per_minute: Annotated[float | None, _at_least("requests_per_minute", 0.01)] = None,
        timeout_seconds: Annotated[float, _at_least("timeout_seconds", 0.01)] = 60.0,
        max_attempts: Annotated[int, _at_least("max_attempts", 1)] = 6,
        retry_seconds: Annotated[float, _at_least("retry_seconds", 0)] = 0.5,
        outage_seconds: Annotated[float, _at_least("outage_seconds", 0)] = 600.0,
        prices: Annotated[Mapping[str, Mapping[str, float]] | None, lambda prices: _check_prices(prices or {})] = None,
        max_cost: Annotated[float | None, _at_least("max_cost", 0)] = None,
        reported_as: str | None = None,
    ) -> None:  # fmt: skip
        _check(dict(locals()))
        self.name = model
        self._num_samples = num_samples
        manner = Manner(
            model=model, prefill=prefill, max_tokens_name=max_tokens_name, verdict_tokens=verdict_tokens,
            top_logprobs=top_logprobs, extra_body=extra_body or {},
        )  # fmt: skip
        handling = Handling(
            base_urls=base_urls, api_key=os.environ[api_key_env] if api_key_env else None, concurrency=concurrency,
            requests_per_minute=requests_per_minute, timeout=timeout_seconds, max_attempts=max_attempts,
            retry_seconds=retry_seconds, outage_seconds=outage_seconds, reported_as=reported_as,
        )  # fmt: skip
        spending = Spending(_price(model, prices or {}, max_cost), max_cost)
        self._client = Client(manner, handling, spending, mode)
        self.usage = self._client.usage

    def abilities(self, *, chat: bool) -> dict[str, Ability | None]:
        """What the servers can do, by mode, for prompts with turns (`chat`) or of text alone; None: they cannot."""
        return self._client.abilities(chat=chat)

    def keep_in(self, folder: Path) -> None:
        """See `RemoteEngine.keep_in`. What the attempts there have cost counts as spent."""
        self._client.keep_in(folder)

    def generate(
        self,
        prompts: Sequence[EnginePrompt],
        sampling: Sampling,
        *,
        seed: int,
        keys: Sequence[str],
        done: Collection[int] = (),
    ) -> Iterator[Generation]:
        """See `Engine.generate`; how far a seed decides is the server's business. Raises EngineError for an empty
        prompt.
        """
        if len(keys) != len(prompts):
            raise EngineError(f"generate: {len(prompts)} prompts but {len(keys)} keys")
        if sampling.epsilon:
            raise EngineError(f"endpoint: no server puts random tokens into an answer (epsilon {sampling.epsilon:g})")
        prompts = self._client.checked(prompts)
        jobs = (
            text_job(self._client.manner, index, prompts[index], sampling, seed, keys[index])
            for index in range(len(prompts))
            if index not in done
        )
        for asked, answer in self._client.ask(jobs):
            spaced = not prompts[asked.index].turns and prompts[asked.index].text.endswith(" ")
            yield Generation(
                index=asked.index,
                text=answer.text.lstrip(" ") if spaced else answer.text,
                num_tokens=answer.num_tokens,
                finished=answer.finished,
                receipt=receipt_of([answer]),
            )

    def choice_logprobs(
        self, prompts: Sequence[EnginePrompt], choices: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float64]]:
        """See `Engine.choice_logprobs`, and `score`, which says which of these mean nothing."""
        found = {one.index: one.logps for one in self.score(prompts, choices)}
        return [found[index] for index in range(len(prompts))]

    def score(self, prompts: Sequence[EnginePrompt], choices: Sequence[Sequence[str]]) -> Iterator[Scored]:
        """See `RemoteEngine.score`. The first call finds out what the servers can do. An option has the probability of
        all its spellings; one that no token named begins has none, and -inf.

        Raises EngineError for options that cannot be told apart, for a single one (a server tells nothing about whole
        texts), and when the servers cannot what `mode` asks for.
        """
        if len(choices) != len(prompts):
            raise EngineError(f"score: {len(prompts)} prompts but {len(choices)} sets of choices")
        prompts = self._client.checked(prompts)
        return scores(self._client, prompts, choices, self._num_samples)


def _check(given: Mapping[str, Any]) -> None:
    """The checks in the annotations of the constructor, which a configuration runs before there is a model."""
    for name, hint in get_type_hints(EndpointEngine.__init__, include_extras=True).items():
        for check in getattr(hint, "__metadata__", ()):
            check(given[name])


def _price(model: str, prices: Mapping[str, Mapping[str, float]], max_cost: float | None) -> Mapping[str, float]:
    """The model's prices; empty without a table."""
    if model in prices:
        return prices[model]
    if prices:
        raise EngineError(f"prices: {unknown('priced model', model, prices)}")
    if max_cost is not None:
        raise EngineError(f"max_cost: {max_cost:g} USD cannot be kept to without a price for {model!r} in prices")
    return {}
