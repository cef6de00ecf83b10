"""Loading, saving and encoding: what a model folder needs, and that dialogues become the ids of the chat template."""

from pathlib import Path

import pytest
import torch
from tiny_models import LLAMA_TEMPLATE, bpe_tokenizer, llama, save, word_tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from cai.errors import ModelError
from cai.models.digest import _scorable_types, check_device, check_scorable, find_model, model_digest
from cai.models.loading import (
    encode_dialogue,
    end_of_turn_id,
    end_of_turn_ids,
    load_causal_lm,
    load_tokenizer,
    pick_device,
    save_model,
    torch_dtype,
)
from cai.rl.models import RewardModel
from cai.types import Turn

DIALOGUE = (Turn("user", "how do i open the door ?"), Turn("assistant", "take a key"), Turn("user", "then ?"))


def template_ids(tokenizer: PreTrainedTokenizerBase, turns: tuple[Turn, ...], *, start_answer: bool) -> list[int]:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=start_answer)["input_ids"])


@pytest.mark.parametrize("make", [word_tokenizer, bpe_tokenizer])
@pytest.mark.parametrize("turns", [DIALOGUE, DIALOGUE[:1]])
def test_encoding_gives_the_ids_of_the_chat_template(make, turns):
    tokenizer = make()
    prompt, length = encode_dialogue(tokenizer, turns)
    assert prompt == template_ids(tokenizer, turns, start_answer=True)
    assert length == len(prompt)
    ids, length = encode_dialogue(tokenizer, turns, "turn it slowly")
    assert length == len(prompt) and ids[:length] == prompt
    assert ids == template_ids(tokenizer, (*turns, Turn("assistant", "turn it slowly")), start_answer=False)
    assert ids[-1] == end_of_turn_id(tokenizer) and ids.count(ids[-1]) > (len(turns) > 1)


def test_what_follows_the_end_of_the_turn_is_left_out():
    tokenizer = bpe_tokenizer(template=LLAMA_TEMPLATE.replace("'<|eot|>'", "'<|eot|>\n'"))
    ids, length = encode_dialogue(tokenizer, DIALOGUE, "push")
    assert tokenizer.decode(ids[length:]) == "push<|eot|>"


def test_a_template_that_rewrites_history_gets_the_response_as_it_would_be_generated():
    # Some templates put the answer's frame differently once it is there: then whole and prompt do not agree.
    template = LLAMA_TEMPLATE.replace("'<|start|>assistant<|stop|>\n\n'", "'<|start|>assistant<|stop|>think\n'")
    tokenizer = bpe_tokenizer(template=template)
    ids, length = encode_dialogue(tokenizer, DIALOGUE, "push")
    assert tokenizer.decode(ids[length:]) == "push<|eot|>"
    assert tokenizer.decode(ids[:length]).endswith("think\n")


def test_end_of_turn_follows_the_template_and_generation_settings():
    assert end_of_turn_id(word_tokenizer()) == word_tokenizer().eos_token_id
    tokenizer = bpe_tokenizer()
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|eot|>") != tokenizer.eos_token_id
    model = llama(len(tokenizer))
    model.generation_config.eos_token_id = [7, 9]
    assert end_of_turn_ids(model, tokenizer) == {end_of_turn_id(tokenizer), tokenizer.eos_token_id, 7, 9}


def test_a_base_model_can_be_talked_to(tmp_path: Path):
    bare = bpe_tokenizer(template=None)
    tokenizer = load_tokenizer(save(llama(len(bare)), bare, tmp_path))
    ids, length = encode_dialogue(tokenizer, DIALOGUE, "push")
    text = "\n\nHuman: how do i open the door ?\n\nAssistant: take a key\n\nHuman: then ?\n\nAssistant:"
    assert tokenizer.decode(ids[:length]) == text
    assert tokenizer.decode(ids[length:]) == " push<|eos|>"


@pytest.mark.parametrize(("spare", "distinct"), [(0, False), (1, True)])
def test_padding_is_distinct_where_there_is_room(tmp_path: Path, spare: int, distinct: bool):
    bare = bpe_tokenizer()
    tokenizer = load_tokenizer(save(llama(len(bare) + spare), bare, tmp_path))
    assert (tokenizer.pad_token_id != tokenizer.eos_token_id) is distinct
    assert tokenizer.pad_token_id < len(bare) + spare  # never beyond the embedding


def test_padding_takes_an_unused_token_first(tmp_path: Path):
    bare = bpe_tokenizer(pad_token="<pad>")
    bare.pad_token = None
    tokenizer = load_tokenizer(save(llama(len(bare)), bare, tmp_path))
    assert tokenizer.pad_token == "<pad>"


def test_saving_gives_the_same_bytes_and_loads_again(tmp_path: Path):
    tokenizer, model = word_tokenizer(), llama(40)
    save_model(model, tokenizer, tmp_path / "a")
    save_model(load_causal_lm(tmp_path / "a"), load_tokenizer(tmp_path / "a"), tmp_path / "b")
    assert model_digest(tmp_path / "a") == model_digest(tmp_path / "b")
    again = load_causal_lm(str(tmp_path / "b"))
    assert not again.training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_digest_counts_weights_and_not_notes(tmp_path: Path):
    folder = save(llama(40), word_tokenizer(), tmp_path / "model")
    before = model_digest(folder)
    (folder / "README.md").write_text("notes")
    (folder / ".hidden").write_text("x")
    assert model_digest(folder) == before
    save(llama(40, seed=1), word_tokenizer(), folder)
    assert model_digest(folder) != before
    assert model_digest("some-org/some-model") == "hub:some-org/some-model"


def test_a_path_that_is_no_model_says_what_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(llama(40), word_tokenizer(), tmp_path / "mistletoe" / "model")
    with pytest.raises(ModelError, match="unknown model folder 'misteltoe'; did you mean 'mistletoe'"):
        load_causal_lm(tmp_path / "misteltoe")
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match=r"no model folder beside it$"):
        find_model(tmp_path / "other" / "modell")
    with pytest.raises(ModelError, match=r"Allowed: mistletoe$"):
        find_model(tmp_path / "othr")
    with pytest.raises(ModelError, match=r"has no config\.json; did you mean .*mistletoe/model"):
        load_tokenizer(tmp_path / "mistletoe")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="this is a file"):
        find_model(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"'misteltoe': no such folder.* did you mean the folder 'mistletoe'"):
        load_tokenizer("misteltoe")
    with pytest.raises(ModelError, match="unknown model folder 'modell'; did you mean 'model'"):
        find_model("mistletoe/modell")


def test_a_damaged_folder_is_one_line(tmp_path: Path):
    folder = save(llama(40), word_tokenizer(), tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="cannot load it") as caught:
        load_causal_lm(folder)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_become_a_reward_model_are_refused_by_their_type(tmp_path: Path):
    assert _scorable_types() == set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES), "read without an import"
    for text in ('{"model_type": "llama"}', "{}"):
        (tmp_path / "config.json").write_text(text)
        check_scorable(tmp_path)
    check_scorable("org/name")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ModelError, match=f"{tmp_path}: a model of type 'mamba' cannot become a reward model: [^\n]*$"):
        check_scorable(tmp_path)
    with pytest.raises(ModelError, match="'mamba' cannot become"):
        RewardModel.from_language_model(tmp_path, seed=0)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config.json: not a JSON object"):
        check_scorable(tmp_path)


def test_devices_and_dtypes_are_checked():
    for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:11"):
        check_device(device)
    for device in ("cuda:", "cuda:x", "Cuda", "cpu ", ""):
        with pytest.raises(ModelError, match="unknown device"):
            check_device(device)
    assert pick_device("auto") in ("cpu", "cuda") and pick_device("cpu") == "cpu"
    with pytest.raises(ModelError, match="unknown device 'gpu'"):
        pick_device("gpu")
    with pytest.raises(ModelError, match=r"has . CUDA devices"):
        pick_device("cuda:9")
    assert torch_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ModelError, match="unknown dtype 'float23'; did you mean 'float32'"):
        torch_dtype("float23")
