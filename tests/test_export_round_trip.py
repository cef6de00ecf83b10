"""What is exported comes back the same when it is imported, and TRL's own trainer takes it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.codec import field_names
from cai.datasets import parquet
from cai.datasets.export import export
from cai.datasets.folder import read_folder, write_folder
from cai.datasets.labelled import Labelled, merged
from cai.datasets.recorded import Recorded
from cai.labelers.feedback import judgment_of, preference_of
from cai.types import Comparison, Feedback, Judgment, Pair, Prompt, Provenance, Response, Turn

SAMPLE = Path(__file__).parent.parent.parent / "shared" / "data" / "hh-harmless-sample.jsonl.gz"

TEXT = st.text(min_size=1, max_size=12).filter(str.strip)
NAME = st.text(max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAME,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAME, inner, max_size=2),
    max_leaves=4,
)
P = st.floats(0, 1)


@st.composite
def feedbacks(draw: st.DrawFn, one: Comparison) -> Feedback:
    k = len(one.responses)
    order = draw(st.permutations(range(k)))
    cut = draw(st.integers(1, k - 1))
    texts = {response.text.strip() for response in one.responses}
    correction = draw(st.just("") | TEXT.filter(lambda text: text.strip() not in texts))
    return Feedback(
        shown=draw(st.just(()) | st.just(tuple(order))),
        ranking=(tuple(order[:cut]), tuple(order[cut:])),
        strength=draw(st.integers(0, 3)),
        ratings=draw(st.just(()) | st.tuples(*[st.integers(0, 7)] * k)),
        flags=draw(st.just(()) | st.just((("rude",),) * k)),
        corrected=order[0] if correction else None,
        correction=correction,
        critique=draw(NAME),
        instructions=draw(NAME),
    )


@st.composite
def judgments(draw: st.DrawFn, one: Comparison, number: int) -> Judgment:
    who: Any = {"labeler": draw(NAME), "person": draw(NAME)}
    times = st.builds(
        Provenance, labeled_at=TEXT, seconds=st.floats(0, 1e6), prompt_tokens=st.integers(0, 2**40), cost=P, mode=NAME
    )
    when = draw(st.none() | times)
    if draw(st.booleans()):
        return judgment_of(one, draw(feedbacks(one)), number=number, provenance=when, **who)
    pairs = tuple(
        Pair(0, j, draw(P), weight=draw(st.floats(0.01, 9)), margin=draw(P)) for j in range(1, len(one.responses))
    )
    return Judgment(
        id=f"{one.id}/{number}",
        comparison_id=one.id,
        pairs=() if draw(st.booleans()) else pairs,
        principle_ids=tuple(draw(st.lists(NAME, max_size=2))),
        templates=draw(st.dictionaries(NAME, NAME, max_size=2)),
        evidence=tuple(draw(st.lists(st.dictionaries(NAME, JSON, max_size=2), max_size=2))),
        abstained=draw(st.none() | NAME),
        provenance=when,
        **who,
    )


@st.composite
def datasets(draw: st.DrawFn) -> list[Labelled]:
    found = []
    for row in range(1, draw(st.integers(1, 4)) + 1):
        num_turns = 2 * draw(st.integers(0, 2)) + 1
        turns = tuple(Turn(("user", "assistant")[k % 2], draw(TEXT)) for k in range(num_turns))
        tags = tuple(draw(st.lists(NAME, max_size=2)))
        prompt = Prompt(
            id=f"p{row}",
            turns=(*turns[:-1], Turn("user", f"{row} {turns[-1].content}")),
            tags=tags,
            source=draw(NAME),
            user=draw(NAME),
        )
        texts = draw(st.lists(TEXT, min_size=2, max_size=9, unique=True))
        known = {"failed": st.none() | NAME, "noise": st.none() | P, "model": NAME, "finished": st.booleans()}
        responses = tuple(
            Response(id=f"r{k}", prompt_id=prompt.id, text=text, num_tokens=k, **draw(st.fixed_dictionaries(known)))
            for k, text in enumerate(texts)
        )
        one = Comparison(id=f"c{row}", prompt=prompt, responses=responses)
        labels = tuple(draw(judgments(one, number)) for number in range(draw(st.integers(0, 2))))
        found.append(Labelled(comparison=one, judgments=labels, rows=(row,)))
    return found


@given(datasets())
@settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_a_round_trip_loses_nothing(tmp_path_factory: pytest.TempPathFactory, labelled: list[Labelled]) -> None:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder / "jsonl", labelled)
    parquet.write_parquet(folder / "parquet" / "records.parquet", labelled)
    assert read_folder(folder / "jsonl") == labelled
    assert read_folder(folder / "parquet") == labelled
    assert list(Recorded(path=str(folder / "parquet")).load().labelled) == labelled


def said(labelled: list[Labelled]) -> Counter[Any]:
    """Every pair in words: dialogue, better text, worse text, how sure, and who says so."""
    found: Counter[Any] = Counter()
    for one in labelled:
        for judgment in (judgment for judgment in one.judgments if judgment.pairs):
            texts = preference_of(one.comparison, judgment).responses
            for pair in judgment.pairs:
                both = (texts[pair.first], texts[pair.second])
                both = both if pair.p > 0.5 or (pair.p == 0.5 and both[0] < both[1]) else both[::-1]
                prompt = one.comparison.prompt
                sure = (round(max(pair.p, 1 - pair.p), 12), pair.weight, pair.margin)
                found[(prompt.turns, both, sure, judgment.labeler or "recorded", judgment.person, prompt.user)] += 1
    return found


@given(datasets())
@settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_every_pair_comes_back_from_trls_format(
    tmp_path_factory: pytest.TempPathFactory, labelled: list[Labelled]
) -> None:
    if not said(labelled):
        return
    folder = tmp_path_factory.mktemp("data")
    counts = export(labelled, folder, keep_even=True)
    loaded = Recorded(path=str(folder / "preference" / "train.parquet"), format="trl").load()
    assert loaded.counts["rows"] == counts["rows_train"] and not loaded.left_out
    back = said(list(loaded.labelled))
    assert {key[:5]: n for key, n in back.items()} == {key[:5]: n for key, n in said(labelled).items()}


def test_the_parquet_file_has_a_place_for_every_field() -> None:
    """A field that is added to a record must be added here, or a round trip would lose it."""
    schema = parquet._schema()
    inner = {name: {f.name for f in schema.field(name).type.value_type} for name in ("turns", "responses", "pairs")}
    assert inner == {
        "turns": set(field_names(Turn)),
        "responses": set(field_names(Response)),
        "pairs": set(field_names(Pair)),
    }
    renamed = {"id": "prompt_id"}
    assert {renamed.get(name, name) for name in field_names(Prompt)} <= set(schema.names)
    assert {"id", "prompt", "responses"} == set(field_names(Comparison))
    own = set(field_names(Judgment)) - {"id", "provenance"}
    assert own | set(field_names(Provenance)) <= set(schema.names)


def test_the_published_sample_there_and_back(tmp_path: Path) -> None:
    if not SAMPLE.is_file():
        pytest.skip(f"NOT TESTED: the sample of HH-RLHF is not here ({SAMPLE})")
    loaded = Recorded(path=str(SAMPLE), format="hh", tags=["red_team"]).load()
    assert (loaded.counts["rows"], len(loaded.labelled), len(loaded.left_out)) == (1000, 997, 3)
    export(loaded.labelled, tmp_path)
    records = Recorded(path=str(tmp_path)).load().labelled
    assert [(one.comparison, one.judgments) for one in records] == [
        (o.comparison, o.judgments) for o in loaded.labelled
    ]
    again = Recorded(path=str(tmp_path / "preference" / "train.parquet"), format="trl").load().labelled
    assert said(list(again)) == said(list(loaded.labelled)) and len(again) == 997
    assert len(merged(loaded.labelled)) == 997


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trls_reward_trainer_takes_the_export(tmp_path: Path) -> None:
    """The real trainer, on a tiny random model: all rows of the sample, every turn of them in what it trains on."""
    if not SAMPLE.is_file():
        pytest.skip(f"NOT TESTED: the sample of HH-RLHF is not here ({SAMPLE})")
    import datasets
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    labelled = Recorded(path=str(SAMPLE), format="hh").load().labelled
    export(labelled, tmp_path / "out", test_share=0.1)
    random_model.make_model(SAMPLE, tmp_path / "model", hidden=32, layers=1, vocab=2000, context=4096)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=1)
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    config = RewardConfig(
        output_dir=str(tmp_path / "trained"), max_steps=3, per_device_train_batch_size=4, max_length=4096, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, bf16=False, activation_checkpointing=False,
    )  # fmt: skip
    trainer = RewardTrainer(
        model=model, args=config, train_dataset=found["train"], eval_dataset=found["test"], processing_class=tokenizer
    )
    assert len(trainer.train_dataset) + len(trainer.eval_dataset) == len(labelled) == 997
    by_id = {one.comparison.id: one for one in labelled}
    for before, after in zip(found["test"], trainer.eval_dataset, strict=True):
        one = by_id[before["comparison_id"]]
        text = tokenizer.decode(after["chosen_ids"])
        assert all(turn.content in text for turn in one.comparison.prompt.turns)
    result = trainer.train()
    assert result.global_step == 3 and result.training_loss > 0
