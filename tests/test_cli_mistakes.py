"""Mistakes in a command or a configuration are one line, before anything runs."""

from pathlib import Path

import pytest
from projects import CONFIG, echo_experiment, project, read

from cai import cli, config
from cai.commands.run import prepare

__all__ = ["project"]  # fixture


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=1", "sed: unknown key 'sed'; did you mean 'seed'? Allowed: endpoint,"),
        (
            "seed=0,1",
            "add -m for a run with each of them, or, where it takes a list, write seed=[0,1]\n",
        ),
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
        (
            "objective=revize.total",
            "objective: unknown step 'revize'; did you mean 'revise'? Allowed: data, revise; write",
        ),
        ("objective=revise", "objective: must be step.fact, got 'revise'"),
        ("+evaluation_sets.sets.hhh.path=x", "evaluation_sets: hhh would be put to no model: none of sets_base, "),
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
