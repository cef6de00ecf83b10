"""A dataset in numbers."""

from collections import Counter
from collections.abc import Sequence

from cai.datasets.labelled import Labelled

__all__ = ["summary"]


def summary(labelled: Sequence[Labelled]) -> dict[str, int]:
    """Counts of prompts, turns, responses, labels and people; abstentions by their reason."""
    prompts = {one.comparison.prompt.turns: one.comparison.prompt for one in labelled}
    judgments = [judgment for one in labelled for judgment in one.judgments]
    pairs = [pair for judgment in judgments for pair in judgment.pairs]
    abstained = Counter(judgment.abstained for judgment in judgments if judgment.abstained)
    tags = Counter(tag for prompt in prompts.values() for tag in prompt.tags)
    return {
        "prompts": len(prompts),
        "prompts_of_several_turns": sum(len(turns) > 1 for turns in prompts),
        "turns": sum(map(len, prompts)),
        "users": len({prompt.user for prompt in prompts.values() if prompt.user}),
        "comparisons": len(labelled),
        "responses": sum(len(one.comparison.responses) for one in labelled),
        "comparisons_without_a_judgment": sum(not one.judgments for one in labelled),
        "judgments": len(judgments),
        "people": len({judgment.person for judgment in judgments if judgment.person}),
        "pairs": len(pairs),
        "pairs_with_soft_labels": sum(pair.p not in (0, 1) for pair in pairs),
        "corrections": sum(
            judgment.feedback is not None and bool(judgment.feedback.correction) for judgment in judgments
        ),
        **{f"abstained_{reason}": count for reason, count in sorted(abstained.items())},
        **{f"tag_{tag}": count for tag, count in sorted(tags.items())},
    }
