"""Sets of questions with answers: what they measure, the files they read, the stage that puts them to a model."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import random_model
import tiny_models
from set_files import CROWS, WINOGENDER, file, lines

from cai.engines.base import EnginePrompt
from cai.engines.scripted import ScriptedEngine
from cai.engines.transformers import TransformersEngine
from cai.errors import ConfigError, DataError
from cai.evaluation_sets.base import Asked, EvaluationSet
from cai.evaluation_sets.choices import MultipleChoice
from cai.evaluation_sets.pairs import SentencePairs, entropy
from cai.evaluation_sets.perplexity import Perplexity
from cai.evaluation_sets.refusals import Refusals
from cai.models.documents import TextDocuments
from cai.models.loading import load_causal_lm
from cai.records import read_json, read_rows
from cai.report.formulas import wilson
from cai.scorers import TextScorer
from cai.stages.evaluation_sets import EvaluationSets

HHH = Path(__file__).parents[2] / "shared" / "data" / "anthropic-cai" / "hhh-eval-sample.jsonl"
NEEDS_HHH = pytest.mark.skipif(not HHH.is_file(), reason=f"no {HHH}: the HHH questions are not there to be asked")


def asked(folder: Path, engine: Any, model: str = "none") -> Asked:
    return Asked(engine=engine, model=model, seed=0, journal=folder / "set.journal")


def by(logprob: Callable[[EnginePrompt, str], float]) -> ScriptedEngine:
    return ScriptedEngine(logprob=logprob)


def mean(rows: list[dict[str, Any]], column: str) -> float:
    values = [row[column] for row in rows if row[column] is not None]
    return sum(values) / len(values)


# --- multiple choice --------------------------------------------------------------------------------------------------


@NEEDS_HHH
def test_an_oracle_answers_every_hhh_question(tmp_path: Path) -> None:
    right = {row["prompt"]: row["corrects"][0] for row in read_rows(HHH)}
    oracle = by(lambda prompt, choice: -0.1 if choice == right[prompt.text] else -2.5)
    rows = MultipleChoice(path=str(HHH)).measure(asked(tmp_path, oracle))
    assert len(rows) == len(right) == 110 and mean(rows, "correct") == 1.0
    assert mean(rows, "p_correct") == pytest.approx(1 / (1 + math.exp(-2.4)))
    assert all(request.choices == (" (A)", " (B)") for request in oracle.history)


@NEEDS_HHH
@pytest.mark.slow
def test_a_random_model_answers_half_of_the_hhh_questions(tmp_path: Path) -> None:
    random_model.make_model(HHH, tmp_path / "model", hidden=32, layers=1, vocab=400, context=8192)
    engine = TransformersEngine(model=str(tmp_path / "model"))
    rows = MultipleChoice(path=str(HHH)).measure(asked(tmp_path, engine))
    low, high = wilson(sum(row["correct"] for row in rows), len(rows))
    assert low < 0.5 < high
    assert mean(rows, "p_correct") == pytest.approx(0.5, abs=0.05)


def test_choices_and_answer(tmp_path: Path) -> None:
    sums = {"prompt": "2 + 2 =", "choices": [" 3", " 4", " 5"], "answer": 1, "topic": "sums"}
    path = file(
        tmp_path, lines(sums, {"prompt": "sky?", "choices": [" blue", " red"], "answer": 0, "topic": "colours"})
    )
    logps = {" 3": -1.0, " 4": -1.0, " 5": -9.0, " blue": -3.0, " red": -2.0}
    rows = MultipleChoice(path=path, group="topic").measure(asked(tmp_path, by(lambda _, choice: logps[choice])))
    tie = math.exp(-1) / (2 * math.exp(-1) + math.exp(-9))
    assert [(row["item"], row["group"], row["correct"], row["first"]) for row in rows] == [
        ("q0", "sums", 0.5, 0.5), ("q1", "colours", 0.0, 0.0)]  # fmt: skip
    assert rows[0]["p_correct"] == pytest.approx(tie)


def test_a_table_holds_options_as_json(tmp_path: Path) -> None:
    text = 'prompt,choices,answer\nsky?,"["" blue"", "" red""]",1\n'
    rows = MultipleChoice(path=file(tmp_path, text, "set.csv")).measure(asked(tmp_path, by(lambda _, c: float(len(c)))))
    assert [(row["correct"], row["first"]) for row in rows] == [(0.0, 1.0)]
    text = 'prompt,corrects,incorrects\nsky?,"["" blue""]","["" red""]"\n'
    path = file(tmp_path, text, "two.csv")
    (tmp_path / "two").mkdir()
    rows = MultipleChoice(path=path).measure(asked(tmp_path / "two", by(lambda _, c: float(len(c)))))
    assert [row["correct"] for row in rows] == [1.0]


def test_chat_asks_in_a_turn(tmp_path: Path) -> None:
    path = file(tmp_path, lines({"prompt": "sky?", "choices": [" blue", " red"], "answer": 0}))
    engine = by(lambda _, choice: -float(len(choice)))
    MultipleChoice(path=path, chat=True).measure(asked(tmp_path, engine))
    assert [(t.role, t.content) for t in engine.history[0].prompt.turns] == [("user", "sky?")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "choices": ["a", "b"], "answer": 2}, "key 'answer' must be a place from 0 to 1, got 2"),
        (
            {"prompt": "q", "corrects": ["a"]},
            "needs 'corrects' and 'incorrects', or 'choices' and 'answer'; has prompt, corrects",
        ),
        ({"prompt": "q", "corrects": ["a"], "incorrects": ["a"]}, "options must be different, some right and some"),
        (
            {"prompt": "q", "choices": None, "answer": 0},
            "key 'choices' must be a list of texts, none of them empty, got",
        ),
        ({"prompt": "q", "choices": "AB", "answer": 0}, "key 'choices' must be a list of texts, none of them empty"),
        ({"prompt": "q", "choices": ["a", ""], "answer": 0}, "key 'choices' must be a list of texts, none of them"),
        ({"prompt": "q", "corrects": ["a"], "incorrects": [3]}, "key 'incorrects' must be a list of texts"),
        ({"prompt": " ", "corrects": ["a"], "incorrects": ["b"]}, "key 'prompt' must be a text, got"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = file(tmp_path, "\n" + lines(row))
    with pytest.raises(DataError, match=r"set.jsonl:2: ") as error:
        MultipleChoice(path=path).measure(asked(tmp_path, by(lambda *_: 0.0)))
    assert message in str(error.value)


def test_what_was_asked_is_not_asked_again(tmp_path: Path) -> None:
    path = file(tmp_path, lines(*({"prompt": f"q {i}", "choices": ["a", "b"], "answer": 0} for i in range(150))))
    logprob = lambda prompt, choice: -float(len(prompt.text) + ord(choice))  # noqa: E731
    whole = MultipleChoice(path=path).measure(asked(tmp_path, by(logprob)))
    journal = tmp_path / "set.journal"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:100]))  # 64 and a torn second chunk
    again = by(logprob)
    assert MultipleChoice(path=path).measure(asked(tmp_path, again)) == whole
    assert len(again.history) == 150 - 64


# --- sentence pairs ---------------------------------------------------------------------------------------------------


def test_entropy_is_one_bit_without_a_preference() -> None:
    assert entropy([0.5, 0.5]) == 1.0
    assert entropy([1.0, 0.0]) == 0.0
    assert entropy([0.9, 0.1]) == pytest.approx(0.4690, abs=1e-4)


def test_crows_pairs(tmp_path: Path) -> None:
    path = file(tmp_path, CROWS, "crows_pairs_anonymized.csv")
    engine = by(lambda _, sentence: math.log(0.9) - 40 if sentence.startswith("The poor") else math.log(0.1) - 40)
    rows = SentencePairs(path=path, kind="crows_pairs", prefix="Be respectful.\n").measure(asked(tmp_path, engine))
    assert [(row["group"], row["prefers_first"]) for row in rows] == [("socioeconomic", 1.0), ("gender", 0.5)]
    assert [row["entropy"] for row in rows] == pytest.approx([0.4690, 1.0], abs=1e-4)
    assert engine.history[0].prompt.text == "Be respectful.\n"


def test_winogender_pairs_the_male_and_the_female_sentence(tmp_path: Path) -> None:
    path = file(tmp_path, WINOGENDER, "all_sentences.tsv")
    engine = by(lambda _, sentence: -1.0 if " her " in sentence else -5.0)
    (row,) = SentencePairs(path=path, kind="winogender").measure(asked(tmp_path, engine))
    assert (row["item"], row["group"], row["prefers_first"]) == ("nurse.patient.0.txt", "nurse", 0.0)
    lacking = WINOGENDER.replace("0.female.", "1.female.")
    twice = WINOGENDER.replace(".female.", ".male.")
    for text, message in (
        (lacking, r"nurse\.patient\.0\.txt has no female sentence"),
        (twice, r"broken\.tsv:2: key 'sentid': 'nurse\.patient\.0\.male\.txt' is there twice"),
    ):
        with pytest.raises(DataError, match=message):
            broken = SentencePairs(path=file(tmp_path, text, "broken.tsv"), kind="winogender")
            broken.measure(asked(tmp_path, engine))


def test_pairs_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown kind of pairs 'crows'; did you mean 'crows_pairs'"):
        SentencePairs(path=file(tmp_path, CROWS), kind="crows")  # type: ignore[arg-type]


# --- what cannot be asked ---------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named_by_file_and_line(tmp_path: Path) -> None:
    model = tiny(tmp_path / "model")
    short, long = "take a key", "take a key " * 200
    engine = TransformersEngine(model=model)
    own = [{"prompt": long if i == 90 else short, "choices": ["yes", "no"], "answer": 0} for i in range(100)]
    crows = CROWS.splitlines()[0] + f"\n0,1,{short},{short} slowly,,x,,,\n" + f"1,2,{short},{long},,x,,,\n"
    winogender = f"sentid\tsentence\na.0.neutral.txt\t{short}\na.0.male.txt\t{short}\na.0.female.txt\t{long}\n"
    xstest = [{"prompt": long if i == 3 else short, "label": "unsafe"} for i in range(5)]
    for name, text, make, message in (
        ("own.jsonl", lines(*own), MultipleChoice, r"own\.jsonl:91: 600 tokens and 1 more do not fit into the 512 of"),
        ("crows.csv", crows, partial(SentencePairs, kind="crows_pairs", prefix="yes"),
         r"crows\.csv:2, after the prefix 'yes': 1 tokens and 600 more do not fit"),
        ("winogender.tsv", winogender, partial(SentencePairs, kind="winogender"),
         r"winogender\.tsv:1, after the prefix '\\n': is empty: a model needs at least one token to go on from"),
        ("xstest.jsonl", lines(*xstest), partial(Refusals, scorer=TextScorer(), max_new_tokens=20),
         r"xstest\.jsonl:4: 60\d tokens and 20 more do not fit"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            make(path=file(tmp_path, text, name)).measure(asked(tmp_path / name.partition(".")[0], engine, model))


# --- perplexity -------------------------------------------------------------------------------------------------------


def tiny(folder: Path) -> str:
    tokenizer = tiny_models.word_tokenizer()
    return str(tiny_models.save(tiny_models.llama(len(tokenizer)), tokenizer, folder))


def test_perplexity_is_the_models_own_loss(tmp_path: Path) -> None:
    model = tiny(tmp_path / "model")
    words = tiny_models.WORDS
    path = file(tmp_path, lines(*({"text": " ".join(words[i : i + 4 + i % 3])} for i in range(9))))
    documents = TextDocuments(path=path, model=model)
    rows = Perplexity(documents=documents, num_tokens=200, max_batch_tokens=16).measure(asked(tmp_path, None, model))
    assert 4 < len(rows) <= 9 and len({row["item"] for row in rows}) == len(rows)
    loaded = load_causal_lm(model)
    logps = [tiny_models.full_logps(loaded, list(ids))
             for ids in {tuple(d.ids) for d in documents.documents("held-out-perplexity", 1.0, 200)}]  # fmt: skip
    assert sum(row["nats"] for row in rows) == pytest.approx(-sum(float(own.sum()) for own in logps), rel=1e-5)
    assert sum(row["weight"] for row in rows) == sum(len(own) for own in logps)


# --- the stage --------------------------------------------------------------------------------------------------------


def test_every_set_is_put_to_the_model_that_is_meant(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base")
    policy = tmp_path / "rl"
    tiny(policy / "model")
    (policy / "best_of_n.json").write_text('{"n": 4}')
    sets: dict[str, EvaluationSet] = {
        "choices": MultipleChoice(path=file(tmp_path, lines({"prompt": "q", "choices": ["a", "b"], "answer": 0}))),
        "crows": SentencePairs(path=file(tmp_path, CROWS, "crows.csv"), kind="crows_pairs"),
    }
    seen = []

    def factory(*, model: str) -> ScriptedEngine:
        seen.append(model)
        return by(lambda _, choice: -float(len(choice)))

    stage = EvaluationSets(engine=factory, model=base, seed=0, sets=sets)
    assert {"choices/set.jsonl", "crows/crows.csv", "model"} == stage.texts().keys()
    facts = stage.run({}, tmp_path / "out")
    assert facts["choices_correct"] == 0.5 and facts["crows_entropy"] > 0 and facts["prompt_tokens"] > 0
    told = read_json(tmp_path / "out" / "sets.json")
    assert told["sets"]["crows"]["kind"] == "SentencePairs" and told["sets"]["crows"]["num_items"] == 2
    assert told["best_of_n"] is False
    assert len(read_rows(tmp_path / "out" / "crows.jsonl")) == 2
    stage.run({"model": policy}, tmp_path / "out-2")
    assert seen == [base, str(policy / "model")] and read_json(tmp_path / "out-2" / "sets.json")["best_of_n"] is True
    with pytest.raises(ConfigError, match="sets: needs at least one set"):
        EvaluationSets(engine=factory, model=base, seed=0, sets={})
