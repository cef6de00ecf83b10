"""What a model makes of documents: -log p of their tokens, by document."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from cai.models.documents import Document
from cai.models.pretraining import pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["losses"]


@torch.no_grad()
def losses(
    model: "PreTrainedModel", documents: Sequence[Document], *, max_batch_tokens: int = 8192
) -> list[tuple[float, float]]:
    """For each document the weighted sum of -log p in nats (its first token is given), and the sum of the weights.

    Batches hold documents in their order, at most `max_batch_tokens` with padding.
    """
    found: list[tuple[float, float]] = []
    for batch in _batches(documents, max_batch_tokens):
        ids = pad([d.ids for d in batch], 0, torch.long).to(model.device)
        weights = pad([d.weights for d in batch], 0.0, torch.float32)[:, 1:].to(model.device)
        logits = model(input_ids=ids).logits[:, :-1].float()
        logp = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
        sums = torch.stack([-(logp * weights).sum(1), weights.sum(1)], dim=1).double()
        found.extend((nats, weight) for nats, weight in sums.tolist())
    return found


def _batches(documents: Sequence[Document], max_tokens: int) -> Iterator[Sequence[Document]]:
    start = longest = 0
    for place, document in enumerate(documents):
        longest = max(longest, len(document.ids))
        if place > start and (place - start + 1) * longest > max_tokens:
            yield documents[start:place]
            start, longest = place, len(document.ids)
    yield documents[start:]
