"""Several labelers share the work: people for helpfulness and a model for harmlessness, say (Bai et al. 2022b)."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cai.errors import LabelerError, unknown
from cai.labelers.base import Keeper, Labeler
from cai.records import seed_of
from cai.types import Comparison, Judgment

__all__ = ["MixedLabeler"]


class MixedLabeler:
    """Every comparison goes to one of `labelers`: by `routes`, or else by `shares`.

    `routes` sends prompts with a tag to a labeler, the first route that fits counting; `shares` draws a labeler for
    each comparison, seeded by its id, with these probabilities. Every judgment says by `labeler` who gave it, in the
    names that `labelers` has here.
    """

    name = "mixed"

    def __init__(
        self, *, labelers: Mapping[str, Labeler], seed: int, routes: Mapping[str, str] | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        if len(labelers) < 2:
            raise LabelerError(f"labelers: to mix, there must be two or more, got {', '.join(labelers) or 'none'}")
        if not routes and not shares:
            raise LabelerError("routes, shares: one of them must say who gets what")
        for key, names in (("routes", (routes or {}).values()), ("shares", (shares or {}).keys())):
            for name in names:
                if name not in labelers:
                    raise LabelerError(f"{key}: {unknown('labeler', name, labelers)}")
        if shares and not (all(share >= 0 for share in shares.values()) and math.isclose(sum(shares.values()), 1)):
            raise LabelerError(f"shares: must be 0 or more and sum to 1, got {dict(shares)}")
        self._labelers = labelers
        self._seed = seed
        self._routes = routes or {}
        self._shares = shares or {}
        self._numbers: Counter[str] = Counter()

    def keep_in(self, folder: Path) -> None:
        """See `cai.labelers.base.Keeper`; every labeler has a folder of its own."""
        for name, labeler in self._labelers.items():
            if isinstance(labeler, Keeper):
                labeler.keep_in(folder / name)

    def texts(self) -> dict[str, str]:
        """What the labelers depend on, under their names."""
        return {
            f"{name}/{key}": sha for name, labeler in self._labelers.items() for key, sha in labeler.texts().items()
        }

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """The judgments of one labeler after the other. LabelerError for a comparison that nobody is to judge."""
        given = {comparison.id: self._who(comparison) for comparison in comparisons}
        self._numbers = Counter(given.values())
        for name, labeler in self._labelers.items():
            own = [comparison for comparison in comparisons if given[comparison.id] == name]
            if own:
                yield from (replace(judgment, labeler=name) for judgment in labeler.label(own, done=done))

    def facts(self) -> dict[str, float]:
        """How many comparisons of the last call each labeler got, what they spent together, and their own facts under
        their names.
        """
        found: dict[str, float] = {f"num_{name}": self._numbers[name] for name in self._labelers}
        for name, labeler in self._labelers.items():
            if self._numbers[name]:  # one that judged nothing has no engine yet
                for key, value in labeler.facts().items():
                    spent = key.endswith(("tokens", "flops", "cost"))
                    found[key if spent else f"{name}_{key}"] = value + (found.get(key, 0.0) if spent else 0.0)
        return found

    def _who(self, comparison: Comparison) -> str:
        for tag, name in self._routes.items():
            if tag in comparison.prompt.tags:
                return name
        if not self._shares:
            tags = ", ".join(comparison.prompt.tags) or "none"
            raise LabelerError(
                f"routes: none is for comparison {comparison.id!r}, whose prompt has the tags {tags}; "
                f"there are routes for {', '.join(self._routes)}; `shares` would take the rest"
            )
        u = seed_of(self._seed, "share", comparison.id) / 2**63
        last = ""
        for name, share in self._shares.items():
            if share:
                last, u = name, u - share
            if u < 0:
                break
        return last
