"""Numbers and findings in words, with their uncertainty and no more certainty than that."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from cai.report.labels import Labels
from cai.report.measures import Column, Difference, Measures
from cai.report.runs import MANY, Policy, leads_to, pairs_of_arms
from cai.report.statistics import Estimate
from cai.report.training import RewardModel
from cai.report.wins import WinRate

if TYPE_CHECKING:
    from cai.report.effects import Effect

__all__ = [
    "cell",
    "figure",
    "findings",
    "interval",
    "joined",
    "label_findings",
    "plain",
    "signed",
    "signed_parts",
    "verdict",
    "with_interval",
]

_SPACE: Final = "\u202f"  # narrow, no break
_MINUS: Final = "\u2212"
_NO_BREAK: Final = "\u00a0"


# --- numbers ----------------------------------------------------------------------------------------------------------


def plain(value: float, decimals: int) -> str:
    """A number with a real minus sign and thousands set apart; never `-0.0`."""
    text = f"{value:,.{decimals}f}".replace(",", _SPACE)
    if text.startswith("-"):
        text = _MINUS + text[1:]
    return text[1:] if text.startswith(_MINUS) and not text.strip(_MINUS + "0.") else text


def _scale(unit: str) -> tuple[float, int]:
    """(factor, decimals) for showing a value of this unit."""
    return {"%": (100.0, 1), "tokens": (1.0, 1), "Elo": (1.0, 0)}.get(unit, (1.0, 2))


def figure(value: float, unit: str, decimals: int | None = None) -> str:
    """`71.3 %`, `12.0 tokens`, `1.47`."""
    factor, usual = _scale(unit)
    return plain(value * factor, usual if decimals is None else decimals) + (f"{_SPACE}{unit}" if unit else "")


def cell(value: float, unit: str) -> str:
    """`71.3 %`, `12.0`: as in a table, whose head has the unit unless it is a percentage."""
    factor, places = _scale(unit)
    return plain(value * factor, places) + (f"{_SPACE}%" if unit == "%" else "")


def interval(estimate: Estimate, unit: str, decimals: int | None = None) -> str:
    """`[67.0, 75.2]`."""
    factor, usual = _scale(unit)
    places = usual if decimals is None else decimals
    return f"[{plain(estimate.low * factor, places)},{_NO_BREAK}{plain(estimate.high * factor, places)}]"


def with_interval(estimate: Estimate, unit: str) -> str:
    """`71 % [67, 75]`: a rate gets a decimal only where its interval is narrower than 3 points, or where the value or a
    bound would be rounded to 0.
    """
    places = _places(estimate, unit)
    return f"{figure(estimate.value, unit, places)} {interval(estimate, unit, places)}"


def signed(estimate: Estimate, unit: str) -> str:
    """A difference with its interval: `+3 points [-1, +6]`; one decimal where a bound would be rounded to 0."""
    value, bounds = signed_parts(estimate, unit, _places(estimate, unit))
    name = {"%": "points"}.get(unit, unit)
    return f"{value}{_SPACE + name if name else ''} {bounds}"


def signed_parts(estimate: Estimate, unit: str, decimals: int | None = None) -> tuple[str, str]:
    """(`+3.1`, `[-0.9, +7.2]`)."""
    factor, usual = _scale(unit)
    places = usual if decimals is None else decimals
    value, low, high = (_sign(plain(v * factor, places)) for v in (estimate.value, estimate.low, estimate.high))
    return value, f"[{low},{_NO_BREAK}{high}]"


def _places(estimate: Estimate, unit: str) -> int | None:
    vanishes = any(0 < abs(v) < 0.005 for v in (estimate.value, estimate.low, estimate.high))
    return 0 if unit == "%" and estimate.high - estimate.low >= 0.03 and not vanishes else None


def _sign(text: str) -> str:
    return text if text.startswith(_MINUS) or not text.strip("0.") else f"+{text}"


def joined(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


_OFTEN: Final = 0.5  # a judge that contradicts itself so often is told of beside what it says


# --- findings ---------------------------------------------------------------------------------------------------------


def findings(
    policies: Sequence[Policy], measures: Measures, rates: Sequence[WinRate], effects: Sequence["Effect"] = (),
    *, one_judge: bool = True,
) -> list[tuple[str, str]]:  # fmt: skip
    """(heading, sentences) on what the report's main figures say, in the order of the recipe. `one_judge`: the AI judge
    of win rates is the same in all arms.
    """
    known = {c.name: c for c in measures.columns}
    trained = [p for p in policies if p.kind == "policy"]
    told = [p for p in policies if p not in trained] if len(trained) > MANY else policies  # the rest is in tables
    items = [(known[n].label, _course(known[n], told, measures)) for n in measures.declared if n in known]
    side = [_level(known[n], told, measures) for n in ("over_refusal", "evasive_share", "garbled") if n in known]
    if any(side):
        items.append(("Side effects", " ".join(s for s in side if s)))
    if told is policies:
        items.append(("Against SL-CAI", _against_sl_cai(policies, rates, one_judge)))
    items += _effects(effects, measures)
    for first, second in () if effects else pairs_of_arms(policies):
        items.append((f"{first.name} against {second.name}", _rivals(first, second, measures, rates)))
    return [(heading, text) for heading, text in items if text]


def _effects(effects: Sequence["Effect"], measures: Measures) -> list[tuple[str, str]]:
    """What each swept key does to the declared metrics, on average over the others."""
    known = {c.name: c for c in measures.columns}
    said: dict[str, list[str]] = {}
    for effect in effects:
        parts = []
        for name in measures.declared:
            if name in effect.columns:
                found = Difference(effect.level, effect.reference, name, effect.columns[name], effect.p_holm[name])
                shown = signed(found.estimate, known[name].unit)
                parts.append(f"{known[name].label} {shown}: {verdict(found, known[name])}")
        if parts:
            over = f"{effect.level} against {effect.reference}"
            said.setdefault(effect.key, []).append(f"{over}: {'; '.join(parts)}.")
    return [(f"Effect of {key}", " ".join(sentences)) for key, sentences in said.items()]


def _course(column: Column, policies: Sequence[Policy], measures: Measures) -> str:
    """How a measure moved along the recipe: from base to SL-CAI, then with each arm."""
    shown = {
        p.name: with_interval(measures.figures[p.name][column.name], column.unit)
        for p in policies
        if column.name in measures.figures[p.name]
    }
    known = [p for p in policies if p.name in shown]
    sentences = [f"{p.name} is at {shown[p.name]}." for p in known if p.kind == "base"]
    for kind, earlier in (("sl_cai", "base"), ("policy", "sl_cai")):
        moved: dict[str, list[str]] = {}
        for policy in (p for p in known if p.kind == kind):
            from_ = next((p for p in known if p.kind == earlier and leads_to(p, policy)), None)
            found = measures.difference(policy.name, from_.name, column.name) if from_ else None
            moved.setdefault(move(found), []).append(policy.name)
        sentences += [_moved(way, names, shown) for way, names in moved.items()]
    return " ".join(sentences)


def move(found: Difference | None) -> str:
    """Which way a policy went from the one it was trained from: `raises`, `lowers`, or why neither can be said."""
    if found is None:
        return ""
    if not found.estimate.excludes_zero:
        return f"no difference from {found.second} detected"
    if not found.is_detected:
        side = "above" if found.estimate.value > 0 else "below"
        return f"{side} {found.second}, but not after correction for the number of comparisons"
    return "raises" if found.estimate.value > 0 else "lowers"


def _moved(way: str, names: Sequence[str], shown: Mapping[str, str]) -> str:
    """`RLHF lowers it to 5 % [3, 7], RLAIF to 3 % [2, 4].`"""
    if way not in ("raises", "lowers"):
        levels = joined([f"{name} is at {shown[name]}" for name in names])
        return f"{levels}{': ' + way if way else ''}."
    first, *rest = names
    return joined([f"{first} {way} it to {shown[first]}", *(f"{name} to {shown[name]}" for name in rest)]) + "."


def _level(column: Column, policies: Sequence[Policy], measures: Measures) -> str:
    """The level of a side effect in the trained policies."""
    at = [
        f"{with_interval(found, column.unit)} with {p.name}"
        for p in policies
        if p.kind == "policy" and (found := measures.figures[p.name].get(column.name))
    ]
    return f"{column.label}: {joined(at)}." if at else ""


def _against_sl_cai(policies: Sequence[Policy], rates: Sequence[WinRate], one_judge: bool) -> str:
    """Win rates of the trained policies over the one they were trained from, by each judge."""
    early = {p.name for p in policies if p.kind == "sl_cai"}
    sentences = []
    for judge in dict.fromkeys(rate.judge for rate in rates):
        won = [
            f"{r.first} wins {with_interval(r.estimate, '%')}" for r in rates if r.judge == judge and r.second in early
        ]
        if won:
            apart = judge != "gold" and len(won) > 1 and not one_judge
            whose = " of each arm, not one and the same (see Limits)" if apart else ""
            sentences.append(f"{_by(judge)}{whose}, {joined(won)} of pairs (ties count half).")
        swapped = [r.inconsistent.value for r in rates if r.judge == judge and r.second in early and r.inconsistent]
        if swapped and max(swapped) > _OFTEN:
            worst = figure(max(swapped), "%")
            sentences.append(
                f"Asked in the other order, it says the opposite on up to {worst} of pairs of different texts: "
                "there the position decides, and the average of both orders says little."
            )
    return " ".join(sentences)


def _by(judge: str) -> str:
    return "By the gold score" if judge == "gold" else f"By the {judge}"


def _rivals(first: Policy, second: Policy, measures: Measures, rates: Sequence[WinRate]) -> str:
    """Two arms: the declared measures, paired, whatever else differs beyond doubt, and who wins more often."""
    parts = []
    for column in measures.columns:
        found = measures.difference(first.name, second.name, column.name)
        if found is None:
            continue
        differs = column.is_main and found.is_detected
        if column.name in measures.declared or differs:
            parts.append(f"{column.label} {signed(found.estimate, column.unit)}: {verdict(found, column)}.")
    for rate in rates:
        if (rate.first, rate.second) == (first.name, second.name):
            parts.append(_winner(rate))
    return " ".join(parts)


def verdict(found: Difference, column: Column) -> str:
    """What a difference between two arms amounts to, in words."""
    estimate = found.estimate
    if not estimate.excludes_zero:
        return "no difference detected" + (", and equal within 5 points" if _equal(estimate) else "")
    if column.better and (estimate.value > 0) == (column.better == "higher"):
        words = f"in favour of {found.first}"
    elif column.better:
        words = f"in favour of {found.second}"
    else:
        words = "higher" if estimate.value > 0 else "lower"
    return words if found.is_detected else f"{words}, but not after correction for the number of comparisons"


def _equal(estimate: Estimate) -> bool:
    """Whether the test for equivalence within the margin (5 points) rejects a difference."""
    return estimate.p_equal is not None and estimate.p_equal < 0.05


def _winner(rate: WinRate) -> str:
    undecided = rate.estimate.low <= 0.5 <= rate.estimate.high
    parity = f": no preference detected{', and parity within 5 points' if _equal(rate.estimate) else ''}"
    shown = f"{_by(rate.judge)}, {rate.first} wins {with_interval(rate.estimate, '%')} of pairs"
    if rate.at_equal_length is not None:
        shown += f" ({with_interval(rate.at_equal_length, '%')} at equal length)"
    if rate.inconsistent and rate.strict and rate.inconsistent.value > _OFTEN:
        orders = f"the orders disagree on {figure(rate.inconsistent.value, '%')}"
        shown += f", though {orders}: {with_interval(rate.strict, '%')} where both must agree"
    return f"{shown}{parity if undecided else ''}."


def label_findings(labels: Labels | None, rewards: Sequence[RewardModel]) -> list[tuple[str, str]]:
    """Agreement of labelers, the human ceiling, and the reward models beside it; of many arms, how far they range."""
    if max(len(labels.arms) if labels else 0, len(rewards)) > MANY:
        return _label_ranges(labels, rewards)
    parts = []
    for found in labels.between if labels else ():
        chance = f" (kappa {with_interval(found.kappa, '')})" if found.kappa else ""
        parts.append(
            f"The labels of {found.first} and {found.second} agree on {with_interval(found.raw, '%')} of pairs{chance}."
        )
    for arm in labels.arms if labels else ():
        if arm.people is not None and arm.ceiling is not None:
            parts.append(
                f"Two people of {arm.arm} agree on {with_interval(arm.people.raw, '%')}, so that even the truth would "
                f"match {figure(arm.ceiling, '%', 0)} of their labels at most."
            )
    if rewards:
        right = [f"{with_interval(m.accuracy, '%')} of the labels of {m.arm}" for m in rewards]
        parts.append(f"On held-out pairs the reward model predicts {joined(right)}.")
    return [("Labels and reward models", " ".join(parts))] if parts else []


def _label_ranges(labels: Labels | None, rewards: Sequence[RewardModel]) -> list[tuple[str, str]]:
    people = [arm.people.raw.value for arm in (labels.arms if labels else ()) if arm.people is not None]
    right = [model.accuracy.value for model in rewards]
    parts = [f"Two people agree on {_range(people)} of pairs."] if people else []
    parts += [f"On held-out pairs reward models predict {_range(right)} of the labels of their arm."] if right else []
    return [("Labels and reward models", " ".join(parts))] if parts else []


def _range(values: Sequence[float]) -> str:
    low, high = (figure(value, "%", 0) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
