"""Generation that survives being killed: responses go to a journal as they finish."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cai.engines.base import Engine, EnginePrompt, Generation, RemoteEngine, Sampling, Usage
from cai.progress import progress
from cai.records import Journal, write_rows
from cai.types import Response

__all__ = [
    "cost_facts",
    "generate_journaled",
    "tell_unknown",
    "tell_unused",
    "trimmed",
    "unknown_line",
    "write_failed",
]

_BUFFER = 128  # texts per write and fsync
_NAMED = 10  # unknown words that are named


def generate_journaled(
    engine: Engine, prompts: Sequence[EnginePrompt], sampling: Sampling, path: Path, *, seed: int, keys: Sequence[str],
    prompt_ids: Sequence[str], model: str, title: str,
) -> list[Response]:  # fmt: skip
    """One response per prompt, in order, going on from the journal at `path`.

    `keys[i]` seeds `prompts[i]` and is its response's id; `prompt_ids[i]` says what it answers and `model` who answers.
    Texts are as the engine gave them; `trimmed` takes off the white space around them. A server's single answers are
    kept beside the journal as they come, and a response that it failed to give says so in `failed`, for the caller to
    leave out.
    """
    if isinstance(engine, RemoteEngine):
        engine.keep_in(path.parent)
    journal = Journal(path, Response)
    found = {response.id: response for response in journal.read()}
    done = frozenset(index for index, key in enumerate(keys) if key in found)
    buffer: list[Response] = []
    with progress(title, total=len(prompts), unit="texts") as bar:
        bar.advance(len(done))
        # Nothing left: an engine that is not asked need not load its model.
        left = engine.generate(prompts, sampling, seed=seed, keys=keys, done=done) if len(done) < len(keys) else ()
        for generation in left:
            response = Response(
                id=keys[generation.index],
                prompt_id=prompt_ids[generation.index],
                text=generation.text,
                model=model,
                num_tokens=generation.num_tokens,
                finished=generation.finished,
                failed=_failure(generation),
            )
            found[response.id] = response
            buffer.append(response)
            if len(buffer) == _BUFFER:
                journal.append(buffer)
                # Texts come in bursts; a bar that followed each would think the first one took all the time.
                bar.advance(len(buffer))
                buffer = []
        journal.append(buffer)
        bar.advance(len(buffer))
    return [found[key] for key in keys]


def _failure(generation: Generation) -> str | None:
    """Why there is no text, with what the server said and how often it was asked."""
    receipt = generation.receipt
    if receipt is None or receipt.failed is None:
        return None
    return f"{receipt.failed}: {receipt.detail} (attempts: {', '.join(receipt.attempts)})"


def write_failed(folder: Path, responses: Sequence[Response]) -> dict[str, int]:
    """Write failed.jsonl (a row per response that a server failed to give), if there are any; counts by reason."""
    failed = [response for response in responses if response.failed]
    if failed:
        rows = [{"response_id": r.id, "prompt_id": r.prompt_id, "reason": r.failed} for r in failed]
        write_rows(folder / "failed.jsonl", rows)
    return dict(sorted(Counter(str(response.failed).partition(":")[0] for response in failed).items()))


def trimmed(responses: Sequence[Response]) -> list[Response]:
    """The responses without the white space around their texts, which is the chat template's business."""
    return [replace(response, text=response.text.strip()) for response in responses]


def tell_unknown(usage: Usage, title: str) -> None:
    """Say on stderr which words of its prompts the model's vocabulary lacks, the most frequent first."""
    if usage.unknown:
        print(unknown_line(usage.unknown, title), file=sys.stderr)


def unknown_line(counts: Mapping[str, int], title: str) -> str:
    """One line that names unknown words, the most frequent first."""
    words = sorted(counts, key=lambda word: (-counts[word], word))
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return f"{title}: the model does not know these words: {', '.join(words[:_NAMED])}{more}"


def tell_unused(unused: Mapping[str, str], title: str) -> None:
    """Say on stderr which principles (by id, with the reason) apply to none of the prompts at hand."""
    for name, reason in unused.items():
        print(f"{title}: principle {name!r} applies to no prompt at hand: {reason}", file=sys.stderr)


def cost_facts(usage: Usage) -> dict[str, float]:
    """What an engine has spent, as facts of a stage. Tokens read from a shared prefix are not counted twice."""
    remote: dict[str, float] = {}
    if usage.num_requests:
        remote = {"num_requests": usage.num_requests, "cost": usage.cost, "num_broken_markers": usage.num_broken}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "new_tokens": usage.new_tokens,
        "flops": usage.flops,
        "unknown_words": sum(usage.unknown.values()),
        **remote,
    }
