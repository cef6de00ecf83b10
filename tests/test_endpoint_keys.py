"""Keys of servers: refused ones stop everything and lose nothing, and none is ever shown or kept."""

from pathlib import Path

import pytest
from endpoints import Start, ask, engine, share, start, texts_of, truth
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fault_server import serving

from cai import cli
from cai.errors import EngineError
from cai.records import read_json

__all__ = ["start"]  # fixture


def test_a_wrong_key_stops_everything_and_is_not_repeated(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    state, url = start(key="right")
    monkeypatch.setenv("JUDGE_KEY", "canary-1234567890")
    with pytest.raises(EngineError) as error:
        ask(engine(url, api_key_env="JUDGE_KEY"), 5)
    assert "http_401" in str(error.value) and "Bearer ***" in str(error.value)
    assert "canary" not in str(error.value) and state.in_flight == 0
    monkeypatch.setenv("JUDGE_KEY", "right")
    assert len(ask(engine(url, api_key_env="JUDGE_KEY"), 5)) == 5


def test_one_moderated_prompt_fails_alone(start: Start) -> None:
    """A 403 that is about the content: asked once, listed with its reason, and the others are answered."""
    state, url = start()
    state.script = lambda body, before: "moderated" if "in case 3," in str(body) else None
    found = ask(engine(url), 6)
    assert [scored.receipt.failed for scored in found] == [None, None, None, "content_filter", None, None]
    assert found[3].receipt.attempts == ("content_filter",)


@pytest.mark.parametrize("status", ["402", "403"])
def test_an_empty_account_or_a_refused_key_in_the_middle_is_nobodys_failure(
    start: Start, tmp_path: Path, status: str
) -> None:
    """After topping up, the same command asks all the rest."""
    state, url = start()
    state.script = lambda body, before: status if len(state.answered) > 10 else None
    one = engine(url, concurrency=4)
    one.keep_in(tmp_path)
    with pytest.raises(EngineError, match=f"^endpoint: {url}: http_{status}: .*{status} on purpose"):
        ask(one, 40)
    state.script = None
    again = engine(url, concurrency=4)
    again.keep_in(tmp_path)
    assert [scored.receipt.failed for scored in ask(again, 40)] == [None] * 40
    assert state.repeats == 1, "the probe"


@pytest.mark.parametrize("start_at", [150, 180, 195])
@pytest.mark.parametrize("where", ["body", "error"])
def test_a_key_is_masked_before_what_a_server_says_is_cut(
    start: Start, monkeypatch: pytest.MonkeyPatch, start_at: int, where: str
) -> None:
    key = "canary-0123456789abcdef/+="
    monkeypatch.setenv("JUDGE_KEY", key)
    said = "x" * start_at + f" wrong key {key} " + "y" * 300
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def _say() -> JSONResponse:
        return JSONResponse({"error": {"message": said}} if where == "body" else said, 200 if where == "body" else 500)

    with serving(app) as url, pytest.raises(EngineError) as error:
        texts_of(engine(url, api_key_env="JUDGE_KEY", max_attempts=1), 1)
    assert "cana" not in str(error.value)


def test_a_placeholder_for_a_key_is_no_secret_and_spoils_no_answer(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = start(key="token")
    monkeypatch.setenv("JUDGE_KEY", "token")
    assert [share(one) for one in ask(engine(url, api_key_env="JUDGE_KEY"), 2)] == [
        pytest.approx(truth(0)), pytest.approx(truth(1))
    ]  # fmt: skip


def test_a_url_that_holds_a_key_is_refused() -> None:
    with pytest.raises(EngineError, match="base_urls: must not have a query") as error:
        engine("https://x.org/v1?api-key=canary")
    assert "canary" not in str(error.value)


@pytest.mark.slow
def test_a_run_leaves_no_trace_of_the_key(
    start: Start, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server says the key in its errors; nothing of it in any file, nor on the terminal."""
    canary = "canary-0123456789abcdef"
    state, url = start(key=canary, rate=0.4, kinds=["500", "400"])
    monkeypatch.setenv("JUDGE_KEY", canary)
    sizes = [f"data.source.num_{name}={n}" for name, n in {"red_team": 40, "comparisons": 2, "rl": 2}.items()]
    overrides = [
        "steps=[data,revise]", *sizes, "data.source.num_evaluation=2", "revise.engine=${endpoint}",
        "revise.model=judge", "prompts=chat", f"endpoint.base_urls=[{url}]", "endpoint.api_key_env=JUDGE_KEY",
        "endpoint.retry_seconds=0.01", "endpoint.max_attempts=2",
    ]  # fmt: skip
    assert cli.main(["run", *overrides]) == 0
    assert read_json(next(workdir.rglob("revise.json")))["num_failed"] > 5
    assert "on purpose, said to Bearer ***" in next(workdir.rglob("failed.jsonl")).read_text()
    files = [path for path in workdir.rglob("*") if path.is_file()]
    assert len(files) > 15 and not any(canary.encode() in path.read_bytes() for path in files)
    assert any("JUDGE_KEY" in path.read_text() for path in files if path.name == "config.yaml")
    captured = capsys.readouterr()
    assert canary not in captured.out + captured.err
    assert state.faults["500"] > 5
