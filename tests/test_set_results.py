"""Evaluation sets in the report: figures by policy, differences, groups."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_runs import make_runs

from cai.records import read_json, write_json, write_rows
from cai.report.formulas import wilson
from cai.report.layout import render
from cai.report.page import as_json, gather, pictures

Rows = Sequence[Mapping[str, Any]]
STAGES = ("sets_base", "sets_sl_cai", "sets_policy")


def with_sets(folders: Sequence[Path], sets: Mapping[str, Mapping[str, Rows]], *, best_of_n: bool = False) -> None:
    """Add outputs of the evaluation_sets steps to run folders: `sets[stage][name]` are the rows."""
    for folder in folders:
        run = read_json(folder / "run.json")
        for stage, own in sets.items():
            path = folder / "store" / stage
            for name, rows in own.items():
                write_rows(path / f"{name}.jsonl", rows)
            told = {name: {"kind": "MultipleChoice", "num_items": len(rows), "means": {}} for name, rows in own.items()}
            write_json(path / "sets.json", {"sets": told, "best_of_n": best_of_n and stage == "sets_policy"})
            run["stages"][stage] = {"fingerprint": f"{folder.name}-{stage}", "path": str(path)}
        write_json(folder / "run.json", run)


def answers(rate: float, num: int = 100) -> Rows:
    right = round(rate * num)
    return [
        {"item": f"q{i}", "group": "a" if i % 2 else "b", "correct": float(i < right), "p_correct": 0.6, "first": 0.5}
        for i in range(num)
    ]


def documents(loss: float) -> Rows:
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, size=60)
    return [{"item": f"d{i}", "group": "text", "nats": float(loss * n), "weight": int(n)} for i, n in enumerate(tokens)]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return make_runs(tmp_path, num_prompts=8, num_comparisons=8)


@pytest.mark.slow
def test_figures_differences_and_groups(folders: list[Path]) -> None:
    rates = dict(zip(STAGES, (0.5, 0.7, 0.99), strict=True))
    losses = dict(zip(STAGES, (1.0, 1.1, 1.3), strict=True))
    with_sets(folders, {s: {"hhh": answers(rates[s]), "tax": documents(losses[s])} for s in STAGES}, best_of_n=True)
    report = gather(folders, num_draws=500)
    hhh, tax = report.sets
    assert [c.name for c in hhh.columns] == ["correct", "p_correct", "first"] and [c.name for c in tax.columns] == [
        "perplexity"
    ]
    assert hhh.figures["Base"]["correct"].value == 0.5 and hhh.figures["RLAIF"]["correct"].method == "wilson"
    assert (hhh.figures["RLAIF"]["correct"].low, hhh.figures["RLAIF"]["correct"].high) == pytest.approx(wilson(99, 100))
    assert hhh.figures["Base"]["p_correct"].value == pytest.approx(0.6)
    better = hhh.differences["SL-CAI - Base"]["correct"]
    assert better.value == pytest.approx(0.2) and better.low > 0.1 and better.p_value is not None
    assert hhh.groups["Base"].keys() == {"a", "b"} and tax.groups == {}
    assert tax.figures["RLHF"]["perplexity"].value == pytest.approx(math.exp(1.3))
    taxed = tax.differences["RLHF - SL-CAI"]["perplexity"]
    assert taxed.value == pytest.approx(math.exp(1.3) - math.exp(1.1)) and taxed.excludes_zero
    assert hhh.best_of_n == ("RLHF", "RLAIF")
    page = render(report, dict.fromkeys(pictures(report), ""))
    assert '<section id="sets">' in page and '<a href="#sets">' in page
    assert "the model that the best of n samples are taken from" in page
    told = as_json(report)["sets"]
    assert told[0]["figures"]["Base"]["correct"]["value"] == 0.5


def test_without_sets_there_is_no_such_part(folders: list[Path]) -> None:
    report = gather(folders, num_draws=50)
    page = render(report, dict.fromkeys(pictures(report), ""))
    assert report.sets == () and 'id="sets"' not in page and "#sets" not in page


def test_sets_alone_are_shown(folders: list[Path]) -> None:
    """Without any step that evaluates responses, as where a base model is only asked questions."""
    with_sets(folders[:1], {"sets_base": {"hhh": answers(0.5)}})
    run = read_json(folders[0] / "run.json")
    write_json(folders[0] / "run.json", {**run, "stages": {"sets_base": run["stages"]["sets_base"]}})
    report = gather(folders[:1], num_draws=50)
    assert report.policies == () and report.sets[0].figures["Base"]["correct"].value == 0.5
    assert '<section id="sets">' in render(report, dict.fromkeys(pictures(report), ""))


def test_a_set_that_one_arm_has_is_shown_for_it(folders: list[Path]) -> None:
    with_sets(folders[:1], {"sets_policy": {"hhh": answers(0.5)}})
    (hhh,) = gather(folders, num_draws=50).sets
    assert list(hhh.figures) == ["RLHF"] and hhh.differences == {}
