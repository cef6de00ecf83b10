"""Stage evaluate: one model's responses to the held-out prompts, and what they measure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from cai.engines.base import Engine, EngineFactory, EnginePrompt, Sampling, check_weights
from cai.engines.journaled import cost_facts, generate_journaled, trimmed
from cai.errors import ConfigError
from cai.models.digest import model_digest
from cai.progress import progress
from cai.records import read_json, read_records, write_json, write_records, write_rows
from cai.rewards import Part, check_parts, score, texts_of
from cai.rl.best_of_n import BEST_OF_N, kl_bound
from cai.scorers import Scorer
from cai.types import Prompt, Response

__all__ = ["Evaluate"]

_CHUNK = 512  # responses whose log-probabilities are asked for together


class Evaluate:
    """Writes responses.jsonl (Response), scores.jsonl (a row per response) and summary.json (means, all and by tag).

    A row has the scorer's columns (null where one does not apply), `num_tokens`, `finished`, and the log-probability of
    the response (nats, the end of the turn included where it ended) under the model and under the reference. At
    temperature 1 the mean of `logp - logp_reference` estimates KL(model || reference) per response without bias.

    A model folder with best_of_n.json beside it is a policy that samples n responses and keeps the best one by the
    reward model, or by `rewards` (`cai.rewards`) in its place. Nobody knows that policy's log-probabilities: `logp` is
    null, and the column `kl` holds the upper bound of `cai.rl.best_of_n.kl_bound`.
    """

    version: ClassVar[int] = 3

    def __init__(
        self, *, engine: EngineFactory, scorer: Scorer, model: str, seed: int, max_new_tokens: int,
        num_samples: int = 1, temperature: float = 1.0, rewards: Sequence[Part] = (),
    ) -> None:  # fmt: skip
        if num_samples < 1:
            raise ConfigError(f"num_samples: must be at least 1, got {num_samples}")
        check_weights(engine)
        check_parts(rewards)
        self._rewards = rewards
        self._factory = engine
        self._scorer = scorer
        self._base = model
        self._seed = seed
        self._num_samples = num_samples
        self._sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)

    def texts(self) -> dict[str, str]:
        """What the scorer and the rewards depend on, and the hash of the base model, measured when there is no input
        `model`.
        """
        return self._scorer.texts() | texts_of(self._rewards) | {"model": model_digest(self._base)}

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Inputs `data`, `reference` and, unless the base model is meant, `model`; `reward` where it is best-of-n."""
        prompts = read_records(inputs["data"] / "evaluation.jsonl", Prompt)
        model = str(inputs["model"] / "model") if "model" in inputs else self._base
        reference = str(inputs["reference"] / "model")
        engine = self._factory(model=model)
        same = model_digest(model) == model_digest(reference)
        reference_engine = engine if same else self._factory(model=reference)
        n = _num_tries(inputs)

        asked = [prompt for prompt in prompts for _ in range(self._num_samples)]
        ids = [f"{prompt.id}/{number}" for prompt in prompts for number in range(self._num_samples)]
        generated = self._generate(engine, asked, ids, n, output / "responses.journal", model_digest(model)[:12])
        if n > 1:
            generated = self._best(asked, generated, n, inputs["reward"] / "model")
        responses = trimmed(generated)
        logps = _logps(engine, asked, generated, _end_of_turn(model), "log-probabilities")
        under_reference = logps
        if not same:
            end = _end_of_turn(reference)
            under_reference = _logps(reference_engine, asked, generated, end, "under the reference")
        columns = self._scorer.score(asked, [response.text for response in responses])
        rows = _rows(responses, columns, logps, under_reference)
        if n > 1:
            rows = [{**row, "logp": None, "kl": kl_bound(n)} for row in rows]
        write_records(output / "responses.jsonl", responses)
        write_rows(output / "scores.jsonl", rows)
        summary = _summary(asked, rows, with_kl=self._sampling.temperature == 1)
        write_json(output / "summary.json", summary)
        costs = cost_facts(engine.usage)
        if not same:
            costs = {name: cost + cost_facts(reference_engine.usage)[name] for name, cost in costs.items()}
        means = {name: value["mean"] for name, value in summary["all"].items() if name in (*columns, "kl")}
        return {"num_responses": float(len(responses)), **means, **costs}

    def _generate(
        self, engine: Engine, prompts: Sequence[Prompt], ids: Sequence[str], n: int, journal: Path, model: str
    ) -> list[Response]:
        """`n` responses to each prompt, side by side; the k-th of best-of-n has the id `<id>/k`."""
        asked = [prompt for prompt in prompts for _ in range(n)]
        return generate_journaled(
            engine,
            [EnginePrompt(turns=prompt.turns) for prompt in asked],
            self._sampling,
            journal,
            seed=self._seed,
            keys=[f"{own}/{k}" for own in ids for k in range(n)] if n > 1 else ids,
            prompt_ids=[prompt.id for prompt in asked],
            model=model,
            title="respond",
        )

    def _best(self, prompts: Sequence[Prompt], generated: Sequence[Response], n: int, reward: Path) -> list[Response]:
        """Of every `n` responses the one that scores best (the first of equals), under the id of its prompt's place,
        which all policies share.
        """
        from cai.models.loading import pick_device
        from cai.rl.models import RewardModel

        asked = [prompt for prompt in prompts for _ in range(n)]
        texts = [response.text for response in trimmed(generated)]
        learnt = RewardModel.load(reward, device=pick_device()).score(asked, texts).tolist()
        scores = score(self._rewards, asked, texts, learnt).total
        best = [max(range(start, start + n), key=scores.__getitem__) for start in range(0, len(scores), n)]
        return [replace(generated[i], id=generated[i].id.rpartition("/")[0]) for i in best]


def _num_tries(inputs: Mapping[str, Path]) -> int:
    """How many responses the policy chooses from: 1, or n of best-of-n."""
    path = inputs["model"] / BEST_OF_N if "model" in inputs else None
    return int(read_json(path)["n"]) if path is not None and path.is_file() else 1


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
    if with_kl and values.get("logp"):
        values["kl"] = [row["logp"] - row["logp_reference"] for row in rows]
    return {name: {"mean": sum(v) / len(v), "num": len(v)} for name, v in values.items() if v}
