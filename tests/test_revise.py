"""Stage revise: latest responses, principles per step, rejected texts, resuming."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worlds import (
    FunctionEngine,
    WordCount,
    data_folder,
    family,
    finished,
    holds_when_cut,
    noise,
    prompt,
    rules,
    run,
)

from cai.engines.base import EnginePrompt
from cai.errors import ConfigError, ConstitutionError
from cai.records import read_json, read_records, read_rows
from cai.stages.base import Stage
from cai.stages.revise import Revise, rejection
from cai.types import Demonstration, Response, Revision


@pytest.fixture
def data(workdir: Path) -> Path:
    """Prompts of every kind."""
    return data_folder(workdir)


def revise(folder: Path, engine: FunctionEngine, **settings: Any) -> Revise:
    defaults: dict[str, Any] = {"model": "base", "prompts": family(folder), "constitution": rules(folder)}
    return Revise(**{"engine": engine, **defaults, "seed": 5, "max_new_tokens": 20, **settings})


def sub_step(key: str) -> str:
    return key.rsplit("/", 1)[1]


def test_every_step_revises_the_latest_response(data: Path, workdir: Path) -> None:
    engine = FunctionEngine(reply=lambda asked, key: f"{sub_step(key)} of {key.split('/')[1]}")
    facts = run(revise(workdir, engine, num_revisions=3), {"data": data}, workdir / "out")
    revisions = read_records(workdir / "out" / "revisions.jsonl", Revision)
    assert [(r.prompt.id, r.step) for r in revisions] == [(f"red{i}", s) for i in range(24) for s in (1, 2, 3)]
    for r in revisions:
        name = r.prompt.id
        assert r.response == (f"respond of {name}" if r.step == 1 else f"revision-{r.step - 1} of {name}")
        assert (r.critique, r.revision) == (f"critique-{r.step} of {name}", f"revision-{r.step} of {name}")
        assert r.rejected is None and r.templates.keys() == {"critique", "revision"}
    calls = [(sub_step(call[0][1]), call[0][0]) for call in engine.generated]
    assert [name for name, _ in calls] == [
        "respond",
        *(f"{k}-{s}" for s in (1, 2, 3) for k in ("critique", "revision")),
    ]
    assert calls[0][1] == EnginePrompt(turns=prompt("red0").turns)
    principle = {p.id: p.statement for p in rules(workdir).principles}[revisions[1].principle_id]
    assert calls[4][1].text == (
        f"user says question red0\nreply revision-1 of red0 note critique-2 of red0 wish {principle} better"
    ), "earlier responses and critiques are gone"
    assert (engine.samplings[0].max_new_tokens, engine.samplings[1].stop) == (20, ("\n",))
    assert facts["num_revisions"] == 72 and facts["num_rejected"] == 0
    assert facts["new_tokens"] == engine.usage.new_tokens


def test_sft_gets_the_revisions_of_every_step_and_the_demonstrations(data: Path, workdir: Path) -> None:
    run(revise(workdir, FunctionEngine()), {"data": data}, workdir / "out")
    sft = read_records(workdir / "out" / "sft.jsonl", Demonstration)
    assert Counter(d.source for d in sft) == {"revision-1": 24, "revision-2": 24, "helpful": 2}
    assert len({d.id for d in sft}) == len(sft)
    by_id = {r.id: r for r in read_records(workdir / "out" / "revisions.jsonl", Revision)}
    assert all(d.text == by_id[d.id].revision for d in sft[:-2])


def test_principles_are_drawn_by_prompt_and_step(data: Path, workdir: Path) -> None:
    run(revise(workdir, FunctionEngine(), num_revisions=4), {"data": data}, workdir / "out")
    revisions = read_records(workdir / "out" / "revisions.jsonl", Revision)
    constitution = rules(workdir)
    for r in revisions:
        assert r.principle_id == constitution.draw(5, f"{r.prompt.id}/{r.step}", r.prompt.tags)[0].id
    counts = Counter(r.principle_id for r in revisions)
    assert counts.keys() == {"kind", "brief", "safe"}
    assert counts["brief"] / 96 == pytest.approx(0.5, abs=0.15)
    summary = read_json(workdir / "out" / "revise.json")
    assert {name: row["num_revisions"] for name, row in summary["by_principle"].items()} == counts


def test_rejected_steps_are_kept_counted_and_not_gone_on_from(data: Path, workdir: Path) -> None:
    bad = {
        "red0/critique-1": "",
        "red1/critique-1": "cut off",
        "red2/revision-1": "",
        "red3/revision-1": "cut off",
        "red4/revision-1": "Fine.\n\nHuman: and now?",
        "red5/revision-1": "It says: a critique of it all, red5.",
    }

    def reply(asked: EnginePrompt, key: str) -> str:
        name = key.split("/", 1)[1]
        return bad.get(name, "a critique of it all, red5." if name == "red5/critique-1" else f"text of {name}")

    engine = FunctionEngine(reply=reply, cut_off=lambda text: text == "cut off")
    facts = run(revise(workdir, engine), {"data": data}, workdir / "out")
    by_id = {r.id: r for r in read_records(workdir / "out" / "revisions.jsonl", Revision)}
    reasons = ["critique_empty", "critique_truncated", "empty", "truncated", "header", "critique"]
    for i, reason in enumerate(reasons):
        one, two = by_id[f"red{i}/revision-1"], by_id[f"red{i}/revision-2"]
        assert one.rejected == reason
        assert two.response == one.response == f"text of red{i}/respond", "the step after goes on from the last usable"
        assert two.rejected is None
        assert one.revision == bad.get(one.id, "").strip() and one.critique is not None
    sft = {d.id for d in read_records(workdir / "out" / "sft.jsonl", Demonstration)}
    assert len(sft) == 48 - 6 + 2 and not any(f"red{i}/revision-1" in sft for i in range(6))
    summary = read_json(workdir / "out" / "revise.json")
    assert summary["rejected"] == dict.fromkeys(sorted(reasons), 1)
    assert summary["by_step"]["1"] == {"num_revisions": 24, "num_rejected": 6, "num_unchanged": 0}
    assert facts["num_rejected"] == 6
    asked = {sub_step(call[0][1]): len(call) for call in engine.generated}
    assert (asked["critique-1"], asked["revision-1"], asked["revision-2"]) == (24, 22, 24)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A plain answer.", None),
        ("Two notes: first, be kind. The response of others matters.", None),
        ("Let x < y; <b>bold</b> text.", None),
        ("", "empty"),
        ("Sure.\nCritiqueRequest: name the ways", "header"),
        ("**Revision:** here you are", "header"),
        ("assistant: fine", "header"),
        ("yes <user> how do i", "header"),
        ("ok <|im_end|>", "header"),
        ("The assistant's last response is harmful because it helps.", "critique"),
        ("the response gives steps , so change it .", "critique"),
        ("Well: it is too long by far.", "critique"),
    ],
)
def test_what_is_no_revision(text: str, reason: str | None) -> None:
    response = Response(id="r", prompt_id="p", text=text, model="", num_tokens=1, finished=True)
    assert rejection(response, "it is too long") == reason
    assert text == "" or rejection(replace(response, finished=False), "it is too long") == "truncated"


def test_a_critique_may_speak_of_the_response() -> None:
    response = Response(id="r", prompt_id="p", text="The response is rude.", model="", num_tokens=1, finished=True)
    assert rejection(response) is None


def test_direct_revision_has_no_critique(data: Path, workdir: Path) -> None:
    engine = FunctionEngine()
    stage = revise(workdir, engine, critique=False)
    run(stage, {"data": data}, workdir / "out")
    revisions = read_records(workdir / "out" / "revisions.jsonl", Revision)
    assert all(r.critique is None and r.rejected is None and r.revision for r in revisions)
    assert [sub_step(call[0][1]) for call in engine.generated] == ["respond", "revision-1", "revision-2"]
    assert stage.texts().keys() == {"constitution", "prompts/direct_revision", "model"}


def test_a_scorer_measures_every_step_and_changes_nothing(data: Path, workdir: Path) -> None:
    def reply(asked: EnginePrompt, key: str) -> str:
        name = sub_step(key)
        return "" if name == "revision-2" and "red3" in key else "word " * (1 + len(name) % 3) + name

    folders = []
    for name, scorer in (("without", None), ("with", WordCount())):
        run(revise(workdir, FunctionEngine(reply=reply), scorer=scorer), {"data": data}, workdir / name)
        folders.append(workdir / name)
    assert finished(folders[0]).items() <= finished(folders[1]).items()
    assert set(finished(folders[1])) - set(finished(folders[0])) == {"scores.jsonl"}
    rows = {(row["prompt_id"], row["step"]): row["gold"] for row in read_rows(folders[1] / "scores.jsonl")}
    revisions = read_records(folders[1] / "revisions.jsonl", Revision)
    for r in revisions:
        assert rows[r.prompt.id, r.step - 1] == len(r.response.split())
        assert rows[r.prompt.id, r.step] == len((r.response if r.rejected else r.revision).split())
    assert sum(r.rejected is not None for r in revisions) == 1 and len(rows) == 24 * 3


def test_revising_goes_on_where_it_was_cut(data: Path, workdir: Path) -> None:
    def make() -> Stage:
        odd = FunctionEngine(cut_off=lambda text: noise(text) < 0.1)
        return revise(workdir, odd)

    holds_when_cut(make, {"data": data}, workdir)


def test_what_is_done_is_not_asked_again(data: Path, workdir: Path) -> None:
    run(revise(workdir, FunctionEngine()), {"data": data}, workdir / "out")
    engine = FunctionEngine()
    run(revise(workdir, engine), {"data": data}, workdir / "out")
    assert engine.generated == []


def test_principles_without_a_prompt_are_named_before_anything_is_asked(
    data: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    misspelt = "{id: b, axis: x, statement: s, applies_to: [redteam]}"
    later = "{id: c, axis: x, statement: s, applies_to: [helpful]}"  # the tag of the demonstrations: for the labeler
    some = rules(workdir, f"principles: [{{id: a, axis: x, statement: s}}, {misspelt}, {later}]")
    facts = run(revise(workdir, FunctionEngine(), constitution=some), {"data": data}, workdir / "out")
    assert facts["num_unused_principles"] == 1
    assert read_json(workdir / "out" / "revise.json")["num_unused_principles"] == 1
    assert "revise: principle 'b' applies to no prompt at hand: unknown tag 'redteam'; did" in capsys.readouterr().err
    engine = FunctionEngine()
    none = rules(workdir, f"principles: [{misspelt}]")
    with pytest.raises(ConstitutionError, match="0 apply to a prompt with the tags red_team"):
        run(revise(workdir, engine, constitution=none), {"data": data}, workdir / "none")
    assert engine.generated == [] and "principle 'b' applies to no prompt" in capsys.readouterr().err


def test_without_revisions_the_first_responses_are_learned_from(data: Path, workdir: Path) -> None:
    engine = FunctionEngine(
        reply=lambda asked, key: "" if "red3/" in key else f"{sub_step(key)} of {key.split('/')[1]}"
    )
    facts = run(revise(workdir, engine, num_revisions=0), {"data": data}, workdir / "out")
    assert [sub_step(call[0][1]) for call in engine.generated] == ["respond"]
    assert read_records(workdir / "out" / "revisions.jsonl", Revision) == [] and facts["num_revisions"] == 0
    learned = read_records(workdir / "out" / "sft.jsonl", Demonstration)
    own = [(d.prompt.id, d.text) for d in learned if d.source == "response"]
    assert own == [(f"red{i}", f"respond of red{i}") for i in range(24) if i != 3]
    summary = read_json(workdir / "out" / "revise.json")
    assert summary["initial"] == {"empty": 1} and summary["num_sft"] == len(learned) > len(own)


def test_settings_that_cannot_be(workdir: Path) -> None:
    with pytest.raises(ConfigError, match="num_revisions: must be 0 or more, got -1"):
        revise(workdir, FunctionEngine(), num_revisions=-1)
