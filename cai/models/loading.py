"""Models and tokenizers in Hugging Face format: load, save, and turn dialogues into token ids.

A tokenizer that comes without a chat template (a base model's) gets a plain Human/Assistant one, so that every model
can be talked to. Nothing here or in `decoding` and `tree` relies on the padding token being distinct.
"""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cai.errors import ModelError, unknown
from cai.models.digest import DTYPES, check_device, find_model
from cai.types import Turn

__all__ = [
    "PLAIN_TEMPLATE",
    "encode_dialogue",
    "encode_text",
    "end_of_turn_id",
    "end_of_turn_ids",
    "load_causal_lm",
    "load_classifier",
    "load_config",
    "load_tokenizer",
    "pick_device",
    "quiet",
    "render_dialogue",
    "save_model",
    "torch_dtype",
]

# The dialogue format of Bai et al. 2022a. Only the last answer ends with the end-of-text token: inside a text that
# token tells a base model that the document is over.
PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '\n\nHuman: ' + m['content'] }}"
    "{% else %}{{ '\n\nAssistant: ' + m['content'] }}{% if loop.last %}{{ eos_token }}{% endif %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
_PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|padding|>")


# --- machine ----------------------------------------------------------------------------------------------------------


def pick_device(device: str = "auto") -> str:
    """`auto` is the first GPU if there is one, else the CPU; any other name is checked. Raises ModelError."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    kind, _, number = device.partition(":")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= count:
        raise ModelError(f"device {device!r}: this machine has {count} CUDA devices")
    return device


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`: float32, bfloat16 or float16. Raises ModelError."""
    if name not in DTYPES:
        raise ModelError(unknown("dtype", name, DTYPES))
    dtype: torch.dtype = getattr(torch, name)
    return dtype


# --- load and save ----------------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """No loading bars and no loading report from transformers while inside."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()  # type: ignore[no-untyped-call]
    log.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_config(path: str | Path) -> PreTrainedConfig:
    """What `config.json` in folder `path` (or of that hub id) says of the model. Raises ModelError."""
    config: PreTrainedConfig = _from_pretrained(AutoConfig, path)
    return config


def load_causal_lm(path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """The causal language model in folder `path` (or with that hub id), in eval mode. Raises ModelError."""
    kind, where = torch_dtype(dtype), pick_device(device)
    with quiet():
        model: PreTrainedModel = _from_pretrained(AutoModelForCausalLM, path, dtype=kind)
    return model.to(where).eval()  # type: ignore[no-any-return, arg-type]


def load_classifier(path: str | Path, *, dtype: str, device: str, new_head: bool) -> PreTrainedModel:
    """The sequence classification model of one label in folder `path`, in eval mode; with `new_head` the trunk of any
    model under a head that is still to be drawn. Raises ModelError, also when weights are missing, which transformers
    would draw at random.
    """
    kind, where = torch_dtype(dtype), pick_device(device)
    with quiet():
        model, report = _from_pretrained(
            AutoModelForSequenceClassification, path, dtype=kind, num_labels=1, output_loading_info=True
        )
    if report["missing_keys"] and not new_head:
        raise ModelError(f"{path}: not a whole model: its weights lack {min(report['missing_keys'])!r}")
    return model.to(where).eval()  # type: ignore[no-any-return]


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in folder `path`, made complete: a chat template and a padding token. Raises ModelError.

    The padding token is distinct from the others where the vocabulary has room for one; else it is the end-of-text
    token, which is harmless here: lengths say what is padding.
    """
    with quiet():
        tokenizer: PreTrainedTokenizerBase = _from_pretrained(AutoTokenizer, path)
    for key in ("is_local", "local_files_only"):  # how it was loaded is nothing to save with it
        tokenizer.init_kwargs.pop(key, None)
    if tokenizer.chat_template is None:
        starts = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if starts else "") + PLAIN_TEMPLATE
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no end-of-text token (eos_token)")
    if tokenizer.pad_token_id is None:
        known = tokenizer.get_vocab()
        spare = next((name for name in _PAD_NAMES if name in known), None)
        if spare is None and len(tokenizer) < _vocabulary_size(path):
            spare = _PAD_NAMES[0]
        tokenizer.add_special_tokens({"pad_token": spare or tokenizer.eos_token})
    return tokenizer


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write a Hugging Face folder (safetensors); the same weights give the same bytes."""
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _from_pretrained(loader: Any, path: str | Path, **settings: object) -> Any:
    local = find_model(path) is not None
    try:
        return loader.from_pretrained(str(path), local_files_only=local or not _hub_answers(), **settings)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if local:
            raise ModelError(f"{path}: cannot load it: {_first_line(error)}") from error
        near = get_close_matches(str(path), [child.name for child in Path().iterdir() if child.is_dir()], n=1)
        hint = f"; did you mean the folder {near[0]!r}?" if near else ""
        raise ModelError(
            f"model {str(path)!r}: no such folder, and not to be had from the hub ({_first_line(error)}){hint}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _hub_answers() -> bool:
    """Whether the hub's name resolves (or a proxy would do that): without, the hub client retries for half a minute."""
    if getproxies():
        return True
    from huggingface_hub import constants

    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _vocabulary_size(path: str | Path) -> int:
    """Rows of the model's embedding, 0 if unknown."""
    file = Path(path) / "config.json"
    return int(json.loads(file.read_text()).get("vocab_size", 0)) if file.is_file() else 0


# --- dialogues to ids -------------------------------------------------------------------------------------------------


def render_dialogue(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], response: str | None = None) -> str:
    """The text that the chat template makes of `turns`: up to where the answer starts, or with `response` in it."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    return tokenizer.apply_chat_template(  # type: ignore[return-value]
        messages, tokenize=False, add_generation_prompt=response is None
    )


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of `text` as it stands: no beginning-of-text token is added. What is too long is the caller's to say."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], response: str | None = None
) -> tuple[list[int], int]:
    """Token ids of a dialogue, and how many of them are the prompt.

    The prompt is what the chat template makes of `turns`, up to where the answer starts. With a `response`, its ids and
    the end-of-turn token follow: the ids that the template gives to the whole, without what it may put behind the
    end-of-turn token. Where the template does not simply go on from the prompt (it rewrites earlier turns, or a token
    reaches over the seam), the response is encoded by itself, as it is when the model generates.
    """
    prompt = render_dialogue(tokenizer, turns)
    ids = encode_text(tokenizer, prompt)
    if response is None:
        return ids, len(ids)
    end = end_of_turn_id(tokenizer)
    whole = encode_text(tokenizer, render_dialogue(tokenizer, turns, response))
    answer = whole[len(ids) :] if whole[: len(ids)] == ids else encode_text(tokenizer, response)
    if end in answer:
        del answer[len(answer) - answer[::-1].index(end) :]
    else:
        answer.append(end)
    return ids + answer, len(ids)


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer in the chat template; the end-of-text token where the template has none."""
    return _end_of_turn_id(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _end_of_turn_id(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """Remembered, since every dialogue asks; `template` is in the key because it can be replaced."""
    probe = "qzj"
    text = render_dialogue(tokenizer, [Turn("user", probe)], probe)
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    for token in encode_text(tokenizer, text[text.rindex(probe) + len(probe) :]):
        if token in special:
            return token
    return int(tokenizer.eos_token_id)


def end_of_turn_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer: the template's, the tokenizer's and those of the generation settings."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    ids = {end_of_turn_id(tokenizer), tokenizer.eos_token_id, *own}
    return frozenset(int(i) for i in ids if i is not None)
