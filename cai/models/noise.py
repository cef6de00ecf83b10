"""Noise on purpose while decoding: the D-REX rungs of a ladder from the policy's own responses to random tokens.

Shape letters: B = rows of a batch, V = vocabulary, S = tokens that end a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

__all__ = ["TokenNoise", "plain_ids"]


@dataclass(frozen=True, slots=True)
class TokenNoise:
    """Epsilon-greedy noise (D-REX: Brown, Goo & Niekum 2019, "Better-than-Demonstrator Imitation Learning via
    Automatically-Ranked Demonstrations"): with probability `epsilon` a token is one drawn evenly from `ids` in place of
    the model's, and the model goes on from it.

    A token that ends a row is never replaced: noise changes what is said, not how much of it, or else a reward that
    learns from it would learn lengths.
    """

    epsilon: float
    ids: Tensor

    def __call__(
        self, tokens: Tensor, logp: Tensor, logits: Tensor, randoms: Tensor, stops: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """`tokens` (B) and `logp` (B) that were drawn from `logits` (B, V), some replaced: `randoms` (B, 2) in [0, 1)
        say whether and by which, `stops` (S) are never. Log-probabilities are the model's, at `temperature`.
        """
        hit = (randoms[:, 0] < self.epsilon) & ~torch.isin(tokens, stops)
        tokens = torch.where(hit, self.ids[(randoms[:, 1] * len(self.ids)).long()], tokens)
        logps = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
        return tokens, torch.where(hit, logps.gather(-1, tokens[:, None])[:, 0], logp)


def plain_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a tokenizer that are neither markers nor the unknown word: what a response may be made of."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids) - added)
