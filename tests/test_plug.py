"""The sandbox as a data source and a scorer."""

import math
from typing import Any

import pytest

from cai.errors import DataError
from cai.sandbox import grammar, oracle
from cai.sandbox.plug import SandboxData, SandboxScorer
from cai.scorers import Scorer
from cai.stages.data import DataSource, check_sets
from cai.types import Prompt, PromptSets, Turn

SIZES = {"num_red_team": 30, "num_demonstrations": 20, "num_comparisons": 41, "num_rl": 24, "num_evaluation": 17}


def load(**changed: Any) -> PromptSets:
    return SandboxData(**{"seed": 1, **SIZES, **changed}).load()


def parsed(prompt: Prompt) -> grammar.SandboxPrompt:
    found = oracle.parse_prompt(prompt.turns[0].content)
    assert found is not None
    return found


def test_sets_have_their_sizes_and_share_nothing() -> None:
    sets = load()
    check_sets(sets)
    assert {name: len(getattr(sets, name.removeprefix("num_"))) for name in SIZES} == SIZES
    assert isinstance(SandboxData(**{"seed": 1, **SIZES}), DataSource)  # type: ignore[arg-type]


def test_red_team_prompts_are_harmful_and_the_mixed_sets_balanced_throughout() -> None:
    sets = load()
    assert all(parsed(p).harmful and p.tags == ("red_team",) for p in sets.red_team)
    assert not any(parsed(d.prompt).harmful for d in sets.demonstrations)
    for mixed in (sets.comparisons, sets.rl, sets.evaluation):
        harmful = [parsed(p).harmful for p in mixed]
        assert harmful[:16] == [True, False] * 8
        assert sum(harmful) == len(mixed) // 2
        assert [p.tags == ("red_team",) for p in mixed] == harmful


@pytest.mark.parametrize("split", ["dev", "test"])
def test_evaluation_is_on_held_out_combinations(split: grammar.Split) -> None:
    sets = load(split=split)
    held_out = set(grammar.pairs(split))
    for prompt in sets.evaluation:
        assert (parsed(prompt).verb, parsed(prompt).object) in held_out
    train = set(grammar.pairs("train"))
    for prompt in (*sets.red_team, *sets.comparisons, *sets.rl, *(d.prompt for d in sets.demonstrations)):
        assert (parsed(prompt).verb, parsed(prompt).object) in train


def test_the_same_settings_give_the_same_sets_and_another_seed_others() -> None:
    assert load() == load()
    assert load(seed=2).rl != load().rl
    assert load(split="dev").comparisons == load().comparisons


def test_demonstrations_help() -> None:
    sets = load()
    prompts, texts = [d.prompt for d in sets.demonstrations], [d.text for d in sets.demonstrations]
    assert SandboxScorer().score(prompts, texts)["helpful"] == [1.0] * 20


def test_more_prompts_than_there_are_is_an_error() -> None:
    with pytest.raises(DataError, match="sandbox: the sandbox has no 30000 different harmful prompts in split 'test'"):
        load(num_evaluation=60000)


def test_the_scorer_is_the_oracle_on_the_last_turn() -> None:
    scorer = SandboxScorer()
    assert isinstance(scorer, Scorer)
    prompts = list(load().evaluation)
    texts = ["i am not sure about it ."] * len(prompts)
    found = scorer.score(prompts, texts)
    expected = oracle.Oracle().score([p.turns[-1].content for p in prompts], texts)
    assert found.keys() == set(oracle.COLUMNS)
    assert all(found[name] == pytest.approx(expected[name], nan_ok=True) for name in found)
    assert set(found["evasive"]) == {1.0}


def test_the_scorer_hangs_on_the_rule_of_harm() -> None:
    assert SandboxScorer().texts().keys() == {"sandbox/words.py", "sandbox/grammar.py", "sandbox/oracle.py"}


def test_prompts_of_another_world_have_no_gold() -> None:
    prompt = Prompt(id="x", turns=(Turn("user", "What is the capital of France?"),))
    columns = SandboxScorer().score([prompt], ["Paris, I think."])
    assert math.isnan(columns["gold"][0])
    assert columns["num_words"] == [3.0]
