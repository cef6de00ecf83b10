from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import Numbers, Sum

from cai.errors import ConfigError, DataError
from cai.pipeline import RECIPE, Planned, line, plan, plan_fingerprint, run_step, run_steps, summary
from cai.records import read_json
from cai.stages.base import Stage
from cai.store import Entry, Store

NODES: dict[str, dict[str, object]] = {
    "data": {"_target_": "tiny.Numbers", "count": 3, "seed": 0},
    "revise": {"_target_": "tiny.Sum", "factor": 2.0},
}


def planned(count: int = 3, factor: float = 2.0, text: str | None = None) -> list[Planned]:
    nodes = {
        "data": {**NODES["data"], "count": count},
        "revise": {**NODES["revise"], "factor": factor, "text": text},
    }
    stages: dict[str, Stage] = {"data": Numbers(count=count, seed=0), "revise": Sum(factor=factor, text=text)}
    return plan(["data", "revise"], nodes, stages)


def run(steps: list[Planned], store: Store) -> dict[str, Entry]:
    return run_steps(steps, store, lambda _: None)


def test_recipe_names_are_unique_and_inputs_come_first() -> None:
    seen: set[str] = set()
    for step in RECIPE:
        assert step.name not in seen
        assert set(step.inputs.values()) <= seen, step.name
        seen.add(step.name)


def test_plan_keeps_the_order_of_the_recipe() -> None:
    stages: dict[str, Stage] = {"data": Numbers(count=3, seed=0), "revise": Sum()}
    assert [p.step.name for p in plan(["revise", "data"], NODES, stages)] == ["data", "revise"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["data", "revize"], r"steps: unknown step 'revize'; did you mean 'revise'\? Allowed: .*, revise, .*"),
        (["revise"], r"steps: 'revise' needs 'data', which is not among revise"),
    ],
)
def test_plan_refuses(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(names, NODES, {"data": Numbers(count=3, seed=0), "revise": Sum()})


def test_plan_reads_texts_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        planned(text=str(tmp_path / "missing.txt"))


def test_run_and_run_again(tmp_path: Path) -> None:
    first = run(planned(), Store(tmp_path))
    assert (first["revise"].path / "deep" / "sum.txt").read_text() == "6.0"
    second = run(planned(), Store(tmp_path))
    assert [entry.cached for entry in second.values()] == [True, True]
    assert {n: e.fingerprint for n, e in first.items()} == {n: e.fingerprint for n, e in second.items()}


def test_a_change_recomputes_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run(planned(), store)
    assert [e.cached for e in run(planned(factor=3.0), store).values()] == [True, False]
    assert [e.cached for e in run(planned(count=4), store).values()] == [False, False]
    (tmp_path / "text").write_text("one")
    run(planned(text=str(tmp_path / "text")), store)
    (tmp_path / "text").write_text("two")
    assert [e.cached for e in run(planned(text=str(tmp_path / "text")), store).values()] == [True, False]


def test_version_of_a_stage_is_part_of_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    run(planned(), store)
    monkeypatch.setattr(Sum, "version", 2)
    assert [e.cached for e in run(planned(), store).values()] == [True, False]


def test_versions_of_what_computes_are_part_of_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    before = plan_fingerprint(planned())
    material = read_json(run(planned(), store)["data"].path / "MANIFEST.json")["material"]
    assert material["packages"].keys() == {"cai", "torch", "transformers", "trl"}
    monkeypatch.setattr("cai.pipeline.version", lambda name: "99" if name == "torch" else "1")
    assert [e.cached for e in run(planned(), store).values()] == [False, False]
    assert plan_fingerprint(planned()) != before


def test_a_plan_is_known_by_what_decides_its_outputs(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one")
    plans = {plan_fingerprint(planned(text=text)) for text in (None, str(tmp_path / "text"))}
    plans |= {plan_fingerprint(planned(count=4)), plan_fingerprint(planned(factor=3.0))}
    assert len(plans) == 4 and plan_fingerprint(planned()) in plans
    (tmp_path / "text").write_text("two")
    assert plan_fingerprint(planned(text=str(tmp_path / "text"))) not in plans


def test_one_stage_under_two_step_names_is_computed_once(tmp_path: Path) -> None:
    steps = planned()
    store = Store(tmp_path)
    data = run_step(steps[0], {}, store)
    assert run_step(steps[1], {"data": data}, store).cached is False
    assert run_step(steps[1], {"data": data}, store).cached is True


def test_moved_package_keeps_fingerprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint(package: str) -> str:
        monkeypatch.setattr("cai.pipeline.PACKAGE", Path(package))
        node: Mapping[str, object] = {"_target_": "tiny.Numbers", "count": 1, "seed": 0, "path": [f"{package}/model"]}
        (step,) = plan(["data"], {"data": node}, {"data": Numbers(count=1, seed=0)})
        return run_step(step, {}, Store(tmp_path)).fingerprint

    assert fingerprint("/home/one/cai") == fingerprint("/opt/two/cai")


def test_lines_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    run(planned(count=1234), store)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert out[0].split()[0] == "data" and "1,234 tokens" in out[0] and "num_computed 1,234" in out[0]
    entries = run(planned(count=1234), store)
    assert "cached" in line("data", entries["data"])
    table = summary(entries).splitlines()
    assert [row.split()[0] for row in table] == ["step", "data", "revise", "this"]
    assert table[1].endswith("1,234  cached")
    assert table[-1].split() == ["this", "run", "0.0", "s", "0"]


def test_costs_of_what_was_interrupted_are_told_as_a_lower_bound(tmp_path: Path) -> None:
    entries = run(planned(count=1234), Store(tmp_path))
    resumed = replace(entries["data"], resumed=True, seconds=7200.0)
    assert "at least 2 h 0 min at least 1,234 tokens" in " ".join(line("data", resumed).split())
    table = summary({**entries, "data": resumed}).splitlines()
    assert table[1].endswith("computed, resumed: at least this") and "at least 2 h 0 min" in table[-1]
    assert "at least" not in summary(entries)


def test_what_is_done_is_told_after_every_step(tmp_path: Path) -> None:
    told: list[list[str]] = []
    run_steps(planned(), Store(tmp_path), lambda entries: told.append(list(entries)))
    assert told == [["data"], ["data", "revise"]]
