"""Engines: batches, stop strings, resuming, usage and errors of the real one; queue and history of the scripted one."""

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_models import LLAMA_TEMPLATE, bpe_tokenizer, full_logps, llama, save, word_tokenizer
from transformers import PreTrainedTokenizerBase

from cai.engines.base import Engine, EnginePrompt, Generation, Sampling
from cai.engines.scripted import ScriptedEngine
from cai.engines.transformers import TransformersEngine
from cai.errors import EngineError, ModelError
from cai.types import Turn

QUESTIONS = ["how do i open the door ?", "take a key", "then ?", "how do i open the house ?", "push", "take a key"]
PROMPTS = [EnginePrompt(turns=(Turn("user", text),)) for text in QUESTIONS]
KEYS = list("abcdef")
SAMPLING = Sampling(max_new_tokens=16)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = word_tokenizer()
    return save(llama(len(tokenizer), context=96), tokenizer, tmp_path_factory.mktemp("models") / "words")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = bpe_tokenizer(pad_token=None)
    return save(llama(len(tokenizer)), tokenizer, tmp_path_factory.mktemp("models") / "pieces")


def engine(folder: Path, **settings) -> TransformersEngine:
    return TransformersEngine(model=str(folder), device="cpu", **settings)


def generate(one: Engine, prompts=PROMPTS, sampling=SAMPLING, *, keys=KEYS, seed=1, done=()) -> list[Generation]:
    return list(one.generate(prompts, sampling, seed=seed, keys=keys[: len(prompts)], done=done))


def tokenizer_of(one: TransformersEngine) -> PreTrainedTokenizerBase:
    return one._loaded.texts.tokenizer


# --- generate ---------------------------------------------------------------------------------------------------------


def test_every_prompt_gets_one_text_of_its_own(words: Path):
    found = generate(engine(words))
    assert sorted(g.index for g in found) == list(range(6))
    assert len({g.text for g in found}) == 6  # prompts 1 and 5 are alike, their keys are not
    for g in found:
        assert tokenizer_of(engine(words)).eos_token not in g.text and 1 <= g.num_tokens <= 16
        assert g.finished or g.num_tokens == 16


def test_the_same_call_gives_the_same_and_another_seed_something_else(words: Path):
    first = generate(engine(words))
    assert generate(engine(words)) == first
    assert {g.text for g in generate(engine(words), seed=2)} != {g.text for g in first}


@pytest.mark.parametrize("budget", [1, 70, 16384])
def test_going_on_gives_the_bits_of_the_whole(words: Path, budget: int):
    whole = generate(engine(words, max_batch_tokens=budget))
    done = {whole[0].index, whole[4].index}
    assert generate(engine(words, max_batch_tokens=budget), done=done) == [g for g in whole if g.index not in done]
    assert generate(engine(words), done=range(6)) == []


def test_whole_batches_that_are_done_cost_nothing(words: Path):
    one = engine(words, max_batch_tokens=1)  # every prompt is a batch
    generate(one, done=range(1, 6))
    read, made = one.usage.prompt_tokens, one.usage.new_tokens
    (only,) = generate(one, PROMPTS[:1])
    assert (one.usage.prompt_tokens, one.usage.new_tokens) == (2 * read, 2 * made)
    assert made == only.num_tokens


def test_batches_hold_the_budget_and_keep_equal_prompts_together(words: Path):
    one = engine(words, max_batch_tokens=60)
    lengths = [(8, [1]), (3, [2]), (5, [3]), (8, [4]), (3, [2]), (5, [0])]
    batches = list(one._batches(lengths, 10))
    assert batches == [[3, 0, 2], [5, 1, 4]]
    assert list(one._batches([], 10)) == []


def test_greedy_text_is_what_the_model_says(words: Path):
    one = engine(words)
    (found,) = generate(one, PROMPTS[:1], Sampling(max_new_tokens=8, temperature=0.0))
    model, tokenizer = one._loaded.model, tokenizer_of(one)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": QUESTIONS[0]}], add_generation_prompt=True,
                                        return_tensors="pt")["input_ids"]  # fmt: skip
    expected = model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=tokenizer.eos_token_id)
    assert found.text == tokenizer.decode(expected[0, ids.shape[1] :])  # markers that it wrote stay


def test_a_marker_stops_by_its_token(words: Path):
    free = generate(engine(words), sampling=Sampling(max_new_tokens=60))
    marked = generate(engine(words), sampling=Sampling(max_new_tokens=60, stop=("<user>", "<answer>", "<assistant>")))
    by_index = {g.index: g for g in free}
    assert any(g.num_tokens < by_index[g.index].num_tokens for g in marked)
    for g in marked:
        assert by_index[g.index].text.startswith(g.text)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_stop_string_ends_the_text_wherever_it_falls_in_tokens(pieces: Path, length: int):
    prompts = [EnginePrompt(text=f"take a key {n} and") for n in range(12)]
    keys = [str(n) for n in range(12)]
    free = generate(engine(pieces), prompts, Sampling(max_new_tokens=40), keys=keys)
    stop = next(g.text[4 : 4 + length] for g in free if re.match("[ -~]{8}", g.text))  # over any tokens
    cut = {g.index: g for g in generate(engine(pieces), prompts, Sampling(max_new_tokens=40, stop=(stop,)), keys=keys)}
    num_cut = 0
    for g in free:
        expected, found, _ = g.text.partition(stop)
        assert cut[g.index].text == expected
        assert cut[g.index].num_tokens <= g.num_tokens
        assert cut[g.index].finished or not found
        num_cut += bool(found)
    assert num_cut


def test_a_space_at_the_end_of_a_prompt_is_not_said_again(pieces: Path):
    with_space, without = (EnginePrompt(text=text) for text in ("take a ", "take a"))
    greedy = Sampling(max_new_tokens=5, temperature=0.0)
    (one,), (other,) = generate(engine(pieces), [with_space], greedy), generate(engine(pieces), [without], greedy)
    assert one.text == other.text.lstrip(" ")
    spaced = engine(pieces).choice_logprobs([with_space, without], [["key", "door"], [" key", " door"]])
    np.testing.assert_array_equal(spaced[0], spaced[1])


def test_text_follows_the_rendered_turns(pieces: Path):
    one = engine(pieces)
    prompt = EnginePrompt(turns=(Turn("user", "how ?"),), text="take")
    (encoded,) = one._loaded.texts.encode([prompt])
    assert encoded.text == "<|bos|><|start|>user<|stop|>\n\nhow ?<|eot|><|start|>assistant<|stop|>\n\ntake"
    assert tokenizer_of(one).decode(encoded.ids) == encoded.text  # and no second <|bos|>


# --- choices ----------------------------------------------------------------------------------------------------------


def test_choices_are_summed_over_tokens_and_not_renormalised(pieces: Path):
    one = engine(pieces)
    prompts = [*PROMPTS, EnginePrompt(text="take a key and")]
    choices = [
        [" turn it", " push", " a"],
        [" key"],
        ["yes", "no"],
        ["no", "yes"],
        ["(A)", "(B)"],
        [" the old"],
        [" I"],
    ]
    found = one.choice_logprobs(prompts, choices)
    tokenizer, model = tokenizer_of(one), one._loaded.model
    for prompt, options, array in zip(prompts, choices, found, strict=True):
        assert array.shape == (len(options),) and array.dtype == np.float64
        (encoded,) = one._loaded.texts.encode([prompt])
        for option, value in zip(options, array, strict=True):
            ids = tokenizer(option, add_special_tokens=False)["input_ids"]
            expected = float(full_logps(model, encoded.ids + ids)[len(encoded.ids) - 1 :].sum())
            assert value == pytest.approx(expected, abs=1e-5)
    assert max(len(tokenizer(option)["input_ids"]) for options in choices for option in options) > 1


def test_a_choice_is_cut_into_tokens_as_it_would_stand_in_the_text(words: Path, pieces: Path):
    texts = engine(pieces)._loaded.texts
    (prompt,) = texts.encode([EnginePrompt(text="take a")])
    assert texts.encode_choice(prompt, " key") == texts.tokenizer(" key")["input_ids"]
    (glued,) = texts.encode([EnginePrompt(text="take a ke")])  # `key` is one token, but these ids are given
    assert texts.tokenizer.decode(texts.encode_choice(glued, "y")) == "y"
    one = engine(words)
    ask = [EnginePrompt(text="<user> open <answer>"), EnginePrompt(text="<user> open <answer> ")]
    found = one.choice_logprobs(ask, [["yes", "no"], ["yes", " no"]])
    np.testing.assert_array_equal(found[0], found[1])


def test_shared_questions_are_counted(words: Path):
    one = engine(words)
    one.choice_logprobs([EnginePrompt(text=f"take a key {w}") for w in ("yes", "no")], [["(A)", "(B)"]] * 2)
    assert (one.usage.prompt_tokens, one.usage.new_tokens) == (5, 0)  # of 8 tokens, 3 are read once for both
    assert one.usage.flops == 2.0 * 5 * one._loaded.model.num_parameters()


# --- errors and bookkeeping -------------------------------------------------------------------------------------------


def test_unknown_words_are_counted_by_word(words: Path):
    one = engine(words)
    odd = [EnginePrompt(text="how do i open the zebra , zebra"), EnginePrompt(text="take a moose"), PROMPTS[0]]
    generate(one, odd)
    one.choice_logprobs(odd[1:2], [["yes"]])
    assert one.usage.unknown == {"zebra": 2, ",": 1, "moose": 2}


def test_prompts_that_do_not_fit_are_named(words: Path):
    long = EnginePrompt(text="take a key " * 30)
    with pytest.raises(EngineError, match=r"prompt 1: 90 tokens and 16 more do not fit into the 96 of words"):
        generate(engine(words), [PROMPTS[0], long])
    with pytest.raises(EngineError, match=r"prompt 0: 96 tokens and 1 more do not fit into the 96"):
        engine(words).choice_logprobs([EnginePrompt(text="take a key " * 32)], [["yes"]])
    assert len(engine(words).choice_logprobs([EnginePrompt(text="take a key " * 31)], [["yes"]])) == 1


def test_what_cannot_be_asked_is_one_line(words: Path, pieces: Path, tmp_path: Path):
    with pytest.raises(EngineError, match="prompt 1 is empty"):
        generate(engine(words), [PROMPTS[0], EnginePrompt()])
    with pytest.raises(EngineError, match="2 prompts but 1 keys"):
        list(engine(words).generate(PROMPTS[:2], SAMPLING, seed=0, keys=["a"]))
    with pytest.raises(EngineError, match="choice 'maybe': the model's vocabulary has no tokens for it"):
        engine(words).choice_logprobs(PROMPTS[:1], [["maybe"]])
    with pytest.raises(EngineError, match="choice '': "):
        engine(pieces).choice_logprobs(PROMPTS[:1], [[""]])
    with pytest.raises(EngineError, match="prompt 0 has no choices"):
        engine(words).choice_logprobs(PROMPTS[:1], [[]])
    with pytest.raises(EngineError, match="1 prompts but 2 sets of choices"):
        engine(words).choice_logprobs(PROMPTS[:1], [["yes"], ["no"]])
    strict = bpe_tokenizer(
        template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + LLAMA_TEMPLATE
    )
    save(llama(len(strict)), strict, tmp_path)
    with pytest.raises(EngineError, match="prompt 0: the model's chat template refuses it: no system"):
        generate(engine(tmp_path), [EnginePrompt(turns=(Turn("system", "be good"), Turn("user", "how ?")))])


def test_settings_that_cannot_be_right_fail_before_loading(words: Path):
    with pytest.raises(ModelError, match="unknown model folder 'wrds'; did you mean 'words'"):
        engine(words.parent / "wrds")
    with pytest.raises(ModelError, match="unknown dtype 'bf16'; did you mean 'bfloat16'"):
        engine(words, dtype="bf16")
    with pytest.raises(ModelError, match="max_batch_tokens: must be 1 or more, got 0"):
        engine(words, max_batch_tokens=0)


def test_an_engine_has_the_name_of_its_model(words: Path):
    assert engine(words).name == "words"


def test_half_precision_runs_on_the_cpu_too(words: Path):
    exact = engine(words).choice_logprobs(PROMPTS, [["yes", "no"]] * 6)
    rough = engine(words, dtype="bfloat16").choice_logprobs(PROMPTS, [["yes", "no"]] * 6)
    np.testing.assert_allclose(np.stack(rough), np.stack(exact), atol=0.15)
    assert not np.array_equal(np.stack(rough), np.stack(exact))


# --- scripted ---------------------------------------------------------------------------------------------------------


def test_scripted_replies_come_in_order_and_run_out():
    one = ScriptedEngine(replies=["one", "two <end> more"])
    found = generate(one, PROMPTS[:3], Sampling(max_new_tokens=8, stop=(" <end>",)), done={1})
    assert [(g.index, g.text) for g in found] == [(0, "one"), (2, "two")]
    with pytest.raises(EngineError, match="no reply left in the queue"):
        generate(one, PROMPTS[:1])
    one.enqueue("three")
    assert generate(one, PROMPTS[:1])[0].text == "three"
    assert [request.key for request in one.history] == ["a", "c", "a", "a"]
    assert one.history[0].prompt == PROMPTS[0] and one.history[0].sampling.stop == (" <end>",)


def test_scripted_function_and_limit():
    one = ScriptedEngine(replies=lambda prompt: prompt.turns[0].content, model="echo")
    cut, whole = generate(one, PROMPTS[:2], Sampling(max_new_tokens=3))
    assert (cut.text, cut.num_tokens, cut.finished) == ("how do i", 3, False)
    assert (whole.text, whole.num_tokens, whole.finished) == ("take a key", 3, True)
    assert one.name == "echo" and one.usage.new_tokens == 6


def test_scripted_choices():
    one = ScriptedEngine(logprob=lambda prompt, choice: -1.0 if choice == "yes" else -2.0)
    (found,) = one.choice_logprobs(PROMPTS[:1], [["no", "yes"]])
    assert found.tolist() == [-2.0, -1.0]
    assert one.history[0].choices == ("no", "yes")
    with pytest.raises(EngineError, match="made without `logprob`"):
        ScriptedEngine().choice_logprobs(PROMPTS[:1], [["yes"]])


def test_both_keep_the_protocol(words: Path):
    assert isinstance(engine(words), Engine) and isinstance(ScriptedEngine(), Engine)
