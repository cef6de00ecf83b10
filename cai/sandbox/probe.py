"""A quick look at a model in training: can it judge, revise and talk, on dev pairs and held-out wordings?

Small samples and one order per pair, for curves; the release figures come from `benchmarks/sandbox_quality.py`.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cai.sandbox.corpus import draw_axis, draw_pair
from cai.sandbox.grammar import SandboxPrompt, draw_prompt, draw_varied
from cai.sandbox.oracle import read_parsed
from cai.sandbox.principles import principle_texts
from cai.sandbox.tokenizer import build, token_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM


def probe(model: "LlamaForCausalLM", seed: int, num_samples: int = 120) -> dict[str, float]:
    """Shares of right judgments, of satisfying revisions, of garbled and of harmful-compliant dialogue."""
    import torch

    model.train(False)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return {
            "probe/judge": _judge(model, seed, num_samples),
            "probe/judge_harmless": _judge(model, seed, num_samples, "harmless"),
            "probe/revise": _revise(model, seed, num_samples),
            **_dialogue(model, seed, num_samples),
        }


def last_logits(model: "LlamaForCausalLM", texts: Sequence[str]) -> "Tensor":
    """The logits (len(texts), vocabulary) of the token after each text."""
    import torch

    ids = token_ids()
    rows = [[ids[token] for token in text.split()] for text in texts]
    longest = max(map(len, rows))
    batch = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    hidden = model.model(input_ids=batch).last_hidden_state
    ends = torch.tensor([len(row) - 1 for row in rows])
    logits: Tensor = model.lm_head(hidden[torch.arange(len(rows)), ends])
    return logits


def _p(model: "LlamaForCausalLM", texts: Sequence[str], first: str, second: str) -> "Tensor":
    ids = token_ids()
    logits = last_logits(model, texts)
    return (logits[:, ids[first]] - logits[:, ids[second]]).sigmoid()


def p_first(model: "LlamaForCausalLM", heads: Sequence[str], tails: Sequence[str]) -> "Tensor":
    """P((A)), verdicts marginalised: `heads` end with the first `<answer>`, `tails` with the second."""
    total: Any = 0.0
    p_yes = _p(model, heads, "yes", "no")
    for first, weight in (("yes", p_yes), ("no", 1 - p_yes)):
        both = [f"{head} {first} {tail}" for head, tail in zip(heads, tails, strict=True)]
        p_second = _p(model, both, "yes", "no")
        for second, share in (("yes", p_second), ("no", 1 - p_second)):
            total = total + weight * share * _p(model, [f"{b} {second} <choice>" for b in both], "(A)", "(B)")
    p: Tensor = total
    return p


def _judge(model: "LlamaForCausalLM", seed: int, num_samples: int, only: str | None = None) -> float:
    rng = random.Random(f"probe-judge-{seed}-{only}")
    heads: list[str] = []
    tails: list[str] = []
    right: list[bool] = []
    while len(right) < num_samples:
        axis = only or draw_axis(rng)
        prompt = draw_prompt(rng, "dev", only == "harmless" or rng.random() < 0.5)
        pair = [response.text for response in draw_pair(rng, prompt, axis)]
        verdicts = [read_parsed(prompt, text).satisfies(axis) for text in pair]
        if verdicts[0] != verdicts[1]:
            wording = rng.choice(principle_texts(axis, held_out=True))
            heads.append(f"<bos> <user> {prompt.text} <option> (A) {pair[0]} <principle> {wording} <answer>")
            tails.append(f"<option> (B) {pair[1]} <principle> {wording} <answer>")
            right.append(verdicts[0])
    p: list[float] = p_first(model, heads, tails).tolist()
    return sum((value > 0.5) == truth for value, truth in zip(p, right, strict=True)) / num_samples


def generate(model: "LlamaForCausalLM", texts: Sequence[str], *, sample: bool, max_new_tokens: int = 60) -> list[str]:
    """What the model goes on with after each text, up to `<end>`, markers dropped."""
    tokenizer = build()
    batch = tokenizer(list(texts), return_tensors="pt", padding=True, return_token_type_ids=False)
    anything: Any = model  # mypy holds that this class has not the mixin that `generate` is of
    out = anything.generate(**batch, max_new_tokens=max_new_tokens, do_sample=sample, top_k=None)
    new = out[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _revise(model: "LlamaForCausalLM", seed: int, num_samples: int) -> float:
    rng = random.Random(f"probe-revise-{seed}")
    prompts: list[SandboxPrompt] = []
    axes: list[str] = []
    texts: list[str] = []
    while len(texts) < num_samples:
        axis = draw_axis(rng)
        prompt = draw_prompt(rng, "dev", rng.random() < 0.5)
        response = draw_varied(rng, prompt).text
        if not read_parsed(prompt, response).satisfies(axis):
            wording = rng.choice(principle_texts(axis, held_out=True))
            prompts.append(prompt)
            axes.append(axis)
            texts.append(f"<bos> <user> {prompt.text} <option> {response} <principle> {wording} <critique>")
    critiques = generate(model, texts, sample=False, max_new_tokens=32)
    texts = [f"{text} {critique} <end> <revision>" for text, critique in zip(texts, critiques, strict=True)]
    revised = zip(prompts, axes, generate(model, texts, sample=False), strict=True)
    return sum(_fine(read_parsed(prompt, text), axis) for prompt, axis, text in revised) / num_samples


def _fine(attributes: Any, axis: str) -> bool:
    return attributes.kind != "garbled" and bool(attributes.satisfies(axis))


def _dialogue(model: "LlamaForCausalLM", seed: int, num_samples: int) -> dict[str, float]:
    rng = random.Random(f"probe-dialogue-{seed}")
    prompts = [draw_prompt(rng, "dev", i % 2 == 0) for i in range(2 * num_samples)]
    texts = generate(model, [f"<bos> <user> {p.text} <assistant>" for p in prompts], sample=True)
    read = [read_parsed(p, text) for p, text in zip(prompts, texts, strict=True)]
    harmful = [a for a in read if a.harmful]
    return {
        "probe/garbled": sum(a.kind == "garbled" for a in read) / len(read),
        "probe/harmful_compliance": sum(a.gives_steps for a in harmful) / len(harmful),
    }
