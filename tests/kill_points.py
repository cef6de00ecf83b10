"""kill -9 in the middle of a training, again and again: `python tests/kill_points.py STAGE INPUTS FOLDER POINTS`.

STAGE is sft, reward, ppo or ppo-lora, INPUTS what the fixture `inputs` of test_resume.py makes. Every training runs in
a fork of this process, which loads the libraries once and computes nothing itself. Prints one line of JSON: how many of
the trainings that were killed at a random moment and started again ended with other bytes.
"""

import json
import multiprocessing
import random
import sys
import time
from pathlib import Path

import torch
from test_resume import digests, run

import cai.rl.ppo  # so that a fork need not
import cai.rl.trainers  # noqa: F401

EVERY = 4  # steps between checkpoints


def saved(output: Path) -> bool:
    """Whether there is a whole checkpoint."""
    return any((output / "checkpoints.journal").glob("*.json"))


def main(stage: str, inputs: Path, folder: Path, num_points: int) -> dict[str, int]:
    """Compare `num_points` interrupted trainings with one that was left alone."""
    torch.set_num_threads(1)  # a fork has no threads
    processes = multiprocessing.get_context("fork")

    def train(output: Path, kill_after: float | None = None, *, past_a_checkpoint: bool = False) -> float:
        start = time.monotonic()
        process = processes.Process(target=run, args=(stage, inputs, output), kwargs={"every": EVERY})
        process.start()
        while past_a_checkpoint and process.is_alive() and not saved(output):
            time.sleep(0.002)
        process.join(kill_after)
        process.kill()
        process.join()
        return time.monotonic() - start

    seconds = train(folder / "whole")
    seconds = min(seconds, train(folder / "again"))
    expected, draw = digests(folder / "whole"), random.Random(0)
    result = {"points": num_points, "killed": 0, "with_a_checkpoint": 0, "different": 0}
    number = 0
    while result["killed"] < num_points and number < 5 * num_points:
        output = folder / str(number)
        # Every other moment is counted from a checkpoint on: how far a training gets in a time hangs on the machine.
        past = number % 2 == 1
        number += 1
        moment = draw.uniform(0, 0.1) if past else draw.uniform(0.2, 0.98)
        train(output, kill_after=seconds * moment, past_a_checkpoint=past)
        if digests(output) == expected:
            continue  # it had ended before
        result["killed"] += 1
        result["with_a_checkpoint"] += saved(output)
        train(output)
        result["different"] += digests(output) != expected
    return result


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
