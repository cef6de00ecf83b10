"""The command line, with tiny stages in a project of the user's own: ./conf, ./constitutions and ./prompts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cai import cli, config, paths
from cai.commands.run import prepare
from cai.pipeline import RECIPE
from cai.prompts import PromptFamily
from cai.records import digest_file

TESTS = Path(__file__).parent
TEST_PATH = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))  # for processes of their own

CONFIG = """\
defaults:
  - schema
  - labeler: ai
  - _self_
  - experiment: null
  - override hydra/hydra_logging: none
  - override hydra/job_logging: none
seed: 0
constitution: plain
prompts: plain
model: {path: none, prompts: plain, max_tokens: 8, max_new_tokens: 8}
out: runs
store: store
steps: [data, revise]
data: {_target_: tiny.Numbers, count: 3, seed: "${seed}"}
revise: {_target_: tiny.Sum, factor: 2.0}
hydra:
  output_subdir: null
  sweep: {subdir: .}
"""

CONSTITUTION = """\
name: plain
description: one principle
principles:
  - id: kind
    axis: harmless
    statement: Be kind.
"""

JUDGE = """\
{% for turn in turns %}{{ turn.content }} {% endfor %}
{% for response in responses %}{{ response }} {% endfor %}
{{ principle.comparison }} {{ choice("A", "B") }}
"""


@pytest.fixture
def project(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings whose stages are tiny, and a report that lists its runs."""
    for folder in ("conf/labeler", "conf/experiment", "constitutions", "prompts/plain"):
        (workdir / folder).mkdir(parents=True)
    (workdir / "conf/config.yaml").write_text(CONFIG)
    for name in ("ai", "simulated"):
        (workdir / f"conf/labeler/{name}.yaml").write_text(f"who: {name}\n")
    (workdir / "constitutions/plain.yaml").write_text(CONSTITUTION)
    (workdir / "prompts/plain/judge.jinja").write_text(JUDGE)
    monkeypatch.setattr("cai.commands.compare.report", _report)
    return workdir


def _report(runs: list[Path], folder: Path, left_out: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "left_out.json").write_text(json.dumps(left_out or {}))
    (folder / "report.html").write_text("\n".join(str(run) for run in runs))
    return folder / "report.html"


def digests(folder: Path, *names: str) -> dict[str, str]:
    return {name: digest_file(folder / name) for name in names}


def read(path: Path) -> dict[str, dict[str, dict[str, object]]]:
    loaded: dict[str, dict[str, dict[str, object]]] = json.loads(path.read_text())
    return loaded


# --- cai run ----------------------------------------------------------------------------------------------------------


def test_run_writes_a_run_folder_and_ends_with_the_report(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "seed=5"]) == 0
    folder = project / "runs" / "run-seed=5"
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.html")
    run = read(folder / "run.json")
    assert run["seed"] == 5 and run["arm"] is None and run["command"] == ["cai", "run", "seed=5"]
    assert list(run["stages"]) == ["data", "revise"]
    assert run["stages"]["revise"]["facts"] == {"total": 36.0}  # (5 + 6 + 7) * 2
    assert Path(str(run["stages"]["revise"]["path"]), "deep", "sum.txt").is_file()
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["seed"] == 5
    assert (folder / "constitution.yaml").read_text() == CONSTITUTION
    assert (folder / "prompts" / "plain" / "judge.jinja").read_text() == JUDGE
    assert run["texts"] == digests(folder, "constitution.yaml", "prompts/plain/judge.jinja")
    assert run["num_threads"] is None and run["stages"]["data"].keys() >= {"machine", "resumed"}


def test_second_run_reuses_what_it_shares_and_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run"])
    capsys.readouterr()
    assert cli.main(["run", "revise.factor=3.0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["data", "cached"] and lines[1].split()[0:2] != ["revise", "cached"]


def test_all_texts_that_stages_read_are_kept(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template of one's own over a shipped family, and a judge of win rates with rules of its own."""
    monkeypatch.setattr("cai.commands.compare.report", _report)
    monkeypatch.setattr("cai.pipeline.run_steps", lambda steps, store, done: done({}) or {})
    (workdir / "prompts/sandbox").mkdir(parents=True)
    judge = (paths.packaged("prompts") / "sandbox/judge.jinja").read_text() + "\n"
    (workdir / "prompts/sandbox/judge.jinja").write_text(judge)
    (workdir / "other.yaml").write_text(CONSTITUTION)
    command = ["run", "experiment=rlaif", "name=mine", "win_rate.labeler.constitution.path=other.yaml"]
    assert cli.main([*command, "win_rate.labeler.prompts.name=chat"]) == 0
    folder = workdir / "runs" / "mine"
    for family in ("sandbox", "chat"):
        kept = {path.name: path.read_text() for path in (folder / "prompts" / family).iterdir()}
        assert kept == PromptFamily(family).sources()
    assert (folder / "prompts/sandbox/judge.jinja").read_text() == judge
    kept = sorted(path.name for path in (folder / "constitutions").iterdir())
    assert kept == ["win_rate.labeler.constitution.yaml"]
    assert (folder / "constitutions" / kept[0]).read_text() == CONSTITUTION
    shipped = paths.packaged("constitutions") / "sandbox.yaml"
    assert (folder / "constitution.yaml").read_text() == shipped.read_text()
    files = [path for path in folder.rglob("*") if path.parent != folder and path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    assert read(folder / "run.json")["texts"] == digests(folder, "constitution.yaml", *names)


def test_an_edit_gets_a_folder_of_its_own(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = project / "text"
    command = ["run", "name=mine", f"+revise.text={text}"]
    folders = [project / "runs" / name for name in ("mine", "mine-2", "mine-3")]
    text.write_text("one")
    assert cli.main(command) == 0
    before = {path.name: path.read_bytes() for path in folders[0].iterdir() if path.is_file()}
    text.write_text("two")
    for _ in range(2):  # the same command again goes on in the same folder
        capsys.readouterr()
        assert cli.main(command) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0] == f"{folders[0]} holds another run (settings, texts or versions differ); this one goes to mine-2"
        assert out[-1] == str(folders[1] / "report.html")
    assert {path.name: path.read_bytes() for path in folders[0].iterdir() if path.is_file()} == before
    assert cli.main([*command, "revise.factor=3.0"]) == 0
    text.write_text("one")
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "another run" not in capsys.readouterr().out
    assert sorted(path for path in (project / "runs").iterdir()) == folders


def test_a_folder_of_an_older_version_is_not_written_over(project: Path) -> None:
    (project / "runs/mine").mkdir(parents=True)
    (project / "runs/mine/notes.txt").write_text("not a run")
    assert cli.main(["run", "name=mine"]) == 0
    (project / "runs/mine/plan.json").unlink()
    assert cli.main(["run", "name=mine"]) == 0
    assert sorted(path.name for path in (project / "runs").iterdir()) == ["mine", "mine-2"]


@pytest.mark.slow
def test_an_edited_sweep_goes_beside_the_old_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = project / "text"
    command = ["run", "-m", "seed=1,2", "name=mine", f"+revise.text={text}"]
    text.write_text("one")
    assert cli.main(command) == cli.main(command) == 0
    text.write_text("two")
    assert cli.main(command) == 0
    names = ["run-seed=1", "run-seed=2"]
    assert capsys.readouterr().out.splitlines()[-1] == str(project / "runs/sweep-mine-2/report.html")
    for sweep in ("sweep-mine", "sweep-mine-2"):
        report = (project / "runs" / sweep / "report.html").read_text().splitlines()
        assert report == [str(project / "runs" / sweep / name) for name in names]
    assert len(list((project / "runs").rglob("run.json"))) == 4


def test_run_can_be_named(project: Path) -> None:
    assert cli.main(["run", "name=mine", "out=elsewhere"]) == 0
    assert (project / "elsewhere" / "mine" / "run.json").is_file()


def echo_experiment(project: Path, arms: dict[str, list[str]]) -> None:
    """experiment=both: every step of the recipe, as a stage that tells what it heard."""
    nodes = {step.key: {"_target_": "tiny.Echo", "word": step.key} for step in RECIPE}
    nodes["label"]["labeler"] = "${labeler.who}"
    steps = [step.name for step in RECIPE if step.name != "pretrain"]
    experiment = {"steps": steps, "arms": arms, **nodes}
    (project / "conf/config.yaml").write_text(CONFIG.replace("data: {_t", "#").replace("revise: {_t", "#"))
    text = yaml.safe_dump(experiment, sort_keys=False)
    (project / "conf/experiment/both.yaml").write_text(f"# @package _global_\n{text}")


def test_arms_run_one_after_the_other_and_meet(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All steps of the recipe, wired; the arms share what comes before `label`."""
    echo_experiment(project, {"rlhf": ["labeler=simulated"], "rlaif": ["labeler=ai"]})
    assert cli.main(["run", "experiment=both"]) == 0
    out = capsys.readouterr().out
    folder = project / "runs" / "both"
    assert out.splitlines()[-1] == str(folder / "report.html")
    assert (folder / "report.html").read_text().splitlines() == [str(folder / "rlhf"), str(folder / "rlaif")]
    rlhf, rlaif = (read(folder / arm / "run.json") for arm in ("rlhf", "rlaif"))
    same = [n for n in rlaif["stages"] if rlaif["stages"][n]["fingerprint"] == rlhf["stages"][n]["fingerprint"]]
    assert same == [
        *("sets_base", "data", "revise", "sft", "sets_sl_cai", "sample", "evaluate_base", "evaluate_sl_cai")
    ]
    assert all(rlaif["stages"][name]["cached"] for name in same)
    assert (rlhf["arm"], rlaif["arm"]) == ("rlhf", "rlaif")
    assert rlaif["command"] == ["cai", "run", "experiment=both"]

    def echo(stage: str) -> str:
        return Path(str(rlhf["stages"][stage]["path"]), "echo.txt").read_text()

    data = "data()"
    sft = f"sft(revise=revise(data={data}))"
    assert echo("sft") == sft
    assert echo("label") == f"label:simulated(data={data}, sample=sample(data={data}, sft={sft}))"
    assert echo("rl").startswith(f"rl(data={data}, label=label:simulated(data={data}, sample=sample(")
    meeting = echo("win_rate_over_rlaif")
    assert meeting.startswith(f"win_rate(a=evaluate(data={data}, model=rl(") and meeting.count("label:ai") == 3
    assert meeting.index("label:simulated") < meeting.index("label:ai")


@pytest.mark.slow
def test_sweep_makes_a_run_per_value_and_one_report(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", "seed=1,2", "revise.factor=3.0"]) == 0
    folder = project / "runs" / "sweep-run-revise.factor=3.0-seed=1,2"
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.html")
    names = ["run-seed=1", "run-seed=2"]
    assert (folder / "report.html").read_text().splitlines() == [str(folder / name) for name in names]
    assert [read(folder / name / "run.json")["seed"] for name in names] == [1, 2]


@pytest.mark.slow
def test_sweep_may_come_last(project: Path) -> None:
    assert cli.main(["run", "seed=1,2", "-m"]) == 0
    assert cli.main(["run", "-m", "seed=range(1,3)"]) == 0


@pytest.mark.slow
def test_compare_takes_run_folders_and_folders_of_them(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "name=one"])
    cli.main(["run", "-m", "seed=1,2"])
    assert cli.main(["compare", "runs/one", "runs", "--output", "both"]) == 0
    assert len((project / "both" / "report.html").read_text().splitlines()) == 3
    assert cli.main(["compare", "conf"]) == 2
    assert "conf: no run folder" in capsys.readouterr().err


def test_killed_run_goes_on(project: Path) -> None:
    """The process dies inside a stage; the same command goes on from the stage's journal."""

    def run(die_at: int) -> int:
        program = "import sys, cai.commands.compare as c, cai.cli; c.report = lambda *_: 0; sys.exit(cai.cli.main())"
        environment = {**os.environ, "PYTHONPATH": TEST_PATH, "TINY_DIE_AT": str(die_at)}
        command = [sys.executable, "-c", program, "run", "data.count=6", "name=mine"]
        return subprocess.run(command, env=environment, check=False, capture_output=True).returncode

    assert run(die_at=4) == 9
    assert run(die_at=-1) == 0
    stages = read(project / "runs" / "mine" / "run.json")["stages"]
    assert stages["data"]["facts"] == {"num_tokens": 6.0, "num_computed": 2.0} and stages["data"]["resumed"] is True
    assert Path(str(stages["data"]["path"]), "numbers.txt").read_text().split() == list("012345")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=1", "sed: unknown key 'sed'; did you mean 'seed'? Allowed: endpoint,"),
        ("seed=0,1", "seed=0,1: several values; add -m for a run with each of them, or write seed=[0,1] for a list\n"),
        ("seed=range(0,2)", "seed=range(0,2): several values; add -m for a run with each of them\n"),
        ("labeler.size=1", "labeler.size: unknown key 'size'. Allowed: who; it is a key of labeler=third\n"),
        ("arms.a=[]", "arms.a: there are no arms; they come from an experiment (add experiment=demo) or are added: +"),
        ("seed=one", "seed: Value 'one' of type 'str' could not be converted to Integer"),
        ("seed=-1", "seed: must be 0 or more, got -1"),
        ("labeler=simulted", "labeler: unknown option 'simulted'; did you mean 'simulated'? Allowed: ai,"),
        ("labler=ai", "labler: unknown key 'labler'; did you mean 'labeler'? Allowed: "),
        ("experiment=nothing", "experiment: unknown option 'nothing'"),
        ("revise.facto=1", "revise.facto: unknown key 'facto'; did you mean 'factor'? Allowed: _target_, factor"),
        (
            "+revise.facto=1",
            "revise.facto: unknown key of Sum 'facto'; did you mean 'factor'? Allowed: factor",
        ),
        ("revise.factor=two", "revise.factor: must be a number, got 'two'"),
        ("data.count=1.5", "data.count: must be a whole number, got 1.5"),
        ("~data.count", "data.count: missing; Numbers needs count, seed"),
        ("revise._target_=tiny.Summ", "revise._target_: unknown name in tiny 'Summ'; did you mean 'Sum'?"),
        ("revise._target_=tini.Sum", "revise._target_: cannot import 'tini.Sum': No module named 'tini'"),
        ("+revise.text=lost.txt", "lost.txt: no such file"),
        ("constitution=plane", "constitution: unknown constitution 'plane'; did you mean 'plain'?"),
        ("constitution=broken", "broken.yaml:1: nme: unknown key 'nme'; did you mean 'name'?"),
        ("constitution=broken", "(and 1 more; all of them: cai constitution check broken)"),
        (
            "prompts=plane",
            "prompts: unknown prompt family 'plane'; did you mean 'plain'? Allowed: chat",
        ),
        ("constitution=${sed}", "constitution: Interpolation key 'sed' not found"),
        ("steps=[data,revize]", "steps: unknown step 'revize'; did you mean 'revise'?"),
        ("steps=[revise]", "steps: 'revise' needs 'data'"),
        ("steps=[data,revise,sft]", "sft: no such part in this configuration"),
        ("model.pth=x", "model.pth: unknown key 'pth'; did you mean 'path'?"),
        ("num_threads=0", "num_threads: must be 1 or more, or null, got 0"),
        ("+arms.one=['seed=1']", "arms: needs two arms or more to compare (or none), got one"),
        ("seed", "override 'seed':"),
        ("name=[", "override 'name=[':"),
    ],
)
def test_a_mistake_is_one_line(project: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "conf/labeler/third.yaml").write_text("who: third\nsize: null\n")
    (project / "constitutions/broken.yaml").write_text("nme: broken\n")
    assert cli.main(["run", override]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("cai: ") and message in captured.err
    assert captured.out == "" and not (project / "store").exists()


def test_a_mistake_in_the_last_arm_shows_before_the_first_runs(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    echo_experiment(project, {"a": ["labeler=ai"], "b": ["revise.wort=2"]})
    assert cli.main(["run", "experiment=both"]) == 2
    assert "cai: arm b: revise.wort: unknown key 'wort'; did you mean 'word'?" in capsys.readouterr().err
    assert not (project / "store").exists()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["labeler=third", "labeler.who=x"], {"rlhf": "label:simulated", "rlaif": "label:ai", "third": "label:x"}),
        (["labeler=ai"], {"rlhf": "label:simulated", "rlaif": "label:ai"}),
        (["labeler=ai", "labeler.who=x"], {"rlhf": "label:simulated", "rlaif": "label:ai", "ai": "label:x"}),
    ],
)
@pytest.mark.slow
def test_a_choice_that_every_arm_makes_otherwise_is_an_arm_of_its_own(
    project: Path, asked: list[str], expected: dict[str, str]
) -> None:
    """`cai run experiment=demo labeler=mixed` compares three."""
    (project / "conf/labeler/third.yaml").write_text("who: third\n")
    echo_experiment(project, {"rlhf": ["labeler=simulated"], "rlaif": ["labeler=ai"]})
    assert cli.main(["run", "experiment=both", "name=three", *asked]) == 0
    folder = project / "runs" / "three"
    found, wins = {}, 0
    for path in folder.glob("*/run.json"):
        stages = read(path)["stages"]
        found[path.parent.name] = (Path(stages["label"]["path"]) / "echo.txt").read_text().split("(")[0]
        wins += sum("win_rate_over" in name for name in stages)
    assert found == expected
    assert wins == len(expected) * (len(expected) - 1) / 2, "every two arms meet"


def test_an_override_that_an_arm_would_replace_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    echo_experiment(project, {"a": ["labeler=simulated"], "b": ["revise.word=x"]})
    for asked, message in (
        ("labeler=ai", "arm a: labeler=ai has no effect, since this arm has labeler=simulated"),
        ("revise.word=y", "arm b: revise.word=y has no effect, since this arm has revise.word=x"),
    ):
        assert cli.main(["run", "experiment=both", asked]) == 2
        why = "and not every arm sets that key; change the arm's own list"
        assert f'cai: {message} {why}: "arms.{message[4]}=[...]"\n' == capsys.readouterr().err
    assert not (project / "store").exists()


def test_a_key_of_one_arm_says_where_it_goes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "conf/labeler/simulated.yaml").write_text("who: simulated\nagreement: 0.7\n")
    echo_experiment(project, {"rlhf": ["labeler=simulated", "seed=1"], "rlaif": ["labeler=ai", "seed=1"]})
    assert cli.main(["run", "experiment=both", "labeler.agreement=0.6"]) == 2
    own = "arms.rlhf=['labeler=simulated','seed=1','labeler.agreement=0.6']"
    assert capsys.readouterr().err.endswith(f'it is a key of labeler=simulated; for that arm alone: "{own}"\n')
    arms = prepare(["experiment=both", own], config.compose(["experiment=both", own]))
    assert [arm.arm for arm in arms] == ["rlhf", "rlaif"]


def test_a_mistake_in_a_sweep_names_its_job(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "conf/labeler/third.yaml").write_text("who: third\nsize: null\n")
    assert cli.main(["run", "-m", "labeler=third,ai", "labeler.size=1", "seed=3"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "cai: job labeler=ai: labeler.size: unknown key 'size'. Allowed: who; it is a key of labeler=third\n"
    )


def test_a_configuration_without_schema_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "conf/config.yaml").write_text(CONFIG.replace("  - schema\n", ""))
    assert cli.main(["run"]) == 2
    assert "must begin with 'schema'" in capsys.readouterr().err


def test_broken_yaml_names_file_and_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "conf/labeler/ai.yaml").write_text("who: ai\nwhat: [1, 2\nx: 3\n")
    assert cli.main(["run"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "ai.yaml:3: not YAML" in err


# --- the other commands -----------------------------------------------------------------------------------------------


def test_init_copies_what_is_shipped(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "mine"]) == 0
    assert (workdir / "mine/conf/config.yaml").read_text() == (paths.packaged("conf") / "config.yaml").read_text()
    capsys.readouterr()
    assert cli.main(["init", "mine"]) == 2
    assert "exists; cai init writes over nothing" in capsys.readouterr().err


def test_constitution_check(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["constitution", "check", "plain"]) == 0
    assert capsys.readouterr().out == "plain: ok\n"
    path = project / "constitutions/plain.yaml"
    path.write_text(CONSTITUTION.replace("statement", "statemnt"))
    assert cli.main(["constitution", "check", "plain"]) == 2
    captured = capsys.readouterr()
    assert "plain.yaml:4" in captured.out and "statemnt" in captured.out
    assert captured.err.count("\n") == 1


def test_doctor_tells_versions_devices_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.replace("disk free", "free").splitlines())
    assert {"cai", "python", "torch", "cuda" if "cuda" in facts else "cuda:0", "[sweep]", "[serve]"} <= set(facts)
    assert facts["[dev]"] == "installed"


def test_doctor_works_where_the_system_tells_no_affinity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert cli.main(["doctor"]) == 0
    assert ", 12 cores" in capsys.readouterr().out


def test_unknown_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "--nonsense"])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["doctor", "seed=1"])
    capsys.readouterr()
    for arguments, message in (
        (["preview", "sandbox", "--nun", "1"], "cai constitution preview: error: unknown arguments: --nun 1"),
        (["diff", "sandbox"], "cai constitution diff: error: the following arguments are required: NEW"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["constitution", *arguments])
        said = capsys.readouterr().err.splitlines()
        assert said[0].startswith(f"usage: cai constitution {arguments[0]} ") and said[-1] == message


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["constitution", "check", "plain"]])
def test_light_commands_load_no_torch(project: Path, arguments: list[str]) -> None:
    program = (
        "import sys, cai.cli\n"
        "try: code = cai.cli.main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "print(sorted({'torch', 'transformers', 'trl', 'matplotlib', 'scipy'} & set(sys.modules)), code)"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_a_mistake_is_found_without_torch(project: Path) -> None:
    program = "import sys, cai.cli; print(cai.cli.main(), 'torch' in sys.modules)"
    command = [sys.executable, "-c", program, "run", "revise.factor=two"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "2 False\n"
