"""How fast a PPO update is: TRL 1.12.0's trainer against this project's, on the same algorithm and the same work.

    python benchmarks/ppo_speed.py [--repeats 6] [--output benchmarks/results/ppo_speed.json]

A random Llama (d = 128, 4 layers, a vocabulary of 1,000), 64 prompts of 16-24 tokens, responses of at most 48 tokens
that end with probability 0.02 at each; 4 epochs of 4 minibatches, a value network of its own. Both trainers run in one
process, in turns, on one thread of a CPU and by processor time; TRL is as it comes but for bf16 and activation
checkpointing, which are on by default and would slow it down on a CPU. The shared trunk is another algorithm (one
network less), shown for what it saves.

Then, for this project's trainer: where the time goes, how many floating-point operations the matrix products of each
phase take, and how fast this machine does such products alone. The last gives the limit: what an update would take if
all the rest were free.
"""

import argparse
import contextlib
import copy
import io
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measuring import gains, in_turns, numbers_tokenizer, report, summary, table
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PrinterCallback
from trl_environment import reenter

from cai.rl import ppo
from cai.rl.models import Policy, RewardModel
from cai.rl.ppo import PPOTrainer
from cai.rl.settings import PPOSettings
from cai.rl.values import SharedValue, ValueModel

END, PAD = 0, 1
VOCABULARY, WIDTH, FEED_FORWARD, LAYERS = 1000, 128, 384, 4
BATCH, MINIBATCHES, EPOCHS, NEW_TOKENS = 64, 4, 4, 48
END_PROBABILITY = 0.02
RATE = 1e-6  # so small that responses keep their lengths while the benchmark runs


def llama(kind: Any, seed: int) -> Any:
    """A random Llama of class `kind` in which every token is followed by the end-of-turn token as often as asked."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=FEED_FORWARD, num_hidden_layers=LAYERS,
        num_attention_heads=4, max_position_embeddings=256, pad_token_id=PAD, eos_token_id=END, bos_token_id=None,
        num_labels=1,
    )  # fmt: skip
    model = kind(config).eval()
    if kind is LlamaForCausalLM:
        with torch.no_grad():
            # A coordinate that is the same for all tokens carries the end-of-turn token's logit.
            model.model.embed_tokens.weight[:, 0] = 1.0
            model.lm_head.weight[:, 0] = 0.0
            ids = torch.randint(2, VOCABULARY, (8, 32))
            constant = model.model(ids).last_hidden_state[..., 0].mean()
            others = model(ids).logits[..., 1:].logsumexp(-1).mean()
            wanted = others + torch.logit(torch.tensor(END_PROBABILITY))
            model.lm_head.weight[END] = 0.0
            model.lm_head.weight[END, 0] = wanted / constant
    return model


def prompts() -> list[list[int]]:
    """The prompts of every update."""
    rng = random.Random(0)
    return [[rng.randrange(2, VOCABULARY) for _ in range(rng.randint(16, 24))] for _ in range(BATCH)]


def stock(folder: str) -> Callable[[], object]:
    """One update by TRL's trainer."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig
    from trl.experimental.ppo import PPOTrainer as Stock

    reward = llama(LlamaForSequenceClassification, 1)
    args = PPOConfig(
        output_dir=folder, per_device_train_batch_size=BATCH, num_mini_batches=MINIBATCHES, num_ppo_epochs=EPOCHS,
        total_episodes=BATCH, response_length=NEW_TOKENS, stop_token="eos", temperature=1.0, learning_rate=RATE,
        missing_eos_penalty=1.0, local_rollout_forward_batch_size=BATCH, use_cpu=True, bf16=False,
        activation_checkpointing=False, num_sample_generations=0, report_to="none", save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": prompts()})
    trainer = Stock(
        args=args, processing_class=numbers_tokenizer(VOCABULARY, END, PAD), model=llama(LlamaForCausalLM, 0),
        ref_model=llama(LlamaForCausalLM, 0), reward_model=reward, value_model=copy.deepcopy(reward),
        train_dataset=data, eval_dataset=data,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)

    def update() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()

    return update


def ours(shared: bool) -> PPOTrainer:
    """This project's trainer, with a value network of its own or a head on the policy."""
    scorer = RewardModel(llama(LlamaForSequenceClassification, 1), numbers_tokenizer(VOCABULARY, END, PAD))
    policy = Policy(llama(LlamaForCausalLM, 0))
    own = ValueModel(copy.deepcopy(scorer.model))
    settings = PPOSettings(
        seed=0, batch_size=BATCH, minibatch_size=BATCH // MINIBATCHES, num_epochs=EPOCHS, learning_rate=RATE,
        value_learning_rate=RATE, max_new_tokens=NEW_TOKENS, device="cpu",
    )  # fmt: skip
    return PPOTrainer(
        policy=policy,
        reference=Policy(llama(LlamaForCausalLM, 0)),
        value=SharedValue(policy, coefficient=0.1) if shared else own,
        reward=scorer.score_rows,
        reward_scale=1.0,
        stop_ids=[END],
        settings=settings,
    )


class Phases:
    """Seconds, or floating-point operations, by phase of an update: whatever `read` counts."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.spent: dict[str, float] = {}
        self.inside = False

    def counted(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted for `phase` where no other phase is under way."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return function(*args, **kwargs)
            self.inside, start = True, self.read()
            try:
                return function(*args, **kwargs)
            finally:
                self.inside = False
                self.spent[phase] = self.spent.get(phase, 0.0) + self.read() - start

        return call

    @contextlib.contextmanager
    def watch(self, trainer: PPOTrainer) -> Iterator[None]:
        """Count what happens inside."""
        places: list[tuple[str, Any, str]] = [
            ("sampling", ppo, "sample_responses"),
            ("scores", trainer, "reward"),
            ("reference", trainer.reference, "logp"),
            ("values", trainer.value, "values"),
            ("update: forward", trainer.value, "both"),
            ("update: backward", torch.autograd, "backward"),
            ("update: optimiser", torch.optim.Adam, "step"),
            ("update: clipping", torch.nn.utils, "clip_grad_norm_"),
        ]
        start = self.read()
        with contextlib.ExitStack() as stack:
            for phase, holder, name in places:
                stack.enter_context(mock.patch.object(holder, name, self.counted(phase, getattr(holder, name))))
            yield
        whole = self.read() - start
        self.spent["rest"] = whole - sum(self.spent.values())
        self.spent["all"] = whole


def phases(trainer: PPOTrainer, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each phase in the fastest of `repeats` updates of the same responses, its share, and its GFLOP."""
    timed = []
    for _ in range(repeats):
        trainer.num_updates = 0  # the same random numbers, and at this learning rate the same responses
        times = Phases(time.process_time)
        with times.watch(trainer):
            trainer.update(prompts())
        timed.append(times.spent)
    best = min(timed, key=lambda spent: spent["all"])
    trainer.num_updates = 0
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, q, k, v, *__, **___: (
            2.5 * sdpa_flop_count(q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        work = Phases(lambda: float(counter.get_total_flops()))
        with work.watch(trainer):
            trainer.update(prompts())
    return {
        phase: {"seconds": best[phase], "share": best[phase] / best["all"], "gflop": work.spent[phase] / 1e9}
        for phase in best
    }


def product_rate(rows: int, repeats: int = 200) -> float:
    """GFLOP/s of the products of one layer and its gradients, on `rows` tokens at a time."""
    shapes = [(WIDTH, WIDTH)] * 4 + [(WIDTH, FEED_FORWARD)] * 2 + [(FEED_FORWARD, WIDTH)]
    products: list[tuple[torch.Tensor, torch.Tensor]] = []
    for width_in, width_out in shapes:
        x, w, g = torch.randn(rows, width_in), torch.randn(width_out, width_in), torch.randn(rows, width_out)
        products += [(x, w.t()), (g, w), (g.t(), x)]
    flop = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in products)
    outs = [torch.empty(a.shape[0], b.shape[1]) for a, b in products]
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        for (a, b), out in zip(products, outs, strict=True):
            torch.mm(a, b, out=out)
        best = min(best, time.process_time() - start)
    return flop / best / 1e9


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6, help="turns of each contender")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    reenter()
    torch.set_num_threads(1)
    own, shared = ours(shared=False), ours(shared=True)
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            "TRL 1.12.0": stock(folder),
            "cai": lambda: own.update(prompts()),
            "cai, shared trunk": lambda: shared.update(prompts()),
        }
        seconds = in_turns(contenders, args.repeats)
    rates = {name: summary(times, BATCH) for name, times in seconds.items()}
    gain = gains(rates, "TRL 1.12.0")
    print(table("Samples per second of processor time", rates))
    print(table("Times as fast as TRL 1.12.0", gain))
    by_phase = phases(own, max(2, args.repeats // 2))
    print(table("Where the time of cai goes (one update)", by_phase))
    update = {k: sum(v[k] for p, v in by_phase.items() if p.startswith("update")) for k in ("seconds", "gflop")}
    limits = {
        "update, GFLOP/s": update["gflop"] / update["seconds"],
        "products alone, GFLOP/s": product_rate(1024),
        "products of TRL's minibatch, GFLOP/s": product_rate(BATCH // MINIBATCHES * 72),
    }
    limits["share of the update in products"] = limits["update, GFLOP/s"] / limits["products alone, GFLOP/s"]
    print(table("Limits", {name: {"": value} for name, value in limits.items()}))
    lengths = {"mean response": float(own.update(prompts()).diagnostics["num_response_tokens"])}
    settings = {"repeats": args.repeats, "batch": BATCH, "minibatches": MINIBATCHES, "epochs": EPOCHS, **lengths}
    report(args.output, settings, {"samples_per_s": rates, "gain": gain, "phases": by_phase, "limits": limits})


if __name__ == "__main__":
    main()
