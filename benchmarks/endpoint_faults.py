"""10,000 questions to a server that fails at 30 % of the requests, and kill -9 in between: is every label right, and
every request and its cost counted?

    python benchmarks/endpoint_faults.py [--kills 5] [--output benchmarks/results/endpoint_faults.json]

The stage label asks fault_server.py (a process of its own) for log-probabilities of verdicts, both orders of every
comparison: once without faults, for the time that takes; once with every kind of fault; once more with faults, killed
and started again. What each label should be is known from the text alone. Costs are at 1 USD per million tokens read
and 4 per million made. What the run counted is compared with what the server did: its requests, and the cost of those
answers that told it. A request that was under way at a kill is on the server's bill and in no count of ours (`lost`).
"""

import argparse
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fault_server import FAULTS, p_first

from cai import constitution
from cai.engines.endpoint import EndpointEngine
from cai.labelers.ai import AILabeler
from cai.prompts import PromptFamily
from cai.records import read_json, read_records, read_rows, write_json, write_records
from cai.stages.label import Label
from cai.types import Comparison, Judgment, Prompt, Response, Turn

PRICES = {"judge": {"input": 1.0, "output": 4.0}}


def comparisons(number: int) -> list[Comparison]:
    """Different prompts with two different responses each."""
    found = []
    for i in range(number):
        prompt = Prompt(id=f"p{i}", turns=(Turn("user", f"How should I begin letter number {i}?"),))
        texts = (f"With a greeting, and then point {i}.", f"Straight away with point {i}.")
        responses = tuple(
            Response(id=f"p{i}/{k}", prompt_id=prompt.id, text=text, model="m", num_tokens=8, finished=True)
            for k, text in enumerate(texts)
        )
        found.append(Comparison(id=prompt.id, prompt=prompt, responses=responses))
    return found


def label(url: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Run the stage in `folder`, over whatever an earlier process left there."""
    engine = EndpointEngine(
        model="judge", base_urls=[url], mode="logprob", concurrency=args.concurrency, max_attempts=args.attempts,
        timeout_seconds=args.timeout, prices=PRICES,
    )  # fmt: skip
    labeler = AILabeler(
        engine=lambda model: engine, model="judge", prompts=PromptFamily("chat"),
        constitution=constitution.load("minimal"), seed=0,
    )  # fmt: skip
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return Label(labeler=labeler).run({"sample": folder}, folder / "out")


@contextmanager
def server(rate: float, args: argparse.Namespace) -> Iterator[str]:
    """A fault server in a process of its own; the base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"port": port, "rate": rate, "latency": args.latency, "hang": 2 * args.timeout}
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("fault_server.py")), *flags])
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                stats(f"{url}/v1")
                break
            except OSError:
                time.sleep(0.05)
        yield f"{url}/v1"
    finally:
        process.kill()
        process.wait()


def stats(url: str) -> dict[str, Any]:
    """What the server counted."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/stats") as answer:
        return dict(json.load(answer))


def checked(folder: Path, asked: list[Comparison]) -> dict[str, Any]:
    """Counts of labels and failures, after comparing every number with what it should be."""
    judgments = read_records(folder / "out" / "judgments.jsonl", Judgment)
    assert [judgment.comparison_id for judgment in judgments] == [one.id for one in asked]
    family = PromptFamily("chat")
    principles = {principle.id: principle for principle in constitution.load("minimal").principles}
    num_wrong = 0
    for comparison, judgment in zip(asked, judgments, strict=True):
        for row in judgment.evidence:
            shown: Any = row["shown"]
            rendered = family.render(
                "judge", turns=comparison.prompt.turns, principle=principles[str(row["principle"])],
                responses=[comparison.responses[index].text for index in shown],
            )  # fmt: skip
            prefix = rendered.prefix()
            right = p_first(f"{prefix.turns[0].content}\n{prefix.text}")
            p: Any = row["p"]
            num_wrong += p is not None and abs(p - right) > 1e-6
    failed = read_rows(folder / "out" / "failed.jsonl") if (folder / "out" / "failed.jsonl").exists() else []
    return {
        "questions": sum(len(judgment.evidence) for judgment in judgments),
        "answered": sum(row["p"] is not None for judgment in judgments for row in judgment.evidence),
        "wrong": num_wrong,
        "failed": dict(sorted(Counter(row["reason"] for row in failed).items())),
        "labels": sum(bool(judgment.pairs) for judgment in judgments),
        "abstentions": sum(not judgment.pairs for judgment in judgments),
        "served": read_json(folder / "out" / "label.json")["served"],
    }


def once(rate: float, folder: Path, asked: list[Comparison], args: argparse.Namespace) -> dict[str, Any]:
    """One undisturbed run."""
    write_records(folder / "comparisons.jsonl", asked)
    with server(rate, args) as url:
        start = time.perf_counter()
        facts = label(url, folder, args)
        seconds = time.perf_counter() - start
        counted = stats(url)
    return {
        **checked(folder, asked),
        "seconds": seconds,
        "requests": facts["num_requests"],
        "cost": facts["cost"],
        "server": {**counted, **costs(counted)},
    }


def costs(counted: Mapping[str, Any]) -> dict[str, float]:
    """The server's bill in USD, and the part of it that it told."""
    return {
        "cost": (counted["prompt_tokens"] * 1.0 + counted["new_tokens"] * 4.0) / 1e6,
        "told_cost": (counted["told_prompt_tokens"] * 1.0 + counted["told_new_tokens"] * 4.0) / 1e6,
    }


def attempts(folder: Path) -> dict[str, Any]:
    """What the journal of attempts has: all of them, those at questions (the others found out what the server can), and
    the dearest of them.
    """
    rows = [row for path in (folder / "out").glob("attempts-*.journal") for row in read_rows(path)]
    asked = [row for row in rows if row["question"]]
    return {
        "attempts": len(rows),
        "attempts_at_questions": len(asked),
        "cost_of_questions": sum(row["cost"] for row in asked),
        "dearest": max(row["cost"] for row in rows),
    }


def killed(folder: Path, asked: list[Comparison], args: argparse.Namespace) -> dict[str, Any]:
    """A run that is killed at random numbers of answers, and started again each time."""
    write_records(folder / "comparisons.jsonl", asked)
    goals = sorted(random.Random(0).sample(range(len(asked) // 5, 2 * len(asked) - len(asked) // 5), args.kills))
    killed_at, repeats = [], []
    with server(args.rate, args) as url:
        command = [sys.executable, __file__, "--worker", url, str(folder), *sys.argv[1:]]
        for goal in goals:
            process = subprocess.Popen(command, start_new_session=True)
            while stats(url)["num_answered"] < goal:
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            counted = stats(url)
            killed_at.append(counted["num_answered"])
            repeats.append(counted["repeats"])
        subprocess.run(command, check=True)
        counted = {**stats(url), **costs(stats(url))}
    facts = read_json(folder / "facts.json")
    # What each start asks to find out what the server can do is no question, and the same every time.
    repeated = [after - before - 1 for before, after in pairwise([*repeats, counted["repeats"]])]
    lost = {
        "requests": counted["num_requests"] - facts["num_requests"],
        "cost": counted["told_cost"] - facts["cost"],
    }
    return {
        **checked(folder, asked),
        **attempts(folder),
        "killed_at": killed_at,
        "repeated": repeated,
        "requests": facts["num_requests"],
        "cost": facts["cost"],
        "lost": lost,
        "server": counted,
    }


def counted_alike(run: Mapping[str, Any]) -> bool:
    """Whether an undisturbed run counted the requests and the cost that its server did."""
    server = run["server"]
    return bool(run["requests"] == server["num_requests"] and math.isclose(run["cost"], server["told_cost"]))


def counted_but_for_kills(run: Mapping[str, Any], under_way: int) -> bool:
    """Whether a killed run counted what its server did but for requests `under_way` at kills, and whether its judgments
    add up to all attempts at their questions.
    """
    lost, served = run["lost"], run["served"]
    return bool(
        0 <= lost["requests"] <= under_way
        and -1e-9 <= lost["cost"] <= lost["requests"] * run["dearest"] + 1e-9
        and run["attempts"] == run["requests"]
        and served["num_attempts"] == run["attempts_at_questions"]
        and math.isclose(served["cost"], run["cost_of_questions"])
    )


def table(title: str, rows: Mapping[str, object]) -> None:
    """One fact a line."""
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<62}{f'{value:,.4g}' if isinstance(value, float) else value}", flush=True)


def main() -> None:
    """Run, check, print and write; exits with 1 when anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=10000, help="two for each comparison")
    parser.add_argument("--rate", type=float, default=0.3, help="share of requests that meet a fault")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--attempts", type=int, default=6)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds before the server answers")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds; what hangs does so for twice as long")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--worker", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        folder = Path(args.worker[1])
        write_json(folder / "facts.json", label(args.worker[0], folder, args))
        return
    asked = comparisons(args.questions // 2)
    with TemporaryDirectory() as work:
        ideal = once(0.0, Path(work) / "ideal", asked, args)
        table("without faults", ideal)
        faulty = once(args.rate, Path(work) / "faulty", asked, args)
        table(f"with {args.rate:.0%} faults of {len(FAULTS)} kinds", faulty)
        restarted = killed(Path(work) / "killed", asked, args)
        table(f"killed {args.kills} times", restarted)
    # A question that fails to the last waits for its attempts and the pauses between them, whatever the others do.
    budget = args.attempts * args.timeout + sum(min(30, 0.5 * 2**n) + 0.5 for n in range(args.attempts - 1))
    allowed = 1.3 * ideal["seconds"] * faulty["requests"] / ideal["requests"] + budget
    verdicts = {
        "every question is answered rightly or in the failed table": all(
            run["wrong"] == 0 and run["answered"] + sum(run["failed"].values()) == run["questions"] == 2 * len(asked)
            for run in (ideal, faulty, restarted)
        ),
        "never more requests under way than allowed": faulty["server"]["peak"] <= args.concurrency,
        "never more attempts than allowed": faulty["requests"] <= args.attempts * len(asked) * 2,
        "requests and cost are those that the server counted": counted_alike(ideal) and counted_alike(faulty),
        "so in spite of kills, but for requests under way then": counted_but_for_kills(
            restarted, args.kills * args.concurrency
        ),
        "no slower than 1.3 times as many requests, and the waits": faulty["seconds"] <= allowed,
        "restarts repeat what was under way at most": sum(restarted["repeated"]) <= args.kills * args.concurrency,
    }
    table("holds", verdicts)
    if args.output:
        settings = {name: value for name, value in vars(args).items() if name not in ("output", "worker")}
        runs = {"without_faults": ideal, "with_faults": faulty, "killed": restarted}
        figures = {"settings": settings, "seconds_allowed": allowed, **runs, "holds": verdicts}
        write_json(args.output, figures)
    sys.exit(0 if all(verdicts.values()) else 1)


if __name__ == "__main__":
    main()
