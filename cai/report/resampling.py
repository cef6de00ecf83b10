"""Sums per prompt, and drawing prompts (or seeds, then prompts) again, for the bootstrap and the permutation test.

A `Table` holds sums per prompt; a statistic (a mean; kappa and the like in `agreement.py`) is a function of the column
sums, so one resampling serves them all by a matrix product. Shapes: S seeds, P prompts, C columns, D draws.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "UNBOUNDED",
    "Floats",
    "Resampler",
    "Statistic",
    "Table",
    "mean_of",
    "mean_table",
    "ratio",
    "same_counts",
    "table_of",
]

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

UNBOUNDED = (-math.inf, math.inf)
MAX_CELLS = 100_000_000  # draws x prompts that are kept; beyond 10,000 prompts there are fewer draws
BLOCK_CELLS = 200_000  # draws x prompts worked on at once: what fits into a processor's cache


@dataclass(frozen=True, slots=True)
class Table:
    """Sums per prompt in one seed: `sums` (P, C), row k belongs to `prompts[k]`; prompts are unique and sorted.

    `num` values went in. `is_rate` says that they are events (0 or 1, perhaps 1/2 for a tie). `bounds` are what the
    statistic of these sums cannot leave.
    """

    seed: int
    prompts: tuple[str, ...]
    sums: Floats
    num: int
    is_rate: bool = False
    bounds: tuple[float, float] = UNBOUNDED

    def within(self, prompts: Iterable[str]) -> "Table":
        """The same sums among more prompts, on which nothing was counted: tables that share their prompts share draws.

        What is counted may then differ in number from draw to draw, as it would from sample to sample.
        """
        missing = sorted(set(prompts) - set(self.prompts))
        if not missing:
            return self
        sums = np.vstack([self.sums, np.zeros((len(missing), self.sums.shape[1]))])
        names = np.array([*self.prompts, *missing])
        order = np.argsort(names)
        return replace(self, prompts=tuple(str(n) for n in names[order]), sums=sums[order])

    def counted(self) -> Iterable[str]:
        """The prompts on which something was counted."""
        return compress(self.prompts, np.abs(self.sums).sum(axis=1).tolist())


def same_counts(a: Table, b: Table) -> bool:
    """Whether both counted as much on every prompt; what was counted is the last column, as it is for `mean_of`."""
    a, b = a.within(b.prompts), b.within(a.prompts)
    return bool(np.array_equal(a.sums[:, -1], b.sums[:, -1]))


# --- tables, and the mean ---------------------------------------------------------------------------------------------


def table_of(
    seed: int, prompts: Sequence[str], columns: Floats, num: int, *,
    is_rate: bool = False, bounds: tuple[float, float] = UNBOUNDED,
) -> Table:  # fmt: skip
    """Add up `columns` (N, C) by prompt; `num` of the N values count."""
    names, index = np.unique(np.asarray(prompts, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, index, columns)
    return Table(seed, tuple(str(n) for n in names), sums, num, is_rate, bounds)


def mean_table(
    seed: int, prompts: Sequence[str], values: Sequence[float] | Floats, *,
    is_rate: bool | None = None, bounds: tuple[float, float] = UNBOUNDED,
) -> Table:  # fmt: skip
    """For `mean_of`. NaN means that the measure does not apply there: the prompt stays, the value does not count.

    `is_rate` None looks at the values: events are all 0 or 1. Rates are within 0 and 1, other values within `bounds`.
    """
    array = np.asarray(values, dtype=np.float64)
    counts = ~np.isnan(array)
    if is_rate is None:
        is_rate = bool(counts.any()) and bool(np.isin(array[counts], (0.0, 1.0)).all())
    columns = np.column_stack([np.where(counts, array, 0.0), counts])
    bounds = (0.0, 1.0) if is_rate else bounds
    return table_of(seed, prompts, columns, int(counts.sum()), is_rate=is_rate, bounds=bounds)


def mean_of(sums: Floats) -> Floats:
    """(N, 2) sums of values and counts -> (N,) means; NaN where nothing counts."""
    return ratio(sums[:, 0], sums[:, 1])


def ratio(top: Floats, bottom: Floats) -> Floats:
    """Element by element; NaN where `bottom` is 0."""
    quotient: Floats = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
    return quotient


# --- drawing again ----------------------------------------------------------------------------------------------------


class Resampler:
    """Draws with replacement; which ones depends on the names of the prompts and the seed alone."""

    def __init__(self, num_draws: int, seed: int) -> None:
        self._num_draws = num_draws
        self._seed = seed
        self._weights: dict[tuple[str, ...], NDArray[np.uint8]] = {}

    def sums(self, table: Table) -> Floats:
        """(D, C): column sums of every resample of the table's prompts."""
        return self._blocks(self._weights_of(table.prompts), table.sums)

    def sums_over_seeds(self, tables: Sequence[Table]) -> Floats:
        """(D, C): column sums over all tables (in order of seeds), seeds drawn first, prompts of each second."""
        resampled = [self.sums(t) for t in tables]
        num = min(len(r) for r in resampled)
        picks = self._rng("seeds", *(str(t.seed) for t in tables)).integers(len(tables), size=(num, len(tables)))
        crossed = len({t.prompts for t in tables}) == 1
        total = np.zeros((num, tables[0].sums.shape[1]))
        for slot in range(len(tables)):
            for s, own in enumerate(resampled):
                # a seed that is drawn twice brings other prompts the second time, unless all seeds share them
                rows = own[:num] if crossed else np.roll(own[:num], slot * (num // len(tables)), axis=0)
                total += np.where(picks[:, slot, None] == s, rows, 0.0)
        return total

    def swapped(self, a: Table, b: Table) -> tuple[Floats, Floats]:
        """Two times (D, C): column sums of `a` and `b` after each prompt's rows were exchanged, or not, by a coin."""
        a, b = a.within(b.prompts), b.within(a.prompts)
        num = self._num_draws_of(len(a.prompts))
        coins = self._rng("coins", *a.prompts).integers(2, size=(num, len(a.prompts)), dtype=np.uint8)
        moved = self._blocks(coins, b.sums - a.sums)
        return a.sums.sum(axis=0) + moved, b.sums.sum(axis=0) - moved

    def _blocks(self, weights: NDArray[np.uint8], sums: Floats) -> Floats:
        step = max(1, BLOCK_CELLS // len(sums))
        blocks = [weights[i : i + step].astype(np.float64) @ sums for i in range(0, len(weights), step)]
        return np.concatenate(blocks)

    def _num_draws_of(self, num_prompts: int) -> int:
        return min(self._num_draws, max(1, MAX_CELLS // num_prompts))

    def _weights_of(self, prompts: tuple[str, ...]) -> NDArray[np.uint8]:
        """(D, P) how often each prompt is drawn in each resample; a function of the prompts' names and the seed."""
        if prompts not in self._weights:
            size = len(prompts)
            num_draws = self._num_draws_of(size)
            weights = np.empty((num_draws, size), dtype=np.uint8)
            rng = self._rng("prompts", *prompts)
            step = max(1, BLOCK_CELLS // size)
            for start in range(0, num_draws, step):
                rows = min(step, num_draws - start)
                drawn = rng.integers(size, size=(rows, size), dtype=np.int32)
                drawn += np.arange(rows, dtype=np.int32)[:, None] * size
                weights[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
            self._weights[prompts] = weights
        return self._weights[prompts]

    def _rng(self, *parts: str) -> np.random.Generator:
        digest = hashlib.sha256("\0".join((str(self._seed), *parts)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))
