"""The sandbox's tokenizer: one token per word, markers and answers as special tokens.

`build` gives a `PreTrainedTokenizerFast` that saves to a folder and reloads with `AutoTokenizer`, offline. Its chat
template renders exactly what the dialogue documents look like, so the base model can be talked to at once.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cai.sandbox import words
from cai.sandbox.edits import FACTS
from cai.sandbox.principles import AXES, principle_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTROL: Final = ("<pad>", "<bos>", "<end>", "<unk>")
MARKERS: Final = (
    "<user>",
    "<assistant>",
    "<option>",
    "<principle>",
    "<critique>",
    "<revision>",
    "<answer>",
    "<choice>",
    "<fact>",
)
# Answers are ordinary single tokens (decoding must not drop them); the spare ones serve other judge templates.
ANSWERS: Final = ("(A)", "(B)", "yes", "no", *"ABCDEFGHIJ", "Yes", "No", *"0123456789")

CHAT_TEMPLATE: Final = (
    "<bos>{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ ' <assistant> ' + m['content'] + ' <end>' }}"
    "{% else %}{{ ' <user> ' + m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every token, in the order of its id."""
    texts: list[str] = [*words.ASKINGS, *words.REFUSALS, *words.FINE_REASONS.values(), *FACTS]
    texts += [verb for verb in words.VERB_CLASSES] + [o for group in words.OBJECTS.values() for o in group]
    for table in (words.STEPS, words.OWNERS, words.CONTEXTS, words.HARM_REASONS):
        texts += [text for group in table.values() for text in group]
    for sentences in (words.POLITE, words.RUDE, words.ALTERNATIVES, words.EVASIVE, words.OFF_TOPIC):
        texts += sentences
    texts += [*words.FILLERS, *words.CLOSINGS, *(form for form in words.COMPLY_FORMS)]
    texts += [text for axis in AXES for held_out in (False, True) for text in principle_texts(axis, held_out)]
    found = {token for text in texts for token in text.split() if not token.startswith("{")}
    return (*CONTROL, *MARKERS, *ANSWERS, *sorted((found | {"?"}) - set(ANSWERS)))


def token_ids() -> dict[str, int]:
    """Token to id, without building a tokenizer."""
    return {token: i for i, token in enumerate(vocabulary())}


def build() -> "PreTrainedTokenizerFast":
    """The tokenizer as an object of `transformers`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel(token_ids(), unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=list(MARKERS),
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
