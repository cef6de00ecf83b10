"""Between texts and token ids, for many prompts at once: encode, decode up to a stop string, words nobody knows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from cai.engines.base import EnginePrompt
from cai.engines.markers import Markers
from cai.errors import EngineError
from cai.models.loading import encode_text, render_dialogue
from cai.types import Turn

__all__ = ["Ending", "Texts", "TokenizedPrompt"]

_SEAM = 16  # characters before a choice that decide how it is cut into tokens


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as text and as ids. `trimmed` spaces at its end were left out of both.

    Tokenizers put the space before a word into the word's token, so a prompt that ends with a space leads a model off
    the track it was trained on; the space belongs to what follows.
    """

    text: str
    ids: list[int]
    trimmed: int


class Texts:
    """Encodes prompts and choices for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._markers = Markers(tokenizer)
        self._choices: dict[tuple[str, str], list[int]] = {}

    def encode(self, prompts: Sequence[EnginePrompt]) -> list[TokenizedPrompt]:
        """Turns go through the chat template and `text` follows; a prompt of text alone is encoded as the tokenizer
        encodes texts, with a beginning-of-text token if that is its custom. Raises EngineError, naming the prompt.
        """
        guarded = [self._markers.guard(prompt) for prompt in prompts]
        texts = self._render([guard.prompt if guard else p for guard, p in zip(guarded, prompts, strict=True)])
        ids: dict[tuple[bool, str], list[int]] = {}
        for plain in (True, False):  # a template has its own beginning-of-text token
            fits = [not guard and (not p.turns) is plain for guard, p in zip(guarded, prompts, strict=True)]
            chosen = dict.fromkeys(compress(texts, fits))
            if chosen:
                encoded = self.tokenizer(list(chosen), add_special_tokens=plain, return_attention_mask=False)
                ids |= zip(((plain, text) for text in chosen), encoded["input_ids"], strict=True)
        found: list[TokenizedPrompt] = []
        for prompt, guard, text in zip(prompts, guarded, texts, strict=True):
            spaces = len(prompt.text) - len(prompt.text.rstrip(" "))
            if guard:
                pieces = guard.pieces(text)
                own = self._markers.encode(pieces, add_special_tokens=not prompt.turns)
                found.append(TokenizedPrompt("".join(pieces), own, spaces))
            else:
                found.append(TokenizedPrompt(text, ids[not prompt.turns, text], spaces))
        empty = next((index for index, tokenized in enumerate(found) if not tokenized.ids), None)
        if empty is not None:
            raise EngineError(f"prompt {empty} is empty: a model needs at least one token to go on from", prompt=empty)
        return found

    def _render(self, prompts: Sequence[EnginePrompt]) -> list[str]:
        """What the chat template makes of the turns, and the text without the spaces at its end."""
        rendered: dict[tuple[Turn, ...], str] = {(): ""}
        for index, prompt in enumerate(prompts):
            if prompt.turns not in rendered:
                try:
                    rendered[prompt.turns] = render_dialogue(self.tokenizer, prompt.turns)
                except TemplateError as error:
                    message = f"prompt {index}: the model's chat template refuses it: {error}"
                    raise EngineError(message, prompt=index) from error
        return [rendered[prompt.turns] + prompt.text.rstrip(" ") for prompt in prompts]

    def encode_choice(self, prompt: TokenizedPrompt, choice: str) -> list[int]:
        """Ids of `choice` as they are where it follows `prompt`. Raises EngineError for one the model cannot write."""
        choice = " " * prompt.trimmed + choice
        key = prompt.text[-_SEAM:], choice
        if key not in self._choices:
            before, whole = encode_text(self.tokenizer, key[0]), encode_text(self.tokenizer, key[0] + choice)
            ids, unknown = whole[len(before) :], self.tokenizer.unk_token_id
            if whole[: len(before)] != before or not ids or unknown in ids:  # it would melt into the prompt
                ids = encode_text(self.tokenizer, choice)
            if not ids or unknown in ids:
                raise EngineError(f"choice {choice!r}: the model's vocabulary has no tokens for it")
            self._choices[key] = ids
        return self._choices[key]

    def unknown_words(self, prompts: Sequence[TokenizedPrompt]) -> Mapping[str, int]:
        """How often each word occurs that the vocabulary lacks; pieces of markers, which were cut up on purpose so that
        a text cannot pass for a turn, are none.
        """
        unknown = self.tokenizer.unk_token_id
        counts: Counter[str] = Counter()
        if unknown is None or not self.tokenizer.is_fast:
            return counts
        pieces = {piece for marker in self.tokenizer.all_special_tokens for piece in (marker[:-1], marker[-1])}
        times = Counter(prompt.text for prompt in prompts if unknown in prompt.ids)
        for text, count in times.items():
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                if token == unknown and text[start:end] not in pieces:
                    counts[text[start:end]] += count
        return counts


class Ending:
    """Where generated text ends: at tokens that end a turn, and at stop strings, which are not part of the text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int], stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        # A marker that is one token ends a row at once.
        self.ids = end_ids | {vocabulary[text] for text in stop if text in vocabulary}
        self.strings = list(stop)
        self.tail = 8 + max(map(len, self.strings), default=0)

    def reached(self, ids: list[int]) -> bool:
        """Whether the end of `ids` completes a stop string."""
        text = self._decode(ids[-self.tail :])
        return any(stop in text for stop in self.strings)

    def text(self, ids: list[int]) -> tuple[str, int, bool]:
        """Text of `ids` without its ending, the number of tokens up to the ending (it included), whether it ended."""
        ended = bool(ids) and ids[-1] in self.ids
        text = self._decode(ids[:-1] if ended else ids)
        cuts = [text.index(stop) for stop in self.strings if stop in text]
        if not cuts:
            return text, len(ids), ended
        num_tokens = next(
            n for n in range(1, len(ids) + 1) if any(stop in self._decode(ids[:n]) for stop in self.strings)
        )
        return text[: min(cuts)], num_tokens, True

    def _decode(self, ids: list[int]) -> str:
        # Markers that the model wrote into its answer stay: left out, a garbled answer would read as a clean one.
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))
