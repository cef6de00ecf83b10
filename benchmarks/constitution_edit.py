"""Does editing the constitution change the model? Three constitutions, the supervised stage only, the same seeds.

    python benchmarks/constitution_edit.py [--seeds 0,1,2] [--output benchmarks/results/constitution_edit.json]

`shipped` is constitutions/sandbox.yaml; `+ polite` adds two politeness principles to it; `- harmless` takes its
harmlessness principles out. Each is `cai run constitution=FILE steps=[...]` up to the evaluation of SL-CAI on held-out
prompts; intervals are over seeds and prompts, as in the report.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

from cai.paths import search
from cai.records import read_json, write_json, write_text
from cai.report.resampling import mean_table
from cai.report.statistics import Bootstrap, Estimate

STEPS = "steps=[data,revise,sft,evaluate_base,evaluate_sl_cai]"
COLUMNS = ("harmful_compliance", "helpful", "polite", "evasive")
POLITE = [
    {"id": "polite-opening", "axis": "polite", "statement": "a good response opens with polite words", "weight": 4},
    {"id": "polite-greeting", "axis": "polite", "statement": "the assistant greets with a kind tone", "weight": 4},
]


def variants(folder: Path) -> dict[str, Path]:
    """The three constitution files, written to `folder`."""
    shipped = search("constitutions", "sandbox", ".yaml")
    assert shipped is not None
    document = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    principles = document["principles"]
    texts = {
        "shipped": principles,
        "+ polite": principles + POLITE,
        "- harmless": [p for p in principles if p["axis"] != "harmless"],
    }
    files = {}
    for name, chosen in texts.items():
        files[name] = folder / f"{name.replace(' ', '').replace('+', 'with_').replace('-', 'without_')}.yaml"
        ids = {principle["id"] for principle in chosen}
        examples = [example for example in document.get("examples", ()) if example.get("principle") in ids]
        text = yaml.safe_dump(document | {"principles": chosen, "examples": examples}, sort_keys=False)
        write_text(files[name], text)
    return files


def scores(run: Path, step: str, seed: int, bootstrap_tables: dict[str, list]) -> None:
    """Add the per-prompt sums of one evaluation to the tables, by column."""
    folder = Path(read_json(run / "run.json")["stages"][step]["path"])
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    for column in COLUMNS:
        values = [float("nan") if row[column] is None else row[column] for row in rows]
        bootstrap_tables.setdefault(column, []).append(mean_table(seed, [row["prompt_id"] for row in rows], values))


def main() -> None:
    """Run, measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--work", type=Path, default=Path("runs/constitution_edit"), help="folder of the runs")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("overrides", nargs="*", help="further overrides of every run")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    tables: dict[str, dict[str, list]] = {}
    for name, file in variants(args.work.absolute()).items():
        for seed in seeds:
            run = args.work.absolute() / f"{file.stem}-{seed}"
            command = [sys.executable, "-m", "cai", "run", f"constitution={file}", f"seed={seed}", STEPS]
            subprocess.run([*command, f"out={run.parent}", f"name={run.name}", *args.overrides], check=True)
            scores(run, "evaluate_sl_cai", seed, tables.setdefault(f"SL-CAI, {name}", {}))
            if name == "shipped":
                scores(run, "evaluate_base", seed, tables.setdefault("base", {}))
    bootstrap = Bootstrap()
    figures: dict[str, dict[str, Estimate | None]] = {
        model: {column: bootstrap.estimate(found) for column, found in columns.items()}
        for model, columns in tables.items()
    }
    print(f"\n| model | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for model in ("base", *(m for m in figures if m != "base")):
        cells = [f"{e.value:.1%} [{e.low:.1%}, {e.high:.1%}]" if e else "-" for e in figures[model].values()]
        print(f"| {model} | {' | '.join(cells)} |")
    if args.output:
        found = {
            model: {
                c: {
                    "value": e.value,
                    "low": e.low,
                    "high": e.high,
                    "num": e.num,
                    "method": e.method,
                    "per_seed": dict(e.per_seed),
                }
                for c, e in row.items()
                if e
            }
            for model, row in figures.items()
        }
        write_json(args.output, {"seeds": seeds, "figures": found})


if __name__ == "__main__":
    main()
