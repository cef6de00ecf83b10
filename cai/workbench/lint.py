"""`cai constitution lint`: what to look at in a constitution, each with its evidence.

The evidence about labels: pairs of responses, judged under every principle that applies to their prompt.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Final

from cai import config, pipeline
from cai.engines.base import EngineFactory, EnginePrompt, Sampling
from cai.engines.journaled import generate_journaled, trimmed
from cai.errors import ConfigError, unknown
from cai.models.digest import model_digest
from cai.records import read_records, write_records
from cai.store import Entry
from cai.types import Comparison, Demonstration, Prompt
from cai.workbench.bench import Asked, Bench, judged, made, side, tell_failed
from cai.workbench.runs import outputs
from cai.workbench.show import counted
from cai.workbench.wording import Finding, num_negations, num_words

__all__ = ["answers", "data_of", "label_findings", "pairs_to_judge", "tag_findings"]

_VERSION: Final = 1  # of what `_sampled` makes
_FEWEST: Final = 10  # questions, below which a share says nothing
_OPPOSED: Final = 0.5  # share of the pairs that both principles decide, on which they decide otherwise
_CONFUSED: Final = 0.2  # share of the decided questions that have another answer in the other order
_IDLE: Final = 0.02  # share of the pairs that a principle decides
_NO_ANSWER: Final = 0.1  # share of the pairs without a well-formed answer


Answers = Mapping[str, Sequence[Asked]]  # by principle


def data_of(bench: Bench, run: Path | None = None) -> Path:
    """The prompts of the run in folder `run`, or else of the bench: the output of the stage data."""
    return outputs(run)["data"] if run else made(bench, "data")["data"].path


def pairs_to_judge(bench: Bench, data: Path, num: int, run: Path | None = None) -> list[Comparison]:
    """Pairs of responses to `num` comparison prompts: SL-CAI's of the run in folder `run`, or else the base model's,
    which a constitution has no part in. Pairs that a server failed to give are left out, with a line on stderr.
    """
    if num < 1:
        raise ConfigError(f"--comparisons: must be 1 or more, got {num}")
    folder = outputs(run)["sample"] if run else _sampled(bench, data, num).path
    asked = [
        replace(c, responses=c.responses[:2]) for c in read_records(folder / "comparisons.jsonl", Comparison)[:num]
    ]
    pairs = [pair for pair in asked if not any(response.failed for response in pair.responses)]
    tell_failed(len(asked) - len(pairs), len(asked), "pairs", "lint")
    return pairs


def _sampled(bench: Bench, data: Path, num: int) -> Entry:
    """Two responses of the base model to each prompt, as the stage sample would ask for them; through the store."""
    settings, model = bench.settings.sample, bench.settings.model.path
    sampling = Sampling(max_new_tokens=settings["max_new_tokens"], temperature=settings["temperature"])
    factory: EngineFactory = config.build(bench.settings, ["engine"])["engine"]
    digest = model_digest(model, factory)

    def build(folder: Path) -> dict[str, float]:
        prompts = read_records(data / "comparisons.jsonl", Prompt)[:num]
        asked = [prompt for prompt in prompts for _ in range(2)]
        responses = trimmed(
            generate_journaled(
                factory(model=model),
                [EnginePrompt(turns=prompt.turns) for prompt in asked],
                sampling,
                folder / "responses.journal",
                seed=bench.settings.seed,
                keys=[f"{prompt.id}/base/{number % 2}" for number, prompt in enumerate(asked)],
                prompt_ids=[prompt.id for prompt in asked],
                model=digest[:12],
                title="responses",
            )
        )
        pairs = zip(responses[::2], responses[1::2], strict=True)
        found = [Comparison(id=p.id, prompt=p, responses=pair) for p, pair in zip(prompts, pairs, strict=True)]
        write_records(folder / "comparisons.jsonl", found)
        return {"num_comparisons": len(prompts)}

    material = {
        "version": _VERSION,
        "packages": pipeline.packages(),
        "settings": pipeline.portable({"sample": settings, "engine": bench.settings.engine}),
        "texts": {"model": digest},
        "inputs": {"data": data.name},
        "seed": bench.settings.seed,
        "num": num,
    }
    return bench.store.get(material, build, name="pairs")


def tag_findings(bench: Bench, data: Path, comparisons: Sequence[Comparison]) -> list[Finding]:
    """Tags in `applies_to` that are on no prompt of the data, and principles that apply to none of the pairs to judge,
    of which the labels therefore say nothing.
    """
    prompts = [p for name in ("red_team", "comparisons") for p in read_records(data / f"{name}.jsonl", Prompt)]
    prompts += [d.prompt for d in read_records(data / "demonstrations.jsonl", Demonstration)]
    tags = {tag for prompt in prompts for tag in prompt.tags}
    wanting: dict[str, list[str]] = {}
    for principle in bench.constitution.principles:
        for tag in sorted(set(principle.applies_to) - tags):
            wanting.setdefault(tag, []).append(principle.id)
    found = [
        Finding("unknown tag", tuple(names), f"applies_to, on no prompt of the data: {unknown('tag', tag, tags)}")
        for tag, names in wanting.items()
    ]
    here = {tag for c in comparisons for tag in c.prompt.tags}
    for principle in bench.constitution.principles:
        own = tags.intersection(principle.applies_to)
        if own and not own & here:
            pairs = (
                f"applies to none of the {counted(len(comparisons), 'pair')}, whose tags are {', '.join(sorted(here))}"
            )
            found.append(Finding("not judged", (principle.id,), pairs))
    return found


def answers(bench: Bench, comparisons: Sequence[Comparison]) -> dict[str, list[Asked]]:
    """What the judge says of these pairs under every principle that applies, by principle."""
    asked = [(c, principle) for c in comparisons for principle in bench.constitution.for_tags(c.prompt.tags)]
    found: dict[str, list[Asked]] = defaultdict(list)
    for answer in judged(bench, asked, "labels"):
        found[answer.principle.id].append(answer)
    return dict(found)


def label_findings(answers: Answers) -> list[Finding]:
    """What the answers say against principles, and against pairs of them."""
    found = [finding for name in answers for finding in _alone(name, answers)]
    return [*found, *(finding for a, b in combinations(answers, 2) for finding in _opposed(answers[a], answers[b]))]


# --- one principle ----------------------------------------------------------------------------------------------------


def _alone(name: str, answers: Answers) -> Iterator[Finding]:
    own = answers[name]
    labels = [a for a in own if a.p is not None]
    if len(own) < _FEWEST:
        return
    if len(own) - len(labels) >= _NO_ANSWER * len(own):
        missing = f"the judge has no well-formed answer on {len(own) - len(labels)} of {len(own)} pairs"
        yield Finding("no answer", (name,), missing)
    decided = [a for a in labels if side(a.p)]
    if labels and len(decided) < _IDLE * len(labels):
        yield Finding("undecided", (name,), f"decides {len(decided)} of {len(labels)} pairs; the rest stay near 1/2")
        return
    others = _means(name, answers)
    common = [a for a in labels if a.comparison.id in others]
    changed = [a for a in common if side(a.p) != side(others[a.comparison.id])]
    if len(common) >= _FEWEST and not changed:
        alike = f"its label is that of the other principles' mean on all {len(common)} pairs, {len(decided)} decided"
        yield Finding("changes nothing", (name,), alike)
    yield from _confused(name, answers)


def _means(name: str, answers: Answers) -> dict[str, float]:
    """Mean label of all principles but one, by comparison."""
    labels: dict[str, list[float]] = defaultdict(list)
    for other, own in answers.items():
        for a in own:
            if other != name and a.p is not None:
                labels[a.comparison.id].append(a.p)
    return {comparison: sum(ps) / len(ps) for comparison, ps in labels.items()}


def _confused(name: str, answers: Answers) -> Iterator[Finding]:
    """Principles under which the judge goes by position; long texts and negations are what trips small ones."""
    share, num = _same_position(answers[name])
    if num < _FEWEST or share < _CONFUSED:
        return
    rest, _ = _same_position([a for other, own in answers.items() if other != name for a in own])
    text = answers[name][0].principle.comparison or answers[name][0].principle.statement
    long = f"{counted(num_words(text), 'word')}, {counted(num_negations(text), 'negation')}"
    yield Finding(
        "position",
        (name,),
        f"on {100 * share:.0f} % of {num} decided pairs the judge names the same place in both orders (the other "
        f"principles: {100 * rest:.0f} %); {long}: {text!r}",
    )


def _same_position(answers: Sequence[Asked]) -> tuple[float, int]:
    """Share of the decided pairs where swapping the responses turns the answer round, and their number."""
    num = swayed = 0
    for p, q in ((a.shown_first, a.shown_second) for a in answers):
        if p is not None and q is not None and (side(p) or side(q)):
            num += 1
            swayed += (p - 0.5) * (q - 0.5) < 0
    return swayed / max(num, 1), num


# --- two principles ---------------------------------------------------------------------------------------------------


def _opposed(ours: Sequence[Asked], theirs: Sequence[Asked]) -> Iterator[Finding]:
    other = {a.comparison.id: a for a in theirs}
    both = [(a, other[a.comparison.id]) for a in ours if a.comparison.id in other]
    decided = [(a, b) for a, b in both if side(a.p) and side(b.p)]
    opposed = [(a, b) for a, b in decided if side(a.p) != side(b.p)]
    if len(decided) < _FEWEST or len(opposed) < _OPPOSED * len(decided):
        return
    a, b = max(opposed, key=lambda pair: min(abs((p.p or 0.5) - 0.5) for p in pair))
    first, second = (r.text for r in a.comparison.responses)
    liked, disliked = (first, second) if side(a.p) > 0 else (second, first)
    yield Finding(
        "contradiction",
        (a.principle.id, b.principle.id),
        f"they prefer different responses on {len(opposed)} of the {len(decided)} pairs that both decide "
        f"(of {len(both)} judged)",
        (
            ("prompt", a.comparison.prompt.turns[-1].content),
            (f"preferred by {a.principle.id}", liked),
            (f"preferred by {b.principle.id}", disliked),
        ),
    )
