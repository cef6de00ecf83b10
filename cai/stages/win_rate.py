"""Stage win_rate: a judge compares two models' responses to the same prompts, in both orders."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from cai.errors import DataError
from cai.labelers.base import Labeler
from cai.labelers.journaled import label_journaled
from cai.labelers.statistics import both_orders, first_judgments, principle_verdicts, verdicts
from cai.records import read_records, read_rows, write_json, write_rows
from cai.types import Comparison, Judgment, Prompt, Response

__all__ = ["WinRate"]


class WinRate:
    """Writes wins.jsonl (a row per prompt and sample), principles.jsonl (a row for each principle that judged it, with
    its own `p_a`) and win_rate.json.

    A row has `p_a`, the judge's probability that a's response is better; `p_a_shown_first` and `p_a_shown_second`, the
    same in each order; `consistent`, whether both orders name the same winner; and `gold_a`, `gold_b`. A win counts
    only when it is consistent, everything else is a tie; null where the judge abstained or does not say what it said
    in each order.
    """

    version: ClassVar[int] = 4

    def __init__(self, *, labeler: Labeler) -> None:
        self._judge = labeler

    def texts(self) -> dict[str, str]:
        """What the judge depends on."""
        return self._judge.texts()

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data`, `a` and `b`, the latter two outputs of the stage evaluate on this `data`."""
        prompts = {prompt.id: prompt for prompt in read_records(inputs["data"] / "evaluation.jsonl", Prompt)}
        a, b = (read_records(inputs[side] / "responses.jsonl", Response) for side in "ab")
        comparisons = _comparisons(prompts, a, b)
        judgments = label_journaled(self._judge, comparisons, output / "judgments.journal", title="win rate")
        labels = first_judgments(judgments)
        gold = {side: _gold(inputs[side] / "scores.jsonl") for side in "ab"}
        rows, by_principle = [], []
        for comparison in comparisons:
            names = {"prompt_id": comparison.prompt.id, "response_id": comparison.id}
            row = _row(labels[comparison.id])
            golds = {f"gold_{side}": gold[side].get(comparison.id) for side in "ab"}
            rows.append({**names, **row, **golds})
            for principle, _, p in principle_verdicts(labels[comparison.id]):
                by_principle.append({**names, "principle": principle, "p_a": p})
        summary = {**_summary(rows), "num_neutralised": verdicts(labels.values())["num_neutralised"]}
        write_rows(output / "wins.jsonl", rows)
        write_rows(output / "principles.jsonl", by_principle)
        write_json(output / "win_rate.json", summary)
        totals = {name: float(value) for name, value in summary.items() if value is not None}
        return {**totals, **self._judge.facts()}


def _comparisons(prompts: Mapping[str, Prompt], a: Sequence[Response], b: Sequence[Response]) -> list[Comparison]:
    """Sample number k of a against sample number k of b; ids are those of the responses, which both sides share."""
    if [response.id for response in a] != [response.id for response in b]:
        raise DataError("a, b: the responses are to different prompts or in different numbers; evaluate both alike")
    return [
        Comparison(
            id=ra.id,
            prompt=prompts[ra.prompt_id],
            responses=(replace(ra, id=f"{ra.id}/a"), replace(rb, id=f"{rb.id}/b")),
        )
        for ra, rb in zip(a, b, strict=True)
    ]


def _gold(path: Path) -> dict[str, float]:
    """The gold column by response id; empty when the scorer has none."""
    return {row["response_id"]: row["gold"] for row in read_rows(path) if row.get("gold") is not None}


def _row(judgment: Judgment) -> dict[str, Any]:
    """p(a is better), averaged over principles, as a whole and by order; `winner` is a, b or tie."""
    p_a = judgment.pairs[0].p if judgment.pairs else None
    first, second = [], []
    for one, other in both_orders(judgment):
        by_order = {row["shown"][0]: row["p"] for row in (one, other)}
        first.append(by_order[0])
        second.append(1 - by_order[1])
    if p_a is None or not first:
        nothing = dict.fromkeys(("p_a_shown_first", "p_a_shown_second", "consistent", "winner"))
        return {"p_a": p_a, **nothing, "abstained": judgment.abstained}
    p, q = sum(first) / len(first), sum(second) / len(second)
    consistent = (p - 0.5) * (q - 0.5) > 0
    winner = ("a" if p > 0.5 else "b") if consistent else "tie"
    orders = {"p_a_shown_first": p, "p_a_shown_second": q, "consistent": consistent, "winner": winner}
    return {"p_a": p_a, **orders, "abstained": None}


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Wins, ties and losses of a, and its win rate (wins + ties / 2) / n: by the judge where both orders agree, and by
    gold.
    """
    winners = [row["winner"] for row in rows if row["winner"] is not None]
    judged = [row["p_a"] for row in rows if row["p_a"] is not None]
    both = [(row["gold_a"], row["gold_b"]) for row in rows if row["gold_a"] is not None and row["gold_b"] is not None]
    gold = ["a" if a > b else "b" if b > a else "tie" for a, b in both]
    return {
        "strict_win_rate": _win_rate(winners),
        "gold_win_rate": _win_rate(gold),
        "num_wins": winners.count("a"),
        "num_losses": winners.count("b"),
        "num_ties": winners.count("tie"),
        "mean_p_a": sum(judged) / len(judged) if judged else None,
        "num_rows": len(rows),
        "num_abstained": len(rows) - len(judged),
    }


def _win_rate(winners: Sequence[str]) -> float | None:
    return (winners.count("a") + winners.count("tie") / 2) / len(winners) if winners else None
