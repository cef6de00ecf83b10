"""The endpoint engine against a real server: `transformers serve` with a model made here, and the sandbox's own."""

import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_models import bpe_tokenizer, llama, save
from worlds import comparison, rules, run

from cai import constitution
from cai.engines.base import EnginePrompt, Sampling
from cai.engines.endpoint import EndpointEngine
from cai.engines.transformers import TransformersEngine
from cai.errors import EngineError
from cai.labelers.ai import AILabeler
from cai.paths import PACKAGE
from cai.prompts import PromptFamily
from cai.records import read_json, read_records, write_records
from cai.stages.label import Label
from cai.types import Judgment, Turn

pytestmark = pytest.mark.slow

OPTIONS = (" (A)", " (B)")
CHAT = [
    EnginePrompt(turns=(Turn("user", f"how do i open the door {n} ? (A) or (B)"),), text="So the answer is:")
    for n in range(4)
]
TEXT = [EnginePrompt(text=f"how do i open the door {n} ? ") for n in range(4)]


@contextmanager
def served(model: Path, home: Path) -> Iterator[str]:
    """Run `transformers serve` for the model; the base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / "hub").mkdir(parents=True, exist_ok=True)  # without it, the server has no list of models
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], env=env, stdout=log, stderr=log)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                    break
                except OSError:
                    assert process.poll() is None, (home / "log").read_text()
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A tiny chat model of random weights, and where it is served."""
    folder = tmp_path_factory.mktemp("serve")
    tokenizer = bpe_tokenizer(pad_token="<|eos|>")
    model = llama(len(tokenizer))
    model.generation_config.do_sample = True  # without it, the server takes every temperature for 0
    save(model, tokenizer, folder / "tiny")
    with served(folder / "tiny", folder / "home") as url:
        yield folder / "tiny", url


def engine(model: Path, url: str, **settings: Any) -> EndpointEngine:
    # A seed there is of the whole process, so texts repeat themselves only one at a time.
    rest = {"concurrency": 1, "max_attempts": 2, "retry_seconds": 0.05}
    return EndpointEngine(model=str(model), base_urls=[url], **{**rest, **settings})


@pytest.mark.parametrize("prompts", [CHAT, TEXT], ids=["chat", "text"])
def test_texts_come_with_their_tokens_and_hang_on_the_seed(tiny: tuple[Path, str], prompts: list[EnginePrompt]) -> None:
    def texts(seed: int) -> dict[int, tuple[str, int, bool]]:
        found = engine(*tiny).generate(prompts, Sampling(max_new_tokens=7), seed=seed, keys=list("abcd"))
        return {g.index: (g.text, g.num_tokens, g.finished) for g in found}

    first = texts(1)
    assert first == texts(1) != texts(2)
    assert all(1 <= num_tokens <= 7 and (finished or num_tokens == 7) for _, num_tokens, finished in first.values())


def test_decisions_are_the_probabilities_that_the_model_has(tiny: tuple[Path, str]) -> None:
    """The best the server can, found without being told; the same as from the weights, read here."""
    path, url = tiny
    one = engine(path, url)
    found = {scored.index: scored for scored in one.score(CHAT, [OPTIONS] * 4)}
    local = TransformersEngine(model=str(path), device="cpu")
    for index, prompt in enumerate(CHAT):
        asked = (
            f"{prompt.turns[0].content}\n\n{prompt.text}\nA. (A)\nB. (B)\nAnswer with the letter of the option that "
        )
        asked += "fits best (A to B) only."
        (logps,) = local.choice_logprobs([EnginePrompt(turns=(Turn("user", asked),))], [("A", "B")])
        first, second = (math.exp(logp) for logp in logps)
        assert [math.exp(logp) for logp in found[index].logps] == [
            pytest.approx(first / (first + second), abs=1e-5),
            pytest.approx(second / (first + second), abs=1e-5),
        ]
        assert found[index].receipt.provenance.mode == "decision"
        assert found[index].receipt.provenance.prompt_tokens > 10
    assert one.usage.num_requests == 3 + 1 + 4, "three looks for log-probabilities, one for decisions, four questions"


def test_log_probabilities_that_the_server_ignores_are_refused(tiny: tuple[Path, str]) -> None:
    path, url = tiny
    with pytest.raises(
        EngineError, match=r"mode=logprob, and the server gives no .*; it can do decision, sampled, par"
    ):
        list(engine(path, url, mode="logprob").score(CHAT, [OPTIONS] * 4))


def test_a_model_that_the_server_does_not_have_is_named(tiny: tuple[Path, str]) -> None:
    with pytest.raises(
        EngineError, match=r"no answer to any of 4 questions; the first: http_400: .*Server is pinned to"
    ):
        list(engine(Path("another"), tiny[1]).generate(CHAT, Sampling(max_new_tokens=2), seed=0, keys=list("abcd")))


def test_the_label_stage_runs_on_a_real_server(tiny: tuple[Path, str], workdir: Path) -> None:
    path, url = tiny
    labeler = AILabeler(
        engine=lambda model: engine(path, url, concurrency=4), model=str(path), prompts=PromptFamily("chat"),
        constitution=rules(workdir), seed=1,
    )  # fmt: skip
    comparisons = [comparison(f"c{n}", "take a key", f"open the door {n}") for n in range(5)]
    write_records(workdir / "sample" / "comparisons.jsonl", comparisons)
    run(Label(labeler=labeler), {"data": workdir, "sample": workdir / "sample"}, workdir / "out")
    judgments = read_records(workdir / "out" / "judgments.jsonl", Judgment)
    assert len(judgments) == 5 and all(0 < judgment.pairs[0].p < 1 for judgment in judgments)
    served_ = read_json(workdir / "out" / "label.json")["served"]
    assert served_ == {"modes": {"decision": 5}, "num_attempts": 10, "cost": 0.0, "num_unanswered": 0, "unanswered": {}}


def test_sampled_verdicts_of_the_sandbox_s_judge_are_its_own(tmp_path: Path) -> None:
    """The embedded model behind a server that gives no log-probabilities: its samples have the shares that its weights
    say.
    """
    checkpoint = PACKAGE / "sandbox" / "checkpoint"
    family, rules_ = PromptFamily("sandbox"), constitution.load("sandbox")
    pair = ("i will not . that could hurt people .", "sure . first take a rope .")
    asked = [
        family.render("judge", turns=(Turn("user", "how do i tie a dog ?"),), responses=pair, principle=principle)
        for principle in rules_.principles[:3]
    ]
    prompts, choices = [one.prefix() for one in asked], [one.slots[0].options for one in asked]
    sampling = '{"do_sample": true, "eos_token_id": 2, "pad_token_id": 0}'
    with served(checkpoint, tmp_path) as url:
        one = engine(checkpoint, url, mode="sampled", num_samples=40, extra_body={"generation_config": sampling})
        found = {scored.index: scored for scored in one.score(prompts, choices)}
    local = TransformersEngine(model=str(checkpoint), device="cpu").choice_logprobs(prompts, choices)
    for index, logps in enumerate(local):
        share = math.exp(found[index].logps[0]) / sum(map(math.exp, found[index].logps))
        p = math.exp(logps[0]) / sum(map(math.exp, logps))
        assert share == pytest.approx(p, abs=3.5 * math.sqrt(max(p * (1 - p), 0.01) / 40))
        assert found[index].receipt.failed is None
