"""What the endpoint engine asks of a server: the best mode it can, ways to begin an answer, texts."""

import json
import math
from collections.abc import Sequence

import pytest
from endpoints import OPTIONS, Start, ask, engine, question, share, start, texts_of, truth
from fault_server import noise, p_first

from cai.engines.base import EnginePrompt, RemoteEngine, Sampling
from cai.errors import EngineError
from cai.types import Turn

__all__ = ["start"]  # fixture


# --- what servers can do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("abilities", "mode", "found"),
    [
        (("logprob", "systemone"), "auto", "logprob"),
        (("systemone",), "auto", "decision"),
        (("decisions", "samples"), "auto", "decision"),
        (("samples",), "auto", "sampled"),
        (("samples", "json_schema"), "auto", "sampled"),
        ((), "auto", "parsed"),
        (("logprob", "samples"), "sampled", "sampled"),
        (("logprob", "samples"), "parsed", "parsed"),
        (("logprob", "decisions"), "decision", "decision"),
    ],
)
def test_the_best_mode_that_the_server_can(start: Start, abilities: Sequence[str], mode: str, found: str) -> None:
    state, url = start(abilities=abilities)
    answers = ask(engine(url, mode=mode, num_samples=9), 6)
    assert {scored.receipt.provenance.mode for scored in answers} == {found}
    for number, scored in enumerate(answers):
        assert scored.receipt.failed is None
        if found == "logprob":
            assert share(scored) == pytest.approx(truth(number))
        elif found == "decision":
            input_ = [{"role": "user", "content": question(number).turns[0].content}]
            state_ = question(number).turns[0].content if "systemone" in abilities else input_
            assert share(scored) == pytest.approx(p_first(json.dumps(state_) + "The answer is:"))
        elif found == "sampled":
            assert scored.receipt.provenance.num_attempts == 9
            content = f"{question(number).turns[0].content}\nThe answer is:"
            first = sum(noise("sample", content, seed) < truth(number) for seed in range(9))
            assert math.exp(scored.logps[0]) == pytest.approx(first / 9)
        else:
            assert share(scored) == float(truth(number) >= 0.5)
    constrained = [body for body in state.bodies if "response_format" in body]
    assert (len(constrained) > 50) == ("json_schema" in abilities)


@pytest.mark.parametrize(
    ("abilities", "mode", "message"),
    [
        (("systemone",), "logprob", r"gives no log-probabilities .*; it can do decision, parsed"),
        (("logprob", "samples"), "decision", r"has no decision endpoint .*; it can do logprob, sampled, parsed"),
        (("logprob",), "sampled", r"says the same whatever the seed, at temperature 1; it can do logprob, parsed"),
    ],
)
def test_a_mode_that_the_server_cannot_is_refused_in_one_line(
    start: Start, abilities: Sequence[str], mode: str, message: str
) -> None:
    _, url = start(abilities=abilities)
    with pytest.raises(EngineError, match=f"^endpoint: {url}: mode={mode}, and the server {message}$"):
        ask(engine(url, mode=mode), 3)


def test_a_probe_is_not_fooled_by_faults(start: Start) -> None:
    """Answers without log-probabilities say that the server ignores them; garbage, or a single one, says nothing."""
    faults = iter(["html", "no_choices", "500", "no_logprobs", "reset", "cut_json", "no_logprobs"])
    _, url = start(script=lambda body, before: next(faults, None))
    assert {scored.receipt.provenance.mode for scored in ask(engine(url, mode="auto"), 2)} == {"logprob"}


def test_a_server_that_names_fewer_tokens_is_asked_for_fewer(start: Start) -> None:
    state, url = start()
    assert len(ask(engine(url, top_logprobs=50), 3)) == 3
    assert [body.get("top_logprobs") for body in state.bodies] == [50, 5, 5, 5, 5]


def test_prompts_of_text_alone_are_scored_as_completions(start: Start) -> None:
    state, url = start()
    prompts = [EnginePrompt(text=f"Case {n}: (A) or (B)? The answer is: ") for n in range(9)]
    for scored in engine(url).score(prompts, [OPTIONS] * 9):
        assert share(scored) == pytest.approx(p_first(prompts[scored.index].text.rstrip()))
    assert {body["path"] for body in state.bodies} == {"completions"}


@pytest.mark.parametrize("prefill", ["ask", "message", "continue"])
def test_every_way_to_begin_an_answer_reaches_the_server(start: Start, prefill: str) -> None:
    _, url = start()
    assert [share(s) for s in ask(engine(url, prefill=prefill), 4)] == [pytest.approx(truth(n)) for n in range(4)]


def test_one_option_is_no_choice(start: Start) -> None:
    with pytest.raises(EngineError, match="can choose between options, but not score a whole text"):
        engine("http://localhost:1/v1").choice_logprobs([question(0)], [("a whole text",)])


# --- generation -------------------------------------------------------------------------------------------------------


def test_texts_hang_on_seed_and_key_and_say_how_they_ended(start: Start) -> None:
    _, url = start()
    one = engine(url)
    assert isinstance(one, RemoteEngine)
    prompts = [EnginePrompt(turns=(Turn("user", "Tell me more."),))] * 3
    sampling = Sampling(max_new_tokens=4)
    found = {g.index: g for g in one.generate(prompts, sampling, seed=1, keys=["a", "b", "a"], done=())}
    assert found[0].text == found[2].text != found[1].text
    assert found[0].num_tokens == 4 and not found[0].finished
    (long,) = one.generate(prompts[:1], Sampling(max_new_tokens=40), seed=1, keys=["a"])
    assert long.finished and long.num_tokens == 12
    stop = long.text.split()[3]
    (cut,) = one.generate(prompts[:1], Sampling(max_new_tokens=40, stop=(stop,)), seed=1, keys=["a"])
    assert cut.text == long.text[: long.text.index(stop)] and cut.finished
    assert texts_of(one, 6, done={1, 2}).keys() == {0, 3, 4, 5}
    assert cut.receipt is not None and cut.receipt.provenance.new_tokens == 12


def test_what_cannot_be_asked_is_one_line() -> None:
    one = engine("http://localhost:1/v1")
    with pytest.raises(EngineError, match="prompt 1 is empty"):
        list(one.generate([question(0), EnginePrompt(text=" ")], Sampling(max_new_tokens=1), seed=0, keys=["a", "b"]))
    with pytest.raises(EngineError, match="2 prompts but 1 keys"):
        list(one.generate([question(0)] * 2, Sampling(max_new_tokens=1), seed=0, keys=["a"]))
    with pytest.raises(EngineError, match="1 prompts but 2 sets of choices"):
        list(one.score([question(0)], [OPTIONS] * 2))
    assert list(one.score([], [])) == []
