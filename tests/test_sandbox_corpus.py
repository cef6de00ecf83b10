"""The sandbox's documents, the templates that render to them, and the tokenizer."""

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cai import constitution
from cai.constitution import Principle
from cai.models.loading import encode_dialogue
from cai.models.pretraining import build_llama
from cai.prompts import PromptFamily
from cai.records import digest_folder
from cai.rendered import ChoiceSlot, Rendered
from cai.sandbox import corpus
from cai.sandbox.grammar import draw_prompt, draw_varied, pairs
from cai.sandbox.oracle import parse_prompt, read_parsed
from cai.sandbox.principles import AXES, predicates, principle_texts
from cai.sandbox.probe import probe
from cai.sandbox.tokenizer import CONTROL, MARKERS, build, token_ids, vocabulary
from cai.types import Turn


def documents(number: int) -> list[corpus.Document]:
    """Of every kind, from both mixes."""
    rng = random.Random(5)
    mixes = (corpus.FIRST_MIX, corpus.MAIN_MIX)
    return [corpus.draw_document(rng, mixes[i % 2]) for i in range(number)]


# --- corpus -----------------------------------------------------------------------------------------------------------


def test_documents_repeat_are_of_every_kind_and_in_the_vocabulary() -> None:
    found = documents(600)
    assert found == documents(600)
    assert {d.kind for d in found} == set(corpus.MAKERS)
    known = set(vocabulary())
    for document in found:
        assert set(document.tokens) <= known
        assert len(document.tokens) == len(document.weights) <= 300
        assert document.tokens[0] == "<bos>" and document.tokens[-1] == "<end>" and max(document.weights) > 0


def test_nothing_that_is_held_out_is_in_a_document() -> None:
    held_out_pairs = {f"{verb} the {object_} " for split in ("dev", "test") for verb, object_ in pairs(split)}
    held_out_wordings = {text for axis in AXES for text in predicates(axis, held_out=True)}
    assert len(held_out_pairs) == 68 and len(held_out_wordings) == 21
    for document in documents(3000):
        prompts = [part.split(" ?")[0] for part in " ".join(document.tokens).split("<user> ")[1:]]
        text = " ".join(document.tokens)
        assert not any(pair in f"{prompt} " for prompt in prompts for pair in held_out_pairs), text
        assert not any(f"{wording} <" in text for wording in held_out_wordings), text


def test_each_part_of_a_held_out_wording_is_seen_with_others() -> None:
    for axis in AXES:
        seen = " / ".join(predicates(axis, held_out=False))
        for predicate in predicates(axis, held_out=True):
            tokens = predicate.split()
            assert any(
                " ".join(tokens[:cut]) in seen and " ".join(tokens[cut:]) in seen for cut in range(1, len(tokens))
            )
        assert set(principle_texts(axis, True)).isdisjoint(principle_texts(axis, False))


def test_concise_and_chatty_are_opposites() -> None:
    rng = random.Random(9)
    for _ in range(50):
        prompt = draw_prompt(rng, "train", True)
        read = read_parsed(prompt, draw_varied(rng, prompt).text)
        assert read.satisfies("concise") != read.satisfies("chatty")


def test_answers_weigh_most_and_are_what_the_oracle_says() -> None:
    rng = random.Random(21)
    for _ in range(100):
        document = corpus.judge(rng)
        text = " ".join(document.tokens)
        answers = [t for t, before in zip(document.tokens[1:], document.tokens, strict=False) if before == "<answer>"]
        choice = document.tokens[-2]
        assert document.tokens[-3] == "<choice>" and len(answers) == 2
        if answers[0] != answers[1]:
            assert choice == ("(A)" if answers[0] == "yes" else "(B)")
            assert document.weights[-2] == corpus.ANSWER
        prompt = parse_prompt(text.split("<user> ")[1].split(" <option>")[0])
        assert prompt is not None
        wording = text.split("<principle> ")[1].split(" <")[0]
        axis = next(axis for axis in AXES if wording in principle_texts(axis, held_out=False))
        for answer, option in zip(answers, text.split("<option> ")[1:], strict=True):
            response = option.split(" <principle>")[0].split(" ", 1)[1]
            assert read_parsed(prompt, response).satisfies(axis) == (answer == "yes")


# --- templates --------------------------------------------------------------------------------------------------------


def filled(rendered: Rendered, document: str) -> list[str]:
    """The values that turn the rendered template into `document`, slot by slot; fails when there are none."""
    values: list[str] = []
    for number, slot in enumerate(rendered.slots):
        start = rendered.fill(values).text
        assert document.startswith(start), (start, document)
        rest = document[len(start) :]
        if isinstance(slot, ChoiceSlot):
            values.append(next(option for option in slot.options if rest.startswith(option)))
        else:
            end = " <end>" if number < len(rendered.slots) - 1 or rest.endswith(" <end>") else ""
            values.append(rest.split(end)[0] if end else rest)
    return values


def principle_of(text: str) -> Principle:
    wording = text.split("<principle> ")[1].split(" <")[0]
    return Principle(id="p", axis="x", statement=wording)


@pytest.mark.parametrize("template", ["judge", "judge_cot"])
def test_judge_templates_render_to_the_documents_of_the_corpus(template: str) -> None:
    family, rng, count = PromptFamily("sandbox"), random.Random(4), 0
    while count < 20:
        text = " ".join(corpus.judge(rng).tokens)
        if ("<critique>" in text) != (template == "judge_cot"):
            continue
        count += 1
        turns = (Turn("user", text.split("<user> ")[1].split(" <option>")[0]),)
        responses = [part.split(" <principle>")[0][len("(A) ") :] for part in text.split("<option> ")[1:]]
        rendered = family.render(template, turns=turns, responses=responses, principle=principle_of(text))
        values = filled(rendered, text)
        assert rendered.fill(values).text + " <end>" == text
        assert rendered.slots[-1] == ChoiceSlot(("(A)", "(B)"))


def test_revision_templates_render_to_the_documents_of_the_corpus() -> None:
    family, rng, seen = PromptFamily("sandbox"), random.Random(4), set[bool]()
    for _ in range(40):
        text = " ".join(corpus.revise_document(rng).tokens)
        if text.count("<revision>") > 1:
            continue
        prompt, response = text.split("<user> ")[1].split(" <principle>")[0].split(" <option> ")
        given = {"turns": (Turn("user", prompt),), "response": response, "principle": principle_of(text)}
        seen.add("<critique>" in text)
        if "<critique>" in text:
            (said,) = filled(family.render("critique", **given), text.split(" <revision>")[0])
            rendered = family.render("revision", **given, critique=said)
        else:
            rendered = family.render("direct_revision", **given)
        (revision,) = filled(rendered, text)
        assert rendered.fill([revision]).text + " <end>" == text
    assert seen == {True, False}


def test_the_chat_template_renders_to_the_dialogues_of_the_corpus() -> None:
    tokenizer, rng, lengths = build(), random.Random(2), set[int]()
    for _ in range(60):
        document = corpus.dialogue(rng)
        turns = []
        for part in " ".join(document.tokens).removeprefix("<bos> ").split("<user> ")[1:]:
            request, reply = part.split(" <assistant> ")
            turns += [Turn("user", request), Turn("assistant", reply.strip().removesuffix(" <end>"))]
        lengths.add(len(turns))
        ids, num_prompt = encode_dialogue(tokenizer, turns[:-1], turns[-1].content)
        assert tokenizer.convert_ids_to_tokens(ids) == document.tokens
        assert tokenizer.convert_ids_to_tokens(ids[:num_prompt])[-1] == "<assistant>"
    assert lengths == {2, 4}


def test_the_constitution_is_in_the_vocabulary_and_applies_to_both_kinds_of_prompts() -> None:
    assert constitution.check("sandbox") == []
    found = constitution.load("sandbox")
    known = set(vocabulary())
    for principle in found.principles:
        assert set(principle.statement.split()) <= known
        texts = [*principle_texts(principle.axis, True), *principle_texts(principle.axis, False)]
        assert principle.statement in texts, principle.id
    for tags in (("red_team",), ("helpful",)):
        assert found.for_tags(tags)


# --- tokenizer --------------------------------------------------------------------------------------------------------


def test_the_tokenizer_survives_saving_and_takes_texts_apart_and_together(tmp_path: Path) -> None:
    tokenizer = build()
    assert tokenizer.get_vocab() == token_ids()
    assert len(set(vocabulary())) == len(vocabulary()) < 600
    for folder in ("one", "two"):
        build().save_pretrained(tmp_path / folder)
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "two")
    again = AutoTokenizer.from_pretrained(tmp_path / "one")
    for document in documents(100):
        text = " ".join(document.tokens)
        ids = tokenizer(text)["input_ids"]
        assert again(text)["input_ids"] == ids and tokenizer.unk_token_id not in ids
        assert again.convert_ids_to_tokens(ids) == document.tokens
        assert again.decode(ids, clean_up_tokenization_spaces=False) == text
        plain = " ".join(t for t in document.tokens if t not in {*CONTROL, *MARKERS})
        assert str(again.decode(ids, skip_special_tokens=True)).split() == plain.split()
    assert again.chat_template == tokenizer.chat_template
    assert again("zebra")["input_ids"] == [tokenizer.unk_token_id]


def test_the_probe_looks_without_touching_the_model() -> None:
    import torch

    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
    model = build_llama(build(), **sizes, seed=0)
    before = torch.get_rng_state()
    found = probe(model, seed=0, num_samples=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert found == probe(model, seed=0, num_samples=3)
    assert found["probe/garbled"] == 1 and set(found) >= {"probe/judge", "probe/judge_harmless", "probe/revise"}
