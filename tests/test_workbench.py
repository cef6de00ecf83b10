"""The workbench: examples, previews, what an edit changes, what lint finds; with a model made of functions."""

import contextlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worlds import FunctionEngine, noise

from cai import cli, config, constitution, pipeline
from cai.constitution import Constitution, Principle
from cai.engines.base import EnginePrompt, Generation, Receipt
from cai.errors import DataError
from cai.labelers.statistics import first_judgments
from cai.records import read_json, read_records, write_json, write_records
from cai.store import Store
from cai.types import Comparison, Judgment, Prompt, Provenance, Revision, Turn
from cai.workbench import lint, runs, wording
from cai.workbench.bench import Asked, Bench, bench, comparison, made, side
from cai.workbench.diff import Diff, _revisions, diff
from cai.workbench.examples import judge_examples
from cai.workbench.preview import preview

OLD = """
name: old
principles:
  - {id: kind, axis: tone, statement: be kind}
  - {id: brief, axis: size, statement: be brief, weight: 2}
  - {id: safe, axis: harm, statement: be safe, applies_to: [red_team]}
examples:
  - {prompt: hello, better: good day, worse: go away, principle: kind}
  - {prompt: hello, better: go away, worse: good day, principle: brief}
  - {prompt: hello, better: odd day, worse: good day, principle: safe}
"""
EDITED = OLD.replace("be brief", "be short")
SIZES = {"red_team": 20, "demonstrations": 4, "comparisons": 60, "rl": 2, "evaluation": 2}
ASKED: list[EnginePrompt] = []  # every prompt that was scored


class JudgeEngine(FunctionEngine):
    """A model as configurations make one. It likes `good`, says something else where it reads `odd`, and has an opinion
    of its own on every other text under every principle.
    """

    def __init__(self, *, model: str, dtype: str = "", device: str = "", max_batch_tokens: int = 1) -> None:
        super().__init__(reply=lambda asked, key: f"words {int(9 * noise(asked, key))}", logp=_logp)

    def choice_logprobs(self, prompts: Any, choices: Any) -> Any:
        ASKED.extend(prompts)
        return super().choice_logprobs(prompts, choices)


def _logp(asked: EnginePrompt, choice: str) -> float:
    if choice in ("yes", "no"):
        return -0.7
    if "odd" in asked.text:
        return -9.0
    first, principle, second = _shown(asked)
    likes = "good" in first if "good" in first + second else noise(principle, first) < noise(principle, second)
    return -0.1 if (choice == "(A)") == likes else -3.0


def _shown(asked: EnginePrompt) -> tuple[str, str, str]:
    """The first response, the principle and the second response of a whole judge prompt of the sandbox's family."""
    found = re.fullmatch(
        r".*<option> \(A\) (.*?) <principle> (.*?) <answer>.*<option> \(B\) (.*?) <principle>.*", asked.text
    )
    assert found is not None, asked.text
    return found[1], found[2], found[3]


class FlakyEngine(JudgeEngine):
    """A server that fails to give every third first response."""

    def generate(self, prompts: Any, sampling: Any, **more: Any) -> Iterator[Generation]:
        took = Receipt(provenance=Provenance(labeled_at="", seconds=0.0), attempts=("timeout",), failed="timeout")
        for one in super().generate(prompts, sampling, **more):
            fails = re.search(r"/respond$|/base/0$", more["keys"][one.index]) and one.index % 3 == 0
            yield replace(one, text="", receipt=took) if fails else one


SETTINGS = [
    "engine._target_=test_workbench.JudgeEngine",
    "experiment=rlaif",
    *(f"data.source.num_{name}={size}" for name, size in SIZES.items()),
]


def write(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.yaml").write_text(text)
    return f"{name}.yaml"


def own(folder: Path, text: str = OLD) -> Bench:
    return bench(write(folder, "own", text), SETTINGS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run under OLD, without the training: its comparisons are made up, all else is what the
    stages make. Its labels are by one principle each in `run`, by two in `run-2`.
    """
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder):
        before = bench(write(folder, "old", OLD), SETTINGS)
        entries = made(before, "data", "revise")
        prompts = read_records(entries["data"].path / "comparisons.jsonl", Prompt)
        write_records(folder / "sampled" / "comparisons.jsonl", [_triple(p, n) for n, p in enumerate(prompts)])
        paths = {name: entry.path for name, entry in entries.items()} | {"sample": folder / "sampled"}
        for name, more in (("run", []), ("run-2", ["labeler.num_principles=2"])):
            paths["label"] = labelled("old.yaml", more)
            stages = {step: {"path": f"../{path.relative_to(folder)}"} for step, path in paths.items()}
            command = ["cai", "run", *SETTINGS, *more, "constitution=old.yaml"]
            write_json(folder / name / "run.json", {"command": command, "stages": stages})
    return folder


@pytest.fixture
def run(finished: Path, workdir: Path) -> Path:
    """The run, in a folder that may be written to."""
    shutil.copytree(finished, workdir, dirs_exist_ok=True)
    ASKED.clear()
    return workdir / "run"


def _triple(prompt: Prompt, number: int) -> Comparison:
    """Two responses, and to every fifth prompt three."""
    pair = comparison(prompt, f"text {number}", f"answer {number}")
    third = comparison(prompt, f"reply {number}", "").responses[:1]
    return Comparison(id=prompt.id, prompt=prompt, responses=pair.responses + (third if number % 5 == 0 else ()))


def labelled(name: str, more: list[str]) -> Path:
    """What the label stage really makes of the made-up comparisons under a constitution."""
    settings = config.compose([*SETTINGS, *more, f"constitution={name}"])
    stage = config.build(settings, ["label"])["label"]
    planned = pipeline.Planned(pipeline.Step("label", "label"), stage, settings.nodes()["label"], stage.texts())
    inputs = {"sample": Path("sampled").absolute()}
    return Store(Path("store")).get(pipeline.material(planned), lambda out: stage.run(inputs, out), name="label").path


def labels(folder: Path) -> dict[tuple[str, int, int], float]:
    """The probability of every pair's first response, as a label stage wrote it."""
    judgments = first_judgments(read_records(folder / "judgments.jsonl", Judgment))
    return {(j.comparison_id, pair.first, pair.second): pair.p for j in judgments.values() for pair in j.pairs}


# --- diff -------------------------------------------------------------------------------------------------------------


def flips(found: Diff) -> dict[tuple[str, int, int], str]:
    return {(c.comparison.id, *c.pair): c.kind for c in found.labels if c.kind != "stays"}


def real_flips(before: Path, after: Path) -> dict[tuple[str, int, int], str]:
    old, new = labels(before), labels(after)
    kinds = {}
    for key in old | new:
        a, b = side(old.get(key)), side(new.get(key))
        if a != b:
            kinds[key] = "flips" if a and b else "settles" if b else "fades"
    return kinds


EDITS = {
    "text": EDITED,
    "weight": OLD.replace("weight: 2", "weight: 50"),
    "added": OLD.replace("examples:", "  - {id: polite, axis: tone, statement: be polite, weight: 3}\nexamples:"),
    "removed": OLD.replace("  - {id: kind, axis: tone, statement: be kind}\n", "").replace(
        "principle: kind", "principle: brief"
    ),
    "critique only": OLD.replace("statement: be brief", "statement: be brief, critique: is it brief"),
    "nothing that is asked": OLD.replace("axis: size", "axis: length"),
}


@pytest.mark.parametrize(("name", "edit"), [*(("run", edit) for edit in EDITS), ("run-2", "text"), ("run-2", "added")])
@pytest.mark.slow
def test_what_diff_says_is_what_a_run_would_do(run: Path, name: str, edit: str, workdir: Path) -> None:
    run = run.with_name(name)
    found = diff("old.yaml", write(workdir, "new", EDITS[edit]), [], run)
    asked = [prompt.text for prompt in ASKED]
    told = read_json(run / "run.json")
    real = labelled("new.yaml", [item for item in told["command"] if item.startswith("labeler.")])
    assert flips(found) == real_flips(run / told["stages"]["label"]["path"], real)
    assert bool(flips(found)) == (edit in ("text", "weight", "added", "removed"))
    assert found.num_asked_old == 0, "the run's labels are known"
    if edit in ("critique only", "nothing that is asked"):
        assert found.num_asked == 0 and not asked
    if edit == "text":
        assert asked and all("be short" in text for text in asked)
        judged = [row for j in read_records(real / "judgments.jsonl", Judgment) for row in j.evidence]
        assert found.num_asked == sum(row["principle"] == "brief" for row in judged)
        assert found.num_asked < found.num_questions == len(judged)


@pytest.mark.slow
def test_what_was_asked_once_is_not_asked_again(run: Path, workdir: Path) -> None:
    new = write(workdir, "new", EDITED)
    first = diff("old.yaml", new, [], run)
    again = diff("old.yaml", new, [], run)
    assert first.num_asked > 0 and again.num_asked == 0 and flips(again) == flips(first)
    ASKED.clear()
    back = diff(new, "old.yaml", [], run)
    assert back.num_asked_old == 0, "the answers under the new text are remembered"
    assert 0 < back.num_asked <= first.num_asked, "those of the run are not, since it was no run of this one's"
    assert flips(back) == {
        key: {"settles": "fades", "fades": "settles"}.get(kind, kind) for key, kind in flips(first).items()
    }


@pytest.mark.slow
def test_labels_of_another_judge_are_asked_anew(run: Path, workdir: Path) -> None:
    found = diff("old.yaml", write(workdir, "new", EDITED), ["labeler.min_mass=0.06"], run)
    assert found.num_asked_old == found.num_asked > 0


@pytest.mark.slow
def test_revisions_of_untouched_prompts_are_not_made_again(run: Path, workdir: Path) -> None:
    found = diff("old.yaml", write(workdir, "new", EDITED), [], run)

    def revisions(name: str) -> dict[str, Revision]:
        folder = made(bench(f"{name}.yaml", SETTINGS), "data", "revise")["revise"].path
        return {revision.id: revision for revision in read_records(folder / "revisions.jsonl", Revision)}

    old, new = revisions("old"), revisions("new")
    differ = {name for name in old if old[name].revision != new[name].revision}
    assert {change.before.id for change in found.revisions} == differ and differ
    assert found.num_revised == len({r.prompt.id for r in old.values() if r.principle_id == "brief"})
    assert 0 < found.num_revised < found.num_prompts == SIZES["red_team"] and found.num_steps == 2 * found.num_prompts


def test_a_run_without_comparisons_is_refused(run: Path, workdir: Path) -> None:
    write_json(run / "run.json", {"command": ["cai", "run"], "stages": {"data": {"path": "x"}}})
    with pytest.raises(DataError, match="the run has no step 'revise'"):
        diff("old.yaml", write(workdir, "new", EDITED), SETTINGS, run)
    with pytest.raises(DataError, match=r"is no run folder \(there is no run.json in it\)"):
        diff("old.yaml", "old.yaml", SETTINGS, workdir)


def test_nothing_is_run_where_nothing_differs(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(workdir, "old", OLD)
    same = write(workdir, "same", "# a comment\n" + OLD.split("examples")[0].replace("name: old", "name: other"))
    assert cli.main(["constitution", "diff", "old.yaml", same, *SETTINGS]) == 0
    printed = capsys.readouterr()
    assert printed.out == "no difference: the principles of old.yaml and same.yaml are the same\n" and not printed.err
    assert not (workdir / "store").exists()


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


def test_what_a_server_failed_to_give_is_left_out_and_told(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["engine._target_=test_workbench.FlakyEngine", *SETTINGS[1:]]
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
    for arm, own in (("four", ["revise.num_revisions=4"]), ("of the command", [])):
        asked = ["experiment=ablation_revisions", "seed=1"]
        write_json(workdir / "run.json", {"command": ["cai", "run", *asked], "arm": arm})
        assert runs.command(workdir) == [*asked, *own]


# --- lint -------------------------------------------------------------------------------------------------------------


def constitution_of(folder: Path, *principles: dict[str, str]) -> Constitution:
    text = json.dumps({"principles": [{"axis": "a", **principle} for principle in principles]})
    return constitution.load(write(folder, "linted", text))


def test_texts_are_linted_without_asking_anybody(workdir: Path) -> None:
    found = wording.text_findings(
        constitution_of(
            workdir,
            {"id": "a", "statement": "Be kind to people."},
            {"id": "b", "statement": "be kind to people."},
            {"id": "c", "statement": "The response helps nobody to harm people or animals in any way at all today."},
            {"id": "d", "statement": "The response helps nobody to harm people or animals in any way at all now."},
            {"id": "e", "statement": "It doesn\u2019t hurt, never.", "comparison": "nothing of this nothingness"},
            {"id": "f", "statement": "w " * 61},
        )
    )
    assert [(f.kind, f.principles) for f in found] == [
        ("duplicate", ("a", "b")),
        ("near-duplicate", ("c", "d")),
        ("negations", ("e",)),
        ("length", ("f",)),
    ]
    assert "93 % of the words" in found[1].evidence and "2 negations" in found[2].evidence


def asked(
    principle: str, number: int, p: float | None, first: float | None = None, second: float | None = None
) -> Asked:
    """An answer about pair `number`, the same in both orders where nothing else is said."""
    pair = comparison(Prompt(id=f"p{number}", turns=(Turn("user", f"q{number}"),)), "x", "y")
    first, second = (p, p) if first is None else (first, second)
    return Asked(pair, Principle(id=principle, axis="a", statement="s"), first, second, p)


def kinds(**answers: list[Asked]) -> dict[str, set[tuple[str, ...]]]:
    found: dict[str, set[tuple[str, ...]]] = {}
    for finding in lint.label_findings(answers):
        found.setdefault(finding.kind, set()).add(finding.principles)
    return found


def test_what_labels_say_about_principles() -> None:
    n = range(20)
    up_down = [0.9 if i % 2 else 0.1 for i in n]
    good = [asked("good", i, p) for i, p in enumerate(up_down)]
    same = [asked("same", i, p) for i, p in enumerate(up_down)]
    turned = [asked("turned", i, 1 - p) for i, p in enumerate(up_down)]
    idle = [asked("idle", i, 0.51) for i in n]
    mute = [asked("mute", i, None if i < 3 else p) for i, p in enumerate(up_down)]
    lost = [asked("lost", i, 0.5, 0.9, 0.1) if i < 8 else asked("lost", i, p) for i, p in enumerate(up_down)]
    assert kinds(good=good, other=[asked("other", i, 0.9 if i < 10 else 0.1) for i in n]) == {
        "contradiction": {("good", "other")}
    }
    assert kinds(good=good, same=same) == {"changes nothing": {("good",), ("same",)}}
    assert kinds(good=good, turned=turned)["contradiction"] == {("good", "turned")}
    assert kinds(idle=idle) == {"undecided": {("idle",)}}
    assert kinds(mute=mute) == {"no answer": {("mute",)}}
    assert kinds(lost=lost) == {"position": {("lost",)}}
    assert kinds(good=good[:9], turned=turned[:9]) == {}, "of so few nothing is said"


def test_lint_judges_pairs_of_the_base_model_or_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_ = bench("old.yaml", SETTINGS)
    data = lint.data_of(bench_)
    pairs = lint.pairs_to_judge(bench_, data, 10)
    prompts = read_records(data / "comparisons.jsonl", Prompt)
    assert [pair.prompt for pair in pairs] == prompts[:10]
    assert all(response.text.startswith("words") for pair in pairs for response in pair.responses)
    of_run = lint.pairs_to_judge(bench_, lint.data_of(bench_, run), 7, run)
    assert [[r.text for r in pair.responses] for pair in of_run] == [[f"text {i}", f"answer {i}"] for i in range(7)]
    answers = lint.answers(bench_, of_run)
    assert {name: len(own) for name, own in answers.items()} == {"kind": 7, "brief": 7, "safe": 4}
    capsys.readouterr()
    assert cli.main(["constitution", "lint", "old.yaml", "--run", str(run), "--comparisons", "7"]) == 0
    assert "findings, on 7 pairs; 0 questions asked, 36 answers known" in capsys.readouterr().out


def test_tags_that_no_prompt_has_are_found(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(
        workdir,
        "own",
        OLD.replace("[red_team]", "[redteam, helpful]").replace("id: kind,", "id: kind, applies_to: [redteam],"),
    )
    assert cli.main(["constitution", "lint", name, "--comparisons", "4", *SETTINGS]) == 0
    said = capsys.readouterr()
    out, err = " ".join(said.out.split()), said.err
    assert "Tags: 1 findings unknown tag kind and safe applies_to, on no prompt" in out
    assert "on no prompt of the data: unknown tag 'redteam'; did you mean 'red_team'? Allowed: helpful, red_team" in out
    assert "labels: 12 questions to ask the judge, 0 known\n" in err
    assert [line.split()[0] for line in err.splitlines()].count("data") == 1, "a step is told of once"
    far = write(workdir, "far", "principles: [{id: a, axis: a, statement: a, applies_to: [red_tem]}]")
    assert cli.main(["constitution", "lint", far, "--comparisons", "4", *SETTINGS]) == 0
    assert "far: 1 findings, on 0 pairs; 0 questions asked" in capsys.readouterr().out
    bench_ = bench(
        write(workdir, "one", "principles: [{id: a, axis: a, statement: a, applies_to: [helpful]}]"), SETTINGS
    )
    data = lint.data_of(bench_)
    pairs = [c for c in lint.pairs_to_judge(bench_, data, 4) if "red_team" in c.prompt.tags]
    (finding,) = lint.tag_findings(bench_, data, pairs)
    assert (finding.kind, finding.evidence) == ("not judged", "applies to none of the 2 pairs, whose tags are red_team")


# --- the real model ---------------------------------------------------------------------------------------------------

REAL = ["experiment=rlaif", "data.source.num_red_team=60", "data.source.num_demonstrations=60", "sft.num_epochs=1",
        "data.source.num_comparisons=300"]  # fmt: skip


@pytest.mark.slow
def test_the_examples_of_the_sandbox_constitution_pass(workdir: Path) -> None:
    outcomes = judge_examples(bench("sandbox", []))
    axes = {p.id: p.axis for p in constitution.load("sandbox").principles}
    assert {axes[o.example.principle] for o in outcomes} == set(axes.values()), "an example for every axis"
    assert [o.example for o in outcomes if not o.passes] == []


@pytest.mark.slow
def test_diff_on_the_real_model_equals_two_real_label_stages(workdir: Path) -> None:
    text = constitution.load("sandbox").path.read_text()
    new = write(workdir, "new", text.replace("explains what the user needs", "opens with polite words"))
    found = diff("sandbox", new, REAL)
    entries = made(bench("sandbox", REAL), "data", "revise", "sft", "sample", "label")
    assert all(entry.cached for entry in entries.values()), "made by the diff, shared with runs"
    after = bench(new, REAL)
    stage = config.build(after.settings, ["label"])["label"]
    (workdir / "label").mkdir()
    stage.run({"sample": entries["sample"].path}, workdir / "label")
    assert flips(found) == real_flips(entries["label"].path, workdir / "label")
    assert Counter(flips(found).values()).keys() == {"flips", "settles", "fades"} and found.num_close == 0
    comparisons = read_records(entries["sample"].path / "comparisons.jsonl", Comparison)
    edited = {q.key for c in comparisons for q in after.labeler.questions(c) if q.principle.id == "helpful-needs"}
    assert (found.num_asked, found.num_asked_old) == (len(edited), 0) and len(edited) < found.num_questions / 5
    real = labels(workdir / "label")
    assert all(c.after == pytest.approx(real[c.comparison.id, *c.pair], abs=1e-4) for c in found.labels)
