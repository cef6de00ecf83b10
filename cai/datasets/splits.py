"""Which prompts are held out: decided by a hash of their text or user, so that arms, seeds and stages agree."""

from collections.abc import Sequence

from cai.errors import DataError
from cai.records import fingerprint
from cai.types import Prompt, Turn

__all__ = ["held_out"]

_SCALE = 16**12


def held_out(prompts: Sequence[Prompt], share: float) -> list[bool]:
    """Which of `prompts` are held out: those whose hash falls below `share`; at least one dialogue, and not all.

    Whether a prompt is held out hangs on its own dialogue and nothing else (but where that would leave one side empty),
    and the same dialogue is never on both sides. Where users are known it hangs on the user, so that nobody is on both
    sides (InstructGPT, section 3.2). Raises DataError when there is one dialogue only, or one user.
    """
    users: dict[tuple[Turn, ...], str] = {}
    for prompt in prompts:  # of several users of a dialogue one stands for it, whatever the order
        users[prompt.turns] = min(users.get(prompt.turns, prompt.user), prompt.user)
    hashes = [int(fingerprint(users[p.turns] or [[t.role, t.content] for t in p.turns])[:12], 16) for p in prompts]
    if len(set(hashes)) < 2:
        what = "user" if any(users.values()) else "dialogue"
        raise DataError(f"{len(prompts)} prompts hold {len(set(hashes))} {what}; another is needed to hold out")
    limit = min(max(share * _SCALE, min(hashes) + 1), max(hashes))
    return [h < limit for h in hashes]
