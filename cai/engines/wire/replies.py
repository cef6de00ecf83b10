"""What comes back from a server, read with suspicion: only a whole, sensible answer is one; the rest is Trouble.

Clients of this kind of server take a page of HTML for an answer, and an answer without a choice; some raise a bare JSON
error for half of one. Here everything that is used is checked first.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from cai.engines.wire.options import Options, Position
from cai.engines.wire.requests import DIALECTS

__all__ = [
    "Kind",
    "Reply",
    "Tokens",
    "Trouble",
    "check_model",
    "decision_reply",
    "garbage",
    "logprobs_reply",
    "one_line",
    "parse",
    "positions",
    "refuses_content",
    "text_reply",
    "tokens",
    "verdict_reply",
]

_DETAIL: Final = 200  # characters of what a server said that are kept
_CODE: Final = re.compile(r"content[ _]?(filter|policy)", re.IGNORECASE)
_CONTENT: Final = re.compile(
    r"\b(content|prompt|input|message|output|text)s?\b[^.]{0,60}\b(violat|flagged|moderat|filtered)", re.IGNORECASE
)
_ACCOUNT: Final = re.compile(  # no other prompt will do
    r"\b(account|organi[sz]ation|project|access|admin)|must accept|approv|suspend|deactivat|terminat|banned",
    re.IGNORECASE,
)
_SLACK: Final = 0.01  # by which probabilities may add up to more than 1


class Kind(Enum):
    """What to do about it: ask again (TRANSIENT, GARBAGE), give this question up (PERMANENT), or stop all (FATAL)."""

    TRANSIENT = "transient"
    GARBAGE = "garbage"
    PERMANENT = "permanent"
    FATAL = "fatal"


class Trouble(Exception):
    """A request without a usable answer. `reason` is a short name for tables, `detail` what the server said."""

    def __init__(self, kind: Kind, reason: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.kind = kind
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a server says that it read and made; `cached` of those read cost less with some."""

    read: int
    made: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A usable answer: a text, or log-probabilities of options (null for an impossible one)."""

    text: str = ""
    finished: bool = True
    logps: tuple[float | None, ...] = ()


def garbage(reason: str, detail: object) -> Trouble:
    """An answer that is none."""
    return Trouble(Kind.GARBAGE, reason, one_line(detail))


def one_line(value: object) -> str:
    """A value as one short line of text."""
    text = " ".join((value if isinstance(value, str) else json.dumps(value, default=str)).split())
    return text if len(text) <= _DETAIL else text[: _DETAIL - 3] + "..."


def refuses_content(body: str) -> bool:
    """Whether the body of a 403 is about what this one prompt says, rather than about the key or the account.

    OpenRouter names what was flagged; others (xAI) say so in words, with the code of a missing
    permission.
    """
    try:
        found = json.loads(body)
    except ValueError:
        return False  # a page of a firewall, say
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict):
        return isinstance(error, str) and _speaks_of_content(error)
    metadata = error.get("metadata")
    if isinstance(metadata, dict) and (metadata.get("flagged_input") or metadata.get("reasons")):
        return True
    if any(_CODE.search(str(error.get(name))) for name in ("code", "type")):
        return True
    return _speaks_of_content(str(error.get("message")))


def _speaks_of_content(message: str) -> bool:
    return bool(_CONTENT.search(message)) and not _ACCOUNT.search(message)


def parse(body: str) -> dict[str, Any]:
    """The JSON object that a body is, all of it."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        if body.lstrip().startswith("<"):
            raise garbage("html", body) from None
        raise garbage("bad_json", f"{error}: {body}") from None
    if not isinstance(found, dict):
        raise garbage("wrong_shape", found)
    if found.get("error"):
        raise garbage("error_body", found["error"])
    return found


def tokens(found: Mapping[str, Any]) -> Tokens:
    """The usage of an answer, under the names of completions or of decisions."""
    usage = found.get("usage")
    if not isinstance(usage, dict):
        raise garbage("no_usage", f"usage: {usage}")
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    counts: tuple[Any, Any, Any] = (
        usage.get("prompt_tokens", usage.get("input_tokens")),
        usage.get("completion_tokens", usage.get("output_tokens")),
        (details.get("cached_tokens") if isinstance(details, dict) else None) or 0,
    )
    if not all(type(count) is int and count >= 0 for count in counts) or counts[2] > counts[0]:
        raise garbage("no_usage", f"usage: {one_line(usage)}")
    return Tokens(*counts)


def check_model(found: Mapping[str, Any], wanted: str, reported_as: str | None) -> None:
    """The answer is from the model that was asked: under the same name, a dated one (`NAME-2026-01-01`), or a part of
    it (without the `:free` of a reseller, or the folder of a path).
    """
    said = found.get("model")
    if not isinstance(said, str) or not said:
        raise garbage("wrong_model", f"asked for {wanted!r}, and the answer does not say which model gave it")
    if reported_as is not None:
        if said == reported_as:
            return
    elif (
        said == wanted
        or said.startswith((f"{wanted}-", f"{wanted}@", f"{wanted}:"))
        or wanted.startswith(f"{said}:")
        or wanted.endswith(f"/{said}")
        or said.endswith(f"/{wanted}")
    ):
        return
    raise garbage("wrong_model", f"asked for {reported_as or wanted!r}, answered by {said!r}")


def text_reply(found: Mapping[str, Any], *, begun: str = "", stop: Sequence[str] = ()) -> Reply:
    """The text of the only choice, up to the first of the `stop` strings (not all servers leave them out), and without
    the beginning of the answer where a model said it again. A server that broke it off anywhere else than at its end or
    its limit has given none.
    """
    choice = _only_choice(found)
    reason = choice.get("finish_reason")
    if "message" in choice:
        message = choice["message"] if isinstance(choice["message"], dict) else {}
        if message.get("refusal"):
            raise Trouble(Kind.PERMANENT, "refusal", one_line(message["refusal"]))
        said = message.get("content")
    else:
        said = choice.get("text")
    if reason == "content_filter":
        raise Trouble(Kind.PERMANENT, "content_filter", one_line(said or ""))
    if not isinstance(said, str):
        raise garbage("no_content", f"finish_reason {reason!r}, content {one_line(said)}")
    if begun.strip() and said.lstrip().startswith(begun.strip()):
        said = said.lstrip()[len(begun.strip()) :]
    cuts = [said.index(end) for end in stop if end in said]
    if cuts:
        return Reply(said[: min(cuts)], True)
    if reason not in ("stop", "length"):
        raise garbage("broken_off", f"finish_reason {reason!r}, after {one_line(said)!r}")
    return Reply(said, reason == "stop")


def logprobs_reply(found: Mapping[str, Any], options: Options) -> Reply:
    """Log-probabilities of the options at the beginning of the answer."""
    return _scored(options.logps(positions(found)))


def verdict_reply(found: Mapping[str, Any], options: Options, *, begun: str, constrained: bool) -> Reply:
    """Certainty about the option that the text chooses."""
    said = text_reply(found, begun="" if constrained else begun).text
    number = None
    if constrained:
        with suppress(ValueError, TypeError, KeyError):
            number = options.texts.index(json.loads(said)["verdict"])
    else:
        number = options.verdict(said)
    if number is None:
        raise garbage("no_verdict", said)
    return _scored([0.0 if i == number else -math.inf for i in range(len(options.texts))])


def decision_reply(found: Mapping[str, Any], options: Options, dialect: str) -> Reply:
    """Log-probabilities of the options as a decision endpoint gives them."""
    answers = found.get("answers")
    if dialect == DIALECTS[0]:
        answer = answers.get("verdict") if isinstance(answers, dict) else None
        given = answer.get("probabilities") if isinstance(answer, dict) else None
    else:
        answer = answers[0] if isinstance(answers, list) and len(answers) == 1 else None
        if isinstance(answer, dict) and answer.get("type") == "refusal":
            raise Trouble(Kind.PERMANENT, "refusal", "the model declined to decide")
        rows = answer.get("probabilities") if isinstance(answer, dict) else None
        given = None
        if isinstance(rows, list) and all(isinstance(row, dict) and isinstance(row.get("value"), str) for row in rows):
            given = {row["value"]: row.get("probability") for row in rows}
    if not isinstance(given, dict) or set(given) != set(options.texts):
        raise garbage("no_verdict", answers)
    p = [given[text] for text in options.texts]
    if not all(type(x) in (int, float) and 0 <= x <= 1 for x in p) or abs(sum(p) - 1) > _SLACK:
        raise garbage("bad_probabilities", given)
    return _scored([math.log(x) if x > 0 else -math.inf for x in p])


def positions(found: Mapping[str, Any]) -> list[Position]:
    """The tokens of an answer with the most probable ones in their places, as chat or as older completions say it."""
    choice = _only_choice(found)
    given = choice.get("logprobs")
    if not isinstance(given, dict):
        raise garbage("no_logprobs", f"logprobs: {one_line(given)}")
    try:
        if isinstance(given.get("content"), list):
            rows = [
                (row["token"], row["logprob"], {top["token"]: top["logprob"] for top in row["top_logprobs"]})
                for row in given["content"]
            ]
        else:
            rows = list(zip(given["tokens"], given["token_logprobs"], given["top_logprobs"], strict=True))
        return [_position(*row) for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise garbage("bad_logprobs", given) from None


def _position(token: Any, logp: Any, top: dict[Any, Any]) -> Position:
    """Raises ValueError or TypeError for what cannot be a distribution over tokens."""
    known: dict[str, float] = {}
    for text, value in [*top.items(), (token, logp)]:
        if not isinstance(text, str) or type(value) not in (int, float) or math.isnan(value) or value > _SLACK:
            raise ValueError
        known[_plain(text)] = value
    if sum(map(math.exp, known.values())) > 1 + _SLACK:
        raise ValueError
    return Position(_plain(token), known)


def _plain(token: str) -> str:
    """Some servers show the tokenizer's own mark for a space."""
    return token.replace("\u0120", " ").replace("\u2581", " ")


def _only_choice(found: Mapping[str, Any]) -> dict[str, Any]:
    choices = found.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise garbage("no_choices", f"choices: {one_line(choices)}")
    return choices[0]


def _scored(logps: Sequence[float]) -> Reply:
    return Reply(logps=tuple(logp if math.isfinite(logp) else None for logp in logps))
