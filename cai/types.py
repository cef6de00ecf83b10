"""The records that stages hand to each other, as frozen dataclasses (stdlib only).

One JSONL line is one record; `cai.records` reads and writes them. Ids are stable: the same prompt, model and seed
give the same id in every run, which is what lets a stage resume and two runs share work.
"""

from dataclasses import dataclass, field

__all__ = [
    "Comparison",
    "Demonstration",
    "Feedback",
    "Judgment",
    "LeftOut",
    "Pair",
    "Preference",
    "Prompt",
    "PromptSets",
    "Provenance",
    "Response",
    "Revision",
    "Turn",
]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dialogue; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A dialogue that waits for the assistant: the last turn is the user's.

    `tags` say which prompt set it came from (`red_team`, `helpful`, ...); principles may apply to some tags only.
    `user` wrote it, where a dataset says so.
    """

    id: str
    turns: tuple[Turn, ...]
    tags: tuple[str, ...] = ()
    source: str = ""
    user: str = field(default="", metadata={"spare": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer to a prompt. `finished` is false when `max_new_tokens` cut it off before the end-of-turn token.
    `failed` is why a server gave no answer at all; such a response has no text, and no stage hands it on.
    `noise` is its level on a noise ladder (`cai.noise.Ladder`); a record on disk has it only where there is a ladder.
    In data that others made `model` may be empty and `num_tokens` 0, for not known.
    """

    id: str
    prompt_id: str
    text: str
    model: str
    num_tokens: int
    finished: bool
    failed: str | None = field(default=None, metadata={"spare": True})
    noise: float | None = field(default=None, metadata={"spare": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One step of critique and revision (Bai et al. 2022b, section 3.1): `response` was criticised under one
    principle and became `revision`. `critique` is None in the critique-less variant. `step` counts from 1.
    `rejected` names why the revision was not usable (then the next step and the SFT set keep `response`), or None.
    """

    id: str
    prompt: Prompt
    step: int
    principle_id: str
    response: str
    critique: str | None
    revision: str
    templates: dict[str, str]
    rejected: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """What SFT trains on: a prompt and the text to answer it with. `source` is e.g. `revision-2` or `helpful`."""

    id: str
    prompt: Prompt
    text: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A prompt with K responses, K >= 2, waiting for a judgment. Response order is the sampling order."""

    id: str
    prompt: Prompt
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """`p` is the probability that response `first` is preferred to response `second` (indices into `responses`).

    `weight` is how much the label counts, `margin` (0 or more) by how much the preferred response is better, in units
    of reward; a record on disk has them only where they differ from these.
    """

    first: int
    second: int
    p: float
    weight: float = field(default=1.0, metadata={"spare": True})
    margin: float = field(default=0.0, metadata={"spare": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a labeler said about a comparison, as it was said; `cai.labelers.feedback` turns it into pairs.

    Indices are into the comparison's `responses`; `shown` is the order in which these stood, empty where nobody knows
    it. `ranking` goes from best to worst, the responses of a group are tied, and those in no group are not compared.
    `strength` says how much better the first group is than the second: 1 slightly, 2 better, 3 much better, 0 when not
    asked. `ratings` (1 to 7, 0 when not given) and `flags` (the yes/no questions answered yes) go by response.
    `corrected` is the response that the labeler edited and `correction` what became of it. `skipped` says why there is
    no verdict; `instructions` is the version of what the labeler was told.
    """

    shown: tuple[int, ...]
    ranking: tuple[tuple[int, ...], ...] = ()
    strength: int = field(default=0, metadata={"spare": True})
    ratings: tuple[int, ...] = field(default=(), metadata={"spare": True})
    flags: tuple[tuple[str, ...], ...] = field(default=(), metadata={"spare": True})
    corrected: int | None = field(default=None, metadata={"spare": True})
    correction: str = field(default="", metadata={"spare": True})
    critique: str = field(default="", metadata={"spare": True})
    skipped: str | None = field(default=None, metadata={"spare": True})
    instructions: str = field(default="", metadata={"spare": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """When a judgment was given (UTC, ISO 8601) and what it took, over all its attempts; `cost` is in USD.

    `mode` is how a server answered: `logprob`, `decision`, `sampled` or `parsed`; `text` where it came to no choice.
    Labelers that compute on this machine leave all of it out: the same run gives the same bytes, and clocks do not
    repeat. What their stage took is in run.json.
    """

    labeled_at: str
    seconds: float
    prompt_tokens: int = 0
    new_tokens: int = 0
    cost: float = 0.0
    num_attempts: int = 1
    mode: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """A labeler's verdict on one comparison.

    `pairs` holds the verdict, in the comparison's own response order, whatever order was shown; the index after the
    last response is `feedback.correction`, where there is one. An abstention has no pairs and says why in `abstained`.
    `evidence` keeps what the verdict was made of, as plain JSON: for the AI labeler a row per pair, principle and order
    shown, with the raw option log-probabilities. `person` is empty for a model.
    """

    id: str
    comparison_id: str
    labeler: str
    person: str
    pairs: tuple[Pair, ...]
    principle_ids: tuple[str, ...] = ()
    templates: dict[str, str] = field(default_factory=dict)
    evidence: tuple[dict[str, object], ...] = ()
    abstained: str | None = None
    feedback: Feedback | None = field(default=None, metadata={"spare": True})
    provenance: Provenance | None = field(default=None, metadata={"spare": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """What the reward model trains on: the responses to one prompt with soft pairwise labels. The last
    `num_corrections` responses were written by labelers, not sampled.
    """

    id: str
    prompt: Prompt
    responses: tuple[str, ...]
    pairs: tuple[Pair, ...]
    labeler: str
    num_corrections: int = field(default=0, metadata={"spare": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A row of a dataset that is not used: its number in the file, why (one of few words, to count by), and more."""

    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSets:
    """What a data source gives: prompts for each stage, and helpful demonstrations. Sets do not overlap.

    `counts` tells what became of the rows of a file that are in none of the sets; `left_out` lists those that could not
    be used.
    """

    red_team: tuple[Prompt, ...]
    demonstrations: tuple[Demonstration, ...]
    comparisons: tuple[Prompt, ...]
    rl: tuple[Prompt, ...]
    evaluation: tuple[Prompt, ...]
    counts: dict[str, int] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
