"""The papers' ablations on the sandbox: every preset conf/experiment/ablation_*.yaml over seeds, and one table of each.

    python benchmarks/ablations.py [NAMES] [--seeds 0,1,2] [--output benchmarks/results/ablations.json]

Each is `cai run -m experiment=ablation_NAME seed=0,1,2`; what ran already is found in the store. Rows are arms, columns
their figures on held-out prompts with 95 % intervals over seeds and prompts; how often labels agree with gold and how
often the reward model is right on held-out labels stand beside them, with their range over seeds.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import report

from cai.records import read_json

NAMES = (
    *("labels", "order", "chain_of_thought", "constitution", "critique", "revisions", "noise", "label_count"),
    *("hybrid", "cost", "rl", "over_optimisation"),
)
COLUMNS = ("harmful_compliance", "helpful", "gold", "kl")
LABELS, REWARD = "labels agree with gold", "reward model right"
Figure = Mapping[str, Any]


def swept(name: str, seeds: str, work: Path) -> dict[str, Any]:
    """The report of an ablation's sweep, from where the sweep says that it is: its last line on stdout."""
    command = [sys.executable, "-m", "cai", "run", "-m", f"experiment=ablation_{name}", f"seed={seeds}"]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=work) as process:
        assert process.stdout
        for last in process.stdout:
            print(last, end="", flush=True)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: ended with exit code {process.returncode}")
    found: dict[str, Any] = read_json(Path(last.strip()).with_name("report.json"))
    return found


def figures(found: Mapping[str, Any]) -> dict[str, dict[str, Figure]]:
    """By policy: its columns, and of the arm that it comes from the labels and the reward model."""
    gold = {arm["arm"]: arm["gold"]["raw"] for arm in found["labels"]["arms"] if arm["gold"]} if found["labels"] else {}
    rewards = {model["arm"]: model["accuracy"] for model in found["reward_models"]}
    rows = {}
    for policy in found["policies"]:
        own = found["measures"]["figures"][policy["name"]]
        row = {name: own[name] for name in COLUMNS if own.get(name)}
        arms = policy["arms"] if policy["kind"] == "policy" else []
        for arm in arms[:1]:
            row |= {LABELS: gold[arm]} if arm in gold else {}
            row |= {REWARD: rewards[arm]} if arm in rewards else {}
        kept = ("value", "low", "high", "per_seed")
        rows[policy["name"]] = {name: {key: one[key] for key in kept} for name, one in row.items()}
    return rows


def cell(name: str, found: Figure | None) -> str:
    """A figure with its interval; of labels and reward models the range over seeds."""
    if found is None:
        return ""
    scale, digits = (1.0, 2) if name in ("gold", "kl") else (100.0, 1)
    low, high = found["low"], found["high"]
    if name not in COLUMNS:
        low, high = min(found["per_seed"].values()), max(found["per_seed"].values())
        return f"{scale * found['value']:.{digits}f} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"
    return f"{scale * found['value']:.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def table(name: str, rows: Mapping[str, Mapping[str, Figure]]) -> str:
    """Markdown."""
    columns = [c for c in (LABELS, REWARD, *COLUMNS) if any(c in row for row in rows.values())]
    titles = [c.replace("_", " ") + (", %" if c not in ("gold", "kl") else "") for c in columns]
    lines = [f"\n## {name}\n", f"| | {' | '.join(titles)} |", f"|{'---|' * (len(columns) + 1)}"]
    lines += [f"| {arm} | {' | '.join(cell(c, row.get(c)) for c in columns)} |" for arm, row in rows.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path(), help="folder of runs and store (the current one)")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(arguments)
    found = {name: figures(swept(name, args.seeds, args.work.absolute())) for name in args.names}
    for name, rows in found.items():
        print(table(name, rows))
    report(args.output, {"seeds": args.seeds}, {"ablations": found})


if __name__ == "__main__":
    main()
