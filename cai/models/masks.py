"""Whether a model takes attention masks and positions of our own making, on which batching and sharing rest.

Decoding leaves holes in the key cache where prompts are of unequal length, and scoring lays a tree of texts out as one
row. Both are exact for a model whose attention is plain: every layer keeps all keys, and a token's place is known from
its position id alone. Sliding windows, recurrent layers and ALiBi are not like that; they get plain batches.
"""

import logging
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

__all__ = ["blocked", "takes_masks"]

_log = logging.getLogger(__name__)
_known: "WeakKeyDictionary[PreTrainedModel, bool]" = WeakKeyDictionary()


def blocked(dtype: torch.dtype) -> float:
    """What is added to an attention score to shut it out: the lowest number, as -inf makes NaN of an empty row."""
    return float(torch.finfo(dtype).min)


def takes_masks(model: PreTrainedModel) -> bool:
    """Whether 4D masks and position ids give what separate forwards give; tried out once per model."""
    if model not in _known:
        plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
        _known[model] = plain and _passes(model)
        if not _known[model]:
            name = type(model).__name__
            _log.warning("%s takes no masks of our own: prefixes are not shared, and batches need equal lengths", name)
    return _known[model]


@torch.inference_mode()
def _passes(model: PreTrainedModel) -> bool:
    """Two sequences that share two of four tokens, once as one row of six tokens and once by themselves."""
    size = int(model.config.get_text_config(decoder=True).vocab_size)
    a, b, c, d, e = (size * k // 7 for k in (1, 2, 3, 4, 5))
    parents = [-1, 0, 1, 2, 1, 4]  # a b c d e d
    mask = torch.full((1, 1, 6, 6), blocked(model.dtype), dtype=model.dtype)
    for node in range(6):
        ancestor = node
        while ancestor >= 0:
            mask[0, 0, node, ancestor] = 0.0
            ancestor = parents[ancestor]
    positions = torch.tensor([[0, 1, 2, 3, 2, 3]], device=model.device)
    try:
        tree: Tensor = model(
            input_ids=torch.tensor([[a, b, c, d, e, d]], device=model.device),
            attention_mask=mask.to(model.device),
            position_ids=positions,
            use_cache=False,
        ).logits[0, [3, 5]]
    except (TypeError, ValueError, RuntimeError, IndexError):  # what models raise whose forward has no such arguments
        return False
    apart = torch.tensor([[a, b, c, d], [a, b, e, d]], device=model.device)
    alone: Tensor = model(input_ids=apart, use_cache=False).logits[:, -1]
    # What the mask is for is the difference between the two branches, so that is the yardstick of the error.
    signal = float((alone[0] - alone[1]).float().abs().max())
    error = float((alone - tree).float().abs().max())
    return error <= signal * (1e-3 if model.dtype == torch.float32 else 0.05)
