"""The sandbox's corpus as a source of documents for the pre-training stage."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cai.records import digest_file
from cai.sandbox import corpus, edits, grammar, oracle, principles, tokenizer, words

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


class EncodedDocument(NamedTuple):
    """A document as token ids, with the weight of each token's loss."""

    kind: str
    ids: list[int]
    weights: list[float]


@dataclass(frozen=True, kw_only=True)
class SandboxSource:
    """Documents in two phases: reading principles first, then the mix of all roles."""

    first_share: float = 0.07  # of the training, on the first mix

    def documents(self, seed: str, progress: float, num_tokens: int) -> list[EncodedDocument]:
        """Documents of about `num_tokens` tokens; same arguments, same documents."""
        rng, ids = random.Random(f"documents-{seed}"), tokenizer.token_ids()
        mix = corpus.FIRST_MIX if progress < self.first_share else corpus.MAIN_MIX
        found: list[EncodedDocument] = []
        total = 0
        while total < num_tokens:
            document = corpus.draw_document(rng, mix)
            found.append(EncodedDocument(document.kind, [ids[t] for t in document.tokens], document.weights))
            total += len(document.tokens)
        return found

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The sandbox's tokenizer."""
        return tokenizer.build()

    def texts(self) -> dict[str, str]:
        """Hashes of the modules that documents and their tokens are made by."""
        modules = (corpus, edits, grammar, oracle, principles, tokenizer, words)
        return {f"sandbox/{Path(str(m.__file__)).name}": digest_file(Path(str(m.__file__))) for m in modules}

    def probe(self, model: "LlamaForCausalLM", seed: int) -> dict[str, float]:
        """See `probe`; the figures are on dev pairs and held-out wordings."""
        from cai.sandbox.probe import probe

        return probe(model, seed)
