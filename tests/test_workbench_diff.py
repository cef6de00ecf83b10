"""What the workbench says that an edit changes, against what runs do; with the real model too."""

import re
from collections import Counter
from pathlib import Path

import pytest
from benches import ASKED, EDITED, OLD, SETTINGS, SIZES, finished, labelled, labels, run, write

from cai import cli, config, constitution
from cai.errors import DataError
from cai.paths import packaged
from cai.records import read_json, read_records, write_json
from cai.types import Comparison, Judgment, Revision
from cai.workbench.bench import bench, made, side
from cai.workbench.diff import Diff, diff

__all__ = ["finished", "run"]  # fixtures


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
        assert found.num_asked == 0 and not asked and not found.labels
    assert (found.num_revised == 0) == (edit == "nothing that is asked")
    if edit == "text":
        assert asked and all("be short" in text for text in asked)
        judged = [row for j in read_records(real / "judgments.jsonl", Judgment) for row in j.evidence]
        assert found.num_asked == sum(row["principle"] == "brief" for row in judged)
        assert found.num_asked < found.num_questions == len(judged)


def rows_under(head: str, printed: str) -> dict[str, list[str]]:
    """The cells of the table that begins with this line, by the first one."""
    lines = iter(printed.splitlines())
    assert any(line.split() == head.split() for line in lines), printed
    cells = (re.split(r"\s{3,}", line.strip()) for line in iter(lambda: next(lines, ""), ""))
    return {name: rest for name, *rest in cells}


@pytest.mark.parametrize("edit", [pytest.param(e, marks=() if e == "removed" else pytest.mark.slow) for e in EDITS])
def test_every_edit_is_shown(run: Path, edit: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what it does to principles that were not edited: they lose draws, or win them."""
    new = write(workdir, "new", EDITS[edit])
    assert cli.main(["constitution", "diff", "old.yaml", new, "--run", str(run)]) == 0
    printed = capsys.readouterr().out
    found = diff("old.yaml", new, [], run)
    assert found.edits and rows_under("principle axis edit", printed) == {
        edited.principle: [edited.axis, edited.what] for edited in found.edits
    }
    assert f"of {found.num_pairs} the edit touches {len(found.labels)};" in printed
    if not found.labels:
        assert edit in ("critique only", "nothing that is asked") and "touched" not in printed
        return
    axes = {p.id: p.axis for text in ("old.yaml", new) for p in constitution.load(text).principles}
    touched = Counter(name for change in found.labels for name in change.principles)
    table = rows_under("principle axis touched flip settle fade mean change", printed)
    assert {name: (axis, int(count)) for name, (axis, count, *_) in table.items()} == {
        name: (axes[name], count) for name, count in touched.items()
    }
    by_axis = rows_under("axis touched flip settle fade mean change", printed)
    assert {axis: int(count) for axis, (count, *_) in by_axis.items()} == Counter(
        axis for change in found.labels for axis in {axes[name] for name in change.principles}
    )
    edited = {e.principle for e in found.edits}
    assert touched.keys() == edited if edit == "text" else touched.keys() > edited


@pytest.mark.parametrize("edit", [("axis: size", "axis: length"), ("weight: 2", "weight: 2.001")])
def test_an_edit_of_nothing_that_is_asked_touches_nothing(run: Path, edit: tuple[str, str], workdir: Path) -> None:
    """Neither the axis nor, as long as the same principles are drawn, the weight is in any text."""
    found = diff("old.yaml", write(workdir, "new", OLD.replace(*edit)), [], run)
    assert [e.principle for e in found.edits] == ["brief"]
    assert not found.labels and not found.revisions and (found.num_revised, found.num_asked) == (0, 0) and not ASKED


def test_a_weight_that_counts_in_labels_touches_them(run: Path, workdir: Path) -> None:
    found = diff("old.yaml", write(workdir, "new", EDITS["weight"]), ["labeler.num_principles=all"], run)
    assert len(found.labels) == found.num_pairs and {c.principles for c in found.labels} == {("brief",)}
    assert any(c.before != c.after for c in found.labels) and (found.num_asked, found.num_asked_old > 0) == (0, True)


def test_an_axis_that_a_template_shows_is_asked(run: Path, workdir: Path) -> None:
    (workdir / "prompts" / "sandbox").mkdir(parents=True)
    for name in ("judge", "critique"):
        text = (packaged("prompts") / "sandbox" / f"{name}.jinja").read_text()
        shows = re.sub(r"{{ principle.(?:comparison|critique) }}", r"\g<0> about {{ principle.axis }}", text)
        (workdir / "prompts" / "sandbox" / f"{name}.jinja").write_text(shows)
    found = diff("old.yaml", write(workdir, "new", EDITS["nothing that is asked"]), [], run)
    assert found.num_asked > 0 and {c.principles for c in found.labels} == {("brief",)} and found.num_revised > 0


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


# --- the real model ---------------------------------------------------------------------------------------------------


REAL = ["experiment=rlaif", "data.source.num_red_team=60", "data.source.num_demonstrations=60", "sft.num_epochs=1",
        "data.source.num_comparisons=300"]  # fmt: skip


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
