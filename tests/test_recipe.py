"""The whole recipe, tiny and for real: `cai run` from the prompts to the report, killed, repeated, on other data."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
import random_model
from kill_resume import command, digests, finish, killed

from cai.records import read_json, read_records
from cai.types import Preference

pytestmark = pytest.mark.slow

SIZES = {"red_team": 8, "demonstrations": 8, "comparisons": 24, "rl": 8, "evaluation": 8}
SMALL = [f"data.source.num_{name}={size}" for name, size in SIZES.items()]
SHARED = ("data", "revise", "sft", "sample")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`experiment=smoke`: its folder and what it printed."""
    work = tmp_path_factory.mktemp("smoke")
    return work, finish(work, [])


def steps(printed: str) -> list[tuple[str, bool]]:
    """The steps of the lines that a run prints, in order, and whether each was cached."""
    lines = [
        line for line in printed.splitlines() if not line.endswith((" cached", " computed"))
    ]  # the table at the end
    found = [re.match(r"(\w+) {2,}(cached|[\d.]+ (?:s|min)\b)", line) for line in lines]
    return [(line[1], line[2] == "cached") for line in found if line and line[1] != "step"]


def test_the_report_holds_every_part(smoke: tuple[Path, str]) -> None:
    work, printed = smoke
    path = Path(printed.splitlines()[-1])
    assert path == work / "runs" / "smoke" / "report.html"
    report = read_json(path.with_name("report.json"))
    assert report["notice"].startswith("Made on the embedded sandbox")
    assert [policy["name"] for policy in report["policies"]] == ["Base", "SL-CAI", "RLHF", "RLAIF"]
    for name in ("Base", "SL-CAI", "RLHF", "RLAIF"):
        assert {"harmful_compliance", "helpful", "length"} <= report["measures"]["figures"][name].keys()
    assert [arm["arm"] for arm in report["labels"]["arms"]] == ["RLHF", "RLAIF"]
    assert [model["arm"] for model in report["reward_models"]] == ["RLHF", "RLAIF"]
    assert {curve["name"] for curve in report["curves"]["Gold score"]} == {"RLHF", "RLAIF"}
    (scores,) = report["revision_scores"]
    assert list(scores["steps"]) == ["0", "1", "2"] and "harmful_compliance" in scores["steps"]["0"]
    assert len(report["win_rates"]) >= 3 and report["samples"] and report["revisions"] and report["over_optimisation"]
    assert {cost["stage"] for cost in report["costs"]} >= {*SHARED, "label", "reward", "rl", "evaluate_policy"}
    assert all(used["problem"] == "" and used["templates"] for used in report["constitutions"])
    page = path.read_text(encoding="utf-8")
    assert page.count("<svg") >= 5 and not re.search(r"(?:src|href)=\"(?!#|data:)", page)


def test_the_second_arm_takes_from_the_store_what_the_labeler_does_not_touch(smoke: tuple[Path, str]) -> None:
    _, printed = smoke
    first, second = (steps(part) for part in printed.split("--- arm")[1:])
    assert not any(cached for _, cached in first)
    assert [name for name, cached in second if cached] == [*SHARED, "evaluate_base", "evaluate_sl_cai"]
    assert [name for name, cached in second if not cached][:5] == [
        "label",
        "reward",
        "rl",
        "evaluate_policy",
        "win_rate",
    ]


def test_the_same_command_again_has_nothing_to_do(smoke: tuple[Path, str]) -> None:
    work, _ = smoke
    before = digests(work)
    assert all(cached for _, cached in steps(finish(work, [])))
    assert digests(work) == before


def test_the_same_seed_gives_the_same_bytes_after_a_kill_too(smoke: tuple[Path, str], tmp_path: Path) -> None:
    work, _ = smoke
    process = subprocess.Popen(command(tmp_path, []), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("store/*/partial-*/*.journal")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()  # in the middle of the first stage that has a journal
    process.wait()
    assert list(tmp_path.glob("store/*/partial-*"))
    assert killed(tmp_path, [], 4.0)  # and somewhere
    finish(tmp_path, [])
    assert digests(tmp_path) == digests(work)
    assert not list(tmp_path.glob("store/*/partial-*"))


def test_another_seed_gives_other_bytes(smoke: tuple[Path, str], tmp_path: Path) -> None:
    work, _ = smoke
    finish(tmp_path, ["experiment=rlaif", "seed=1", "steps=[data]", *SMALL])
    (prompts,) = tmp_path.glob("store/data/*/rl.jsonl")
    (before,) = work.glob("store/data/*/rl.jsonl")
    assert len(prompts.read_bytes().splitlines()) == len(before.read_bytes().splitlines())
    assert prompts.read_bytes() != before.read_bytes()


def test_dialogues_and_any_model(tmp_path: Path) -> None:
    """`data=hh model=hf`: several turns, a byte-level tokenizer, a chat template, a random model."""
    file = tmp_path / "dialogues.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for number in range(60):
            before = f"\n\nHuman: what about topic {number}?\n\nAssistant: say more" * (number % 3)
            asked = f"{before}\n\nHuman: tell me of question {number}, please\n\nAssistant: "
            row = {"chosen": f"{asked}gladly, it is {number}", "rejected": f"{asked}no"}
            lines.write(json.dumps(row) + "\n")
    random_model.make_model(file, tmp_path / "model", hidden=32, layers=1, vocab=400, context=2048)
    overrides = [
        *("experiment=rlaif", "data=hh", f"data.source.path={file}", "model=hf", f"model.path={tmp_path / 'model'}"),
        *("labeler.min_mass=0", "win_rate.labeler.min_mass=0", "model.max_new_tokens=12", "sft.num_epochs=1"),
        *("rl.num_updates=2", "rl.batch_size=8", "rl.minibatch_size=4", "reward.batch_size=4", *SMALL),
    ]
    printed = finish(tmp_path, overrides)
    names = [name for name, _ in steps(printed)]
    assert names[:8] == ["data", "revise", "sft", "sample", "label", "reward", "rl", "evaluate_base"]
    report = read_json(Path(printed.splitlines()[-1]).with_name("report.json"))
    assert report["notice"] == "" and [policy["name"] for policy in report["policies"]][:2] == ["Base", "SL-CAI"]
    (data,) = tmp_path.glob("store/data/*/data.json")
    assert read_json(data)["source"]["rows"] == 60

    # The file's own responses and labels in place of sampled and judged ones: everything before them is shared.
    recorded = [*(o for o in overrides if o not in ("experiment=rlaif", "labeler.min_mass=0")), "experiment=rlhf"]
    printed = finish(tmp_path, [*recorded, "labeler=recorded", "stage@sample=recorded"])
    assert [name for name, cached in steps(printed)[:7] if cached] == ["data", "revise", "sft"]
    (preferences,) = (p for p in tmp_path.glob("store/label/*/preferences.jsonl") if '"recorded"' in p.read_text())
    for preference in read_records(preferences, Preference):
        (pair,) = preference.pairs
        assert preference.responses[pair.first if pair.p else pair.second].startswith("gladly")


def test_the_baselines_take_the_place_of_ppo(tmp_path: Path) -> None:
    """`rl=dpo`, then `rl=best_of_n` on the same stages: other policies, the same report."""
    small = [*SMALL, "sft.num_epochs=1", "sft.batch_size=4", "reward.batch_size=4"]
    dpo = [*small, "experiment=rlaif", "rl=dpo", "rl.num_epochs=1", "rl.batch_size=4", "rl.num_measured=4"]
    best = [*small, "experiment=rlaif", "rl=best_of_n", "rl.n=4", "rl.num_prompts=4"]
    for overrides, reused in ((dpo, False), (best, True)):
        printed = finish(tmp_path, overrides)
        assert all(cached == reused for name, cached in steps(printed)[:6])
        report = read_json(Path(printed.splitlines()[-1]).with_name("report.json"))
        assert [policy["name"] for policy in report["policies"]][:2] == ["Base", "SL-CAI"]
        assert report["curves"]["Gold score"] and report["curves"]["KL to SL-CAI, nats"] and report["over_optimisation"]
        assert report["win_rates"]
    assert [name for name, cached in steps(printed) if not cached] == ["rl", "evaluate_policy", "win_rate"]
    (policy,) = (name for name in report["measures"]["figures"] if name not in ("Base", "SL-CAI"))
    assert "kl" in report["measures"]["figures"][policy]
