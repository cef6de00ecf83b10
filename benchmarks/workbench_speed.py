"""How quickly the workbench answers, and whether `diff` says what a label stage says.

    python benchmarks/workbench_speed.py [--comparisons 1000] [--repeats 3] [--output benchmarks/results/workbench.json]

`preview` starts anew each time, once with an empty store and once with a store that has the prompts of the data but not
these answers. Then one principle of the shipped `sandbox` is edited: `diff` on the comparisons of the old constitution,
against the label stage under the new one on the same comparisons, whose labels must be those that were predicted.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import report, table

from cai import config, constitution
from cai.labelers.statistics import first_judgments
from cai.records import read_records
from cai.types import Comparison, Judgment
from cai.workbench.bench import bench, made, side
from cai.workbench.diff import Diff, diff

EDIT = ("explains what the user needs", "opens with polite words")  # of the principle helpful-needs


def timed(arguments: list[str]) -> dict[str, float]:
    """Seconds of one `cai` command, by the clock and of the processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "cai", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\ncai {' '.join(arguments)}: exit code {done.returncode}")
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor_seconds": used}


def previews(repeats: int) -> dict[str, dict[str, float]]:
    """The fastest and the median `preview`, with an empty store, with the data there, and asked for the second time."""
    found: dict[str, list[dict[str, float]]] = {"empty store": [], "prompts known": [], "the same again": []}
    for _ in range(repeats):
        shutil.rmtree("store", ignore_errors=True)
        found["empty store"].append(timed(["constitution", "preview", "sandbox"]))
        for folder in ("preview", "answers"):
            shutil.rmtree(Path("store") / folder)
        found["prompts known"].append(timed(["constitution", "preview", "sandbox"]))
        found["the same again"].append(timed(["constitution", "preview", "sandbox"]))
    return {
        name: {
            f"{how}_{key}": choose([one[key] for one in own])
            for key in ("seconds", "processor_seconds")
            for how, choose in (("fastest", min), ("median", statistics.median))
        }
        for name, own in found.items()
    }


def compared(num_comparisons: int) -> dict[str, Any]:
    """An edit of one principle: what `diff` asked and predicted, and what two label stages say."""
    overrides = ["experiment=rlaif", f"data.source.num_comparisons={num_comparisons}"]
    text = constitution.load("sandbox").path.read_text(encoding="utf-8")
    Path("edited.yaml").write_text(text.replace(*EDIT), encoding="utf-8")
    entries = made(bench("sandbox", overrides), "data", "revise", "sft", "sample", "label")
    start = time.process_time()
    found = diff("sandbox", "edited.yaml", overrides)
    of_diff = time.process_time() - start
    after = bench("edited.yaml", overrides)
    stage = config.build(after.settings, ["label"])["label"]
    output = Path("label")
    output.mkdir()
    start = time.process_time()
    stage.run({"sample": entries["sample"].path}, output)
    of_stage = time.process_time() - start
    real = changes(entries["label"].path, output)
    predicted = {(c.comparison.id, *c.pair): c.kind for c in found.labels if c.kind != "stays"}
    comparisons = read_records(entries["sample"].path / "comparisons.jsonl", Comparison)
    of_edited = {q.key for c in comparisons for q in after.labeler.questions(c) if q.principle.id == "helpful-needs"}
    return {
        "num_comparisons": num_comparisons,
        "num_questions": found.num_questions,
        "num_asked": found.num_asked + found.num_asked_old,
        "num_about_the_edited_principle": len(of_edited),
        "predicted": counted(predicted),
        "real": counted(real),
        "same": predicted == real,
        "largest_deviation_of_p": deviation(found, output),
        "processor_seconds_of_diff": of_diff,
        "processor_seconds_of_the_label_stage": of_stage,
    }


def labels(folder: Path) -> dict[tuple[str, int, int], float]:
    """p by comparison and pair."""
    judgments = first_judgments(read_records(folder / "judgments.jsonl", Judgment))
    return {(j.comparison_id, pair.first, pair.second): pair.p for j in judgments.values() for pair in j.pairs}


def changes(before: Path, after: Path) -> dict[tuple[str, int, int], str]:
    """Labels that differ between two label stages, by what became of them."""
    old, new = labels(before), labels(after)
    sides = {key: (side(old.get(key)), side(new.get(key))) for key in old | new}
    return {key: "flips" if a and b else "settles" if b else "fades" for key, (a, b) in sides.items() if a != b}


def counted(kinds: dict[tuple[str, int, int], str]) -> dict[str, int]:
    """How many of each kind."""
    return {kind: sum(found == kind for found in kinds.values()) for kind in ("flips", "settles", "fades")}


def deviation(found: Diff, folder: Path) -> float:
    """Of the predicted probabilities from those of the label stage: rounding."""
    real = labels(folder)
    return max((abs(c.after - real[c.comparison.id, *c.pair]) for c in found.labels if c.after is not None), default=0)


def main() -> None:
    """Measure in a folder of its own, print, and write where `--output` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    output = args.output.absolute() if args.output else None
    home, before = Path.cwd(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        shown = previews(args.repeats)
        load = [before, os.getloadavg()[0]]
        edit = compared(args.comparisons)
        os.chdir(home)
    print(table(f"preview, load average {load[0]:.1f} to {load[1]:.1f}", shown))
    for name, value in edit.items():
        print(f"{name:<40}{value}")
    report(output, {"repeats": args.repeats, "load_average": load}, {"preview": shown, "diff": edit})


if __name__ == "__main__":
    main()
