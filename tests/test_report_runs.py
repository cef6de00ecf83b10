"""What the report reads from run folders: what is missing is named, and which runs are one arm."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from reports import outline, quick
from synthetic_runs import make_runs

from cai.errors import DataError
from cai.records import read_json, write_json
from cai.report.layout import render
from cai.report.page import as_json, gather, pictures
from cai.report.runs import policies_of, read_runs

# --- what is not there ------------------------------------------------------------------------------------------------


TRAINED = ("rl", "reward", "label", "win_rate", "win_rate_over_rlaif", "revise", "evaluate_policy")


def test_missing_stages_are_named_and_never_zero(tmp_path: Path) -> None:
    folders = make_runs(tmp_path, num_prompts=20, num_comparisons=20, leave_out=TRAINED)
    for folder in folders:
        (folder / "constitution.yaml").write_text("name: old\nprinciples: <none>\n")  # breaks rules that came later
    report = quick(folders)
    page = render(report, {})
    outline(page)
    assert [p.name for p in report.policies] == ["Base", "SL-CAI"]
    for text in ("No policy of RLHF and RLAIF was evaluated", "No win rates", "No labels", "No reward model",
                 "No RL stage", "No critiques or revisions", "cannot be read by this version"):  # fmt: skip
        assert text in page
    found = as_json(report)
    assert found["labels"] is None and found["reward_models"] == [] and found["curves"] == {}
    assert "RLHF" not in found["measures"]["figures"]


def test_columns_come_from_the_scorer(tmp_path: Path) -> None:
    folders = make_runs(tmp_path, num_prompts=20, num_comparisons=20, columns=("refusal", "num_fillers"))
    for folder in folders:  # nobody labels by gold, nobody measures it
        label = Path(read_json(folder / "run.json")["stages"]["label"]["path"])
        text = re.sub(r'"gold": \[[^]]*\]', '"other": 0', (label / "judgments.jsonl").read_text())
        (label / "judgments.jsonl").write_text(text)
        write_json(label / "label.json", {"gold": None})
    report = quick(folders)
    page = render(report, pictures(report))
    outline(page)
    assert [c.name for c in report.measures.columns] == ["length", "kl", "refusal", "num_fillers", "finished"]
    units = {c.name: c.unit for c in report.measures.columns}
    assert (units["refusal"], units["num_fillers"]) == ("%", "")
    for text in ("There is no gold score", "trade-off between helpfulness and harmlessness is left out",
                 "agreement with gold is left out", "No gold score was recorded during training"):  # fmt: skip
        assert text in page
    assert not any(rate.judge == "gold" for rate in report.win_rates)
    assert {"pareto", "gold"} <= set(report.absent)


def test_runs_of_labels_alone_are_called_what_they_are(tmp_path: Path) -> None:
    leave_out = ("evaluate_base", "evaluate_sl_cai", *(name for name in TRAINED if name != "label"))
    folders = make_runs(tmp_path, num_prompts=10, num_comparisons=10, leave_out=leave_out, seeds=(0, 1))
    titles = [quick(own).title for own in (folders, folders[::2], folders[:1])]
    assert titles == ["RLHF and RLAIF compared", "2 runs, step by step", "A run, step by step"]


@pytest.mark.parametrize("number", ["Infinity", "1e999", "NaN"])
def test_a_score_that_is_no_number_is_refused(tmp_path: Path, number: str) -> None:
    (folder, _) = make_runs(tmp_path, num_prompts=10, num_comparisons=10)
    for stage in ("evaluate_policy", "revise"):
        path = Path(read_json(folder / "run.json")["stages"][stage]["path"]) / "scores.jsonl"
        before = path.read_text()
        path.write_text(re.sub(r'"harmful_compliance": [\d.]+', f'"harmful_compliance": {number}', before, count=1))
        said = r"object 1: key 'harmful_compliance': must be a finite number, or null where none applies; got "
        with pytest.raises(DataError, match=f"{re.escape(str(path))}: {said}-?(Infinity|NaN)"):
            quick([folder])
        path.write_text(before)


def test_run_without_evaluations(tmp_path: Path) -> None:
    leave_out = (*TRAINED, "evaluate_base", "evaluate_sl_cai", "sample")
    report = quick(make_runs(tmp_path, num_prompts=10, num_comparisons=10, leave_out=leave_out))
    assert pictures(report) == {}
    assert "No model was evaluated" in render(report, {})


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no runs to report on"):
        gather([])
    with pytest.raises(DataError, match=r"is no run folder \(there is no run.json in it\)"):
        gather([tmp_path])
    write_json(tmp_path / "run.json", {"name": "x", "stages": {}})
    with pytest.raises(DataError, match=r"run.json: key 'seed' is missing"):
        gather([tmp_path])
    write_json(tmp_path / "run.json", {"seed": 0, "stages": {"data": {"path": "gone", "fingerprint": "0"}}})
    with pytest.raises(DataError, match=r"stages.data.path: there is no folder"):
        gather([tmp_path])


# --- arms -------------------------------------------------------------------------------------------------------------


def run_folder(root: Path, name: str, command: list[str], *, arm: str | None = None, seed: int = 0) -> Path:
    folder = root / name
    stages: dict[str, Any] = {}
    for stage in ("evaluate_base", "evaluate_sl_cai", "evaluate_policy"):
        key = "base" if stage == "evaluate_base" else f"{seed}-{name}-{stage}"
        path = root / "store" / key
        path.mkdir(parents=True, exist_ok=True)
        stages[stage] = {"fingerprint": key, "path": str(path)}
    run = {"name": name, "arm": arm, "seed": seed, "command": ["cai", "run", *command], "stages": stages}
    write_json(folder / "run.json", run)
    return folder


def test_jobs_of_a_sweep_are_arms_over_seeds(tmp_path: Path) -> None:
    folders = [
        run_folder(tmp_path, f"c={c}-s={s}", ["experiment=rlaif", f"constitution={c}", f"seed={s}"], seed=s)
        for c in ("minimal", "harmless")
        for s in (0, 1)
    ]
    runs = read_runs(folders)
    assert [(r.arm, r.seed) for r in runs] == [
        (f"RLAIF constitution={c}", s) for c in ("minimal", "harmless") for s in (0, 1)
    ]
    policies = policies_of(runs)
    assert [p.name for p in policies] == [
        "Base",
        "SL-CAI of RLAIF constitution=minimal",
        "SL-CAI of RLAIF constitution=harmless",
        "RLAIF constitution=minimal",
        "RLAIF constitution=harmless",
    ]
    assert sorted(policies[0].evaluations) == [0, 1]


def test_seeds_alone_are_one_arm(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path, f"rlaif-seed={s}", ["experiment=rlaif", f"seed={s}"], seed=s) for s in (0, 1, 2)]
    assert {run.arm for run in read_runs(folders)} == {"RLAIF"}


def test_the_same_command_twice_is_told_apart_by_folder(tmp_path: Path) -> None:
    command = ["experiment=rlaif", "constitution=mine"]
    folders = [run_folder(tmp_path, name, [*command, f"name={name}"]) for name in ("before", "after")]
    assert {run.arm for run in read_runs(folders)} == {"RLAIF (before)", "RLAIF (after)"}
    sweeps = [
        run_folder(tmp_path / n, f"rlaif-seed={s}", command, seed=s)
        for n in ("sweep-x-seed=0,1", "sweep-x-seed=0,1-2")
        for s in (0, 1)
    ]
    assert {run.arm for run in read_runs(sweeps)} == {"RLAIF (sweep-x)", "RLAIF (sweep-x-2)"}
    other = tmp_path / "elsewhere" / "after"
    shutil.copytree(folders[1], other)
    with pytest.raises(DataError, match="two runs are both 'RLAIF \\(after\\)' with seed 0") as told:
        read_runs([*folders, other])
    assert f" {folders[1]} and {other}; give them names" in str(told.value)


def test_a_command_can_be_pasted(tmp_path: Path) -> None:
    given = ["steps=[data,revise]", "arms.rlhf=['labeler=simulated']"]
    (run,) = read_runs([run_folder(tmp_path, "a", given)])
    assert run.command.startswith("cai run ") and shlex.split(run.command) == ["cai", "run", *given]


def test_models_of_the_same_responses_are_one(tmp_path: Path) -> None:
    """Arms with other numbers of comparisons have evaluations of their own of one SL-CAI."""
    folders = [run_folder(tmp_path, f"n{n}", [f"data.count={n}"]) for n in (100, 300)]
    for folder in folders:
        for stage in ("evaluate_base", "evaluate_sl_cai"):
            path = Path(read_json(folder / "run.json")["stages"][stage]["path"])
            (path / "responses.jsonl").write_text(f"what {stage} says\n")
    names = [policy.name for policy in policies_of(read_runs(folders))]
    assert names == ["Base", "SL-CAI", "n100", "n300"]
