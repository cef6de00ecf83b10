"""What the arms of a command are asked for, each on its own."""

from collections.abc import Mapping, Sequence

__all__ = ["commands"]


def commands(overrides: Sequence[str], arms: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The overrides of every arm. When all arms set one key (the demo's: `labeler`) and the command chooses for it what
    none of them has, that is an arm of its own, called by what it chose, and `labeler.agreement=...` belongs to it.
    """
    keys = set.intersection(*({item.partition("=")[0] for item in own} for own in arms.values())) if arms else set()
    for choice in overrides:
        key, _, value = choice.partition("=")
        if key not in keys:
            continue
        own = [o for o in overrides if o == choice or o.lstrip("+~").startswith((f"{key}.", f"{key}@{key}."))]
        rest = [o for o in overrides if o not in own]
        found = {arm: [*rest, *more] for arm, more in arms.items()}
        if len(own) > 1 or not any(choice in more for more in arms.values()):
            found[value] = list(overrides)
        return found
    return {arm: [*overrides, *more] for arm, more in arms.items()}
