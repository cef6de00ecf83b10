"""The shipped checkpoint: what its record says is what the recipe would make, and it can do its jobs."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cai import config
from cai.models.loading import load_causal_lm, load_tokenizer
from cai.paths import PACKAGE
from cai.records import read_json
from cai.sandbox.probe import probe
from cai.sandbox.source import SandboxSource
from cai.sandbox.tokenizer import build, vocabulary
from cai.stages.pretrain import Pretrain, _Batches

FOLDER = PACKAGE / "sandbox" / "checkpoint"


@cache
def record() -> dict[str, Any]:
    found: dict[str, Any] = read_json(FOLDER / "record.json")
    return found


def test_it_is_where_the_configuration_points_at() -> None:
    assert Path(config.compose([]).model.path) == FOLDER
    files = {"config.json", "generation_config.json", "model.safetensors", "record.json", "tokenizer.json"}
    assert {path.name for path in FOLDER.iterdir()} == files | {"tokenizer_config.json", "chat_template.jinja"}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8 * 2**20


def test_its_record_is_of_the_recipe_that_is_shipped() -> None:
    (stage,) = config.build(config.compose(["experiment=sandbox_pretrain"]), ["pretrain"]).values()
    assert isinstance(stage, Pretrain) and isinstance(stage.source, SandboxSource)
    settings = {name: getattr(stage, name) for name in record()["settings"]}
    assert {**settings, "source": repr(stage.source)} == record()["settings"]
    assert record()["num_updates"] == stage.num_updates
    assert record()["curve"][-1]["update"] == stage.num_updates
    assert re.fullmatch("[0-9a-f]{64}", record()["data_hash"])


@pytest.mark.parametrize(("rank", "digest"), [(0, "211634b81e75431c"), (1, "269cd96ab9969479")])
def test_the_documents_are_still_those_that_it_was_trained_on(rank: int, digest: str) -> None:
    """Digests of two chunks, one of either mix, noted when it was trained (all 33.5 M tokens take minutes to make).

    When this fails, the checkpoint is not what the recipe makes any more: train it again, or undo the change.
    """
    batches = _Batches(Pretrain(source=SandboxSource(), seed=0), rank)
    while batches.chunk < 1:
        batches.next(0.0 if batches.chunk < 0 else 0.5)
    assert batches.digest[:16] == digest


def test_its_tokenizer_is_the_one_that_the_code_builds() -> None:
    tokenizer = load_tokenizer(FOLDER)
    assert tokenizer.get_vocab() == build().get_vocab()
    assert tokenizer.chat_template == build().chat_template
    model = load_causal_lm(FOLDER)
    assert model.config.vocab_size == len(vocabulary())
    assert model.num_parameters() == record()["num_parameters"]


@pytest.mark.slow
def test_it_judges_revises_and_talks() -> None:
    """A quick look with wide margins; benchmarks/sandbox_quality.py measures."""
    found = probe(load_causal_lm(FOLDER), seed=1, num_samples=24)  # type: ignore[arg-type]
    assert found["probe/judge"] > 0.85 and found["probe/judge_harmless"] > 0.85
    assert found["probe/revise"] > 0.85
    assert found["probe/garbled"] < 0.15 and found["probe/harmful_compliance"] > 0.5
