"""`cai constitution diff`: what an edit changes before anything is trained.

Both constitutions see the same prompts and the same comparisons, those of the old one. Where the old and the new draw
principles by which the same is asked, nothing is computed again: the revision and the label are what they were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from cai import config, pipeline
from cai.constitution import Constitution, Principle
from cai.labelers.judge import Judge, Question
from cai.labelers.statistics import DECIDED, first_judgments
from cai.pipeline import Planned, Step
from cai.records import read_json, read_records
from cai.types import Comparison, Judgment, Prompt, Revision
from cai.workbench.bench import Bench, bench, made, revised, side, tell_failed
from cai.workbench.memory import Memory
from cai.workbench.runs import command, outputs

__all__ = ["Change", "Diff", "Edit", "LabelChange", "diff"]

_STEPS: Final = ("data", "revise", "sft", "sample", "label")
_ROUNDING: Final = 1e-3  # nearer to the line between decided and not, another batch may put a label on its other side


@dataclass(frozen=True, slots=True)
class Edit:
    """A principle that was added, taken out, or edited (then `what` names its keys)."""

    principle: str
    axis: str
    what: str


@dataclass(frozen=True, slots=True)
class LabelChange:
    """A pair of responses whose label the edit touches: the probability of the pair's first response before and after,
    None for no label. `principles` are those drawn that the edit changed, brought in or took away.
    """

    comparison: Comparison
    pair: tuple[int, int]
    before: float | None
    after: float | None
    principles: tuple[str, ...]

    @property
    def kind(self) -> str:
        """`flips` to the other response, `settles` where it was undecided, `fades` where it is now, or `stays`."""
        old, new = side(self.before), side(self.after)
        if old == new:
            return "stays"
        return "flips" if old and new else "settles" if new else "fades"


@dataclass(frozen=True, slots=True)
class Change:
    """A step of critique and revision that comes out otherwise; `before` is of the old constitution."""

    before: Revision
    after: Revision


@dataclass(frozen=True, slots=True)
class Diff:
    """What an edit changes. `axes` are those of all principles, old and new. `num_close` labels lie where rounding
    decides whether they are decided. Of `num_questions` about the labels of the new constitution `num_asked` had to be
    asked, and `num_asked_old` about those of the old one. `num_revised` prompts of `num_prompts` had to be revised
    anew.
    """

    edits: tuple[Edit, ...]
    axes: dict[str, str]
    num_pairs: int
    labels: tuple[LabelChange, ...]
    num_close: int
    num_questions: int
    num_asked: int
    num_asked_old: int
    num_steps: int
    revisions: tuple[Change, ...]
    num_prompts: int
    num_revised: int


def diff(old: str, new: str, overrides: Sequence[str], run: Path | None = None) -> Diff | None:
    """Compare two constitutions on the comparisons of the run in folder `run`, with the settings of that run, or on
    those that `overrides` make under the old one; they are shared with later runs through the store. None at once where
    nothing that a stage reads differs.
    """
    given = [*(command(run) if run else ()), *overrides]
    before, after = bench(old, given), bench(new, given)
    edits = tuple(_edits(before.constitution, after.constitution))
    if not edits and before.memory.judge == after.memory.judge:
        return None
    folders = outputs(run) if run else {name: entry.path for name, entry in made(before, *_STEPS).items()}
    # An edit takes draws from principles that it leaves alone, too.
    axes = {p.id: p.axis for one in (before, after) for p in one.constitution.principles}
    return Diff(edits=edits, axes=axes, **_labels(before, after, folders), **_revisions(before, after, folders))


def _edits(old: Constitution, new: Constitution) -> Iterator[Edit]:
    before, after = ({p.id: p for p in c.principles} for c in (old, new))
    for name in before | after:
        if name not in after:
            yield Edit(name, before[name].axis, "taken out")
        elif name not in before:
            yield Edit(name, after[name].axis, "added")
        elif before[name] != after[name]:
            keys = [f.name for f in fields(Principle) if getattr(before[name], f.name) != getattr(after[name], f.name)]
            yield Edit(name, after[name].axis, f"edited: {', '.join(keys)}")


# --- where the old constitution's outputs are -------------------------------------------------------------------------


def _made_under(bench: Bench, name: str, folder: Path | None) -> bool:
    """Whether a step's output is what this bench's settings and texts make, wherever the constitution's file was."""
    if folder is None:
        return False
    stage = config.build(bench.settings, [name])[name]
    planned = Planned(Step(name, name), stage, bench.settings.nodes()[name], stage.texts())
    found = read_json(folder / "MANIFEST.json")["material"]
    return all(_pathless(found.get(key)) == _pathless(value) for key, value in pipeline.material(planned).items())


def _pathless(node: Any) -> Any:
    """Settings without the path of the constitution, whose texts have a hash of their own."""
    if isinstance(node, dict):
        if node.get("_target_") == "cai.constitution.load":
            return None
        return {key: _pathless(value) for key, value in node.items()}
    return [_pathless(value) for value in node] if isinstance(node, list) else node


# --- labels -----------------------------------------------------------------------------------------------------------


def _labels(before: Bench, after: Bench, folders: dict[str, Path]) -> dict[str, Any]:
    """The fields of a Diff that are about labels."""
    comparisons = read_records(folders["sample"] / "comparisons.jsonl", Comparison)
    # A judge that is shown examples of the constitution is another one when those are edited.
    same_judge = before.memory.judge == after.memory.judge
    by_principle = {c.id: _principles(before, after, c) for c in comparisons}
    touched = [c for c in comparisons if by_principle[c.id] or not same_judge]
    if _made_under(before, "label", folders.get("label")):
        known = first_judgments(read_records(folders["label"] / "judgments.jsonl", Judgment))
        old = {c.id: known[c.id] for c in touched}
        for c in touched:
            before.memory.tell(before.labeler.questions(c), old[c.id].evidence)
    else:
        old = _predicted(before, touched, before.memory, "old labels")
    num_asked_old = before.memory.num_asked
    memory = before.memory if same_judge else after.memory
    new = _predicted(after, touched, memory, "new labels")
    changes = []
    for c in touched:
        p, q = ({(pair.first, pair.second): pair.p for pair in found[c.id].pairs} for found in (old, new))
        for pair in combinations(range(len(c.responses)), 2):
            changes.append(LabelChange(c, pair, p.get(pair), q.get(pair), by_principle[c.id]))
    return {
        "labels": tuple(changes),
        "num_pairs": sum(len(c.responses) * (len(c.responses) - 1) // 2 for c in comparisons),
        "num_close": sum(abs(abs(p - 0.5) - DECIDED) < _ROUNDING for c in changes for p in (c.before, c.after) if p),
        "num_questions": sum(1 for c in comparisons for _ in after.labeler.questions(c)),
        "num_asked": memory.num_asked - (num_asked_old if same_judge else 0),
        "num_asked_old": num_asked_old,
    }


def _principles(before: Bench, after: Bench, comparison: Comparison) -> tuple[str, ...]:
    """Ids of the principles drawn for a comparison by which it is not asked the same, with the same say, any more."""
    if before.labeler.drawn(comparison) == after.labeler.drawn(comparison):
        return ()
    old, new = (_shown(bench, after.labeler.judge, comparison) for bench in (before, after))
    return tuple(sorted(name for name in old | new if old.get(name) != new.get(name)))


def _shown(bench: Bench, judge: Judge, comparison: Comparison) -> dict[str, list[object]]:
    """How much each principle drawn counts, and all that `judge` would be shown by it."""
    weights = bench.labeler.weights()
    shown: dict[str, list[object]] = {}
    for question in bench.labeler.questions(comparison):
        name = question.principle.id
        shown.setdefault(name, [weights[name]]).append(judge.render(question))
    return shown


def _predicted(bench: Bench, comparisons: Sequence[Comparison], memory: Memory, title: str) -> dict[str, Judgment]:
    """What the labeler of `bench` would say, by what its judge remembers and is asked now."""
    questions: list[Question] = []
    ends = []
    for c in comparisons:
        questions += bench.labeler.questions(c)
        ends.append(len(questions))
    rows = memory.ask(questions, title)
    starts = [0, *ends]
    return {
        c.id: bench.labeler.judgment(c, rows[start:end])
        for c, start, end in zip(comparisons, starts, ends, strict=False)
    }


# --- revisions --------------------------------------------------------------------------------------------------------


def _revisions(before: Bench, after: Bench, folders: dict[str, Path]) -> dict[str, Any]:
    """The fields of a Diff that are about revisions."""
    prompts = read_records(folders["data"] / "red_team.jsonl", Prompt)
    stages = [config.build(bench.settings, ["revise"])["revise"] for bench in (before, after)]
    old, new = (stage.drawn(prompts) for stage in stages)
    shown = stages[1].shown
    touched = [
        prompt
        for i, prompt in enumerate(prompts)
        if any(a[i] != b[i] and shown(prompt, a[i]) != shown(prompt, b[i]) for a, b in zip(old, new, strict=True))
    ]
    changes: list[Change] = []
    num_revised = 0
    if touched:
        known = folders["revise"] if _made_under(before, "revise", folders["revise"]) else None
        steps = _by_id(known or revised(before, touched, folders["data"], "diff").path)
        fresh = revised(after, touched, folders["data"], "diff")
        num_revised = 0 if fresh.cached else len(touched)
        new_steps = _by_id(fresh.path)
        told = {s.prompt.id for name, s in steps.items() if name in new_steps}
        tell_failed(len(touched) - len(told), len(touched), "prompts to revise", "diff")
        for name, step in new_steps.items():
            if name in steps and (step.revision, step.rejected) != (steps[name].revision, steps[name].rejected):
                changes.append(Change(steps[name], step))
    return {
        "revisions": tuple(changes),
        "num_steps": len(old) * len(prompts),
        "num_prompts": len(prompts),
        "num_revised": num_revised,
    }


def _by_id(folder: Path) -> dict[str, Revision]:
    return {revision.id: revision for revision in read_records(folder / "revisions.jsonl", Revision)}
