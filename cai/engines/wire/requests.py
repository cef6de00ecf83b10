"""What is sent to an OpenAI-compatible server: paths and bodies. Nothing here does any sending.

Prompts with turns go to /chat/completions, prompts of text alone to /completions, which every model server has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cai.engines.base import EnginePrompt, Sampling
from cai.errors import EngineError

__all__ = ["DIALECTS", "Manner", "Request", "decision", "logprobs", "text", "verdict"]

DIALECTS: Final = ("systemone", "decisions")  # of decision endpoints; also their paths
_GO_ON: Final = "Go on from exactly where your last message ends. Write only what follows it."
_DECIDE: Final = "Give the verdict that follows from your last message, as JSON."


@dataclass(frozen=True, slots=True)
class Request:
    """One POST below the base URL; for one that is `optional`, a server that does not know the path is no mistake."""

    path: str
    body: dict[str, Any]
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a server wants to be asked.

    `prefill` says how the beginning of the model's answer is put: `ask` as a message of its own and a request to go on,
    which any server understands; `message` as a last message that the server continues by itself (llama.cpp);
    `continue` with vLLM's and SGLang's `continue_final_message`. `extra_body` is added to every body; null takes a key
    away.
    """

    model: str
    prefill: str = "ask"
    max_tokens_name: str = "max_tokens"
    verdict_tokens: int = 8
    top_logprobs: int = 20
    extra_body: Mapping[str, Any] = field(default_factory=dict)


def text(manner: Manner, prompt: EnginePrompt, sampling: Sampling, *, seed: int) -> Request:
    """Ask for a text."""
    stop = {"stop": list(sampling.stop)} if sampling.stop else {}
    return _generation(manner, prompt, sampling.max_new_tokens, sampling.temperature, seed, **stop)


def logprobs(manner: Manner, prompt: EnginePrompt) -> Request:
    """Ask for the most probable tokens of the beginning of the answer."""
    number = manner.top_logprobs
    wanted = {"logprobs": True, "top_logprobs": number} if prompt.turns else {"logprobs": number}
    return _generation(manner, prompt, manner.verdict_tokens, 0.0, 0, **wanted)


def verdict(
    manner: Manner, prompt: EnginePrompt, options: Sequence[str], *, temperature: float, seed: int, constrained: bool
) -> Request:
    """Ask for one option in words; `constrained` leaves the server no other answer than JSON with one of `options`."""
    if not constrained:
        return _generation(manner, prompt, manner.verdict_tokens, temperature, seed)
    schema = {
        "type": "object",
        "properties": {"verdict": {"type": "string", "enum": list(options)}},
        "required": ["verdict"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
    tokens = manner.verdict_tokens + 24  # of the JSON around the option
    return _generation(manner, prompt, tokens, temperature, seed, response_format=wanted)


def decision(manner: Manner, prompt: EnginePrompt, options: Sequence[str], dialect: str) -> Request:
    """Ask a decision endpoint for the probability of each option: System One's (`systemone`), or OpenAI's."""
    instructions = prompt.text.strip() or "Which option?"
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
    if dialect == "systemone":
        # One message stands as it is: as JSON, its line breaks would be escaped.
        state = turns[0]["content"] if len(turns) == 1 else turns or instructions
        instructions = instructions if turns else "Which option follows?"
        question: dict[str, Any] = {"type": "choice", "instructions": instructions, "criteria": dict.fromkeys(options)}
        return _finished(manner, "/systemone", {"state": state, "questions": {"verdict": question}})
    choices = [{"value": option} for option in options]
    question = {"type": "choice", "name": "verdict", "instructions": instructions, "choices": choices}
    return _finished(manner, "/decisions", {"input": turns or instructions, "questions": [question]})


def _generation(
    manner: Manner, prompt: EnginePrompt, max_tokens: int, temperature: float, seed: int, **more: Any
) -> Request:
    how = {manner.max_tokens_name: max_tokens, "temperature": temperature, "seed": seed, **more}
    if prompt.turns:
        messages, extra = _messages(manner, prompt, _DECIDE if "response_format" in more else _GO_ON)
        return _finished(manner, "/chat/completions", {"messages": messages, **how, **extra})
    # The space at the end of a prompt belongs to the next word's token (see cai.engines.texts).
    own = prompt.text.rstrip(" ")
    if not own:
        raise EngineError("a prompt is empty: a model needs at least one token to go on from")
    return _finished(manner, "/completions", {"prompt": own, **how})


def _messages(manner: Manner, prompt: EnginePrompt, go_on: str) -> tuple[list[dict[str, str]], dict[str, Any]]:
    messages = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
    begun = prompt.text.rstrip(" ")
    if not begun.strip():
        return messages, {}
    messages.append({"role": "assistant", "content": begun})
    if manner.prefill == "ask":
        messages.append({"role": "user", "content": go_on})
    continued = {"continue_final_message": True, "add_generation_prompt": False}
    return messages, continued if manner.prefill == "continue" else {}


def _finished(manner: Manner, path: str, body: Mapping[str, Any]) -> Request:
    whole = {"model": manner.model, **body, **manner.extra_body}
    return Request(path, {key: value for key, value in whole.items() if value is not None})
