"""What lint finds in the texts, tags and labels of a constitution."""

import json
from pathlib import Path

import pytest
from benches import OLD, SETTINGS, finished, run, write

from cai import cli, constitution
from cai.constitution import Constitution, Principle
from cai.records import read_records
from cai.types import Prompt, Turn
from cai.workbench import lint, wording
from cai.workbench.bench import Asked, bench, comparison

__all__ = ["finished", "run"]  # fixtures


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
    assert "Tags: 1 finding unknown tag kind and safe applies_to, on no prompt" in out
    assert "on no prompt of the data: unknown tag 'redteam'; did you mean 'red_team'? Allowed: helpful, red_team" in out
    assert "labels: 12 questions to ask the judge, 0 known\n" in err
    assert [line.split()[0] for line in err.splitlines()].count("data") == 1, "a step is told of once"
    far = write(workdir, "far", "principles: [{id: a, axis: a, statement: a, applies_to: [red_tem]}]")
    assert cli.main(["constitution", "lint", far, "--comparisons", "4", *SETTINGS]) == 0
    assert "far: 1 finding, on 0 pairs; 0 questions asked" in capsys.readouterr().out
    bench_ = bench(
        write(workdir, "one", "principles: [{id: a, axis: a, statement: a, applies_to: [helpful]}]"), SETTINGS
    )
    data = lint.data_of(bench_)
    pairs = [c for c in lint.pairs_to_judge(bench_, data, 4) if "red_team" in c.prompt.tags]
    (finding,) = lint.tag_findings(bench_, data, pairs)
    assert (finding.kind, finding.evidence) == ("not judged", "applies to none of the 2 pairs, whose tags are red_team")
