"""Which prompts are held out: decided by a hash of their text, so that arms, seeds and stages agree."""

from collections.abc import Sequence

from cai.errors import DataError
from cai.records import fingerprint
from cai.types import Prompt

__all__ = ["held_out"]

_SCALE = 16**12


def held_out(prompts: Sequence[Prompt], share: float) -> list[bool]:
    """Which of `prompts` are held out: those whose hash falls below `share`; at least one dialogue, and not all.

    Whether a prompt is held out hangs on its own dialogue and nothing else (but where that would leave one side empty),
    and the same dialogue is never on both sides. Raises DataError when there is one dialogue only.
    """
    hashes = [int(fingerprint([[turn.role, turn.content] for turn in p.turns])[:12], 16) for p in prompts]
    if len(set(hashes)) < 2:
        raise DataError(f"{len(prompts)} prompts hold {len(set(hashes))} dialogue; another is needed to hold out")
    limit = min(max(share * _SCALE, min(hashes) + 1), max(hashes))
    return [h < limit for h in hashes]
