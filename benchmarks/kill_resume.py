"""kill -9 at random moments, then the same command again: are the outputs the same bytes?

    python benchmarks/kill_resume.py [--kills 20] [--output benchmarks/results/kill_resume.json] [overrides ...]

Runs `cai run experiment=smoke` once undisturbed, then as often as asked in a fresh store, killed (the whole process
group) at a moment drawn uniformly from the undisturbed run's time and started again, until it ends. Compares the sha256
of every file of every stage output, and looks for leftovers of the killed process.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cai.records import read_json, write_json


def command(work: Path, overrides: list[str]) -> list[str]:
    """The command of one run, with its store and run folder in `work`."""
    target = [f"out={work / 'runs'}", f"store={work / 'store'}"]
    return [sys.executable, "-m", "cai", "run", "experiment=smoke", *target, *overrides]


def digests(work: Path) -> dict[str, str]:
    """sha256 by stage, fingerprint and file, from the manifests of the finished outputs."""
    found = {}
    for manifest in sorted((work / "store").glob("*/*/MANIFEST.json")):
        for name, entry in read_json(manifest)["files"].items():
            found[f"{manifest.parent.parent.name}/{manifest.parent.name}/{name}"] = entry["sha256"]
    return found


def killed(work: Path, overrides: list[str], seconds: float) -> bool:
    """Start the run and kill its process group after `seconds`; False when it had already ended."""
    process = subprocess.Popen(
        command(work, overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def finish(work: Path, overrides: list[str]) -> str:
    """Run to the end; returns what was printed."""
    done = subprocess.run(command(work, overrides), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nended with exit code {done.returncode}")
    return done.stdout


def main() -> None:
    """Run, kill, compare, and report; exits with 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many killed runs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, default=Path("runs/kill_resume"), help="scratch folder, emptied first")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("overrides", nargs="*", help="further overrides of every run")
    args = parser.parse_args()
    work, rng = args.work.absolute(), random.Random(args.seed)
    shutil.rmtree(work, ignore_errors=True)

    start = time.perf_counter()
    finish(work / "whole", args.overrides)
    whole = time.perf_counter() - start
    expected = digests(work / "whole")
    print(f"undisturbed: {whole:.1f} s, {len(expected)} files")
    rows: list[dict[str, object]] = []
    while len(rows) < args.kills:
        folder = work / f"kill-{len(rows)}"
        moment = rng.uniform(0.0, whole)
        if not killed(folder, args.overrides, moment):  # it had ended already: another moment
            shutil.rmtree(folder)
            continue
        finish(folder, args.overrides)
        found = digests(folder)
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        left = [str(path.name) for path in (folder / "store").glob("*/partial-*")]
        rows.append({"moment": moment, "different": different, "left": left})
        print(f"kill {len(rows)}: at {moment:5.1f} s, {len(different)} of {len(expected)} files differ", flush=True)
        shutil.rmtree(folder)
    bad = sum(bool(row["different"] or row["left"]) for row in rows)
    print(f"{len(rows)} runs killed; {bad} ended with other bytes or leftovers")
    if args.output:
        write_json(args.output, {"seconds": whole, "num_files": len(expected), "kills": rows})
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
