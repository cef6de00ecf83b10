"""Log-probabilities of continuations, where questions that begin alike are read as one tree of tokens.

Sequences are sorted and laid out as the depth-first walk of a trie: a token has its depth as position and sees its
ancestors only, by an attention mask, so one forward gives for every node what a forward of its own path would give.
A judge asks 7 questions about a pair under one principle, each the beginning of another one, and 16 principles share
the pair: most tokens are read once instead of dozens of times.

A mask costs attention between branches that do not see each other, so trees are kept small where prefixes are short;
where to cut is decided exactly, by dynamic programming over the sorted list with costs in FLOPs.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from cai.errors import ModelError
from cai.models.decoding import Work, common_prefix
from cai.models.masks import blocked, takes_masks

__all__ = ["Question", "continuation_logps"]

# FLOPs that a machine could do in the time that one more forward takes to start (1.5 ms for a small model on a core).
_START_FLOPS = {"cpu": 5e7, "cuda": 5e11}
_LONGEST_TREE = 1024  # sequences, so that planning stays linear in their number

Wanted = tuple[int, int, int]  # (depth or node, token, slot): add log p(token | path) to output number `slot`
Paths = dict[tuple[int, ...], list[Wanted]]
Values = tuple[NDArray[np.int64], NDArray[np.float64], int]  # slots, log-probabilities, number of tokens read


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt (token ids, at least one) and its continuations (token ids, at least one each)."""

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]


def continuation_logps(
    model: PreTrainedModel, questions: Sequence[Question], *, max_tokens: int, work: Work | None = None
) -> list[NDArray[np.float64]]:
    """For each question an array (number of continuations) of log-probabilities in nats, summed over tokens.

    A forward reads at most `max_tokens` tokens, or one sequence if that is longer. `work` is added to.
    Raises ModelError for a prompt or continuation of no tokens, and when probabilities are not finite.
    """
    if not all(question.prompt and all(question.continuations) for question in questions):
        raise ModelError("log-probabilities need at least one token in each prompt and each continuation")
    counts = [len(question.continuations) for question in questions]
    sums, num_read = np.zeros(sum(counts)), 0
    paths, num_alone = _paths(questions)
    for slots, values, read in (_in_trees if takes_masks(model) else _in_batches)(model, paths, max_tokens):
        np.add.at(sums, slots, values)
        num_read += read
    if not np.isfinite(sums).all():
        raise ModelError("the model gives probabilities that are not finite (its weights may be damaged)")
    if work is not None:
        work.read += num_read
        work.shared += num_alone - num_read
    return np.split(sums, np.cumsum(counts)[:-1]) if counts else []


def _paths(questions: Sequence[Question]) -> tuple[Paths, int]:
    """Every distinct sequence that has to be read, with what is wanted at which depth, in depth-first order; and the
    number of tokens there would be to read if every question stood alone.

    The last token of a continuation is asked for and not read.
    """
    paths: Paths = {}
    slot = num_alone = 0
    for question in questions:
        prompt, depth = tuple(question.prompt), len(question.prompt) - 1
        own = set()
        for continuation in question.continuations:
            path = (*prompt, *continuation[:-1])
            own.add(path)
            wanted = paths.setdefault(path, [])
            wanted.extend((depth + k, token, slot) for k, token in enumerate(continuation))
            slot += 1
        num_alone += sum(map(len, own))
    return dict(sorted(paths.items())), num_alone


# --- trees ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tree:
    """Tokens in depth-first order; node n has descendants n + 1 ... ends[n] - 1; `path` is the open branch."""

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)

    def add(self, sequence: Sequence[int], shared: int, wanted: Sequence[Wanted]) -> None:
        """Branch off the last sequence after `shared` tokens."""
        size, total = len(self.ids), len(self.ids) + len(sequence) - shared
        self.close(shared)
        self.path.extend(range(size, total))
        self.ids.extend(sequence[shared:])
        self.depths.extend(range(shared, len(sequence)))
        self.ends.extend([0] * (total - size))
        self.wanted.extend((self.path[depth], token, slot) for depth, token, slot in wanted)

    def close(self, shared: int = 0) -> None:
        """End the open branch below its first `shared` nodes."""
        for node in self.path[shared:]:
            self.ends[node] = len(self.ids)
        del self.path[shared:]


def _in_trees(model: PreTrainedModel, paths: Paths, max_tokens: int) -> Iterator[Values]:
    """One forward per tree."""
    sequences = list(paths)
    shared = [0, *(common_prefix(a, b) for a, b in pairwise(sequences))]
    start = 0
    for end in _cuts(model, sequences, shared, max_tokens):
        tree = _Tree()
        for n in range(start, end):
            tree.add(sequences[n], shared[n] if n > start else 0, paths[sequences[n]])
        tree.close()
        yield _read_tree(model, tree)
        start = end


def _cuts(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], shared: Sequence[int], max_tokens: int
) -> list[int]:
    """Where trees end in the sorted list, such that the FLOPs of all forwards, with their start, are fewest.

    A tree of sequences i ... j has T = len(i) + sum of the unshared tokens of i + 1 ... j, and costs linear * T +
    attention * T ** 2 + start. `best[j]` is the least cost of the first j sequences.
    """
    settings = model.config.get_text_config(decoder=True)
    linear = 2.0 * (model.num_parameters(exclude_embeddings=True))
    attention = 4.0 * settings.num_hidden_layers * settings.hidden_size
    begin = _START_FLOPS.get(model.device.type, 0.0)
    common = np.array(shared, dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum([len(s) for s in sequences] - common)])
    best = np.zeros(len(sequences) + 1)
    first = np.zeros(len(sequences) + 1, dtype=np.int64)
    for j in range(1, len(sequences) + 1):
        low = max(0, j - _LONGEST_TREE)
        size = total[j] - total[low:j] + common[low:j]
        cost = best[low:j] + (linear + attention * size) * size + begin
        cost[:-1][size[:-1] > max_tokens] = np.inf
        first[j] = low + int(cost.argmin())
        best[j] = cost[first[j] - low]
    cuts, j = [], len(sequences)
    while j > 0:
        cuts.append(j)
        j = int(first[j])
    return cuts[::-1]


@torch.inference_mode()
def _read_tree(model: PreTrainedModel, tree: _Tree) -> Values:
    """What is wanted of a tree, by one forward of its T tokens as a single row."""
    size = len(tree.ids)
    inputs: dict[str, Tensor] = {"input_ids": torch.tensor([tree.ids], device=model.device)}
    if min(tree.ends) < size:  # a tree of one branch is plain causal text
        order = torch.arange(size, device=model.device)
        ends = torch.tensor(tree.ends, device=model.device)
        visible = (order <= order[:, None]) & (order[:, None] < ends)  # (T, T): row sees column, its ancestor
        mask = torch.full((size, size), blocked(model.dtype), dtype=model.dtype, device=model.device)
        inputs["attention_mask"] = mask.masked_fill_(visible, 0.0)[None, None]
        inputs["position_ids"] = torch.tensor([tree.depths], device=model.device)
    nodes, tokens, slots = np.array(tree.wanted).T
    logps = _logps_at(model, inputs, np.zeros_like(nodes), nodes, tokens)
    return slots, logps, size


# --- plain batches ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _in_batches(model: PreTrainedModel, paths: Paths, max_tokens: int) -> Iterator[Values]:
    """Sequences as rows, padded on the right where causal attention does not look; for models that take no masks."""
    left = sorted(paths, key=len, reverse=True)
    while left:
        rows = left[: max(1, max_tokens // len(left[0]))]
        left = left[len(rows) :]
        padded = torch.zeros((len(rows), len(rows[0])), dtype=torch.long)
        for number, row in enumerate(rows):
            padded[number, : len(row)] = torch.tensor(row)
        wanted = np.array([(number, *item) for number, row in enumerate(rows) for item in paths[row]])
        numbers, depths, tokens, slots = wanted.T
        inputs = {"input_ids": padded.to(model.device)}
        yield slots, _logps_at(model, inputs, numbers, depths, tokens), sum(map(len, rows))


def _logps_at(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    tokens: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Log-probability of tokens[n] after the token at (rows[n], columns[n]); the head sees the columns in question."""
    kept, places = np.unique(columns, return_inverse=True)
    settings: dict[str, object] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        settings["logits_to_keep"] = torch.from_numpy(kept).to(model.device)
    else:
        places = columns
    logits: Tensor = model(**inputs, **settings).logits
    cells, inverse = np.unique(np.stack([rows, places], axis=1), axis=0, return_inverse=True)
    logps = logits[cells[:, 0], cells[:, 1]].float().log_softmax(dim=-1)
    wanted: NDArray[np.float64] = logps[inverse, tokens].double().cpu().numpy()
    return wanted
