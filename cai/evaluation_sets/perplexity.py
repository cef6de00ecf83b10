"""Alignment tax: how well a model still predicts text of its pre-training (Ouyang et al. 2022, section 4.2)."""

from collections.abc import Sequence
from typing import Any, Final

from cai.errors import ConfigError, DataError
from cai.evaluation_sets.base import Asked
from cai.models.documents import Document, Documents

__all__ = ["HELD_OUT", "Perplexity"]

HELD_OUT: Final = "held-out-perplexity"  # training draws its documents under names of another form


class Perplexity:
    """Held-out documents of about `num_tokens` tokens. A row has `nats`, the sum of -log p over the document's weighted
    tokens, and `weight`, the sum of the weights; the perplexity is exp(nats / weight) over all rows.

    The model is loaded beside the engine: its logits are wanted, not its answers.
    """

    def __init__(
        self, *, documents: Documents, num_tokens: int = 100_000, max_batch_tokens: int = 8192, device: str = "auto"
    ) -> None:
        if num_tokens < 1:
            raise ConfigError(f"num_tokens: must be 1 or more, got {num_tokens}")
        self._documents = documents
        self._num_tokens = num_tokens
        self._max_batch_tokens = max_batch_tokens
        self._device = device

    def texts(self) -> dict[str, str]:
        """What the documents are made from."""
        return self._documents.texts()

    def measure(self, asked: Asked) -> list[dict[str, Any]]:
        """See `EvaluationSet`. Documents that are drawn twice count once."""
        from cai.models.loading import load_causal_lm, pick_device
        from cai.models.perplexity import losses

        drawn = self._documents.documents(HELD_OUT, 1.0, self._num_tokens)
        documents = _different(drawn)
        if not documents:
            raise DataError("documents: there is none to measure on")
        model = load_causal_lm(asked.model, device=pick_device(self._device))
        sums = losses(model, documents, max_batch_tokens=self._max_batch_tokens)
        return [
            {"item": f"d{i}", "group": document.kind, "nats": nats, "weight": weight}
            for i, (document, (nats, weight)) in enumerate(zip(documents, sums, strict=True))
            if weight > 0
        ]


def _different(documents: Sequence[Document]) -> list[Document]:
    """In order of length, so that batches hold little padding."""
    found = {tuple(document.ids): document for document in documents}
    return sorted(found.values(), key=lambda document: len(document.ids))
