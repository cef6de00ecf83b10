"""`cai constitution test|preview|diff|lint`: what the workbench finds, on the terminal."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cai.engines.journaled import unknown_line
from cai.types import Comparison
from cai.visible import visible
from cai.workbench import show
from cai.workbench.bench import Bench, bench, side, unknown_words
from cai.workbench.runs import command

if TYPE_CHECKING:
    from cai.workbench.diff import Diff, LabelChange
    from cai.workbench.preview import Preview
    from cai.workbench.wording import Finding

__all__ = ["diff", "lint", "preview", "test"]

_STYLES: Final = {"pass": "green", "FAIL": "bold red", "flips": "bold red", "settles": "green", "fades": "yellow"}
_SHOWN: Final = 3  # revisions, and labels, that a diff shows


def test(name: str, overrides: Sequence[str]) -> int:
    """Judge the constitution's own examples; 1 when one fails."""
    from cai.workbench.examples import judge_examples

    own = bench(name, overrides)
    out = show.console()
    if not own.constitution.examples:
        out.print(f"{own.constitution.name}: no examples, so nothing is tested; add some (docs/constitutions.md)")
        return 1
    strange = _strange(own, "test", [t for e in own.constitution.examples for t in (e.prompt, e.better, e.worse)])
    print("".join(f"{line}\n" for line in strange), end="", file=sys.stderr)
    outcomes = judge_examples(own)
    rows: list[list[show.Cell]] = []
    for o in outcomes:
        verdict = "pass" if o.passes else "FAIL"
        margin = None if o.asked.p is None else o.asked.p - 0.5
        rows.append(
            [
                (verdict, _STYLES[verdict]),
                o.example.principle,
                show.signed(margin),
                show.percent(o.asked.shown_first),
                show.percent(o.asked.shown_second),
                o.example.prompt,
            ]
        )
    show.table(out, ["", "principle", "margin", "better first", "better second", "prompt"], rows, numbers=(2, 3, 4))
    passed = sum(outcome.passes for outcome in outcomes)
    passing = f"{own.constitution.name}: {passed} of {len(outcomes)} examples pass; {_asked(own)}"
    out.print("\n" + "\n".join([*strange, passing]))
    for o in outcomes:
        if not o.passes:
            show.heading(out, f"FAIL {o.example.principle}: {_why(o.asked.shown_first, o.asked.shown_second)}")
            for label, text in (("prompt", o.example.prompt), ("better", o.example.better), ("worse", o.example.worse)):
                show.item(out, label, text)
    return int(passed < len(outcomes))


def _why(shown_first: float | None, shown_second: float | None) -> str:
    if shown_first is None or shown_second is None:
        return "the judge's answer was ill-formed"
    if (shown_first - 0.5) * (shown_second - 0.5) < 0:
        return "the judge prefers what it is shown first (or last), whatever it is"
    return "the judge prefers the worse response"


def preview(name: str, prompts: Sequence[str], num: int, overrides: Sequence[str]) -> int:
    """Show what a constitution makes of a few prompts."""
    from cai.workbench.preview import preview as previewed

    own = bench(name, overrides)
    found = previewed(own, prompts, num)
    out = show.console()
    for number, one in enumerate(found, start=1):
        show.heading(out, f"{number} of {len(found)}  {' '.join(one.prompt.tags)}")
        _show_preview(one)
    asked = [turn.content for one in found for turn in one.prompt.turns]
    out.print("\n" + "\n".join([*_strange(own, "preview", asked), f"{own.constitution.name}: {_asked(own)}"]))
    return 0


def _strange(bench: Bench, title: str, texts: Sequence[str]) -> list[str]:
    """A line about words of the constitution's principles, and of `texts`, that the model does not know, if any."""
    own = [text for p in bench.constitution.principles for text in (p.statement, p.critique, p.revision, p.comparison)]
    counts = unknown_words(bench, [text for text in [*own, *texts] if text])
    return [visible(unknown_line(counts, title))] if counts else []


def _show_preview(one: "Preview") -> None:
    out = show.console()
    for turn in one.prompt.turns:
        show.item(out, "prompt" if turn.role == "user" else turn.role, (turn.content, "bold"))
    show.item(out, "response", one.steps[0].response)
    for step in one.steps:
        out.print(f"  {step.step}. {step.principle_id}", style="cyan")
        if step.critique is not None:
            show.item(out, "critique", step.critique, indent=5, width=9)
        unused = f"  (not used: {step.rejected.replace('_', ' ')})" if step.rejected else ""
        same = "the same" if step.revision == step.response else step.revision
        show.item(out, "revision", f"{same}{unused}", indent=5, width=9)
    if not one.labels:
        out.print("  no labels: the response is as it was")
        return
    words = {1: ("revision", "green"), -1: ("response", "red"), 0: ("undecided", "dim")}
    head = ["  principle", "axis", "prefers", "p(revision)", "revision first", "response first"]
    rows: list[list[show.Cell]] = [
        [
            f"  {a.principle.id}",
            a.principle.axis,
            words[side(a.p)],
            *map(show.percent, (a.p, a.shown_first, a.shown_second)),
        ]
        for a in one.labels
    ]
    show.table(out, head, rows, numbers=(3, 4, 5))


def diff(old: str, new: str, run: str | None, overrides: Sequence[str]) -> int:
    """Show what an edit changes before anything is trained."""
    from cai.workbench.diff import diff as compared

    found = compared(old, new, overrides, Path(run) if run else None)
    out = show.console()
    if found is None:
        out.print(f"no difference: the principles of {old} and {new} are the same")
        return 0
    show.heading(out, f"Principles, {old} to {new}")
    show.table(out, ["principle", "axis", "edit"], [[e.principle, e.axis, e.what] for e in found.edits])
    if not found.edits:
        out.print("none differs; the examples that the judge is shown do")
    _show_revisions(found)
    _show_labels(found)
    old_labels = f", and {found.num_asked_old:,} about the old labels" if found.num_asked_old else ""
    out.print(
        f"\ncomputed: {found.num_asked:,} of {found.num_questions:,} questions to the judge{old_labels}; "
        f"revisions of {found.num_revised:,} of {found.num_prompts:,} prompts. Everything else was known."
    )
    return 0


def _show_revisions(found: "Diff") -> None:
    out = show.console()
    come = "comes" if len(found.revisions) == 1 else "come"
    show.heading(out, f"Revisions: {len(found.revisions):,} of {found.num_steps:,} steps {come} out otherwise")
    by_principle = Counter((c.before.principle_id, c.after.principle_id) for c in found.revisions)
    rows = [[a if a == b else f"{a}, now {b}", f"{count:,}"] for (a, b), count in by_principle.most_common()]
    if rows:
        show.table(out, ["drawn", "steps"], rows, numbers=(1,))
    for change in found.revisions[:_SHOWN]:
        out.print()
        show.item(out, "prompt", (change.before.prompt.turns[-1].content, "bold"))
        for label, step in (("before", change.before), ("after", change.after)):
            show.item(out, label, f"{step.revision}{f'  (not used: {step.rejected})' if step.rejected else ''}")


def _show_labels(found: "Diff") -> None:
    out = show.console()
    kinds = Counter(change.kind for change in found.labels)
    show.heading(
        out,
        f"Labels: of {found.num_pairs:,} the edit touches {len(found.labels):,}; {kinds['flips']:,} flip to the other "
        f"response, {kinds['settles']:,} settle, {kinds['fades']:,} fade",
    )
    if found.labels:
        head = ["touched", "flip", "settle", "fade", "mean change"]
        by_principle = _grouped(found.labels, {name: name for name in found.axes})
        rows = [[name, found.axes[name], *counts] for name, counts in by_principle]
        show.table(out, ["principle", "axis", *head], rows, numbers=range(2, 7))
        out.print()
        show.table(out, ["axis", *head], [[a, *c] for a, c in _grouped(found.labels, found.axes)], numbers=range(1, 6))
    moved = [change for change in found.labels if change.kind != "stays"]
    for change in sorted(moved, key=lambda c: (c.kind != "flips", -_moved(c)))[:_SHOWN]:
        _show_change(change)
    if found.num_close:
        out.print(f"\n{found.num_close:,} of these labels are decided or not by rounding; a run may say otherwise.")


def _grouped(labels: Iterable["LabelChange"], group_of: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Counts of changes by group of the principles that they are due to, as cells of a table."""
    groups: dict[str, list[LabelChange]] = {}
    for change in labels:
        for group in dict.fromkeys(group_of[name] for name in change.principles):
            groups.setdefault(group, []).append(change)
    found = []
    for group in sorted(groups):
        kinds = Counter(change.kind for change in groups[group])
        mean = sum(map(_moved, groups[group])) / len(groups[group])
        counts = (len(groups[group]), kinds["flips"], kinds["settles"], kinds["fades"])
        found.append((group, [*(f"{count:,}" for count in counts), f"{100 * mean:.1f}"]))
    return found


def _moved(change: "LabelChange") -> float:
    """How far the probability moved; as far as can be where there is no label."""
    return 0.5 if change.before is None or change.after is None else abs(change.after - change.before)


def _show_change(change: "LabelChange") -> None:
    out = show.console()
    out.print()
    show.item(out, "label", (f"{change.kind} ({', '.join(change.principles)})", _STYLES[change.kind]))
    _show_pair(change.comparison, change.pair)
    first = f"{show.percent(change.before)} before, {show.percent(change.after)} now"
    show.item(out, "p(first)", first)


def _show_pair(comparison: Comparison, pair: tuple[int, int]) -> None:
    out = show.console()
    show.item(out, "prompt", (comparison.prompt.turns[-1].content, "bold"))
    for label, index in zip(("first", "second"), pair, strict=True):
        show.item(out, label, comparison.responses[index].text)


def lint(name: str, run: str | None, num: int, overrides: Sequence[str]) -> int:
    """Show what to look at in a constitution: the texts first, then what the labels say."""
    from cai.workbench import lint as linting
    from cai.workbench.wording import text_findings

    folder = Path(run) if run else None
    own = bench(name, [*(command(folder) if folder else ()), *overrides])
    out = show.console()
    texts = text_findings(own.constitution)
    _show_findings("Texts", texts)
    for line in _strange(own, "lint", []):
        out.print(line)
    data = linting.data_of(own, folder)
    pairs = linting.pairs_to_judge(own, data, num, folder)
    tags = linting.tag_findings(own, data, pairs)
    _show_findings("Tags", tags)
    answers = linting.answers(own, pairs)
    about = linting.label_findings(answers)
    _show_findings("Labels", about)
    found = show.counted(len(texts + tags + about), "finding")
    judged = len({answer.comparison.id for asked in answers.values() for answer in asked})
    out.print(f"\n{own.constitution.name}: {found}, on {show.counted(judged, 'pair')}; {_asked(own)}")
    return 0


def _show_findings(title: str, found: Sequence["Finding"]) -> None:
    out = show.console()
    show.heading(out, f"{title}: {show.counted(len(found), 'finding')}")
    for finding in found:
        show.item(out, finding.kind, (" and ".join(finding.principles), "cyan"), width=18)
        show.item(out, "", finding.evidence, width=18)
        width = max((len(label) for label, _ in finding.example), default=0)
        for label, text in finding.example:
            show.item(out, label, text, indent=4, width=width)


def _asked(bench: Bench) -> str:
    asked, known = show.counted(bench.memory.num_asked, "question"), show.counted(bench.memory.num_reused, "answer")
    return f"{asked} asked, {known} known"
