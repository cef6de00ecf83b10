"""Datasets out and in again: nothing is lost, others can read them, and the commands say what they did."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import comparison

from cai import cli
from cai.codec import field_names
from cai.datasets import parquet
from cai.datasets.export import export, preference_rows
from cai.datasets.folder import read_folder, write_folder
from cai.datasets.labelled import Labelled, merged
from cai.datasets.recorded import Recorded
from cai.datasets.rows import read_file
from cai.errors import ConfigError, DataError
from cai.labelers.feedback import judgment_of, preference_of
from cai.records import read_json, read_records
from cai.types import Comparison, Feedback, Judgment, LeftOut, Pair, Prompt, Provenance, Response, Turn

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


# --- TRL's format -----------------------------------------------------------------------------------------------------


def table(path: Path) -> list[dict[str, Any]]:
    rows = [row for _, row in read_file(path)]
    assert all(isinstance(row, dict) for row in rows)
    return rows  # type: ignore[return-value]


def labelled_pairs(*p: float, **more: Any) -> Labelled:
    one = comparison("c", "x", "y")
    given = tuple(
        Judgment(id=f"c/{n}", comparison_id="c", labeler="ai", person="", pairs=(Pair(0, 1, q, **more),))
        for n, q in enumerate(p)
    )
    return Labelled(comparison=one, judgments=given, rows=(1,))


def test_chosen_is_what_was_preferred_and_even_pairs_choose_nothing() -> None:
    counts: Counter[str] = Counter()
    rows = list(preference_rows(labelled_pairs(0.9, 0.2, 0.5, 1.0), counts))
    assert [row["chosen"][0]["content"] for row in rows] == ["x", "y", "x"]
    assert [row["p_chosen"] for row in rows] == [0.9, 0.8, 1.0]
    assert counts["even_pairs_left_out"] == 1
    (*_, even, _) = preference_rows(labelled_pairs(0.9, 0.2, 0.5, 1.0), counts, keep_even=True)
    assert even["p_chosen"] == 0.5


def test_columns_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    """TRL's reward trainer takes a column of margins for margins, and of zeros it would compute with them."""
    export([labelled_pairs(1.0)], tmp_path / "a")
    export([labelled_pairs(0.75, margin=0.5, weight=2.0)], tmp_path / "b")
    plain, full = (table(tmp_path / name / "preference" / "train.parquet")[0] for name in "ab")
    assert set(plain) == {"prompt", "chosen", "rejected", "comparison_id", "judgment_id", "labeler"}
    assert set(full) - set(plain) == {"p_chosen", "weight", "margin"}


def test_corrections_are_rows_of_their_own(tmp_path: Path) -> None:
    one = comparison("c", "x", "y")
    feedback = Feedback(shown=(0, 1), ranking=((0,), (1,)), corrected=0, correction="z")
    judgment = judgment_of(one, feedback, number=0, labeler="human", person="ada")
    export([Labelled(comparison=one, judgments=(judgment,), rows=(1,))], tmp_path)
    rows = table(tmp_path / "preference" / "train.parquet")
    found = {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows}
    assert found == {("x", "y"), ("z", "x"), ("z", "y")}


def test_prompts_and_users_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    labelled = []
    for i in range(60):
        one = comparison(f"c{i}", f"x{i}", "y")
        one = replace(one, prompt=replace(one.prompt, user=f"u{i % 12}"))
        judgment = judgment_of(one, Feedback(shown=(), ranking=((0,), (1,))), number=0, labeler="human", person="ada")
        labelled.append(Labelled(comparison=one, judgments=(judgment,), rows=(i,)))
    counts = export(labelled, tmp_path, test_share=0.3)
    assert counts["rows_train"] + counts["rows_test"] == 60 and counts["rows_test"] >= 5
    sides = [{row["user"] for row in table(tmp_path / "preference" / f"{name}.parquet")} for name in ("train", "test")]
    assert not sides[0] & sides[1]
    with pytest.raises(ConfigError, match="test_share: must be 0 or more and below 1, got 1"):
        export(labelled, tmp_path, test_share=1.0)


def test_an_export_without_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no pair to export into train, of 1 comparisons .even_pairs_left_out: 1"):
        export([labelled_pairs(0.5)], tmp_path)


def test_datasets_loads_the_folder_as_the_card_says(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "plain.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(30)))
    labelled = Recorded(path=str(path), format="plain").load().labelled
    export(labelled, tmp_path / "out", test_share=0.3, source="plain.jsonl")
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "test"} and sum(len(split) for split in found.values()) == 30
    assert found["train"].column_names[:3] == ["prompt", "chosen", "rejected"]
    assert found["train"][0]["chosen"] == [{"role": "assistant", "content": "a"}]
    everything = datasets.load_dataset(
        str(tmp_path / "out"), "records", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(everything) == 30 and {"evidence", "feedback", "labeled_at"} <= set(everything.column_names)


# --- the commands -----------------------------------------------------------------------------------------------------


def data(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert cli.main(["data", *command]) == 0
    return capsys.readouterr().out


def test_import_check_and_export(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"q": f"question {i}", "chosen": "a@x.org", "rejected": "b", "who": f"u{i % 2}"} for i in range(6)]
    rows += [{"q": "more", "chosen": "same", "rejected": "same"}, {"q": "bad"}]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    options = [
        "--format",
        "plain",
        "--columns",
        "prompt=q",
        "user=who",
        "--tags",
        "t",
        "--max-per-user",
        "2",
        "--screen-pii",
    ]
    shown = data(capsys, "check", "in.jsonl", *options)
    assert not Path("out").exists()
    printed = data(capsys, "import", "in.jsonl", "out", *options)
    assert printed == shown + "out\n"
    lines = printed.splitlines()
    assert [line.split() for line in lines[:3]] == [["rows", "9"], ["rows", "used", "4"], ["prompts", "4"]]
    (listed,) = [line for line in lines if "over_max_per_user" in line]
    assert listed.startswith("left out: over_max_per_user ") and "  2   rows 5, 6   (5: user " in listed
    made = read_json(Path("out/import.json"))
    assert made["counts"]["rows"] == 9 and made["counts"]["screened_email"] == 6
    reasons = ["over_max_per_user", "over_max_per_user", "identical_responses", "missing_column", "not_json"]
    left_out = read_records(Path("out/left_out.jsonl"), LeftOut)
    assert [(one.row, one.reason) for one in left_out] == list(enumerate(reasons, start=5))
    counted = {k: v for k, v in made["counts"].items() if k.startswith("left_out")}
    assert counted == {f"left_out_{reason}": reasons.count(reason) for reason in reasons}
    assert "rows train" in data(capsys, "export", "out", "exported")
    data(capsys, "import", "exported", "again")
    for name in ("comparisons.jsonl", "judgments.jsonl"):
        assert Path("again", name).read_bytes() == Path("out", name).read_bytes()
    assert "user" not in table(Path("exported/preference/train.parquet"))[0]["user"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("import in.jsonl there --format plain", "there: exists; cai data writes over nothing"),
        ("check none.jsonl", "none.jsonl: no such file or folder"),
        (
            "check in.jsonl",
            "in.jsonl: has no comparisons.jsonl. Records are a run folder, records.parquet, or a folder",
        ),
        ("check in.jsonl --format plian", "format: unknown format 'plian'; did you mean 'plain'?"),
        (
            "check in.jsonl --format plain --columns prompt",
            "--columns: write NAME=COLUMN, the format's name first, got 'prompt'",
        ),
        ("check in.jsonl --format plain", "in.jsonl: none of its 0 rows can be used"),
    ],
)
def test_a_mistake_is_one_line(workdir: Path, capsys: pytest.CaptureFixture[str], command: str, message: str) -> None:
    Path("in.jsonl").write_text("")
    Path("there").mkdir()
    Path("there/file").write_text("mine")
    assert cli.main(["data", *command.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"cai: {message}") and captured.err.count("\n") == 1 and not captured.out


# --- the published sample, and TRL itself -----------------------------------------------------------------------------


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
