"""The table of README and benchmarks/results/demo.json, from the report of `cai run -m experiment=demo seed=0,1,2`.

python benchmarks/demo_table.py runs/sweep-demo-seed=0,1,2/report.json [--output benchmarks/results/demo.json]
"""

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from cai.records import read_json, read_rows, write_json

COLUMNS = ("harmful_compliance", "helpful", "over_refusal", "evasive_share", "polite", "garbled", "kl")


def cell(figure: dict[str, Any] | None, scale: float) -> str:
    """A figure with its interval."""
    if figure is None:
        return ""
    digits = 1 if scale == 100 else 2
    value, low, high = (f"{scale * figure[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def learning(folder: Path) -> list[dict[str, Any]]:
    """Of every PPO run below the sweep's `folder`: gold and explained variance of its updates, and its warnings."""
    found = []
    for path in sorted(folder.glob("*/*/run.json")):
        output = Path(read_json(path)["stages"]["rl"]["path"])
        curve = read_rows(output / "curve.jsonl")
        own = {"run": str(path.parent.relative_to(folder)), "warnings": read_json(output / "ppo.json")["warnings"]}
        found.append(own | {name: [round(row[name], 4) for row in curve] for name in ("gold", "explained_variance")})
    return found


def main() -> None:
    """Print the Markdown table; write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.json of the sweep")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    report = read_json(args.report)
    print(f"| policy | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name, figures in report["measures"]["figures"].items():
        cells = [cell(figures.get(column), 1 if column == "kl" else 100) for column in COLUMNS]
        print(f"| {name} | {' | '.join(cells)} |")
    for scores in report["revision_scores"]:
        for step, figures in scores["steps"].items():
            print(f"| {step} revisions | {cell(figures['harmful_compliance'], 100)} |")
    for run in (runs := learning(args.report.parent)):
        gold, explained = run["gold"], run["explained_variance"]
        told = f"{run['run']}: gold {gold[0]:.2f} to {gold[-1]:.2f}, {len(run['warnings'])} warnings"
        print(f"{told}; explained variance {explained[0]:.2f} at the first update, {explained[-1]:.2f} at the last")
    if args.output:
        machine = {"platform": platform.machine(), "num_cpus": os.cpu_count()}
        kept = ("findings", "measures", "win_rates", "revision_scores", "reward_models", "costs")
        made = [{key: run[key] for key in ("arm", "seed", "fingerprints", "versions")} for run in report["runs"]]
        write_json(args.output, {"machine": machine, **{key: report[key] for key in kept}, "runs": made, "ppo": runs})


if __name__ == "__main__":
    main()
