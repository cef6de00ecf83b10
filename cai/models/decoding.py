"""Sampling from a causal language model, a batch at a time, with a key-value cache.

A row's random numbers come from its own seed, so that its tokens do not depend on who shares the batch (up to rounding
in the model's forward). Rows that have ended leave the batch, and what prompts have in common is read once.

Letters of shapes: B rows alive, U distinct prompts, W width of the prompts, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from cai.errors import ModelError
from cai.models.llama import LlamaSteps
from cai.models.masks import blocked, takes_masks
from cai.models.noise import TokenNoise
from cai.records import seed_of

__all__ = ["Decoded", "Work", "common_prefix", "draw", "sample", "uniforms"]

_KEEP = 0.95  # finished rows are dropped when fewer than this share of the batch is alive
_CHECK_EVERY = 8  # steps between looks at who has finished, where a look makes the host wait for the GPU
_GROWTH = 3  # tokens of room at least: wider gaps between the rows' keys cost more than now and then a copy
_WORTH_SHARING = 8  # tokens; a shorter common prefix costs more than it saves


@dataclass(frozen=True, slots=True)
class Decoded:
    """The continuation of prompt number `index`: token ids and their log-probabilities (nats, at the temperature).

    `finished` tells whether it ended by itself; then the stop token is the last of `ids`, unless it was `should_stop`.
    """

    index: int
    ids: list[int]
    logps: list[float]
    finished: bool


@dataclass(slots=True)
class Work:
    """Running totals of tokens: `read` by a forward, of prompts; `shared`, so not read again; `made` by decoding."""

    read: int = 0
    shared: int = 0
    made: int = 0


def uniforms(seed: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) from the counter-based generator Philox with `seed` (0 <= seed < 2**64) as its key.

    The first n of them do not depend on `count`. 32 bits each, so that u * total < total in float64.
    """
    bits: NDArray[np.uint64] = np.random.Philox(key=seed).random_raw(count)
    return (bits >> np.uint64(32)).astype(np.float64) * 2.0**-32


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens (B) by inversion of the cumulative distribution of `logits` (B, V) at `uniform` (B), and their logps (B).

    At temperature 0 the likeliest token, with its log-probability at temperature 1.
    """
    probs = torch.softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = probs.argmax(dim=-1)
    else:
        total = probs.cumsum(dim=-1, dtype=torch.float64)
        tokens = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True)[:, 0]
        tokens = tokens.clamp_max(logits.shape[-1] - 1)  # NaN gives V; what is not finite is reported at the end
    return tokens, probs.gather(-1, tokens[:, None])[:, 0].log()


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading items two sequences have in common."""
    limit = min(len(first), len(second))
    return next((i for i in range(limit) if first[i] != second[i]), limit)


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seeds: Sequence[int],
    stop_ids: Collection[int],
    should_stop: Callable[[list[int]], bool] | None = None,
    noise: TokenNoise | None = None,
    work: Work | None = None,
) -> Iterator[Decoded]:
    """Continue each of `prompts` (token ids, at least one each) by up to `max_new_tokens`; yield rows as they finish.

    A row ends with a token of `stop_ids`, or when `should_stop` says so of its ids: that is asked now and then, so a
    few tokens may follow. `seeds[i]` gives the random numbers of row i, those of `noise` apart from those that sample.
    The whole list is one batch: the caller sees to it that it fits into memory. `work` is added to.

    Raises ModelError when the model's probabilities are not finite.
    """
    if not all(prompts):
        raise ModelError("cannot continue a prompt of no tokens: a model needs at least one")
    work = Work() if work is None else work
    for group in [range(len(prompts))] if takes_masks(model) else _equal_lengths(prompts):
        if not group:
            continue
        cached = _Cached(model, [prompts[i] for i in group], max_new_tokens, work)
        randoms = [_randoms(seeds[i], max_new_tokens, noise is not None) for i in group]
        rows = _Rows(group, torch.from_numpy(np.stack(randoms)).to(model.device), stop_ids)
        tokens = torch.tensor([prompts[i][-1] for i in group], device=model.device)
        for step in range(max_new_tokens):
            if step:
                work.made += len(tokens)
            logits = cached.step(tokens)
            tokens, logp = draw(logits, rows.randoms[:, step, 0], temperature)
            if noise is not None:
                tokens, logp = noise(tokens, logp, logits, rows.randoms[:, step, 1:], rows.stops, temperature)
            rows.add(tokens, logp)
            keep = rows.look(should_stop)
            if keep is not None:
                yield from rows.drop(keep)
                if not len(keep):
                    break
                cached.select(keep)
                tokens = tokens[keep]
        else:
            yield from rows.drop(torch.empty(0, dtype=torch.long, device=model.device))


def _randoms(seed: int, count: int, noisy: bool) -> NDArray[np.float64]:
    """Numbers in [0, 1) for `count` tokens of a row: (count, 1) to sample with, (count, 3) with noise."""
    own = uniforms(seed, count)[:, None]
    return np.hstack([own, uniforms(seed_of(seed, "noise"), 2 * count).reshape(count, 2)]) if noisy else own


def _equal_lengths(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of prompts of the same length together."""
    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(index)
    return list(groups.values())


class _Rows:
    """What the B rows of a batch that are alive have got so far; `where` (B) are their numbers among all there were."""

    def __init__(self, group: Sequence[int], randoms: Tensor, stop_ids: Collection[int]) -> None:
        device, max_new_tokens = randoms.device, randoms.shape[1]
        self.group = group
        self.stop_ids = frozenset(stop_ids)
        self.stops = torch.tensor(sorted(self.stop_ids), dtype=torch.long, device=device)
        self.randoms = randoms
        self.ids = torch.empty((len(group), max_new_tokens), dtype=torch.long, device=device)
        self.logps = torch.empty((len(group), max_new_tokens), device=device)
        self.where = torch.arange(len(group), device=device)
        self.ended = torch.zeros(len(group), dtype=torch.bool, device=device)
        self.num_steps = 0
        # A look at who has ended makes the host wait for a GPU.
        self.every = 1 if device.type == "cpu" else _CHECK_EVERY

    def add(self, tokens: Tensor, logp: Tensor) -> None:
        """One step: a token for each row that is alive."""
        self.ids[:, self.num_steps] = tokens
        self.logps[:, self.num_steps] = logp
        self.ended |= torch.isin(tokens, self.stops)
        self.num_steps += 1

    def look(self, should_stop: Callable[[list[int]], bool] | None) -> Tensor | None:
        """The n rows to go on with (numbers among those alive), or None to change nothing now.

        Those among the first n keep their places, the others fill the gaps: so hardly anything has to be moved.
        """
        if self.num_steps % self.every:
            return None
        if should_stop is not None and self.num_steps % _CHECK_EVERY == 0:
            for row in (~self.ended).nonzero()[:, 0].tolist():
                self.ended[row] = should_stop(self.ids[row, : self.num_steps].tolist())
        alive = len(self.ended) - int(self.ended.sum())
        if alive >= _KEEP * len(self.ended):
            return None
        keep = torch.arange(alive, device=self.ended.device)
        keep[self.ended[:alive]] = (~self.ended[alive:]).nonzero()[:, 0] + alive
        return keep

    def drop(self, keep: Tensor) -> Iterator[Decoded]:
        """Let go of all rows but `keep`."""
        gone = torch.ones_like(self.ended)
        gone[keep] = False
        where, ended = self.where[gone], self.ended[gone].tolist()
        ids, logps = self.ids[gone, : self.num_steps], self.logps[gone, : self.num_steps]
        self.where, self.ended, self.randoms = self.where[keep], self.ended[keep], self.randoms[keep]
        self.ids, self.logps = self.ids[keep], self.logps[keep]
        if not bool(logps.isfinite().all()):
            raise ModelError("the model gives probabilities that are not finite (its weights may be damaged)")
        for row, finished, row_ids, row_logps in zip(where.tolist(), ended, ids.tolist(), logps.tolist(), strict=True):
            end = next((n for n, token in enumerate(row_ids, 1) if token in self.stop_ids), len(row_ids))
            yield Decoded(self.group[row], row_ids[:end], row_logps[:end], finished)


class _Buffer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer in memory that grows a few tokens at a time, not with a copy of all per token."""

    memory: tuple[Tensor, Tensor]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append along the second last axis of (B, heads, tokens, size); returns all keys and all values."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.keys is None or self.values is None:
            self.is_initialized, self.dtype, self.device = True, key_states.dtype, key_states.device
            self.memory = _grown(key_states, end), _grown(value_states, end)
        else:
            if end > self.memory[0].shape[-2]:
                self.memory = _grown(self.keys, end), _grown(self.values, end)
            self.memory[0][:, :, start:end] = key_states
            self.memory[1][:, :, start:end] = value_states
        self.keys, self.values = self.memory[0][:, :, :end], self.memory[1][:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with the rows `beam_idx`, in that order; a row may be wanted more than once."""
        if self.keys is None or self.values is None:
            return
        end, rows = self.get_seq_length(), len(beam_idx)
        moved = (beam_idx != torch.arange(rows, device=beam_idx.device)).nonzero()[:, 0]
        if rows <= len(self.keys) and bool((beam_idx[moved] >= rows).all()):  # in place: no source is overwritten
            self.keys[moved], self.values[moved] = self.keys[beam_idx[moved]], self.values[beam_idx[moved]]
            self.memory = self.memory[0][:rows], self.memory[1][:rows]
        else:
            self.memory = _grown(self.keys[beam_idx], end), _grown(self.values[beam_idx], end)
        self.keys, self.values = self.memory[0][:, :, :end], self.memory[1][:, :, :end]


def _grown(states: Tensor, length: int) -> Tensor:
    """A copy of `states` (B, heads, tokens, size) with room for `length` tokens and some more."""
    batch, heads, tokens, size = states.shape
    memory = states.new_empty((batch, heads, length + max(_GROWTH, length // 16), size))
    memory[:, :, :tokens] = states
    return memory


class _Cached:
    """A model that has read all but the last token of B prompts, and takes one token per row and step from there.

    Prompts are padded on the right: what is real never sees the padding, which only leaves holes between prompt and
    continuation. `mask` (B, 1, 1, W + max_new_tokens) shuts the holes out; without any, no mask is needed.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, work: Work
    ) -> None:
        self.model = model
        heads = [tuple(prompt[:-1]) for prompt in prompts]
        widths = [len(head) for head in heads]
        self.width = max(widths)
        self.mask: Tensor | None = None
        self.positions: Tensor | None = None
        self.cache: Cache = DynamicCache(config=model.config)
        self.quick: LlamaSteps | None = None
        if takes_masks(model):
            self.cache = Cache(layers=[_Buffer() for _ in self.cache.layers])  # type: ignore[no-untyped-call]
            self.positions = torch.tensor(widths, device=model.device)[:, None]
            if isinstance(model, LlamaForCausalLM) and LlamaSteps.fits(model):
                self.quick = LlamaSteps(model, self.width + max_new_tokens)
            if min(widths) < self.width:
                columns = torch.arange(self.width + max_new_tokens, device=model.device)
                holes = (columns >= self.positions) & (columns < self.width)
                self.mask = torch.zeros(holes.shape, dtype=model.dtype, device=model.device)
                self.mask = self.mask.masked_fill_(holes, blocked(model.dtype))[:, None, None]
        self._read(heads, work)

    def _read(self, heads: Sequence[tuple[int, ...]], work: Work) -> None:
        """Fill the cache: what all prompts begin with once, then each distinct prompt once."""
        distinct = {head: number for number, head in enumerate(dict.fromkeys(heads))}
        padded = torch.zeros((len(distinct), self.width), dtype=torch.long)
        for head, number in distinct.items():
            padded[number, : len(head)] = torch.tensor(head, dtype=torch.long)
        padded = padded.to(self.model.device)
        start = common_prefix(min(distinct), max(distinct)) if len(distinct) > 1 else 0
        if start < _WORTH_SHARING:
            start = 0
        else:
            self._forward(padded[:1, :start])
            self._reorder([0] * len(distinct))
        if start < self.width:
            self._forward(padded[:, start:])
        if len(distinct) < len(heads):
            self._reorder([distinct[head] for head in heads])
        read = start + sum(len(head) - start for head in distinct)
        work.read += read + len(heads)  # the last token of each is read by the first step
        work.shared += sum(map(len, heads)) - read

    def _forward(self, ids: Tensor) -> None:
        """Read `ids` (U, tokens) into the cache."""
        if self.quick is not None:
            return self.quick.read(ids, self.cache)
        self.model.base_model(input_ids=ids, past_key_values=self.cache, use_cache=True)

    def _reorder(self, rows: list[int]) -> None:
        self.cache.reorder_cache(torch.tensor(rows, device=self.model.device))  # type: ignore[arg-type]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) of what follows `tokens` (B), which are read into the cache."""
        settings: dict[str, object] = {"past_key_values": self.cache, "use_cache": True}
        if self.positions is None:
            return self.model(input_ids=tokens[:, None], **settings).logits[:, -1]  # type: ignore[no-any-return]
        mask = None if self.mask is None else self.mask[..., : self.cache.get_seq_length() + 1]
        positions, self.positions = self.positions, self.positions + 1
        if self.quick is not None:
            return self.quick(tokens, positions, self.cache, mask)
        settings |= {"position_ids": positions, "attention_mask": mask}
        return self.model(input_ids=tokens[:, None], **settings).logits[:, -1]  # type: ignore[no-any-return]

    def select(self, keep: Tensor) -> None:
        """Go on with the rows `keep`, numbers among the present ones."""
        self.cache.reorder_cache(keep)  # type: ignore[arg-type]
        if self.positions is not None:
            self.positions = self.positions[keep]
        if self.mask is not None:
            self.mask = self.mask[keep]
