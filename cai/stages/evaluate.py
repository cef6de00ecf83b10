"""Stage evaluate: one model's responses to the held-out prompts, and what they measure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cai.engines.base import Engine, EngineFactory, EnginePrompt, Sampling
from cai.engines.journaled import cost_facts, generate_journaled, trimmed
from cai.errors import ConfigError
from cai.models.digest import model_digest
from cai.progress import progress
from cai.records import read_records, write_json, write_records, write_rows
from cai.scorers import Scorer
from cai.types import Prompt, Response

__all__ = ["Evaluate"]

_CHUNK = 512  # responses whose log-probabilities are asked for together


class Evaluate:
    """Writes responses.jsonl (Response), scores.jsonl (a row per response) and summary.json (means, all and by tag).

    A row has the scorer's columns (null where one does not apply), `num_tokens`, `finished`, and the log-probability of
    the response (nats, the end of the turn included where it ended) under the model and under the reference. At
    temperature 1 the mean of `logp - logp_reference` estimates KL(model || reference) per response without bias.
    """

    version: ClassVar[int] = 2

    def __init__(
        self, *, engine: EngineFactory, scorer: Scorer, model: str, seed: int, max_new_tokens: int,
        num_samples: int = 1, temperature: float = 1.0,
    ) -> None:  # fmt: skip
        if num_samples < 1:
            raise ConfigError(f"num_samples: must be at least 1, got {num_samples}")
        self._factory = engine
        self._scorer = scorer
        self._base = model
        self._seed = seed
        self._num_samples = num_samples
        self._sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)

    def texts(self) -> dict[str, str]:
        """What the scorer depends on, and the hash of the base model, measured when there is no input `model`."""
        return self._scorer.texts() | {"model": model_digest(self._base)}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data`, `reference` and, unless the base model is meant, `model`."""
        prompts = read_records(inputs["data"] / "evaluation.jsonl", Prompt)
        model = str(inputs["model"] / "model") if "model" in inputs else self._base
        reference = str(inputs["reference"] / "model")
        engine = self._factory(model=model)
        same = model_digest(model) == model_digest(reference)
        reference_engine = engine if same else self._factory(model=reference)

        asked = [prompt for prompt in prompts for _ in range(self._num_samples)]
        generated = generate_journaled(
            engine,
            [EnginePrompt(turns=prompt.turns) for prompt in asked],
            self._sampling,
            output / "responses.journal",
            seed=self._seed,
            keys=[f"{prompt.id}/{number}" for prompt in prompts for number in range(self._num_samples)],
            prompt_ids=[prompt.id for prompt in asked],
            model=model_digest(model)[:12],
            title="respond",
        )
        responses = trimmed(generated)
        logps = _logps(engine, asked, generated, _end_of_turn(model), "log-probabilities")
        under_reference = logps
        if not same:
            end = _end_of_turn(reference)
            under_reference = _logps(reference_engine, asked, generated, end, "under the reference")
        columns = self._scorer.score(asked, [response.text for response in responses])
        rows = _rows(responses, columns, logps, under_reference)
        write_records(output / "responses.jsonl", responses)
        write_rows(output / "scores.jsonl", rows)
        summary = _summary(asked, rows, with_kl=self._sampling.temperature == 1)
        write_json(output / "summary.json", summary)
        costs = cost_facts(engine.usage)
        if not same:
            costs = {name: cost + cost_facts(reference_engine.usage)[name] for name, cost in costs.items()}
        means = {name: value["mean"] for name, value in summary["all"].items() if name in (*columns, "kl")}
        return {"num_responses": float(len(responses)), **means, **costs}


def _end_of_turn(model: str) -> str:
    """The token, as text, with which the model ends an answer."""
    from cai.models.loading import end_of_turn_id, load_tokenizer

    tokenizer = load_tokenizer(model)
    return str(tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)))


def _logps(
    engine: Engine, prompts: Sequence[Prompt], responses: Sequence[Response], end_of_turn: str, title: str
) -> list[float]:
    """Log-probability of each response after its prompt; one that is empty and cut off is certain (0)."""
    texts = [response.text + end_of_turn * response.finished for response in responses]
    logps = [0.0] * len(texts)
    asked = [index for index, text in enumerate(texts) if text]
    with progress(title, total=len(asked), unit="texts") as bar:
        for start in range(0, len(asked), _CHUNK):
            chunk = asked[start : start + _CHUNK]
            scores = engine.choice_logprobs(
                [EnginePrompt(turns=prompts[i].turns) for i in chunk], [(texts[i],) for i in chunk]
            )
            for index, score in zip(chunk, scores, strict=True):
                logps[index] = float(score[0])
            bar.advance(len(chunk))
    return logps


def _rows(
    responses: Sequence[Response], columns: Mapping[str, Sequence[float]], logps: Sequence[float],
    under_reference: Sequence[float],
) -> list[dict[str, Any]]:  # fmt: skip
    return [
        {
            "prompt_id": response.prompt_id,
            "response_id": response.id,
            **{name: None if math.isnan(values[i]) else values[i] for name, values in columns.items()},
            "num_tokens": response.num_tokens,
            "finished": response.finished,
            "logp": logps[i],
            "logp_reference": under_reference[i],
        }
        for i, response in enumerate(responses)
    ]


def _summary(prompts: Sequence[Prompt], rows: Sequence[Mapping[str, Any]], *, with_kl: bool) -> dict[str, Any]:
    """Means over all responses and over those of each tag, with how many responses a column applies to."""
    tagged: dict[str, list[Mapping[str, Any]]] = {}
    for prompt, row in zip(prompts, rows, strict=True):
        for tag in prompt.tags:
            tagged.setdefault(tag, []).append(row)
    return {
        "num_prompts": len({prompt.id for prompt in prompts}),
        "num_responses": len(rows),
        "all": _means(rows, with_kl),
        "by_tag": {tag: _means(tagged[tag], with_kl) for tag in sorted(tagged)},
    }


def _means(rows: Sequence[Mapping[str, Any]], with_kl: bool) -> dict[str, dict[str, Any]]:
    names = [name for name in (rows[0] if rows else {}) if name not in ("prompt_id", "response_id")]
    values = {name: [float(row[name]) for row in rows if row[name] is not None] for name in names}
    if with_kl:
        values["kl"] = [row["logp"] - row["logp_reference"] for row in rows]
    return {name: {"mean": sum(v) / len(v), "num": len(v)} for name, v in values.items() if v}
