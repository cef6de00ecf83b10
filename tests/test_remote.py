"""What stages and labelers make of engines that ask a server: receipts, failures with their reason, kept answers."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import FunctionEngine, WordCount, ai_labeler, comparison, data_folder, family, model_folder, rules, run

from cai.engines.base import EnginePrompt, Generation, Receipt, RemoteEngine, Sampling, Scored, serves_by_name
from cai.errors import ConfigError
from cai.labelers.journaled import label_journaled
from cai.labelers.rating import JudgeReward
from cai.labelers.statistics import served
from cai.models.digest import model_digest
from cai.records import read_json, read_records, read_rows, write_records
from cai.stages.evaluate import Evaluate
from cai.stages.evaluation_sets import EvaluationSets
from cai.stages.label import Label
from cai.stages.revise import Revise
from cai.stages.sample import Sample
from cai.types import Comparison, Demonstration, Judgment, Prompt, Provenance, Revision, Turn


class ServerEngine(FunctionEngine):
    """FunctionEngine on the far side of a wire: `broken` says of a prompt's text (and key) why it gets no answer."""

    serves_by_name = True

    def __init__(self, broken: Callable[[str], str | None] = lambda text: None, **functions: Any) -> None:
        super().__init__(**functions)
        self.broken = broken
        self.folders: list[Path] = []

    def keep_in(self, folder: Path) -> None:
        """Remembered."""
        self.folders.append(folder)

    def receipt(self, text: str, mode: str) -> Receipt:
        """Two attempts, ten tokens, a cent."""
        failed = self.broken(text)
        took = {"seconds": 0.5, "prompt_tokens": 9, "new_tokens": 1, "cost": 0.01, "num_attempts": 2}
        provenance = Provenance(labeled_at="2026-01-01T00:00:00Z", mode=mode, **took)  # type: ignore[arg-type]
        return Receipt(provenance=provenance, attempts=("timeout", failed or "ok"), failed=failed, detail="why")

    def generate(
        self, prompts: Sequence[EnginePrompt], sampling: Sampling, *, seed: int, keys: Sequence[str],
        done: Collection[int] = (),
    ) -> Iterator[Generation]:  # fmt: skip
        """The function's texts, or none."""
        for one in super().generate(prompts, sampling, seed=seed, keys=keys, done=done):
            receipt = self.receipt(f"{prompts[one.index].text} {keys[one.index]}", "text")
            yield replace(one, receipt=receipt, text="" if receipt.failed else one.text)

    def score(self, prompts: Sequence[EnginePrompt], choices: Sequence[Sequence[str]]) -> Iterator[Scored]:
        """The function's numbers, backwards."""
        scores = self.choice_logprobs(prompts, choices)
        for index in reversed(range(len(prompts))):
            receipt = self.receipt(prompts[index].text, "logprob")
            yield Scored(index, np.full_like(scores[index], -math.inf) if receipt.failed else scores[index], receipt)


@pytest.fixture
def data(workdir: Path) -> Path:
    """Prompts of every kind."""
    return data_folder(workdir)


def judged(workdir: Path, engine: FunctionEngine, number: int = 1, **settings: Any) -> list[Judgment]:
    comparisons = [comparison(f"c{i}", "good", "bad", tags=("red_team",)) for i in range(number)]
    return list(ai_labeler(workdir, engine, **settings).label(comparisons))


def sampled(folder: Path, comparisons: Sequence[Comparison]) -> dict[str, Path]:
    write_records(folder / "sample" / "comparisons.jsonl", comparisons)
    return {"data": folder, "sample": folder / "sample"}


def test_the_protocol_tells_a_server_from_a_model_in_this_process() -> None:
    assert isinstance(ServerEngine(), RemoteEngine) and not isinstance(FunctionEngine(), RemoteEngine)
    assert serves_by_name(ServerEngine) and not serves_by_name(FunctionEngine)
    assert model_digest("llama3.2:3b", ServerEngine) == "served:llama3.2:3b"


def test_answers_are_those_of_the_same_model_here(workdir: Path) -> None:
    here, there = judged(workdir, FunctionEngine(), 9), judged(workdir, ServerEngine(), 9)
    assert [replace(judgment, provenance=None) for judgment in there] == here
    assert all(judgment.provenance is None for judgment in here)


@pytest.mark.parametrize(("template", "num_answers"), [("judge", 14), ("judge_cot", 4)])
def test_provenance_adds_up_every_answer_of_a_judgment(workdir: Path, template: str, num_answers: int) -> None:
    (judgment,) = judged(workdir, ServerEngine(), template=template)
    provenance = judgment.provenance
    assert provenance is not None
    assert provenance.num_attempts == 2 * num_answers
    assert (provenance.prompt_tokens, provenance.new_tokens) == (9 * num_answers, num_answers)
    assert provenance.cost == pytest.approx(0.01 * num_answers) and provenance.seconds == 0.5 * num_answers
    assert (provenance.mode, provenance.labeled_at) == ("logprob", "2026-01-01T00:00:00Z")


def test_an_answer_that_two_questions_share_is_paid_once(workdir: Path) -> None:
    (judgment,) = ai_labeler(workdir, ServerEngine(), template="judge").label([comparison("c", "x", "x")])
    assert judgment.pairs[0].p == 0.5
    assert judgment.provenance is not None and judgment.provenance.num_attempts == 14


def test_judgments_that_share_answers_cost_together_what_these_cost(workdir: Path) -> None:
    twins = [replace(comparison("c", "good", "bad", tags=("red_team",)), id=name) for name in ("c1", "c2", "c3")]
    engine = ServerEngine(lambda text: "timeout" if "one bad" in text else None)
    judgments = list(ai_labeler(workdir, engine, num_principles=1).label(twins))
    asked = sum(len(call) for call in engine.scored)
    counts = served(judgments)
    assert counts is not None and counts["num_attempts"] == 2 * asked and counts["cost"] == pytest.approx(0.01 * asked)
    assert {judgment.abstained for judgment in judgments} == {"failed:timeout"}, "an answer that is shared says why"
    assert [judgment.provenance is None for judgment in judgments] == [False] * 3


@pytest.mark.parametrize("template", ["judge", "judge_cot"])
def test_a_question_without_an_answer_is_an_abstention_with_its_reason(workdir: Path, template: str) -> None:
    engine = ServerEngine(lambda text: "http_500" if "question c1\n" in text else None)
    first, second, third = judged(workdir, engine, 3, template=template)
    assert first.pairs and third.pairs
    assert (second.pairs, second.abstained) == ((), "failed:http_500")
    rows: Any = second.evidence
    assert [(row["p"], row["failed"], row["detail"]) for row in rows] == [(None, "http_500", "why")] * 2
    assert rows[0]["attempts"] == ["timeout", "http_500"]
    assert second.provenance is not None and second.provenance.num_attempts > 0, "failures cost, too"


def test_one_order_without_an_answer_takes_its_principle_with_it(workdir: Path) -> None:
    """One order alone would let the position decide."""
    engine = ServerEngine(lambda text: "timeout" if "one bad" in text else None)
    (judgment,) = judged(workdir, engine)
    assert (judgment.pairs, judgment.abstained) == ((), "failed:timeout")
    assert [row["p"] is None for row in judgment.evidence] == [False, True]


def test_after_a_failed_chain_of_thought_nothing_more_is_asked(workdir: Path) -> None:
    engine = ServerEngine(lambda text: "timeout" if "think" in text else None)
    (judgment,) = judged(workdir, engine, template="judge_cot")
    assert judgment.abstained == "failed:timeout"
    assert engine.scored == [[]]
    assert judgment.provenance is not None and judgment.provenance.mode == "text", "and it has cost something"


def test_published_defect_rows_are_dropped_on_any_exception_in_silence(workdir: Path) -> None:
    """Every comparison has a judgment, every failed question a row with its reason, and both are counted."""
    comparisons = [comparison(f"c{i}", "good", "bad", tags=("red_team",)) for i in range(9)]
    reasons = {"question c2\n": "no_choices", "question c5\n": "timeout"}
    engine = ServerEngine(lambda text: next((reasons[name] for name in reasons if name in text), None))
    facts = run(Label(labeler=ai_labeler(workdir, engine)), sampled(workdir, comparisons), workdir / "out")
    judgments = read_records(workdir / "out" / "judgments.jsonl", Judgment)
    assert [judgment.comparison_id for judgment in judgments] == [c.id for c in comparisons]
    failed = read_rows(workdir / "out" / "failed.jsonl")
    assert [(row["judgment_id"], row["reason"]) for row in failed] == [
        *[("c2/0", "no_choices")] * 2,
        *[("c5/0", "timeout")] * 2,
    ]
    assert failed[0]["attempts"] == ["timeout", "no_choices"] and failed[0]["detail"] == "why"
    summary = read_json(workdir / "out" / "label.json")
    assert summary["abstained"] == {"failed:no_choices": 1, "failed:timeout": 1}
    assert summary["served"] == {
        "modes": {"logprob": 9},
        "num_attempts": 9 * 14 * 2,
        "cost": pytest.approx(9 * 14 * 0.01),
        "num_unanswered": 4,
        "unanswered": {"no_choices": 2, "timeout": 2},
    }
    assert facts["num_unanswered"] == 4 and facts["num_abstained"] == 2


def test_published_defect_a_tie_becomes_a_random_pair(workdir: Path) -> None:
    """Even log-probabilities are p = 1/2, and options that are all impossible are no label at all."""
    engine = ServerEngine(logp=lambda asked, choice: math.log(0.5))
    assert [judgment.pairs[0].p for judgment in judged(workdir, engine, 20)] == [0.5] * 20
    engine = ServerEngine(logp=lambda asked, choice: -math.inf)
    assert {judgment.abstained for judgment in judged(workdir, engine, 20)} == {"ill_formed_answer"}


def test_a_model_in_this_process_leaves_no_trace_of_servers(workdir: Path) -> None:
    comparisons = [comparison("c", "good", "bad")]
    run(Label(labeler=ai_labeler(workdir, FunctionEngine())), sampled(workdir, comparisons), workdir / "out")
    assert read_json(workdir / "out" / "label.json")["served"] is None
    assert not (workdir / "out" / "failed.jsonl").exists()


def test_answers_are_kept_where_the_stage_works(workdir: Path, data: Path) -> None:
    engine = ServerEngine()
    label_journaled(ai_labeler(workdir, engine), [comparison("c", "x", "y")], workdir / "a" / "x.journal", title="t")
    assert engine.folders == [workdir / "a"]
    run(revise(workdir, engine), {"data": data}, workdir / "out")
    assert set(engine.folders[1:]) == {workdir / "out"}


def test_a_judge_as_a_reward_gives_no_number_for_a_failed_answer(workdir: Path) -> None:
    texts = {"rate": "{{ turns[0].content }} {{ response }} {{ principle.statement }}{{ choice(' 1', ' 2') }}"}
    engine = ServerEngine(lambda text: "timeout" if "question b" in text else None)
    judge = JudgeReward(
        engine=engine, model="base", prompts=family(workdir, **texts), constitution=rules(workdir), seed=1, min_mass=0.0
    )
    prompts = [Prompt(id=name, turns=(Turn("user", f"question {name}"),)) for name in "abc"]
    scores = judge.score(prompts, ["x", "y", "z"]).values
    assert [math.isnan(score) for score in scores] == [False, True, False]


# --- stages that generate ---------------------------------------------------------------------------------------------


def revise(workdir: Path, engine: FunctionEngine) -> Revise:
    rest: dict[str, Any] = {"prompts": family(workdir), "constitution": rules(workdir), "scorer": None}
    return Revise(engine=engine, model="org/model:free", seed=5, max_new_tokens=20, **rest)


def test_revise_leaves_out_what_failed_and_lists_it(workdir: Path, data: Path) -> None:
    broken = {" red3/respond": "http_400", " red7/critique-1": "timeout", " red9/revision-2": "no_content"}
    engine = ServerEngine(lambda text: next((why for key, why in broken.items() if text.endswith(key)), None))
    stage = revise(workdir, engine)
    facts = run(stage, {"data": data}, workdir / "out")
    assert stage.texts()["model"] == "served:org/model:free"
    revisions = read_records(workdir / "out" / "revisions.jsonl", Revision)
    assert {r.prompt.id for r in revisions} == {f"red{i}" for i in range(24)} - {"red3"}
    rejected = {(r.prompt.id, r.step): r.rejected for r in revisions if r.rejected}
    assert rejected == {("red7", 1): "critique_failed", ("red9", 2): "failed"}
    failed = read_rows(workdir / "out" / "failed.jsonl")
    assert [row["response_id"] for row in failed] == ["red3/respond", "red7/critique-1", "red9/revision-2"]
    assert failed[0]["reason"] == "http_400: why (attempts: timeout, http_400)"
    counts = read_json(workdir / "out" / "revise.json")
    assert (counts["num_failed"], counts["initial"]) == (3, {"failed": 1})
    assert facts["num_prompts"] == 24 and facts["num_failed"] == 3
    sft = read_records(workdir / "out" / "sft.jsonl", Demonstration)
    assert all(demonstration.text for demonstration in sft)


def test_stages_that_score_whole_texts_refuse_a_server_before_anything_runs() -> None:
    for make in (
        lambda: Evaluate(engine=ServerEngine(), scorer=WordCount(), model="m", seed=0, max_new_tokens=1),
        lambda: EvaluationSets(engine=ServerEngine(), model="m", seed=0, sets={"one": Any}),  # type: ignore[dict-item]
    ):
        with pytest.raises(ConfigError, match="engine: must have the weights at hand"):
            make()


def test_sample_compares_no_response_that_never_came(workdir: Path, data: Path) -> None:
    engine = ServerEngine(lambda text: "timeout" if text.endswith("comparisons4/1") else None)
    stage = Sample(engine=engine, seed=1, max_new_tokens=9)
    sft = model_folder(workdir / "sft", "{}")
    facts = run(stage, {"data": data, "sft": sft}, workdir / "out")
    comparisons = read_records(workdir / "out" / "comparisons.jsonl", Comparison)
    assert len(comparisons) == 29 and "comparisons4" not in {c.id for c in comparisons}
    assert all(response.text for c in comparisons for response in c.responses)
    assert (facts["num_failed"], facts["num_left_out"]) == (1, 1)
