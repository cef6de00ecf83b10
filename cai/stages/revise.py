"""Stage revise: respond, criticise, revise (Bai et al. 2022b, section 3.1); makes what SFT trains on.

Round by round over all prompts, so that every step is one large call to the engine. A step's principle is drawn for its
prompt and number, and the step works on the latest response that was usable.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from cai.constitution import Constitution, Principle
from cai.engines.base import Engine, EngineFactory, EnginePrompt, Sampling
from cai.engines.journaled import (
    cost_facts,
    generate_journaled,
    tell_unknown,
    tell_unused,
    trimmed,
    write_failed,
)
from cai.errors import ConfigError
from cai.models.digest import model_digest
from cai.prompts import KINDS, PromptFamily
from cai.records import read_records, write_json, write_records, write_rows
from cai.rendered import Rendered, TextSlot
from cai.scorers import Scorer
from cai.types import Demonstration, Prompt, Response, Revision

__all__ = ["Revise", "rejection"]

# A header at the start of a line, or a marker in angle brackets: the model went on into another role's text.
_ROLES: Final = "human|assistant|user|system|critique ?request|critique|revision ?request|revision|principle|option"
_HEADER: Final = re.compile(rf"^\W*(?:{_ROLES})\s*:|<\|?(?:{_ROLES}|answer|choice|im_start|im_end)\|?>", re.I | re.M)
# Speaking about the response, which is a critique, where a revision is due (the paper's confusion of point of view).
_ABOUT: Final = re.compile(r"\W*(?:the|my) (?:(?:last|previous|original|assistant's) )*(?:response|revision)\b", re.I)
_MIN_WORDS: Final = 4  # of a critique, before finding it in the revision tells anything


def rejection(response: Response, critique: str | None = None) -> str | None:
    """Why a sampled critique or revision is not usable, or None.

    `failed` (a server gave none); `empty`; `truncated` (cut off by `max_new_tokens`); `header` (it echoes a turn's
    header, or goes on into the next turn); and for the revision that follows `critique`, `critique` (it repeats the
    critique, or is one).
    """
    if response.failed:
        return "failed"
    if not response.text:
        return "empty"
    if not response.finished:
        return "truncated"
    if _HEADER.search(response.text):
        return "header"
    repeats = critique is not None and len(critique.split()) >= _MIN_WORDS and critique in response.text
    if critique is not None and (repeats or _ABOUT.match(response.text)):
        return "critique"
    return None


class Revise:
    """Writes revisions.jsonl (every step's Revision, by prompt), sft.jsonl, revise.json (counts) and, with a `scorer`,
    scores.jsonl (a row per prompt and step: what the scorer makes of the latest response; step 0 is the first).
    `num_neutralised` counts the prompts in which a marker of their format was broken up in a text (`cai.prompts`).

    sft.jsonl (Demonstration) holds the revisions of *every* step that were not rejected, as in the paper, and the
    helpful demonstrations; with `num_revisions=0` the usable first responses instead, which figure 5 compares with.
    `critique=False` asks for the revision at once (section 3.5). The scorer measures and decides nothing. A prompt that
    a server failed to respond to has no steps; failures are listed in failed.jsonl.
    """

    version: ClassVar[int] = 4

    def __init__(
        self, *, engine: EngineFactory, model: str, prompts: PromptFamily, constitution: Constitution, seed: int,
        max_new_tokens: int, num_revisions: int = 2, critique: bool = True, temperature: float = 1.0,
        scorer: Scorer | None = None,
    ) -> None:  # fmt: skip
        if num_revisions < 0:
            raise ConfigError(f"num_revisions: must be 0 or more, got {num_revisions}")
        self._factory = engine
        self._model = model
        self._family = prompts
        self._constitution = constitution
        self._seed = seed
        self._num_revisions = num_revisions
        self.title = "revise"  # who says so, in what it says on stderr
        self._critique = critique
        self._respond = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)
        self._temperature = temperature
        self._scorer = scorer
        self._hashes = prompts.hashes(*(("critique", "revision") if critique else ("direct_revision",)))

    def texts(self) -> dict[str, str]:
        """Hashes of the constitution, the templates and the base model, and what the scorer depends on."""
        templates = {f"prompts/{name}": sha for name, sha in self._hashes.items()}
        own = {"constitution": self._constitution.sha256, "model": model_digest(self._model, self._factory)}
        return own | templates | (self._scorer.texts() if self._scorer else {})

    def run(self, inputs: Mapping[str, Path], output: Path) -> dict[str, float]:
        """Input `data`. Every sub-step has a journal of its own."""
        prompts = read_records(inputs["data"] / "red_team.jsonl", Prompt)
        demonstrations = read_records(inputs["data"] / "demonstrations.jsonl", Demonstration)
        # A principle for the demonstrations' prompts is none that was misspelt, though only the labeler can use it.
        tags = {tag for p in (*prompts, *(d.prompt for d in demonstrations)) for tag in p.tags}
        unused = self._constitution.unused(tags)
        tell_unused(unused, self.title)
        principles = self.drawn(prompts)
        run = _Run(self._factory(model=self._model), prompts, self._seed, output)
        first = run.respond(self._respond)
        prompts, latest, *principles = _answered(first, prompts, *principles)
        run = replace(run, prompts=prompts)
        by_step = [latest]
        steps: list[list[Revision]] = []
        for step, drawn in enumerate(principles, start=1):
            revisions = self._step(run, step, drawn, latest)
            latest = [r.response if r.rejected else r.revision for r in revisions]
            by_step.append(latest)
            steps.append(revisions)
        by_prompt = [revision for revisions in zip(*steps, strict=True) for revision in revisions]
        revised = _demonstrations(by_prompt) if self._num_revisions else _unrevised(prompts, first)
        own = {"num_unused_principles": len(unused), "num_neutralised": len(run.neutralised)}
        counts = {**_counts(first, by_prompt), **own}
        write_records(output / "revisions.jsonl", by_prompt)
        write_records(output / "sft.jsonl", [*revised, *demonstrations])
        if failed := write_failed(output, run.failed):
            counts["num_failed"] = sum(failed.values())
        write_json(output / "revise.json", {**counts, "num_sft": len(revised) + len(demonstrations)})
        if self._scorer is not None:
            write_rows(output / "scores.jsonl", _scores(self._scorer, prompts, by_step))
        tell_unknown(run.engine.usage, self.title)
        totals = {name: float(value) for name, value in counts.items() if isinstance(value, int)}
        return {**totals, **cost_facts(run.engine.usage)}

    def drawn(self, prompts: Sequence[Prompt]) -> list[list[Principle]]:
        """For every step, a principle for every prompt; ConstitutionError when none applies to one of them."""
        steps = range(1, self._num_revisions + 1)
        return [[self._constitution.draw(self._seed, f"{p.id}/{step}", p.tags)[0] for p in prompts] for step in steps]

    def shown(self, prompt: Prompt, principle: Principle) -> list[Rendered]:
        """What the stage's templates make of a principle, with a made-up response and critique: two principles of which
        they make the same have the same revisions.
        """
        texts = {"response": "response", "critique": "critique"}
        return [
            self._family.render(
                template,
                turns=prompt.turns,
                principle=principle,
                **{name: text for name, text in texts.items() if name in KINDS[template]},
            )
            for template in self._hashes
        ]

    def _step(self, run: "_Run", step: int, drawn: Sequence[Principle], latest: Sequence[str]) -> list[Revision]:
        """One critique and revision of every prompt's latest response, by the principles drawn."""
        asked = list(range(len(run.prompts)))
        critiques: list[str | None] = [None] * len(asked)
        rejected: list[str | None] = [None] * len(asked)
        if self._critique:
            for index, critique in enumerate(self._ask(run, f"critique-{step}", asked, drawn, latest)):
                critiques[index] = critique.text
                reason = rejection(critique)
                rejected[index] = f"critique_{reason}" if reason else None
            asked = [index for index in asked if not rejected[index]]
        texts = [""] * len(run.prompts)
        sampled = self._ask(run, f"revision-{step}", asked, drawn, latest, critiques)
        for index, revision in zip(asked, sampled, strict=True):
            texts[index] = revision.text
            rejected[index] = rejection(revision, critiques[index])
        return [
            Revision(
                id=f"{prompt.id}/revision-{step}",
                prompt=prompt,
                step=step,
                principle_id=drawn[index].id,
                response=latest[index],
                critique=critiques[index],
                revision=texts[index],
                templates=self._hashes,
                rejected=rejected[index],
            )
            for index, prompt in enumerate(run.prompts)
        ]

    def _ask(
        self, run: "_Run", name: str, asked: Sequence[int], drawn: Sequence[Principle], latest: Sequence[str],
        critiques: Sequence[str | None] | None = None,
    ) -> list[Response]:  # fmt: skip
        """Critiques of the latest responses of the prompts numbered `asked`; revisions when `critiques` are given."""
        template = "critique" if critiques is None else "revision" if self._critique else "direct_revision"
        rendered = []
        for index in asked:
            values = {"turns": run.prompts[index].turns, "response": latest[index], "principle": drawn[index]}
            criticised = {"critique": critiques[index]} if critiques is not None and self._critique else {}
            rendered.append(self._family.render(template, **values, **criticised))
        return run.fill(name, asked, rendered, self._temperature)


@dataclass(frozen=True, slots=True)
class _Run:
    """What every sub-step of one call needs."""

    engine: Engine
    prompts: Sequence[Prompt]
    seed: int
    output: Path
    failed: list[Response] = field(default_factory=list)
    neutralised: list[Rendered] = field(default_factory=list)

    def respond(self, sampling: Sampling) -> list[Response]:
        """The first response to every prompt."""
        dialogues = [EnginePrompt(turns=prompt.turns) for prompt in self.prompts]
        return self.generate("respond", range(len(dialogues)), dialogues, sampling)

    def generate(
        self, name: str, asked: Iterable[int], engine_prompts: Sequence[EnginePrompt], sampling: Sampling
    ) -> list[Response]:
        """One text for each of the prompts numbered `asked`; `name` names the sub-step and its journal."""
        ids = [self.prompts[index].id for index in asked]
        path = self.output / f"{name}.journal"
        keys = [f"{prompt_id}/{name}" for prompt_id in ids]
        texts = generate_journaled(
            self.engine, engine_prompts, sampling, path, seed=self.seed, keys=keys, prompt_ids=ids, model="", title=name
        )
        self.failed.extend(text for text in texts if text.failed)
        return trimmed(texts)

    def fill(self, name: str, asked: Sequence[int], rendered: Sequence[Rendered], temperature: float) -> list[Response]:
        """Fill the only slot, a text slot, of every rendering; all of one template, so all slots are the same."""
        if not rendered:
            return []
        self.neutralised.extend(prompt for prompt in rendered if prompt.num_neutralised)
        slot = rendered[0].slots[0]
        assert isinstance(slot, TextSlot)
        sampling = Sampling(max_new_tokens=slot.max_new_tokens, temperature=temperature, stop=slot.stop)
        return self.generate(name, asked, [r.prefix() for r in rendered], sampling)


def _answered(first: Sequence[Response], prompts: Sequence[Prompt], *drawn: Sequence[Principle]) -> list[list[Any]]:
    """Prompts, their first responses' texts, and the principles drawn for each step, where there is a response."""
    kept = [index for index, response in enumerate(first) if not response.failed]
    return [[column[index] for index in kept] for column in (prompts, [r.text for r in first], *drawn)]


def _demonstrations(revisions: Sequence[Revision]) -> list[Demonstration]:
    """What SFT learns from: the revisions that were not rejected."""
    return [
        Demonstration(id=r.id, prompt=r.prompt, text=r.revision, source=f"revision-{r.step}")
        for r in revisions
        if not r.rejected
    ]


def _unrevised(prompts: Sequence[Prompt], first: Sequence[Response]) -> list[Demonstration]:
    """What SFT learns from where nothing is revised: the first responses that a revision may be, too."""
    asked = {prompt.id: prompt for prompt in prompts}
    return [
        Demonstration(id=f"{r.prompt_id}/response", prompt=asked[r.prompt_id], text=r.text, source="response")
        for r in first
        if not rejection(r)
    ]


def _scores(scorer: Scorer, prompts: Sequence[Prompt], by_step: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """A row per prompt and step, null where a column does not apply: what harm is left after k revisions."""
    rows = []
    for step, responses in enumerate(by_step):
        columns = scorer.score(prompts, responses)
        for index, prompt in enumerate(prompts):
            values = {name: None if math.isnan(column[index]) else column[index] for name, column in columns.items()}
            rows.append({"prompt_id": prompt.id, "step": step, **values})
    return rows


def _counts(first: Sequence[Response], revisions: Sequence[Revision]) -> dict[str, Any]:
    """Totals, reasons of rejection, and the same by step and by principle."""
    initial = Counter(reason for response in first if (reason := rejection(response)))
    reasons = Counter(revision.rejected for revision in revisions if revision.rejected)
    return {
        "num_prompts": len(first),
        **_totals(revisions),
        "rejected": dict(sorted(reasons.items())),
        "initial": dict(sorted(initial.items())),
        "by_step": _grouped((str(revision.step), revision) for revision in revisions),
        "by_principle": _grouped((revision.principle_id, revision) for revision in revisions),
    }


def _grouped(items: Iterable[tuple[str, Revision]]) -> dict[str, dict[str, int]]:
    groups: dict[str, list[Revision]] = {}
    for key, revision in items:
        groups.setdefault(key, []).append(revision)
    return {key: _totals(revisions) for key, revisions in sorted(groups.items())}


def _totals(revisions: Sequence[Revision]) -> dict[str, int]:
    return {
        "num_revisions": len(revisions),
        "num_rejected": sum(revision.rejected is not None for revision in revisions),
        "num_unchanged": sum(r.rejected is None and r.revision == r.response for r in revisions),
    }
