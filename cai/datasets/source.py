"""Prompts of a recorded dataset as a data source: whole openings or whole users go to one set; every row is told of."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final, Literal

from cai.datasets.hygiene import check_hygiene, thinned
from cai.datasets.labelled import Labelled, best_response
from cai.datasets.recorded import RECORDS, Recorded
from cai.datasets.sizes import check_sizes
from cai.errors import DataError
from cai.records import seed_of
from cai.types import Demonstration, LeftOut, PromptSets, Turn

__all__ = ["RecordedData"]

_SETS: Final = ("evaluation", "red_team", "demonstrations", "comparisons", "rl")  # in the order they are filled

APART: Final = {"opening": "opening_in_another_set", "user": "user_in_another_set"}
NO_BEST: Final = "no_preferred_response"
FURTHER: Final = "further_rows_of_a_prompt"
UNUSED: Final = "unused"

SplitBy = Literal["opening", "user"]


class RecordedData:
    """Prompt sets from a dataset of labelled comparisons; preferred responses are the demonstrations. What `path`,
    `format`, `columns`, `tags` and `screen_pii` are says `cai.datasets.recorded`.

    `dedup_prefix` and `max_per_user` thin the prompts out first (`cai.datasets.hygiene`). The rest is shuffled by
    `seed` and a hash of what `split_by` names, and dealt to evaluation, red_team, demonstrations, comparisons and rl,
    in this order. Dialogues with the same opening turn stay in one set, because many of them are one conversation at
    different lengths; with `split_by="user"` all dialogues of a user do too (InstructGPT, section 3.2).

    DataError when the file cannot be read, or has too few prompts. The sets' `counts` tell where every row went: `rows`
    equals the size of the five sets, `unused`, `further_rows_of_a_prompt` (its other responses and labels, which
    `stage@sample=recorded` and `labeler=recorded` use) and everything that starts with `left_out` together.
    """

    def __init__(
        self, *, path: str, seed: int, num_red_team: int, num_demonstrations: int, num_comparisons: int, num_rl: int,
        num_evaluation: int, format: str = RECORDS, columns: Mapping[str, str] | None = None, tags: Sequence[str] = (),
        screen_pii: bool = False, dedup_prefix: int | None = None, max_per_user: int | None = None,
        split_by: SplitBy = "opening",
    ) -> None:  # fmt: skip
        self._recorded = Recorded(path=path, format=format, columns=columns, tags=tags, screen_pii=screen_pii)
        check_hygiene(dedup_prefix, max_per_user)
        self._dedup_prefix = dedup_prefix
        self._max_per_user = max_per_user
        self._split_by: SplitBy = split_by
        self._seed = seed
        sizes = (num_evaluation, num_red_team, num_demonstrations, num_comparisons, num_rl)
        self._sizes = dict(zip(_SETS, sizes, strict=True))
        check_sizes({f"num_{name}": size for name, size in self._sizes.items()})

    def texts(self) -> dict[str, str]:
        """The digests of the files."""
        return self._recorded.texts()

    def load(self) -> PromptSets:
        """The sets; the same settings and file give the same sets."""
        loaded = self._recorded.load()
        kept, thin = thinned(loaded.labelled, dedup_prefix=self._dedup_prefix, max_per_user=self._max_per_user)
        first: dict[tuple[Turn, ...], Labelled] = {}
        for one in kept:
            first.setdefault(one.comparison.prompt.turns, one)
        if self._split_by == "user" and not any(one.comparison.prompt.user for one in first.values()):
            raise DataError(f"split_by: is user, but no row of {self._recorded.path} says who the user is")
        sets, apart, unused = self._deal(list(first.values()))
        counts = Counter(loaded.counts)
        counts.update(f"left_out_{one.reason}" for one in (*thin, *apart))
        counts[FURTHER] = sum(len(one.rows) for one in kept) - len(first)
        counts[UNUSED] = unused
        prompts = {name: tuple(one.comparison.prompt for one in members) for name, members in sets.items()}
        return PromptSets(
            red_team=prompts["red_team"],
            demonstrations=tuple(_demonstrations(sets["demonstrations"])),
            comparisons=prompts["comparisons"],
            rl=prompts["rl"],
            evaluation=prompts["evaluation"],
            counts=dict(counts),
            left_out=tuple(sorted((*loaded.left_out, *thin, *apart), key=lambda one: one.row)),
        )

    def _deal(self, found: list[Labelled]) -> tuple[dict[str, list[Labelled]], list[LeftOut], int]:
        """The members of each set, what no set could take, and the number that no set wanted. Whole groups at a time:
        what a group has over when its set is full is left out.
        """
        order = sorted(found, key=lambda one: (seed_of(self._seed, "hh", self._group(one)), one.comparison.prompt.id))
        groups = [list(group) for _, group in groupby(order, key=self._group)]
        opened: dict[str, str] = {}
        sets: dict[str, list[Labelled]] = {}
        apart: list[LeftOut] = []
        for name, size in self._sizes.items():
            members = sets[name] = []
            while len(members) < size and groups:
                for one in groups.pop(0):
                    reason = None
                    if len(members) == size:
                        reason = APART[self._split_by]
                    elif opened.setdefault(_opening(one), name) != name:
                        reason = APART["opening"]
                    elif name == "demonstrations" and best_response(one) is None:
                        reason = NO_BEST
                    if reason is None:
                        members.append(one)
                    else:
                        apart.append(LeftOut(row=one.rows[0], reason=reason, detail=f"dealt to {name}"))
        self._check_sizes(sets)
        return sets, apart, sum(map(len, groups))

    def _check_sizes(self, sets: Mapping[str, list[Labelled]]) -> None:
        wanted, found = sum(self._sizes.values()), sum(map(len, sets.values()))
        if found < wanted:
            listed = ", ".join(f"{name} {size}" for name, size in self._sizes.items())
            raise DataError(f"{self._recorded.path}: {wanted} prompts asked for ({listed}), but it has {found}")

    def _group(self, one: Labelled) -> str:
        user = one.comparison.prompt.user if self._split_by == "user" else ""
        return f"user {user}" if user else _opening(one)


def _opening(one: Labelled) -> str:
    return one.comparison.prompt.turns[0].content


def _demonstrations(members: Sequence[Labelled]) -> Iterator[Demonstration]:
    for one in members:
        prompt, text = one.comparison.prompt, best_response(one)
        if text is not None:
            yield Demonstration(id=prompt.id, prompt=prompt, text=text, source="chosen")
