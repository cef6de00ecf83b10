"""The workbench: examples of a constitution, previews, mistakes, what it remembers of whom."""

import re
from pathlib import Path

import pytest
from benches import EDITED, OLD, SETTINGS, own, write
from worlds import noise

from cai import cli, config, constitution
from cai.commands.run import prepare
from cai.records import read_records, write_json
from cai.types import Prompt, Revision
from cai.workbench import lint, runs
from cai.workbench.bench import bench, made, side
from cai.workbench.diff import _revisions
from cai.workbench.examples import judge_examples
from cai.workbench.preview import preview

# --- test and preview -------------------------------------------------------------------------------------------------


def test_examples_pass_by_the_mean_of_both_orders(workdir: Path) -> None:
    kind, brief, safe = judge_examples(own(workdir))
    assert (kind.passes, brief.passes, safe.passes) == (True, False, False)
    assert kind.asked.p == pytest.approx(0.948, abs=1e-3) and brief.asked.p == pytest.approx(0.052, abs=1e-3)
    assert (safe.asked.p, safe.asked.shown_first) == (None, None), "no answer is no pass, and no made-up margin"
    assert kind.asked.shown_first == pytest.approx(kind.asked.shown_second, abs=1e-6)


def test_the_command_fails_when_an_example_does(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(workdir, "own", OLD)
    assert cli.main(["constitution", "test", name, *SETTINGS]) == 1
    printed = capsys.readouterr().out
    assert "1 of 3 examples pass; 6 questions asked" in printed
    assert "FAIL brief: the judge prefers the worse response" in printed and "FAIL safe: the judge's answer" in printed
    good = write(workdir, "good", OLD.split("  - {prompt: hello, better: go away")[0])
    assert cli.main(["constitution", "test", good, *SETTINGS]) == 0
    assert "good day" not in capsys.readouterr().out, "texts are shown of failures only"
    assert cli.main(["constitution", "test", write(workdir, "none", OLD.split("examples")[0]), *SETTINGS]) == 1
    assert capsys.readouterr().out.startswith("old: no examples, so nothing is tested; add some")


def test_words_that_the_model_does_not_know_are_told(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(workdir, "own", OLD.replace("be kind", "be courteous"))
    said = re.compile(r"the model does not know these words: .*\bcourteous\b")
    for command in (["test", name], ["preview", name, "--num", "2"]):
        for _ in range(2):  # also when all answers are known
            cli.main(["constitution", *command, *SETTINGS])
            out, err = capsys.readouterr()
            (line,) = [line for line in out.splitlines() if said.search(line)]
            assert line.startswith(f"{command[0]}: ")
            assert "revise: " not in err and (command[0] == "preview" or line in err.splitlines())


def test_preview_is_what_a_run_does_with_the_same_prompts(workdir: Path) -> None:
    bench_ = own(workdir)
    found = preview(bench_, (), 3)
    stages = made(bench_, "data", "revise")
    of_run = {r.id: r for r in read_records(stages["revise"].path / "revisions.jsonl", Revision)}
    red_team = {prompt.id for prompt in read_records(stages["data"].path / "red_team.jsonl", Prompt)}
    assert [one.prompt.id in red_team for one in found] == [True, False, True], "each kind of prompt in turn"
    for one in found:
        for step in one.steps if one.prompt.id in red_team else ():
            assert step == of_run[step.id]
        first, last = one.steps[0].response, one.steps[-1].revision
        applying = {"kind", "brief", "safe"} if one.prompt.id in red_team else {"kind", "brief"}
        assert {a.principle.id for a in one.labels} == (applying if first != last else set())
        for a in one.labels:
            assert [r.text for r in a.comparison.responses] == [last, first]
            better = noise(a.principle.statement, last) < noise(a.principle.statement, first)
            assert side(a.p) == (1 if better else -1)


def test_every_principle_applies_to_a_prompt_that_is_given(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one,) = preview(own(workdir), ["hello ?", "hello ?"], 4)
    assert one.prompt.turns[-1].content == "hello ?" and one.prompt.tags == ("red_team",)
    command = ["constitution", "preview", "own.yaml", "--prompt", "is \x1b[31m it ?", *SETTINGS]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "is \ufffd[31m it ?" in printed, "a terminal would obey"
    assert re.search(r"1\. (kind|brief|safe)", printed) and "critique   words" in printed
    assert not [line for line in printed.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["test", "own.yaml", "constitution=other"], "constitution=other: has no effect; the command names the const"),
        (["test", "own.yaml", "labeler=simulated"], "labeler: the workbench asks the AI labeler, not 'simulated'; add"),
        (["test", "onw.yaml"], "onw.yaml: no such file"),
        (["preview", "own.yaml", "--num", "0"], "--num: must be 1 or more, got 0"),
        (["preview", "own.yaml", "revise.num_revisions=0"], "revise.num_revisions: is 0, so no revision is there to"),
        (["lint", "own.yaml", "--comparisons", "0"], "--comparisons: must be 1 or more, got 0"),
        (["lint", "own.yaml", "--run", "."], ".: is no run folder (there is no run.json in it)"),
        (["preview", "far.yaml"], "far.yaml: no principle applies to any prompt of the data; see applies_to"),
    ],
)
def test_mistakes_are_one_line(
    command: list[str], message: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(workdir, "own", OLD)
    write(workdir, "far", "principles: [{id: a, axis: a, statement: a, applies_to: [red_tem]}]")
    assert cli.main(["constitution", *command, *SETTINGS]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cai: ")]
    assert len(said) == 1 and said[0].startswith(f"cai: {message}")


def test_a_folder_of_runs_is_told_from_a_run(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(workdir, "own", OLD)
    for arm in ("rlhf", "rlaif"):
        write_json(workdir / "runs/demo" / arm / "run.json", {})
    assert cli.main(["constitution", "lint", "own.yaml", "--run", "runs/demo"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("(there is no run.json in it); there are below it: runs/demo/rlaif, runs/demo/rlhf")


def test_what_a_server_failed_to_give_is_left_out_and_told(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["engine._target_=benches.FlakyEngine", *SETTINGS[1:]]
    write(workdir, "own", OLD)
    new = write(workdir, "new", EDITED)
    assert len(preview(bench("own.yaml", settings), ["one ?", "two ?"], 1)) == 1
    assert "preview: 1 of 2 prompts are left out: a server failed to respond\n" in capsys.readouterr().err
    bench_ = bench("own.yaml", settings)
    data = lint.data_of(bench_)
    for _ in range(2):  # also when the responses are known
        pairs = lint.pairs_to_judge(bench_, data, 6)
        assert len(pairs) == 4 and all(response.text for pair in pairs for response in pair.responses)
        assert "lint: 2 of 6 pairs are left out: a server failed to respond\n" in capsys.readouterr().err
    prompts = read_records(data / "red_team.jsonl", Prompt)
    folders = {"data": data, "revise": made(bench_, "data", "revise")["revise"].path}
    found = _revisions(bench_, bench(new, settings), folders)
    said = re.search(r"diff: (\d+) of (\d+) prompts to revise are left out", capsys.readouterr().err)
    assert said and 0 < int(said[1]) < int(said[2]) <= len(prompts) and found["revisions"]


@pytest.mark.parametrize("more", ["engine.dtype=bfloat16", "labeler.temperature=0.5", "labeler.seed=3"])
def test_a_judge_set_up_otherwise_has_a_memory_of_its_own(workdir: Path, more: str) -> None:
    name = write(workdir, "own", OLD)
    own, other = bench(name, SETTINGS), bench(name, [*SETTINGS, more])
    assert own.memory.judge != other.memory.judge
    assert own.memory.judge == bench(name, [*SETTINGS, "reward.num_epochs=3"]).memory.judge


def test_other_packages_and_servers(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(workdir, "own", OLD)
    endpoint = ["labeler=endpoint", "labeler.model=judge", "endpoint.mode=logprob"]
    own = bench(name, endpoint).memory.judge
    assert own == bench(name, [*endpoint, "endpoint.base_urls=[http://other:1/v1]"]).memory.judge
    for more in ("endpoint.prefill=message", "endpoint.num_samples=3", "+endpoint.extra_body.think=true"):
        assert own != bench(name, [*endpoint, more]).memory.judge
    monkeypatch.setattr("cai.pipeline.version", lambda package: "0")
    assert own != bench(name, endpoint).memory.judge


def test_the_settings_of_a_run_are_taken_up_whole(workdir: Path) -> None:
    overrides = ["experiment=rlaif", "~labeler.clamp", "++seed=1"]
    write_json(workdir / "run.json", {"command": ["cai", "run", *overrides, "constitution=own.yaml"]})
    assert runs.command(workdir) == overrides
    for arm, more in (("four", ["revise.num_revisions=4"]), ("of the command", [])):
        asked = ["experiment=ablation_revisions", "seed=1"]
        write_json(workdir / "run.json", {"command": ["cai", "run", *asked], "arm": arm})
        assert runs.command(workdir) == [*asked, *more]


@pytest.mark.parametrize(
    "arm", ["rlaif", *(pytest.param(arm, marks=pytest.mark.slow) for arm in ("rlhf", "simulated"))]
)
def test_an_arm_is_taken_up_without_what_was_asked_of_another(arm: str, workdir: Path) -> None:
    asked = ["experiment=demo", "labeler=simulated", "labeler.agreement=0.6"]
    write_json(workdir / "run.json", {"command": ["cai", "run", *asked], "arm": arm})
    taken, (ran,) = runs.command(workdir), [one for one in prepare(asked, config.compose(asked)) if one.arm == arm]
    assert config.compose(taken).nodes() == ran.settings.nodes()


# --- the real model ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_examples_of_the_sandbox_constitution_pass(workdir: Path) -> None:
    outcomes = judge_examples(bench("sandbox", []))
    axes = {p.id: p.axis for p in constitution.load("sandbox").principles}
    assert {axes[o.example.principle] for o in outcomes} == set(axes.values()), "an example for every axis"
    assert [o.example for o in outcomes if not o.passes] == []
