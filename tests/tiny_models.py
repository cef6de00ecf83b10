"""Tiny random language models and tokenizers, made on the spot: wiring and arithmetic, not quality."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

WORDS = [
    *("how", "do", "i", "open", "the", "old", "door", "of", "my", "house", "?", "first", "take", "a", "key", "and"),
    *("turn", "it", "slowly", "then", "push", "yes", "no", "(A)", "(B)"),
]
WORD_TEMPLATE = (
    "<bos>{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ ' <assistant> ' + m['content'] + ' <end>' }}"
    "{% else %}{{ ' <user> ' + m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|stop|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, an unknown word, markers as special tokens: like the sandbox's."""
    names = ["<pad>", "<bos>", "<end>", "<unk>", "<user>", "<assistant>", "<answer>", *dict.fromkeys(WORDS)]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<answer>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = WORD_TEMPLATE
    return tokenizer


def bpe_tokenizer(*, template: str | None = LLAMA_TEMPLATE, pad_token: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, the end of a turn a token of its own, and no padding token unless asked."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|eos|>", "<|start|>", "<|stop|>", "<|eot|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        additional_special_tokens=special[2:],
        pad_token=pad_token,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def llama(vocabulary: int, *, seed: int = 0, kv_heads: int = 2, context: int = 512) -> LlamaForCausalLM:
    """Two layers of 32; weights large enough that positions and far tokens matter."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        initializer_range=0.2,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write both to `folder`."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def full_logps(model: PreTrainedModel, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probability of each token but the first, from one plain forward: what all shortcuts are held against."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double() / temperature
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
