"""What a sweep of 2 x 2 x 3 jobs costs beside twelve runs that share nothing; and that two workers give the same bytes.

    python benchmarks/sweep_sharing.py [--second rl.beta=0.05,0.2] [--output FILE.json] [overrides ...]

Two constitutions, two labelers (or two values of another key), three seeds, at a tenth of the demo's sizes, updates of
PPO included, so that it takes minutes. The sweep's jobs share a store: what comes before the second key is made once.
The later that is, the more is shared: two labelers share all up to the responses, two settings of RL the labels and the
reward model too. Cost is processor time (one thread each), which a busy machine hardly changes; what the same stages
cost without sharing is also added up from their own times.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from kill_resume import digests

from cai.records import read_json, write_json

SIZES = {"red_team": 120, "demonstrations": 120, "comparisons": 500, "rl": 300, "evaluation": 40}
SMALL = [*(f"data.source.num_{name}={size}" for name, size in SIZES.items()), "rl.num_updates=3", "num_threads=1"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def timed(overrides: Sequence[str], work: Path, *flags: str) -> dict[str, float]:
    """Run `cai run` with out and store in `work`; wall and processor seconds, those of its workers included."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    folders = [f"out={work / 'runs'}", f"store={work / 'store'}"]
    command = [sys.executable, "-m", "cai", "run", *flags, *overrides, *folders]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nended with exit code {done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - start, "processor": processor}


def stage_seconds(work: Path) -> dict[str, float]:
    """Of all runs below `work`: as if each had made its stages itself, and with each output counted once."""
    stages = [stage for path in work.glob("runs/**/run.json") for stage in read_json(path)["stages"].values()]
    once = {stage["fingerprint"]: stage["seconds"] for stage in stages}
    return {"separate": sum(stage["seconds"] for stage in stages), "shared": sum(once.values()),
            "num_stages": len(stages), "num_made": len(once)}  # fmt: skip


def main() -> None:
    """Sweep by one process, sweep by two, twelve runs; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/sweep_sharing"), help="scratch folder, emptied first")
    parser.add_argument("--second", default="labeler=ai,simulated", help="the second key and its values (%(default)s)")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("overrides", nargs="*", help="further overrides of every run")
    args = parser.parse_args()
    work, small = args.work.absolute(), [*SMALL, *args.overrides]
    shutil.rmtree(work, ignore_errors=True)
    swept = ["constitution=sandbox,sandbox_four", args.second, "seed=0,1,2"]
    keys = {key: values.split(",") for key, _, values in (sweep.partition("=") for sweep in swept)}

    sweep = timed([*swept, *small], work / "one", "-m")
    two = timed([*swept, *small, *JOBLIB], work / "two", "-m")
    same = digests(work / "one") == digests(work / "two")
    separate = {"wall": 0.0, "processor": 0.0}
    for number, values in enumerate(product(*keys.values())):
        chosen = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        for name, seconds in timed([*chosen, *small], work / f"separate-{number}").items():
            separate[name] += seconds
        shutil.rmtree(work / f"separate-{number}")
    stages = stage_seconds(work / "one")
    figures: dict[str, Any] = {
        "keys": keys, "sizes": SIZES, "sweep": sweep, "two_workers": two, "same_bytes": same, "separate": separate,
        "share": sweep["processor"] / separate["processor"], "stage_seconds": stages,
        "share_of_stages": stages["shared"] / stages["separate"],
    }  # fmt: skip
    print(f"{'':<28}{'processor s':>12}{'wall s':>9}")
    for name, row in (("twelve separate runs", separate), ("one sweep", sweep), ("one sweep, two workers", two)):
        print(f"{name:<28}{row['processor']:>12.0f}{row['wall']:>9.0f}")
    print(f"the sweep costs {100 * figures['share']:.0f} % of the separate runs; by the times of stages alone (without")
    print(f"starting processes and reports), {stages['num_made']} of {stages['num_stages']} made: "
          f"{100 * figures['share_of_stages']:.0f} %")  # fmt: skip
    print(f"two workers and one give {'the same bytes' if same else 'DIFFERENT bytes'}")
    if args.output:
        write_json(args.output, figures)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
