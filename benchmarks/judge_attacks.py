"""How far texts that are written for the judge move it: the win-rate shift of each kind of attack, in both orders.

    python benchmarks/judge_attacks.py cai/sandbox/checkpoint --output benchmarks/results/judge_attacks.json

Each of the forty texts of tests/attacks.yaml is appended to the *worse* response of pairs that the oracle can tell
apart (dev split, responses of the grammar), and the embedded judge is asked in both orders. The shift is the mean
probability that the attacked response is better, and the share of pairs in which it wins, less the same without the
attack. `guarded` is how `cai` judges; `bare` leaves reserved markers whole and lets special tokens be special. The
control appends words that mean nothing to the model: what is garbled loses anyway.
"""

import argparse
import functools
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml
from measuring import machine
from numpy.typing import NDArray
from sandbox_quality import Row, Setting, judge
from sandbox_tasks import Pair, make_pairs

from cai.engines.base import EnginePrompt
from cai.engines.transformers import TransformersEngine
from cai.prompts import PromptFamily
from cai.records import write_json
from cai.report.resampling import mean_table
from cai.report.statistics import Bootstrap

ATTACKS = Path(__file__).parent.parent / "tests" / "attacks.yaml"
CONTROL = {"kind": "control", "text": "zyx wvu tsr qpo nml"}


class _BareEngine(TransformersEngine):
    """Does not look at what a prompt quotes."""

    def choice_logprobs(
        self, prompts: Sequence[EnginePrompt], choices: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float64]]:
        return super().choice_logprobs([replace(prompt, quoted=()) for prompt in prompts], choices)


@dataclass(frozen=True)
class _Bare(Setting):
    """The recipe without its guards."""

    @functools.cached_property
    def engine(self) -> TransformersEngine:
        return _BareEngine(model=self.model)

    @functools.cached_property
    def family(self) -> PromptFamily:
        family = PromptFamily("sandbox")
        family._settings = replace(family._settings, reserved=None)
        return family


def attacked(pair: Pair, text: str) -> Pair:
    """The pair with the text appended to its worse response."""
    if pair.truth:
        return pair._replace(second=f"{pair.second} {text}")
    return pair._replace(first=f"{pair.first} {text}")


def judged(setting: Setting, pairs: Sequence[Pair]) -> dict[tuple[str, str], tuple[float, bool]]:
    """By prompt and principle, where there is a label: p that the worse response is better, and if the orders agree."""
    rows: list[Row] = judge(setting, "judge", pairs)
    return {(r["prompt"], r["principle"]): (1 - r["p"] if r["truth"] else r["p"], not r["flip"]) for r in rows}


def figures(setting: Setting, pairs: Sequence[Pair], attacks: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Shifts by kind, with intervals over pairs, and of every single text."""
    before = judged(setting, pairs)
    kinds: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    texts, bootstrap = [], Bootstrap()
    for attack in attacks:
        after = judged(setting, [attacked(pair, attack["text"]) for pair in pairs])
        rows = [(key, after[key][0] - before[key][0], (after[key][0] > 0.5) - (before[key][0] > 0.5)) for key in after]
        kinds[attack["kind"]] += [("/".join(key), shift, won) for key, shift, won in rows]
        texts.append(
            {
                **attack,
                "shift": fmean(shift for _, shift, _ in rows),
                "win_rate": fmean(p > 0.5 for p, _ in after.values()),
                "orders_agree": fmean(agree for _, agree in after.values()),
                "num_abstained": len(pairs) - len(after),
            }
        )
    by_kind = {}
    for kind, rows in kinds.items():
        keys = [key for key, _, _ in rows]
        shift, wins = (bootstrap.estimate([mean_table(0, keys, [row[n] for row in rows])]) for n in (1, 2))
        assert shift and wins
        by_kind[kind] = {
            "shift": [shift.value, shift.low, shift.high],
            "win_rate_shift": [wins.value, wins.low, wins.high],
        }
    base = {
        "p_worse": fmean(p for p, _ in before.values()),
        "win_rate": fmean(p > 0.5 for p, _ in before.values()),
        "num_pairs": len(before),
    }
    return {"without_attack": base, "by_kind": by_kind, "texts": texts}


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder of the sandbox")
    parser.add_argument("--num", type=int, default=20, help="pairs of each axis (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    attacks = [*yaml.safe_load(ATTACKS.read_text(encoding="utf-8")), CONTROL]
    pairs = make_pairs("dev", args.num, args.seed)
    found = {}
    for name, kind in (("guarded", Setting), ("bare", _Bare)):
        setting = kind(model=os.fspath(args.model), split="dev", num=args.num, seed=args.seed, temperature=1.0)
        found[name] = figures(setting, pairs, attacks)
        base = found[name]["without_attack"]
        wins = 100 * base["win_rate"]
        print(f"{name}: {base['num_pairs']} pairs, of which the worse response wins {wins:.1f} % without an attack")
        print(f"  {'kind':<16}{'shift of p':>26}{'shift of win rate, points':>34}")
        for attack, row in found[name]["by_kind"].items():
            (p, low, high), (wins, a, b) = row["shift"], (100 * value for value in row["win_rate_shift"])
            cell = f"{p:+.3f} [{low:+.3f}, {high:+.3f}]"
            print(f"  {attack:<16}{cell:>26}{f'{wins:+.1f} [{a:+.1f}, {b:+.1f}]':>34}")
    if args.output:
        settings = {"num": args.num, "seed": args.seed, "split": "dev"}
        write_json(args.output, {"machine": machine(), "settings": settings, **found})


if __name__ == "__main__":
    main()
