"""How fast the engine is: sampling against `model.generate`, and scoring a judge's questions against one by one.

    python benchmarks/engine_speed.py [MODEL] [--batches 64 128 192] [--pairs 8] [--output FILE.json]

Without MODEL, a random Llama of the sandbox's size (d = 128, 4 layers, a vocabulary of 450) is made. Lengths are as in
the sandbox: prompts of 16-24 tokens, answers of up to 48 that end at random; a judge's question of about 150 tokens.
Contenders take turns (`measuring.py`); the table has the fastest of the repeats, since other work on the machine only
ever slows down, and the median's gain beside it.
"""

import argparse
import random
from pathlib import Path

import torch
from measuring import gains, in_turns, report, summary, table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cai.models.decoding import Work, sample
from cai.models.loading import load_causal_lm, pick_device
from cai.models.tree import Question, continuation_logps

NEW_TOKENS = 48
NUM_STOPS = 12  # of the vocabulary: with random weights each step ends a row in 2-3 of 100 cases


def random_model() -> PreTrainedModel:
    """A model as large as the sandbox's, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=450,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def sampling_speed(model: PreTrainedModel, batch: int, repeats: int) -> dict[str, float]:
    """Samples per second of `generate` and of `sample`, on one batch of `batch` prompts."""
    rng = random.Random(batch)
    size = int(model.config.vocab_size)
    stops = [size * (k + 1) // (NUM_STOPS + 2) for k in range(NUM_STOPS)]
    prompts = [[rng.randrange(size) for _ in range(rng.randint(16, 24))] for _ in range(batch)]
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)

    def stock() -> object:
        return model.generate(  # type: ignore[operator]
            padded, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=True, top_k=0, eos_token_id=stops,
            pad_token_id=0,
        )  # fmt: skip

    def ours() -> object:
        return list(
            sample(model, prompts, max_new_tokens=NEW_TOKENS, temperature=1.0, seeds=list(range(batch)), stop_ids=stops)
        )

    seconds = in_turns({"generate": stock, "cai": ours}, repeats)
    return {"batch": batch, **rates(seconds, batch, "generate")}


def judge_questions(model: PreTrainedModel, num_pairs: int, num_principles: int) -> list[Question]:
    """The 7 questions of an inline-verdict judge, for each pair, both orders and each principle.

    `P A X ?`, then with either verdict `P A X v B X ?`, then with either second verdict `... w choice ?`.
    """
    rng = random.Random(num_principles)
    size = int(model.config.vocab_size)

    def text(length: int) -> list[int]:
        return [rng.randrange(20, size) for _ in range(length)]

    principles = [text(12) for _ in range(num_principles)]
    questions = []
    for _ in range(num_pairs):
        prompt, answers = text(16), [text(rng.randint(15, 40)) for _ in range(2)]
        for first, second in (answers, answers[::-1]):
            for principle in principles:
                head = [*prompt, 1, *first, 2, *principle, 3]
                questions.append(Question(head, [[10], [11]]))
                for verdict in (10, 11):
                    longer = [*head, verdict, 1, *second, 2, *principle, 3]
                    questions.append(Question(longer, [[10], [11]]))
                    questions += [Question([*longer, other, 4], [[5], [6]]) for other in (10, 11)]
    return questions


def judging_speed(model: PreTrainedModel, num_pairs: int, num_principles: int, repeats: int) -> dict[str, float]:
    """Judgments (trees of 7 questions) per second, scored one by one and shared."""
    questions = judge_questions(model, num_pairs, num_principles)

    @torch.inference_mode()
    def one_by_one() -> object:
        last = [
            model(torch.tensor([q.prompt], device=model.device), logits_to_keep=1, use_cache=False).logits[0, -1]
            for q in questions
        ]
        return torch.stack(last).log_softmax(-1).cpu()

    work = Work()
    continuation_logps(model, questions, max_tokens=16384, work=work)
    seconds = in_turns(
        {"one_by_one": one_by_one, "cai": lambda: continuation_logps(model, questions, max_tokens=16384)}, repeats
    )
    return {
        "principles": num_principles,
        "shared": work.shared / (work.shared + work.read),
        **rates(seconds, len(questions) / 7, "one_by_one"),
    }


def rates(seconds: dict[str, list[float]], amount: float, base: str) -> dict[str, float]:
    """`amount` per second of each at its fastest, and how many times as fast as `base` this project is."""
    found = {name: summary(times, amount) for name, times in seconds.items()}
    gain = gains(found, base)["cai"]
    fastest = {name: rate["fastest"] for name, rate in found.items()}
    return {**fastest, "gain": gain["fastest"], "gain (median)": gain["median"]}


def main() -> None:
    """Parse the command line, measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of a causal language model; random if left out")
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 128, 192], help="batch sizes to sample with")
    parser.add_argument("--pairs", type=int, default=8, help="pairs to judge under 1, 4 and 16 principles")
    parser.add_argument("--repeats", type=int, default=5, help="the fastest of so many counts")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; 0 leaves its own choice")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (with MODEL)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    model = load_causal_lm(args.model, dtype=args.dtype, device=device) if args.model else random_model().to(device)
    sampling = {f"batch {batch}": sampling_speed(model, batch, args.repeats) for batch in args.batches}
    print(table("Sampling, samples per second", sampling))
    judging = {f"{n} principles": judging_speed(model, max(1, args.pairs // n), n, args.repeats) for n in (1, 4, 16)}
    print(table("Judging, judgments per second (one order, one principle)", judging))
    report(
        args.output, {"repeats": args.repeats, "pairs": args.pairs, "new_tokens": NEW_TOKENS, "model": args.model},
        {"sampling": sampling, "judging": judging},
    )  # fmt: skip


if __name__ == "__main__":
    main()
