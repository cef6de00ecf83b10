"""Make a randomly initialised Llama-family model with a tokenizer trained on a text: wiring tests, not quality.

    python benchmarks/random_model.py dialogues.jsonl.gz OUT [--hidden 64 --layers 2 --vocab 2000]

Reads every string in the JSON lines (HH-RLHF rows, or any other), trains a byte-level BPE on them and saves a Hugging
Face folder that `model=hf model.path=OUT` takes. Its weights are random, so a judge's mass is nowhere near the options;
let it pass:

    cai run experiment=rlaif model=hf model.path=OUT data=hh data.source.path=dialogues.jsonl.gz \\
        labeler.min_mass=0 win_rate.labeler.min_mass=0
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cai.models.loading import save_model

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def texts(path: Path) -> Iterator[str]:
    """Every string value of every JSON line of `path` (.jsonl or .jsonl.gz)."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield from (value for value in json.loads(line).values() if isinstance(value, str))


def make_model(text_file: Path, output: Path, *, hidden: int, layers: int, vocab: int, context: int) -> int:
    """Write tokenizer and model to `output`; returns the number of parameters. Seeded, so the same each time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts(text_file), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(wrapped),
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=max(hidden // 32, 1),
            max_position_embeddings=context,
            pad_token_id=wrapped.pad_token_id,
            eos_token_id=wrapped.eos_token_id,
            bos_token_id=None,
        )
    )
    save_model(model, wrapped, output)
    return int(model.num_parameters())


def main() -> None:
    """Parse the command line and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text_file", type=Path, help=".jsonl or .jsonl.gz whose strings the tokenizer learns from")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--hidden", type=int, default=64, help="hidden size")
    parser.add_argument("--layers", type=int, default=2, help="number of layers")
    parser.add_argument("--vocab", type=int, default=2000, help="tokenizer size")
    parser.add_argument("--context", type=int, default=4096, help="longest sequence in tokens")
    args = parser.parse_args()
    size = make_model(
        args.text_file, args.output, hidden=args.hidden, layers=args.layers, vocab=args.vocab, context=args.context
    )
    print(f"{args.output}: {size:,} parameters, random")


if __name__ == "__main__":
    main()
