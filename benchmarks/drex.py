"""D-REX on the sandbox: rewards from noise alone, without a label, against the clone that they came from.

    python benchmarks/drex.py [--seeds 0,1,2] [--output benchmarks/results/drex.json] [--plot drex.svg]

For each kind of noise (temperature, epsilon-random tokens, earlier models of the fine-tuning): does gold fall with it?
A reward learns from snippets of the ladder (`experiment=drex`), and is asked to choose among 16 responses of the clone
(best-of-n, on held-out prompts) and to train it (PPO). Beside it stand the clone itself (behavioural cloning), its own
log-probability as a reward, the same labels without snippets, and gold itself as the ceiling.

Extrapolation: a second reward learns from the noisiest rungs alone and is asked about the rest. The base model's own
ladders show where the method must fail: on harmful requests, what it does by itself is worse than noise.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from measuring import report
from numpy.typing import NDArray
from recipe_runs import recipe_run

from cai.datasets.splits import held_out
from cai.engines.transformers import TransformersEngine
from cai.noise import Ladder, kept_name, monotonicity, spearman
from cai.records import read_json, read_records, read_rows
from cai.rl.best_of_n import best_of
from cai.rl.models import RewardModel
from cai.sandbox.plug import SandboxScorer
from cai.stages.sample import Sample
from cai.types import Comparison, Prompt, Response

N = 16
BEST = (1, 4, N)
RATES = ("gold", "harmful_compliance", "helpful", "over_refusal", "garbled")
MADE = ("data", "revise", "sft", "sample", "label", "reward")
# Levels from clean to noisy; the second reward learns from the last `NUM_NOISIER`.
LADDERS = {
    "temperature": (0.5, 1.0, 1.3, 1.6, 2.0),
    "epsilon": (0.0, 0.01, 0.05, 0.2, 1.0),
    "checkpoint": (0.0, 0.5, 0.8, 0.9, 1.0),
}
NUM_NOISIER = 3
Scores = NDArray[np.float64]


# --- one seed ---------------------------------------------------------------------------------------------------------


def figures(seed: int, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Of one ladder in one seed."""
    levels = LADDERS[kind]
    common = [
        *("experiment=drex", "rl=ppo", f"seed={seed}", f"labeler.ladder.kind={kind}", "evaluate.num_samples=16"),
        # the same in every run, so that all kinds share one fine-tuning
        f"sft.keep_left={list(LADDERS['checkpoint'])}".replace(" ", ""),
        *(f"data.source.num_{name}={getattr(args, name)}" for name in ("comparisons", "evaluation")),
        *args.overrides,
    ]

    def run(name: str, rungs: Sequence[float], steps: Sequence[str], *more: str) -> dict[str, Path]:
        chosen = [f"steps=[{','.join(steps)}]", f"labeler.ladder.levels={list(rungs)}".replace(" ", "")]
        return recipe_run(f"{kind}-{name}-seed-{seed}", [*common, *chosen, *more], args.work.absolute())

    full = run("ladder", levels, (*MADE, "rl", "evaluate_sl_cai", "evaluate_policy"))
    whole = run("whole", levels, MADE, "reward.head=last", "reward.snippets=null")
    noisier = run("noisier", levels[-NUM_NOISIER:], MADE)
    rewards = {"snippets": full, "whole responses": whole, "snippets of the noisier part": noisier}
    evaluated = {"clone": "evaluate_sl_cai", "ppo": "evaluate_policy"}
    found = {
        "clone": by_tag(read_records(full["sample"] / "comparisons.jsonl", Comparison)),
        "best_of_n": best_of_n(full, {name: stages["reward"] / "model" for name, stages in rewards.items()}),
        "policies": {
            name: {rate: value["mean"] for rate, value in read_json(full[step] / "summary.json")["all"].items()}
            for name, step in evaluated.items()
        },
        "extrapolation": extrapolation(full, noisier["reward"] / "model", levels),
    }
    if kind != "checkpoint":
        found["base"] = by_tag(sampled_from_base(full, Ladder(kind=kind, levels=levels), args.work.absolute()))
    return found


def by_tag(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Gold along the ladder (`cai.noise.monotonicity`): over all prompts, and over those of each tag."""
    tags = sorted({tag for comparison in comparisons for tag in comparison.prompt.tags})
    found = {}
    for name in ("all", *tags):
        own = [c for c in comparisons if name == "all" or name in c.prompt.tags]
        scores = iter(
            SandboxScorer().score(
                [c.prompt for c in own for _ in c.responses], [r.text for c in own for r in c.responses]
            )["gold"]
        )
        found[name] = monotonicity(own, {c.id: [next(scores) for _ in c.responses] for c in own})
    return found


def best_of_n(run: Mapping[str, Path], rewards: Mapping[str, Path]) -> dict[str, Any]:
    """What each reward makes of the clone's `N` responses to every held-out prompt: means of the best of n, and the
    mean rank correlation with gold over the responses to a prompt.
    """
    asked = {prompt.id: prompt for prompt in read_records(run["data"] / "evaluation.jsonl", Prompt)}
    responses = read_records(run["evaluate_sl_cai"] / "responses.jsonl", Response)
    rows = read_rows(run["evaluate_sl_cai"] / "scores.jsonl")
    columns = [table([np.nan if row[rate] is None else row[rate] for row in rows]) for rate in RATES]
    prompts, texts = [asked[response.prompt_id] for response in responses], [response.text for response in responses]
    scores = {name: table(RewardModel.load(path).score(prompts, texts).tolist()) for name, path in rewards.items()}
    scores["log p"] = table([row["logp"] for row in rows])
    scores["log p per token"] = table([row["logp"] / max(row["num_tokens"], 1) for row in rows])
    scores["gold"] = columns[0]
    return {
        name: {
            "spearman": mean_spearman(own, columns[0]),
            "best_of": {str(k): dict(zip(RATES, best_of(k, own, columns), strict=True)) for k in BEST},
        }
        for name, own in scores.items()
    }


def table(values: Sequence[float]) -> Scores:
    """(prompts, N)."""
    return np.array(values, dtype=np.float64).reshape(-1, N)


def mean_spearman(first: Sequence[Sequence[float]] | Scores, second: Sequence[Sequence[float]] | Scores) -> float:
    """Over the rows where both vary."""
    found = [spearman(list(a), list(b)) for a, b in zip(first, second, strict=True)]
    return statistics.mean(value for value in found if value is not None)


def sampled_from_base(run: Mapping[str, Path], ladder: Ladder, work: Path) -> list[Comparison]:
    """The ladder's responses of the model before its fine-tuning."""
    folder = work / f"base-{run['sft'].name[:12]}-{ladder.kind}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").is_dir():
        (folder / "model").symlink_to(run["sft"] / kept_name(1.0))
    engine = partial(TransformersEngine, device="cpu")
    Sample(engine=engine, seed=0, max_new_tokens=48, ladder=ladder).run({"data": run["data"], "sft": folder}, folder)
    return read_records(folder / "comparisons.jsonl", Comparison)


def extrapolation(run: Mapping[str, Path], reward: Path, levels: Sequence[float]) -> dict[str, Any]:
    """A reward that learnt from the noisiest rungs alone, on prompts that were held out from it: gold and score at each
    level, and how often it puts the less noisy (or the better, by gold) of two responses first.
    """
    comparisons = read_records(run["sample"] / "comparisons.jsonl", Comparison)
    out = held_out([comparison.prompt for comparison in comparisons], 0.1)
    held = [comparison for comparison, is_out in zip(comparisons, out, strict=True) if is_out]
    prompts = [comparison.prompt for comparison in held for _ in levels]
    texts = [response.text for comparison in held for response in comparison.responses]
    scores = np.array(RewardModel.load(reward).score(prompts, texts).tolist()).reshape(-1, len(levels))
    gold = np.array(SandboxScorer().score(prompts, texts)["gold"]).reshape(-1, len(levels))
    first_seen = len(levels) - NUM_NOISIER
    hits: dict[str, list[float]] = {}
    for i, j in combinations(range(len(levels)), 2):
        side = "unseen" if j < first_seen else "seen" if i >= first_seen else "across"
        ahead = (np.sign(scores[:, i] - scores[:, j]) + 1) / 2
        hits.setdefault(f"{side}_by_noise", []).extend(ahead.tolist())
        better = np.sign(gold[:, i] - gold[:, j])
        hits.setdefault(f"{side}_by_gold", []).extend(np.where(better > 0, ahead, 1 - ahead)[better != 0].tolist())
    return {
        "levels": [
            {"noise": level, "seen": k >= first_seen, "gold": gold[:, k].mean(), "score": scores[:, k].mean()}
            for k, level in enumerate(levels)
        ],
        "accuracy": {name: statistics.mean(values) for name, values in hits.items()},
    }


# --- what is shown ----------------------------------------------------------------------------------------------------


def mean(rows: Sequence[dict[str, Any]], *path: str) -> str:
    """Of a figure over seeds, with its range."""
    values = []
    for row in rows:
        found: Any = row
        for key in path:
            found = found[key]
        values.append(found)
    return f"{statistics.mean(values):+.2f} ({min(values):+.2f} to {max(values):+.2f})"


def show(kind: str, rows: Sequence[dict[str, Any]]) -> None:
    """The tables of one kind of noise; `rows` are the seeds."""
    print(f"\n## {kind}\n\n| gold by level | {' | '.join(map(str, LADDERS[kind]))} | Spearman |\n|{'---|' * 7}")
    for model in ("clone", "base"):
        for tag in rows[0].get(model, ()):
            own = [row[model][tag] for row in rows]
            cells = [f"{statistics.mean(o['levels'][k]['gold'] for o in own):+.2f}" for k in range(len(LADDERS[kind]))]
            print(f"| {model}, {tag} | {' | '.join(cells)} | {mean(own, 'spearman')} |")
    print(
        f"\n| chosen by | best of 4, gold | best of {N}, gold | Spearman with gold | harmful | helpful |\n|{'---|' * 6}"
    )
    print(f"| nothing: the clone | {mean(rows, 'policies', 'clone', 'gold')} | | | |")
    for name in rows[0]["best_of_n"]:
        own = [row["best_of_n"][name] for row in rows]
        gold = [mean(own, "best_of", str(k), "gold") for k in BEST[1:]]
        rates = [mean(own, "best_of", str(N), rate) for rate in ("harmful_compliance", "helpful")]
        print(f"| {' | '.join([name, *gold, mean(own, 'spearman'), *rates])} |")
    print(f"\n| policy | {' | '.join((*RATES, 'kl'))} |\n|{'---|' * 7}")
    for name in ("clone", "ppo"):
        print(f"| {name} | {' | '.join(mean(rows, 'policies', name, rate) for rate in (*RATES, 'kl'))} |")
    names = rows[0]["extrapolation"]["accuracy"]
    print(f"\n| learnt from the noisiest {NUM_NOISIER} rungs | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    print(f"| accuracy | {' | '.join(mean(rows, 'extrapolation', 'accuracy', name) for name in names)} |")


def plot(path: Path, found: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Gold against noise of clone and base, and the score of a reward from the noisier part against gold, by level."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(3.4 * len(found), 5.6), squeeze=False, layout="constrained")
    for column, (kind, rows) in enumerate(found.items()):
        top, bottom = axes[0][column], axes[1][column]
        for row in rows:
            for model, style in (("clone", "o-"), ("base", "s--")):
                for tag, colour in (("helpful", "tab:blue"), ("red_team", "tab:red")):
                    levels = row.get(model, {}).get(tag, {"levels": []})["levels"]
                    label = f"{model}, {tag}" if row is rows[0] else None
                    top.plot(
                        [x["noise"] for x in levels], [x["gold"] for x in levels], style, color=colour, label=label
                    )
            for seen, style in ((True, "s"), (False, "o")):
                own = [x for x in row["extrapolation"]["levels"] if x["seen"] is seen]
                label = ("levels learnt from" if seen else "levels never seen") if row is rows[0] else None
                colour = "tab:grey" if seen else "tab:green"
                bottom.plot([x["gold"] for x in own], [x["score"] for x in own], style, color=colour, label=label)
        top.set(title=kind, xlabel="noise", ylabel="gold")
        bottom.set(xlabel="gold, mean of the level", ylabel="score, mean of the level")
    axes[0][0].legend(fontsize=7)
    axes[1][0].legend(fontsize=7)
    figure.savefig(path)


def main() -> None:
    """Run, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--kinds", default=",".join(LADDERS), help="of noise, comma-separated (%(default)s)")
    parser.add_argument("--comparisons", type=int, default=1000, help="prompts of the ladder (%(default)s)")
    parser.add_argument("--evaluation", type=int, default=200, help="held-out prompts (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/drex"), help="folder of runs and store")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--plot", type=Path, help="a picture: gold against noise, score against gold")
    parser.add_argument("overrides", nargs="*", help="further overrides of every run")
    args = parser.parse_args()
    seeds, kinds = [int(seed) for seed in args.seeds.split(",")], args.kinds.split(",")
    found = {kind: [figures(seed, kind, args) for seed in seeds] for kind in kinds}
    for kind, rows in found.items():
        show(kind, rows)
    if args.plot:
        plot(args.plot, found)
    settings = {"seeds": seeds, "comparisons": args.comparisons, "evaluation": args.evaluation}
    report(args.output, settings, {"ladders": found})


if __name__ == "__main__":
    main()
