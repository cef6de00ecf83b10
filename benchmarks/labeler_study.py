"""Eight labelers on the same comparisons of the sandbox: the figures of docs/labelers.md.

    python benchmarks/labeler_study.py [--output benchmarks/results/labeler_study.json]

Runs the recipe up to the labels once for each labeler (they share everything before), then `cai compare-labelers`.
"""

import argparse
import re
from pathlib import Path

from measuring import machine
from recipe_runs import recipe_run

from cai.records import read_json, write_json
from cai.report.study import write_study

STEPS = "steps=[data,revise,sft,sample,label]"
DOCS = Path(__file__).resolve().parent.parent / "docs" / "labelers.md"
LABELERS = {
    "people": ["labeler=simulated"],
    "swayed people": ["labeler=simulated", "labeler.position_bias=0.7", "labeler.length_bias=0.5"],
    "one principle": ["labeler=ai"],
    "all principles": ["labeler=ai", "labeler.num_principles=all"],
    "decided principles": ["labeler=ai", "labeler.num_principles=all", "labeler.min_distance=0.02"],
    "chain of thought": ["labeler=ai_cot"],
    "mixed": ["labeler=mixed"],
    "brevity": ["labeler=custom", "labeler._target_=my_file.MyLabeler"],
}


def main() -> None:
    """Run, write the page, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-comparisons", type=int, default=800)
    parser.add_argument("--work", type=Path, default=Path("runs/labeler_study"), help="folder of runs and store")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    file = re.search(r"```python\n(# (\S+\.py)\n.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert file, "the page begins with a labeler"
    Path(file[2]).write_text(file[1], encoding="utf-8")
    sizes = [f"data.source.num_comparisons={args.num_comparisons}", "data.source.num_red_team=300"]
    sizes += ["data.source.num_demonstrations=300", "data.source.num_rl=8", "data.source.num_evaluation=8"]
    for name, own in LABELERS.items():
        recipe_run(name.replace(" ", "-"), [*sizes, STEPS, *own], args.work.absolute())
    folders = [args.work.absolute() / "runs" / name.replace(" ", "-") for name in LABELERS]
    print(write_study(folders, args.work / "page"))
    study = read_json(args.work / "page" / "labelers.json")
    print("| labeler | labels | agrees with gold | first shown wins | a second |\n|---|---|---|---|---|")
    for found in study["labelers"]:
        labels, place, speed = found["labels"], found["place"]["share"], found["spent"]["labels_per_second"]
        gold = labels["gold"]["raw"]
        cells = [
            f"{100 * e['value']:.1f} [{100 * e['low']:.1f}, {100 * e['high']:.1f}]" if e else "" for e in (gold, place)
        ]
        print(f"| {labels['arm']} | {labels['num_labelled']} | {cells[0]} | {cells[1]} | {speed:.1f} |")
    if args.output:
        write_json(args.output, {"machine": machine(), **study})


if __name__ == "__main__":
    main()
