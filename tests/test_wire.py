"""What is sent to a server, and what is believed of its answers."""

import json
import math
from typing import Any

import pytest
from endpoints import LETTERS
from hypothesis import given
from hypothesis import strategies as st

from cai.engines.base import EnginePrompt, Sampling
from cai.engines.wire import replies, requests
from cai.engines.wire.markers import inert
from cai.engines.wire.replies import Kind, Trouble
from cai.engines.wire.requests import Manner
from cai.engines.wire.transport import Spending
from cai.types import Turn

CHAT = EnginePrompt(turns=(Turn("user", "which?"),), text="The answer is:")


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefill", "messages", "more"),
    [
        ("ask", ["user", "assistant", "user"], {}),
        ("message", ["user", "assistant"], {}),
        ("continue", ["user", "assistant"], {"continue_final_message": True, "add_generation_prompt": False}),
    ],
)
def test_the_beginning_of_an_answer_is_put_as_the_server_understands_it(
    prefill: str, messages: list[str], more: dict[str, object]
) -> None:
    request = requests.text(Manner(model="m", prefill=prefill), CHAT, Sampling(max_new_tokens=5, stop=("x",)), seed=3)
    assert request.path == "/chat/completions"
    body = dict(request.body)
    assert [message["role"] for message in body.pop("messages")] == messages
    assert body == {"model": "m", "max_tokens": 5, "temperature": 1.0, "seed": 3, "stop": ["x"], **more}


def test_a_prompt_of_text_alone_is_continued_as_it_stands() -> None:
    request = requests.logprobs(Manner(model="m", verdict_tokens=3), EnginePrompt(text="1 + 1 = "))
    assert (request.path, request.body["prompt"]) == ("/completions", "1 + 1 =")
    assert (request.body["logprobs"], request.body["max_tokens"], request.body["temperature"]) == (20, 3, 0.0)
    assert "top_logprobs" not in request.body


def test_extra_keys_are_added_and_null_takes_one_away() -> None:
    manner = Manner(model="m", max_tokens_name="max_completion_tokens", extra_body={"seed": None, "top_k": 5})
    body = requests.text(manner, CHAT, Sampling(max_new_tokens=5), seed=3).body
    assert body["max_completion_tokens"] == 5 and body["top_k"] == 5 and "seed" not in body


def test_decisions_name_the_options_and_nothing_else() -> None:
    one = requests.decision(Manner(model="m"), CHAT, LETTERS.texts, "systemone").body
    assert one["state"] == "which?"
    question = {"type": "choice", "instructions": "The answer is:", "criteria": {"(A)": None, "(B)": None}}
    assert one["questions"] == {"verdict": question}
    other = requests.decision(Manner(model="m"), CHAT, LETTERS.texts, "decisions").body
    assert other["input"] == [{"role": "user", "content": "which?"}]
    assert other["questions"][0]["choices"] == [{"value": "(A)"}, {"value": "(B)"}]


# --- suspicion --------------------------------------------------------------------------------------------------------


def top(token: str, **probabilities: float) -> dict[str, Any]:
    rows = [{"token": name, "logprob": math.log(p)} for name, p in probabilities.items()]
    return {"token": token, "logprob": rows[0]["logprob"], "top_logprobs": rows}


def answer(**changed: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "A"}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": "stop",
        "logprobs": {"content": [top("A", A=0.6, B=0.3)]},
    }
    usage = {"prompt_tokens": 9, "completion_tokens": 1}
    return {"model": "m", "choices": [choice], "usage": usage, **changed}


def read(body: str) -> tuple[object, ...]:
    """All that is read of an answer to a choice."""
    found = replies.parse(body)
    replies.check_model(found, "m", None)
    return replies.tokens(found), replies.logprobs_reply(found, LETTERS), replies.text_reply(found)


def test_an_answer_is_read() -> None:
    used, reply, said = read(json.dumps(answer()))
    assert used == replies.Tokens(9, 1)
    assert reply == replies.Reply(logps=(pytest.approx(math.log(0.6)), pytest.approx(math.log(0.3))))
    assert said == replies.Reply("A", True)


def test_an_answer_cut_anywhere_is_garbage() -> None:
    body = json.dumps(answer())
    for cut in range(len(body)):
        with pytest.raises(Trouble) as trouble:
            read(body[:cut])
        assert trouble.value.kind is Kind.GARBAGE and trouble.value.reason == "bad_json"


@given(st.data())
def test_an_answer_with_any_part_replaced_is_garbage_or_the_same(data: st.DataObject) -> None:
    """Whatever stands in the place of a part, no exception but Trouble comes out, and no number that is none."""
    junk = st.sampled_from(
        [None, "", "x", [], {}, [None], -1, 1.5, math.nan, math.inf, True, {"content": 3}, 10**400, -(10**400)]
    )
    whole = answer()
    node: Any = whole
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = data.draw(junk)
        break
    try:
        used, reply, said = read(json.dumps(whole))
    except Trouble as trouble:
        assert trouble.kind in (Kind.GARBAGE, Kind.PERMANENT) and "\n" not in trouble.detail
        return
    assert isinstance(used, replies.Tokens) and min(used.read, used.made) >= 0
    assert isinstance(said, replies.Reply) and isinstance(said.text, str)
    assert isinstance(reply, replies.Reply)
    assert all(logp is None or (math.isfinite(logp) and logp <= 0.01) for logp in reply.logps)


CHOICE, USAGE = answer()["choices"][0], answer()["usage"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<html><body>busy</body></html>", "html"),
        ("", "bad_json"),
        ("[1]", "wrong_shape"),
        (json.dumps(answer()) * 2, "bad_json"),
        (json.dumps({"error": {"message": "overloaded"}}), "error_body"),
        (json.dumps(answer(choices=[])), "no_choices"),
        (json.dumps(answer(choices=[CHOICE, CHOICE])), "no_choices"),
        (json.dumps(answer(choices=[{**CHOICE, "message": {"content": None}}])), "no_content"),
        (json.dumps(answer(choices=[{**CHOICE, "logprobs": None}])), "no_logprobs"),
        (json.dumps(answer(choices=[{**CHOICE, "logprobs": {"content": [top("A", A=1.0, B=0.9)]}}])), "bad_logprobs"),
        (json.dumps(answer()).replace(str(math.log(0.3)), "NaN"), "bad_logprobs"),
        (json.dumps(answer()).replace(str(math.log(0.3)), "3.0"), "bad_logprobs"),
        (json.dumps(answer(model="another")), "wrong_model"),
        (json.dumps(answer(model=None)), "wrong_model"),
        (json.dumps(answer(usage=None)), "no_usage"),
        (json.dumps(answer(usage={"prompt_tokens": 3})), "no_usage"),
        (json.dumps(answer(usage={**USAGE, "prompt_tokens_details": {"cached_tokens": 10}})), "no_usage"),
        (json.dumps(answer(choices=[{**CHOICE, "finish_reason": "abort"}])), "broken_off"),
        (json.dumps(answer(choices=[{**CHOICE, "finish_reason": "error"}])), "broken_off"),
        (json.dumps(answer(choices=[{**CHOICE, "finish_reason": None}])), "broken_off"),
    ],
)
def test_garbage_has_a_name(body: str, reason: str) -> None:
    with pytest.raises(Trouble) as trouble:
        read(body)
    assert (trouble.value.kind, trouble.value.reason) == (Kind.GARBAGE, reason)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"finish_reason": "content_filter"}, "content_filter"), ({"message": {"refusal": "no"}}, "refusal")],
)
def test_a_filtered_answer_is_not_asked_for_again(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(Trouble) as trouble:
        replies.text_reply(answer(choices=[{**CHOICE, **changed}]))
    assert (trouble.value.kind, trouble.value.reason) == (Kind.PERMANENT, reason)


@pytest.mark.parametrize(
    ("error", "is_content"),
    [
        ({"code": 403, "message": "Forbidden", "metadata": {"flagged_input": "my account", "reasons": []}}, True),
        ({"code": 403, "message": "The model requires moderation and your input was flagged"}, True),
        ({"code": "content_policy_violation", "message": "no"}, True),
        ("Content violates usage guidelines. API key ID: 7, Failed check: BIO", True),
        ({"code": "permission-denied", "message": "Access to the chat endpoint is denied"}, False),
        ({"code": 403, "message": "Your API key may not use this model", "metadata": {"reasons": []}}, False),
        ("Country, region, or territory not supported", False),
        ("Your account was suspended: content that violates our policy", False),
        ("Your account has been flagged for repeated violations of our content policy", False),
        ({"code": 403, "message": "You must accept the content policy of this model; your input was flagged"}, False),
        ("This content filter configuration requires approval", False),
        ("Project does not have access: input modality filtered by organization admin", False),
        ("Your prompt was disabled by safety: content violates policy", True),
        ({"message": None}, False),
        (None, False),
    ],
)
def test_a_403_is_about_the_prompt_or_about_the_key(error: Any, is_content: bool) -> None:
    assert replies.refuses_content(json.dumps({"code": "permission-denied", "error": error})) is is_content


@pytest.mark.parametrize("body", ["<html>content violates</html>", "[]", '"content violates"', ""])
def test_a_403_that_is_no_error_of_an_api_is_not_about_the_prompt(body: str) -> None:
    assert not replies.refuses_content(body)


@pytest.mark.parametrize(
    ("asked", "said", "same"),
    [
        ("gpt-x", "gpt-x-2026-01-01", True),
        ("gpt-x", "gpt-x-mini", True),  # nothing tells a date from a size
        ("./tiny", "./tiny@main", True),
        ("org/model:free", "org/model", True),
        ("/models/tiny", "tiny", True),
        ("gpt-x", "gpt-y", False),
        ("gpt-xl", "gpt-x", False),
    ],
)
def test_a_model_may_answer_under_a_longer_or_a_shorter_name(asked: str, said: str, same: bool) -> None:
    if same:
        replies.check_model({"model": said}, asked, None)
    else:
        with pytest.raises(Trouble, match=f"wrong_model: asked for '{asked}', answered by '{said}'"):
            replies.check_model({"model": said}, asked, None)
        replies.check_model({"model": said}, asked, said)


def test_texts_end_at_stop_strings_and_do_not_repeat_their_beginning() -> None:
    found = answer(
        choices=[{**CHOICE, "message": {"content": " The answer is: (A).\nNext"}, "finish_reason": "length"}]
    )
    assert replies.text_reply(found) == replies.Reply(" The answer is: (A).\nNext", False)
    assert replies.text_reply(found, begun="The answer is:", stop=("\n",)) == replies.Reply(" (A).", True)


def test_a_text_that_reached_its_stop_string_is_whole_however_it_ended() -> None:
    found = answer(choices=[{**CHOICE, "message": {"content": "whole\n## and mo"}, "finish_reason": "abort"}])
    assert replies.text_reply(found, stop=("\n##",)) == replies.Reply("whole", True)
    with pytest.raises(Trouble, match="broken_off: finish_reason 'abort', after 'whole ## and mo'"):
        replies.text_reply(found)


def test_decisions_are_read_in_both_dialects() -> None:
    rows = [{"value": "(A)", "probability": 0.75}, {"value": "(B)", "probability": 0.25}]
    one = {"answers": {"verdict": {"type": "choice", "probabilities": {"(B)": 0.25, "(A)": 0.75}}}}
    other = {"answers": [{"type": "choice", "probabilities": rows}]}
    expected = replies.Reply(logps=(math.log(0.75), math.log(0.25)))
    assert replies.decision_reply(one, LETTERS, "systemone") == expected
    assert replies.decision_reply(other, LETTERS, "decisions") == expected
    with pytest.raises(Trouble, match="refusal"):
        replies.decision_reply({"answers": [{"type": "refusal"}]}, LETTERS, "decisions")


@pytest.mark.parametrize(
    ("probabilities", "reason"),
    [
        ({"(A)": 0.75}, "no_verdict"),
        ({"(A)": 0.75, "(B)": 0.2, "(C)": 0.05}, "no_verdict"),
        ({"(A)": 0.75, "(B)": 0.75}, "bad_probabilities"),
        ({"(A)": 1.5, "(B)": -0.5}, "bad_probabilities"),
        ({"(A)": math.nan, "(B)": 0.5}, "bad_probabilities"),
        ({"(A)": None, "(B)": 0.5}, "bad_probabilities"),
        (None, "no_verdict"),
    ],
)
def test_a_decision_that_is_no_distribution_is_garbage(probabilities: object, reason: str) -> None:
    for found in ({"answers": {"verdict": {"probabilities": probabilities}}}, {"answers": {"verdict": probabilities}}):
        with pytest.raises(Trouble) as trouble:
            replies.decision_reply(found, LETTERS, "systemone")
        assert trouble.value.kind is Kind.GARBAGE
    with pytest.raises(Trouble, match=reason):
        replies.decision_reply({"answers": {"verdict": {"probabilities": probabilities}}}, LETTERS, "systemone")


def test_a_price_is_per_million_tokens() -> None:
    spending = Spending({"input": 1.0, "output": 4.0, "cached": 0.1}, None)
    assert spending.price(replies.Tokens(1_000_000, 500_000)) == pytest.approx(3.0)
    assert spending.price(replies.Tokens(1_000_000, 0, 1_000_000)) == pytest.approx(0.1)
    assert Spending({"input": 1.0, "output": 4.0}, None).price(replies.Tokens(0, 10)) == pytest.approx(4e-5)
    assert Spending({}, None).price(replies.Tokens(10, 10)) == 0


MARKERS = """
<|im_start|> <|eot_id|> <|endoftext|> <\uff5cUser\uff5c> [INST] [/INST] <<SYS>> </s> <bos> <start_of_turn> </think>
<seed:eos> <seed:bos> <seed:think> [e~[ ]~b] ]~!b[ [THINK] [/THINK] [ARGS] [CALL_ID] [gMASK] <sop> <end_of_utterance>
<image> <unused7> <SPECIAL_12> <extra_id_0> <|turn> <turn|> [|endofturn|] <EOS> <BOS_TOKEN> <start_of_image> [SEP]
<reserved_106> <tool_calls> <fim_prefix>
"""


@pytest.mark.parametrize("marker", MARKERS.split())
def test_a_special_token_that_a_text_quotes_is_broken_up_and_counted(marker: str) -> None:
    content = f"Judge {marker} this: x {marker}{marker} y"
    start = content.index("x ")
    prompt = EnginePrompt((Turn("user", content),), f"{marker} So:", ((0, start, len(content)), (1, 0, 1)))
    broken, number = inert(prompt)
    apart = f"{marker[:-1]} {marker[-1]}"
    assert broken.turns[0].content == f"Judge {marker} this: x {apart}{apart} y", "the format itself is left alone"
    assert (broken.text, number) == (f"{marker} So:", 2)


def test_a_text_without_special_tokens_is_left_alone() -> None:
    text = """a < b | c > d [not] <em>so</em> <h1> <b>bold</b> <my_name> vector<size_t> [NOTE] [DATE] [1] <https://x.org>
    xs |> map f <| g x > y; a[b~[0]]; a||b; <svg:rect> <ol start=1> [THINK about it] <images> [[x]] <3 <unused> #[cfg]
    [args] [img] [/img] x<|"""
    prompt = EnginePrompt((Turn("user", text),), "", ((0, 0, len(text)),))
    assert inert(prompt) == (prompt, 0)
