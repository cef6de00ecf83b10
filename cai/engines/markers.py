"""Special tokens that a prompt quotes, read as the plain text that they are.

A tokenizer finds its special tokens wherever their spelling stands, so a response that spells the end of a turn would
end it. Here each such place in the quoted parts of a prompt is cut out before the chat template is applied, encoded by
itself as plain text, and put back among the ids of the rest. Nothing is altered: the ids decode to the same text. A
tokenizer cuts its input at special tokens anyway, so the rest gets the ids that it would have got.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from cai.engines.base import EnginePrompt

__all__ = ["Guarded", "Markers"]


@dataclass(frozen=True, slots=True)
class Guarded:
    """A prompt with placeholders for the special tokens that it quotes: `mark`, the number in `cut`, `mark`."""

    prompt: EnginePrompt
    mark: str
    cut: tuple[str, ...]

    def pieces(self, text: str) -> list[str]:
        """`text`, which holds the placeholders, in pieces: what is between them, and in turn what they stand for."""
        pieces = re.split(rf"{self.mark}(\d+){self.mark}", text)
        return [self.cut[int(piece)] if n % 2 else piece for n, piece in enumerate(pieces)]


class Markers:
    """The special tokens of a tokenizer, and the further added tokens that its chat template writes (`<think>`).

    The unknown-word token is none of them: it can pass for nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        template = str(tokenizer.chat_template)
        added = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special or t.content in template}
        added |= zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        known = {text: i for text, i in added.items() if len(text) > 1 and text != tokenizer.unk_token}
        self._ids = set(known.values())
        longest_first = sorted(known, key=len, reverse=True)
        self._finder = re.compile("|".join(map(re.escape, longest_first))) if known else None

    def guard(self, prompt: EnginePrompt) -> Guarded | None:
        """None when the prompt quotes no special token: then it can be encoded as it stands."""
        texts = [*(turn.content for turn in prompt.turns), prompt.text]
        found = [self._quoted(text, place, prompt) for place, text in enumerate(texts)]
        if not any(found):
            return None
        whole = "".join(texts)
        mark = next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in whole)  # for private use
        cut: list[str] = []
        guarded = []
        for text, places in zip(texts, found, strict=True):
            pieces, at = [], 0
            for start, end in places:
                pieces += [text[at:start], f"{mark}{len(cut)}{mark}"]
                cut.append(text[start:end])
                at = end
            guarded.append("".join([*pieces, text[at:]]))
        turns = tuple(replace(turn, content=text) for turn, text in zip(prompt.turns, guarded, strict=False))
        return Guarded(EnginePrompt(turns=turns, text=guarded[-1]), mark, tuple(cut))

    def encode(self, pieces: Sequence[str], *, add_special_tokens: bool) -> list[int]:
        """Ids of what `Guarded.pieces` gives; `add_special_tokens` is for its first piece."""
        ids = list(self._tokenizer(pieces[0], add_special_tokens=add_special_tokens)["input_ids"])
        for number, piece in enumerate(pieces[1:], start=1):
            if piece:
                plain = self._tokenizer(piece, add_special_tokens=False)["input_ids"]
                ids += self._as_text(piece) if number % 2 else plain
        return ids

    def _quoted(self, text: str, place: int, prompt: EnginePrompt) -> list[tuple[int, int]]:
        """Where special tokens stand in `text` of which some character is quoted."""
        spans = [(start, end) for where, start, end in prompt.quoted if where == place]
        if not spans or self._finder is None:
            return []
        found = (match.span() for match in self._finder.finditer(text))
        return [(a, b) for a, b in found if any(a < end and start < b for start, end in spans)]

    def _as_text(self, marker: str) -> list[int]:
        """Ids that spell a special token. Where even so the tokenizer makes it one, it is spelt in two parts."""
        ids: list[int] = self._tokenizer(marker, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if self._ids.isdisjoint(ids) or len(marker) == 1:
            return list(ids)
        return self._as_text(marker[:-1]) + self._as_text(marker[-1])
