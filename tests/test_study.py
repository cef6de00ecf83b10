"""Labelers compared: agreement, place and length measured back, calibration, cost; the page and its JSON."""

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from worlds import FunctionEngine, WordCount, ai_labeler, comparison, run

from cai import cli
from cai.errors import DataError
from cai.labelers.base import Labeler
from cai.labelers.simulated import SimulatedLabeler
from cai.records import read_json, read_rows, write_json, write_records
from cai.report.bias import fit
from cai.report.study import Study, gather_study, write_study
from cai.stages.label import Label
from cai.types import Comparison, Feedback, Judgment, Pair, Provenance


def comparisons(num: int = 500) -> list[Comparison]:
    rng = random.Random(0)
    return [
        comparison(
            f"c{i}", *(" ".join(rng.choices(["a", "longish", "words"], k=rng.randint(1, 9))) + f" {k}" for k in "xy")
        )
        for i in range(num)
    ]


def labelled(
    folder: Path, name: str, labeler: Labeler, items: Sequence[Comparison] | None = None, *, seed: int = 0,
    facts: dict[str, float] | None = None, scorer: Any = "words",
) -> Path:  # fmt: skip
    """A run folder with the stages sample and label."""
    items = comparisons() if items is None else items
    sample, output = folder / f"sample-{len(items)}-{seed}", folder / "store" / f"{name}-{seed}"
    write_records(sample / "comparisons.jsonl", items)
    found = run(Label(labeler=labeler, scorer=WordCount() if scorer == "words" else scorer), {"sample": sample}, output)
    home = folder / "runs" / f"{name}-seed={seed}"
    entries = {
        stage: {
            "fingerprint": path.name,
            "path": str(path),
            "seconds": 2.0,
            "facts": {**(found if path == output else {}), **(facts or {})},
        }
        for stage, path in (("sample", sample), ("label", output))
    }
    write_json(
        home / "run.json", {"name": name, "arm": name, "seed": seed, "command": ["cai", "run", name], "stages": entries}
    )
    return home


def people(**settings: Any) -> SimulatedLabeler:
    return SimulatedLabeler(**{"scorer": WordCount(), "seed": 3, "overlap": 1.0, "agreement": 0.65, **settings})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """People, people who are led astray, and a judge."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        judge = ai_labeler(folder, FunctionEngine())
        swayed = people(position_bias=0.9, length_bias=0.6, agreement=0.6, seed=4)
        return [
            labelled(folder, "people", people()),
            labelled(folder, "swayed", swayed),
            labelled(
                folder,
                "judge",
                judge,
                facts={"prompt_tokens": 40_000.0, "new_tokens": 10_000.0, "flops": 1e9, "cost": 0.25},
            ),
        ]


@pytest.fixture(scope="module")
def study(runs: list[Path]) -> Study:
    return gather_study(runs, num_draws=500)


def by_name(study: Study, name: str) -> Any:
    return next(x for x in study.labelers if x.labels.arm == name)


# --- agreement --------------------------------------------------------------------------------------------------------


def votes(run_folder: Path) -> dict[str, bool]:
    """Whether the label prefers the first response, by comparison, even ones left out."""
    path = Path(read_json(run_folder / "run.json")["stages"]["label"]["path"])
    rows = read_rows(path / "preferences.jsonl")
    return {row["id"]: row["pairs"][0]["p"] > 0.5 for row in rows if row["pairs"][0]["p"] != 0.5}


def test_the_matrix_has_every_two_labelers_as_scikit_learn_has_them(runs: list[Path], study: Study) -> None:
    labels = {path.name.split("-")[0]: votes(path) for path in runs}
    for a, b in itertools.combinations(labels, 2):
        both = sorted(labels[a].keys() & labels[b].keys())
        first, second = [labels[a][k] for k in both], [labels[b][k] for k in both]
        found = study.agreement(a, b)
        assert found is study.agreement(b, a) and found is not None and found.kappa and found.alpha
        assert found.raw.value == pytest.approx(np.mean(np.array(first) == np.array(second)))
        assert found.raw.num == len(both)
        assert found.kappa.value == pytest.approx(cohen_kappa_score(first, second))
        alpha = krippendorff.alpha(np.array([first, second], dtype=float), level_of_measurement="nominal")
        assert found.alpha.value == pytest.approx(alpha)
        assert found.raw.low < found.raw.value < found.raw.high


def test_alpha_of_all_labelers_is_krippendorffs_with_people_missing(runs: list[Path], study: Study) -> None:
    labels = [votes(path) for path in runs]
    every = sorted(set().union(*labels))
    data = [[float(own[k]) if k in own else np.nan for k in every] for own in labels]
    assert study.alpha is not None
    assert study.alpha.value == pytest.approx(krippendorff.alpha(np.array(data), level_of_measurement="nominal"))


def test_two_people_are_on_the_diagonal_and_gold_beside(study: Study) -> None:
    own = study.agreement("people", "people")
    assert own is not None and own.raw.value == pytest.approx(0.65, abs=0.05)
    assert study.agreement("judge", "judge") is None, "a model is one rater"
    gold = {name: by_name(study, name).labels.gold.raw.value for name in study.names}
    assert gold["people"] > gold["swayed"] > 0.5 and gold["judge"] == pytest.approx(0.5, abs=0.1)
    assert by_name(study, "people").labels.gold.kappa is not None


# --- place and length -------------------------------------------------------------------------------------------------


def test_what_sways_people_is_measured_back(study: Study) -> None:
    swayed = by_name(study, "swayed")
    assert swayed.place.log_odds.value == pytest.approx(0.9, abs=0.25)
    assert swayed.length.log_odds.value == pytest.approx(0.6, abs=0.35)
    assert swayed.place.log_odds.low < 0.9 < swayed.place.log_odds.high
    assert swayed.place.share.value > 0.6
    straight = by_name(study, "people")
    assert straight.place.share is None and straight.place.log_odds is None, "nobody knows what was shown first"
    assert straight.length.log_odds.low < 0 < straight.length.log_odds.high
    assert straight.length.share.value > 0.7, "the longer one wins, as gold counts words"


def test_a_regression_with_errors_by_prompt_by_hand() -> None:
    """One column of ones: the log-odds of the mean, and the standard error of the clusters' sums."""
    clusters = [f"p{i // 2}" for i in range(40)]
    outcome = np.array([1.0, 1.0] * 12 + [0.0, 0.0] * 4 + [1.0, 0.0] * 4)
    (found,) = fit(np.ones((40, 1)), outcome, clusters) or []
    mean = float(outcome.mean())
    assert found.value == pytest.approx(math.log(mean / (1 - mean)))
    sums = (outcome - mean).reshape(20, 2).sum(axis=1)
    error = math.sqrt((sums**2).sum() * 20 / 19) / (40 * mean * (1 - mean))
    assert found.high - found.value == pytest.approx(1.959964 * error)
    alone = fit(np.ones((40, 1)), outcome, [str(i) for i in range(40)]) or []
    assert alone[0].high - alone[0].value < found.high - found.value, "verdicts on one prompt are alike"


def test_a_regression_finds_what_made_the_outcomes() -> None:
    rng = np.random.default_rng(0)
    columns = np.column_stack([np.ones(6000), rng.normal(size=6000), 1000 * rng.normal(size=6000)])
    truth = np.array([0.4, -0.8, 0.001])
    outcome = (rng.random(6000) < 1 / (1 + np.exp(-columns @ truth))).astype(float)
    found = fit(columns, outcome, [str(i) for i in range(6000)]) or []
    assert [e.value for e in found] == pytest.approx(truth, rel=0.15)
    assert all(e.low < t < e.high for e, t in zip(found, truth, strict=True))


def test_no_finite_answer_is_none() -> None:
    x = np.linspace(-1, 1, 50)
    names = [str(i) for i in range(50)]
    assert fit(x[:, None], (x > 0).astype(float), names) is None, "it decides by itself"
    assert fit(np.column_stack([x, 2 * x]), np.full(50, 0.5), names) is None, "two columns that say the same"
    assert fit(np.zeros((50, 0)), np.full(50, 0.5), names) is None
    assert fit(x[:, None], np.full(50, 0.5), ["one"] * 50) is None


class Human:
    """Feedback as a person gives it: the first shown, three times of four."""

    name = "human"

    def texts(self) -> dict[str, str]:
        return {}

    def label(self, comparisons: Sequence[Comparison], *, done: Any = ()) -> Any:
        for number, c in enumerate(comparisons):
            shown = (0, 1) if number % 3 else (1, 0)
            best = shown[0] if number % 4 else shown[1]
            yield Judgment(
                id=f"{c.id}/0",
                comparison_id=c.id,
                labeler=self.name,
                person="ann",
                pairs=(Pair(0, 1, float(best == 0)),),
                feedback=Feedback(shown=shown, ranking=((best,), (1 - best,))),
                provenance=Provenance(labeled_at="2026-01-01T00:00:00Z", seconds=8.0),
            )

    def facts(self) -> dict[str, float]:
        return {}


def test_the_order_that_a_person_saw_is_in_the_feedback(workdir: Path) -> None:
    (human,) = gather_study([labelled(workdir, "human", Human())], num_draws=200).labelers
    assert human.place.share is not None and human.place.share.value == pytest.approx(0.75)
    assert human.place.log_odds is not None and human.place.log_odds.value == pytest.approx(math.log(3), abs=0.05)
    assert human.spent.labels_per_second == pytest.approx(1 / 8)
    assert human.spent.cost is None and human.spent.per_thousand(human.spent.people) == pytest.approx(8000)


# --- calibration, cost ------------------------------------------------------------------------------------------------


def test_calibration_is_of_soft_labels(study: Study) -> None:
    judge = by_name(study, "judge")
    assert judge.calibration and 0 <= judge.calibration_error.value < 0.3
    assert by_name(study, "people").calibration == () and by_name(study, "people").calibration_error is None


def test_cost_is_for_a_thousand_labels(study: Study) -> None:
    spent = by_name(study, "judge").spent
    assert spent.num_labels == 500
    assert spent.per_thousand(spent.tokens) == pytest.approx(100_000)
    assert spent.per_thousand(spent.cost) == pytest.approx(0.5)
    assert spent.labels_per_second == pytest.approx(250)
    assert by_name(study, "people").spent.num_labels == 1000, "a second person's, too"
    assert by_name(study, "people").spent.cost is None


# --- page, JSON, command ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_is_whole_and_the_same_every_time(runs: list[Path], tmp_path: Path) -> None:
    first, again = (write_study(runs, tmp_path / name) for name in "ab")
    assert first.read_bytes() == again.read_bytes()
    page = first.read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    for part in ("people", "swayed", "judge", "Krippendorff", "Figure 3", "for<br>1,000 labels"):
        assert part in page
    found = read_json(tmp_path / "a" / "labelers.json")
    assert [x["labels"]["arm"] for x in found["labelers"]] == ["people", "swayed", "judge"]
    assert len(found["between"]) == 3 and found["alpha"]["low"] < found["alpha"]["high"]
    assert found["labelers"][2]["spent"]["per_thousand"]["tokens"] == pytest.approx(100_000)


def test_seeds_of_one_labeler_are_one_labeler(workdir: Path) -> None:
    items = {
        seed: [comparison(f"{seed}-{c.id}", *(r.text for r in c.responses)) for c in comparisons(60)] for seed in (1, 2)
    }
    folders = [labelled(workdir, name, people(seed=n), items[seed], seed=seed)
               for name, n in (("one", 5), ("two", 6)) for seed in (1, 2)]  # fmt: skip
    found = gather_study(folders, num_draws=200)
    assert found.names == ["one", "two"] and found.num_comparisons == 120
    between = found.agreement("one", "two")
    assert between is not None and sorted(between.raw.per_seed) == [1, 2]


def test_other_comparisons_or_none_are_one_line(
    runs: list[Path], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = labelled(workdir, "other", people(), comparisons(40))
    with pytest.raises(DataError, match=r"labelled other comparisons than .*people-seed=0"):
        gather_study([runs[0], other])
    none = workdir / "none"
    write_json(none / "run.json", {"seed": 0, "stages": {}})
    assert cli.main(["compare-labelers", str(none)]) == 2
    assert "has no stage 'sample'; labelers are compared on what they labelled" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_writes_the_page(runs: list[Path], workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare-labelers", *map(str, runs), "--output", "page"]) == 0
    assert capsys.readouterr().out == "page/labelers.html\n"
    assert (workdir / "page" / "labelers.json").is_file()
