"""The engine that runs a Hugging Face causal language model in this process, on the CPU or a GPU."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from cai.engines.base import EnginePrompt, Generation, Sampling, Usage
from cai.errors import EngineError, ModelError, unknown
from cai.models.digest import DTYPES, check_device, find_model
from cai.records import seed_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cai.engines.texts import Texts, TokenizedPrompt
    from cai.models.decoding import Work
    from cai.models.noise import TokenNoise

__all__ = ["TransformersEngine"]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What is there once the model is in memory. `context` is the most tokens it takes, None if it does not say."""

    model: "PreTrainedModel"
    texts: "Texts"
    end_ids: frozenset[int]
    context: int | None


def _noise(loaded: _Loaded, epsilon: float) -> "TokenNoise | None":
    """Random words, and no markers, for a share `epsilon` of the tokens."""
    import torch

    from cai.models.noise import TokenNoise, plain_ids

    if epsilon == 0:
        return None
    return TokenNoise(epsilon, torch.tensor(plain_ids(loaded.texts.tokenizer), device=loaded.model.device))


def _check_batch_tokens(number: int) -> None:
    if number < 1:
        raise ModelError(f"max_batch_tokens: must be 1 or more, got {number}")


class TransformersEngine:
    """Generates and scores with the model in folder `model`, or with that hub id; loaded at the first use.

    Generation sorts prompts by length into batches of at most `max_batch_tokens` (prompt and new tokens, padding
    included), reads common prefixes once and drops rows as they end. Option log-probabilities read questions that begin
    alike as one tree of tokens (`cai.models.tree`). `device` auto takes a GPU if there is one.

    Raises ModelError at once when `model`, `dtype`, `device` or `max_batch_tokens` cannot be right.
    """

    def __init__(
        self, *, model: str, dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: Annotated[str, check_device] = "auto",
        max_batch_tokens: Annotated[int, _check_batch_tokens] = 16384,
    ) -> None:  # fmt: skip
        if dtype not in DTYPES:
            raise ModelError(unknown("dtype", dtype, DTYPES))
        check_device(device)
        _check_batch_tokens(max_batch_tokens)
        find_model(model)
        self.model = str(model)
        self.name = Path(model).name
        self.usage = Usage()
        self.dtype = dtype
        self.device = device
        self.max_batch_tokens = max_batch_tokens

    @cached_property
    def _loaded(self) -> _Loaded:
        from cai.engines.texts import Texts
        from cai.models.loading import end_of_turn_ids, load_causal_lm, load_tokenizer

        model = load_causal_lm(self.model, dtype=self.dtype, device=self.device)
        tokenizer = load_tokenizer(self.model)
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return _Loaded(model, Texts(tokenizer), end_of_turn_ids(model, tokenizer), context)

    def generate(
        self,
        prompts: Sequence[EnginePrompt],
        sampling: Sampling,
        *,
        seed: int,
        keys: Sequence[str],
        done: Collection[int] = (),
    ) -> Iterator[Generation]:
        """See `Engine.generate`. Raises EngineError for a prompt that leaves no room for `max_new_tokens`.

        White space around the text is the model's; a space that the prompt ends with already is not said again.
        """
        from cai.engines.texts import Ending
        from cai.models.decoding import Work, sample

        if len(keys) != len(prompts):
            raise EngineError(f"generate: {len(prompts)} prompts but {len(keys)} keys")
        loaded = self._loaded
        encoded = loaded.texts.encode(prompts)
        for index, prompt in enumerate(encoded):
            self._check_length(index, len(prompt.ids), sampling.max_new_tokens)
        ending = Ending(loaded.texts.tokenizer, loaded.end_ids, sampling.stop)
        lengths = [(len(prompt.ids), prompt.ids) for prompt in encoded]
        for batch in self._batches(lengths, sampling.max_new_tokens):
            left = set(batch) - set(done)
            if not left:
                continue
            work = Work()
            for row in sample(
                loaded.model,
                [encoded[index].ids for index in batch],
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                seeds=[seed_of(seed, keys[index]) for index in batch],
                stop_ids=ending.ids,
                should_stop=ending.reached if ending.strings else None,
                noise=_noise(loaded, sampling.epsilon),
                work=work,
            ):
                text, num_tokens, finished = ending.text(row.ids)
                index = batch[row.index]
                self.usage.new_tokens += num_tokens
                if index in left:
                    yield Generation(
                        index=index,
                        text=text.lstrip(" ") if encoded[index].trimmed else text,
                        num_tokens=num_tokens,
                        finished=finished,
                    )
            self._count(work, [encoded[index] for index in batch])

    def choice_logprobs(
        self, prompts: Sequence[EnginePrompt], choices: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float64]]:
        """See `Engine.choice_logprobs`. Raises EngineError for a prompt too long, or a choice of unknown words."""
        from cai.models.decoding import Work
        from cai.models.tree import Question, continuation_logps

        if len(choices) != len(prompts):
            raise EngineError(f"choice_logprobs: {len(prompts)} prompts but {len(choices)} sets of choices")
        loaded = self._loaded
        encoded = loaded.texts.encode(prompts)
        questions = []
        for index, (prompt, options) in enumerate(zip(encoded, choices, strict=True)):
            if not options:
                raise EngineError(f"prompt {index} has no choices", prompt=index)
            continuations = [loaded.texts.encode_choice(prompt, option) for option in options]
            self._check_length(index, len(prompt.ids), max(map(len, continuations)))
            questions.append(Question(prompt.ids, continuations))
        work = Work()
        found = continuation_logps(loaded.model, questions, max_tokens=self.max_batch_tokens, work=work)
        self._count(work, encoded)
        return found

    def _check_length(self, index: int, num_prompt: int, num_more: int) -> None:
        limit = self._loaded.context
        if limit is not None and num_prompt + num_more > limit:
            raise EngineError(
                f"prompt {index}: {num_prompt} tokens and {num_more} more do not fit into the {limit} of {self.name}",
                prompt=index,
            )

    def _batches(self, lengths: Sequence[tuple[int, list[int]]], max_new_tokens: int) -> Iterator[list[int]]:
        """Indices, the longest prompts first (what will not fit into memory fails at once), equal ones together."""
        batch: list[int] = []
        width = 0
        for index in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
            if batch and (len(batch) + 1) * width > self.max_batch_tokens:
                yield batch
                batch = []
            width = width if batch else lengths[index][0] + max_new_tokens
            batch.append(index)
        if batch:
            yield batch

    def _count(self, work: "Work", prompts: "Sequence[TokenizedPrompt]") -> None:
        """Add to `usage`; a forward costs 2 FLOPs per parameter and token."""
        self.usage.prompt_tokens += work.read
        self.usage.flops += 2.0 * self._loaded.model.num_parameters() * (work.read + work.made)
        for word, count in self._loaded.texts.unknown_words(prompts).items():
            self.usage.unknown[word] = self.usage.unknown.get(word, 0) + count
