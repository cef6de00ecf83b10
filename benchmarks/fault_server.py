"""A small OpenAI-compatible server that fails as real ones do, by a seeded script.

    python benchmarks/fault_server.py [--port 8000] [--rate 0.3] [--seed 0] [--latency 0.05] [--hang 5]

It judges by a number that hangs on the conversation's text alone (`p_first`), so whoever asks can know what the answer
should have been. Which request meets which fault hangs on the seed, the body and how often that body came before, and
not on the order of requests. GET /stats says what the server itself counted.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

__all__ = ["FAULTS", "FaultServer", "noise", "p_first", "serving"]

FAULTS: Final = (
    "429", "500", "503", "hang", "drip", "reset", "html", "cut_json", "twice", "no_choices", "null_content",
    "nan_logprobs", "no_logprobs", "wrong_verdict", "wrong_model", "no_usage", "400",
)  # fmt: skip
ABILITIES: Final = ("logprob", "systemone", "decisions", "json_schema", "samples")
_UNTOLD: Final = ("hang", "drip", "reset", "html", "cut_json", "twice", "no_usage")  # nobody learns what these cost
_MODERATED: Final = {"error": {"code": 403, "message": "Flagged.", "metadata": {"reasons": ["violence"]}}}
_PAGE: Final = "<html><body><h1>Checking your browser</h1></body></html>"
Body = Mapping[str, Any]

for logger in ("uvicorn", "uvicorn.error", "asyncio"):  # what breaks here is meant to
    logging.getLogger(logger).addHandler(logging.NullHandler())
    logging.getLogger(logger).propagate = False


def noise(*parts: object) -> float:
    """A number in (0, 1) that depends on `parts`."""
    return (int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") + 0.5) / 2**48


def p_first(content: str) -> float:
    """The probability of the first option, given everything that was said before the answer begins."""
    return 0.02 + 0.96 * noise("judge", content)


class FaultServer:
    """The server's state; `app` is what runs. `script`, where it is given, decides the fault of a request from its body
    and how often that came before. `key` is what it wants as bearer token.
    """

    def __init__(
        self, *, rate: float = 0.0, kinds: Sequence[str] = FAULTS, seed: int = 0, latency: float = 0.0,
        hang: float = 5.0, retry_after: float = 0.05, abilities: Sequence[str] = ABILITIES, key: str | None = None,
        script: Callable[[Body, int], str | None] | None = None,
    ) -> None:  # fmt: skip
        self.rate, self.kinds, self.seed, self.latency, self.hang = rate, kinds, seed, latency, hang
        self.retry_after = retry_after
        self.abilities, self.key, self.script = abilities, key, script
        self.down = False
        self.bodies: list[dict[str, Any]] = []
        self.seen: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.answered: set[str] = set()
        self.in_flight = self.peak = self.repeats = 0
        self.read = self.made = 0  # tokens of every answer that was worked out, delivered or not
        self.told_read = self.told_made = 0  # those of them that a whole answer told of
        self.app = FastAPI()
        self.app.post("/v1/{path:path}")(self.handle)
        self.app.get("/stats")(self.stats)

    def stats(self) -> dict[str, Any]:
        """What the server counted. `repeats` are requests that had been answered well before; `told` tokens are those
        of answers that said so and went out whole.
        """
        return {
            "num_requests": self.seen.total(),
            "num_answered": len(self.answered),
            "repeats": self.repeats,
            "peak": self.peak,
            "prompt_tokens": self.read,
            "new_tokens": self.made,
            "told_prompt_tokens": self.told_read,
            "told_new_tokens": self.told_made,
            "faults": dict(sorted(self.faults.items())),
        }

    async def handle(self, path: str, request: Request) -> Response:
        """Any POST."""
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            return await self._handle(path, request)
        finally:
            self.in_flight -= 1

    async def _handle(self, path: str, request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if self.key is not None and given != f"Bearer {self.key}":
            return _error(401, f"wrong key: {given}")
        body = await request.json()
        digest = hashlib.sha256(json.dumps([path, body], sort_keys=True).encode()).hexdigest()
        before = self.seen[digest]
        self.seen[digest] += 1
        self.repeats += digest in self.answered
        self.bodies.append({"path": path, **body})
        fault = "503" if self.down else self._fault(body, digest, before) or None
        self.faults[fault or "none"] += 1
        if fault and fault.isdigit():
            headers = {"retry-after": str(self.retry_after)} if fault == "429" else None
            return _error(int(fault), f"{fault} on purpose, said to {given}", headers)
        if fault == "moderated":  # by a script alone
            return JSONResponse(_MODERATED, 403)
        await (self._hang(request) if fault == "hang" else asyncio.sleep(self.latency))
        answer = _answered(path, body, self.abilities)
        if isinstance(answer, Response):
            return answer
        read = answer["usage"].get("prompt_tokens", answer["usage"].get("input_tokens", 0))
        made = answer["usage"].get("completion_tokens", 0)
        self.read, self.made = self.read + read, self.made + made
        if fault not in _UNTOLD:
            self.told_read, self.told_made = self.told_read + read, self.told_made + made
        if fault is None:
            self.answered.add(digest)
        return self._spoiled(answer, fault)

    async def _hang(self, request: Request) -> None:
        """As long as somebody waits for it; what they gave up is answered all the same, and on the bill."""
        for _ in range(int(self.hang / 0.02)):
            await asyncio.sleep(0.02)
            if await request.is_disconnected():
                return

    def _fault(self, body: Body, digest: str, before: int) -> str | None:
        if self.script is not None:
            return self.script(body, before)
        if noise("whether", self.seed, digest, before) >= self.rate:
            return None
        return self.kinds[int(noise("which", self.seed, digest, before) * len(self.kinds))]

    def _spoiled(self, answer: dict[str, Any], fault: str | None) -> Response:
        """The answer with something wrong with it."""
        if fault == "html":
            return HTMLResponse(_PAGE)
        choice = answer["choices"][0] if "choices" in answer else {}
        if fault == "no_choices":
            answer["choices"] = answer["answers"] = []
        elif fault == "null_content":
            choice["message" if "message" in choice else "text"] = {"content": None} if "message" in choice else None
            choice.pop("logprobs", None)
        elif fault == "nan_logprobs" and choice.get("logprobs"):
            _make_nan(choice["logprobs"])
        elif fault == "no_logprobs":
            choice.pop("logprobs", None)
        elif fault == "wrong_verdict":
            _make_undecided(answer)
        elif fault == "wrong_model":
            answer["model"] = "another"
        elif fault == "no_usage":
            del answer["usage"]
        text = json.dumps(answer)
        if fault in ("reset", "drip"):
            return StreamingResponse(self._piecewise(text, fault), media_type="application/json")
        text = text[: len(text) // 2] if fault == "cut_json" else text * 2 if fault == "twice" else text
        return Response(text, media_type="application/json")

    async def _piecewise(self, text: str, fault: str) -> AsyncIterator[str]:
        """Half of the answer, then the connection breaks; or a character now and then, for as long as it hangs."""
        if fault == "reset":
            yield text[: len(text) // 2]
            raise ConnectionResetError
        for start in range(20):
            yield text[start]
            await asyncio.sleep(self.hang / 20)
        yield text[20:]


def _answered(path: str, body: Body, abilities: Sequence[str]) -> Any:
    """What the model says to a request; an error where it cannot."""
    if path in ("chat/completions", "completions"):
        return _completion(body, abilities)
    if path in abilities:
        return _decided(path, body)
    return _error(404, f"no such path: {path}")


def _completion(body: Body, abilities: Sequence[str]) -> Any:
    content = _content(body)
    p = p_first(content)
    pieces = _said(body, content, p, abilities)
    limit = body.get("max_tokens", body.get("max_completion_tokens", 16))
    made, text = pieces[:limit], "".join(pieces[:limit])
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop" if len(pieces) <= limit else "length"}
    choice |= {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
    wanted = body.get("top_logprobs", body.get("logprobs"))
    if wanted and "logprob" in abilities:
        if wanted > 20:
            return _error(400, "logprobs: at most 20")
        choice["logprobs"] = _logprobs(made, p, chat="messages" in body)
    usage = {"prompt_tokens": len(content.split()), "completion_tokens": len(made)}
    return {"id": "x", "object": "completion", "model": body["model"], "choices": [choice], "usage": usage}


def _said(body: Body, content: str, p: float, abilities: Sequence[str]) -> list[str]:
    """The tokens of the answer: a verdict on two options, or words that hang on prompt and seed."""
    sampled = body.get("temperature", 1.0) > 0 and "samples" in abilities
    first = noise("sample", content, body.get("seed")) < p if sampled else p >= 0.5
    letter = "A" if first else "B"
    schema = body.get("response_format")
    if schema and "json_schema" in abilities:
        options = schema["json_schema"]["schema"]["properties"]["verdict"]["enum"]
        return ['{"verdict": "', options[0 if first else -1], '"}']
    if "(B)" in content or "A or B" in content:
        return [" (", letter, ")"]
    seed = body.get("seed") if sampled else None
    return [f" word{int(1000 * noise(content, seed, n))}" for n in range(12)]


def _content(body: Body) -> str:
    """Everything before the answer begins, without a request to go on."""
    if "prompt" in body:
        return str(body["prompt"])
    messages = body["messages"]
    if len(messages) > 1 and messages[-2]["role"] == "assistant":
        messages = messages[:-1]
    return "\n".join(message["content"] for message in messages)


def _logprobs(made: Sequence[str], p: float, *, chat: bool) -> dict[str, Any]:
    """The second token decides, unless the first one has; either way with odds p : 1 - p."""
    tops = [{piece: 0.9, "else": 0.1} for piece in made]
    if made[:1] == [" ("]:
        first = {" (": 0.9, " A": 0.05 * p, "B": 0.05 * (1 - p), "The": 0.04}
        tops[:2] = [first, {"A": 0.98 * p, "B": 0.98 * (1 - p), "?": 0.02}][: len(made)]
    if not chat:
        return {
            "tokens": list(made),
            "token_logprobs": [math.log(top[piece]) for piece, top in zip(made, tops, strict=True)],
            "top_logprobs": [{token: math.log(q) for token, q in top.items()} for top in tops],
        }
    return {
        "content": [
            {
                "token": piece,
                "logprob": math.log(top[piece]),
                "top_logprobs": [{"token": token, "logprob": math.log(q)} for token, q in top.items()],
            }
            for piece, top in zip(made, tops, strict=True)
        ]
    }


def _make_nan(logprobs: dict[str, Any]) -> None:
    if "content" in logprobs:
        logprobs["content"][0]["top_logprobs"][0]["logprob"] = math.nan
    else:
        logprobs["token_logprobs"][0] = math.nan


def _make_undecided(answer: dict[str, Any]) -> None:
    """Nothing that could be an option."""
    if "answers" in answer:
        rows = answer["answers"] if isinstance(answer["answers"], list) else answer["answers"].values()
        for row in rows:
            row["probabilities"] = {"neither": 1.0}
        return
    choice = answer["choices"][0]
    choice |= {"message": {"role": "assistant", "content": "neither"}} if "message" in choice else {"text": "neither"}
    if "logprobs" in choice:
        top = {"neither": math.log(0.9), "I": math.log(0.05)}
        rows = [{"token": token, "logprob": logp} for token, logp in top.items()]
        choice["logprobs"] = (
            {"content": [{"token": "neither", "logprob": top["neither"], "top_logprobs": rows}]}
            if "message" in choice
            else {"tokens": ["neither"], "token_logprobs": [top["neither"]], "top_logprobs": [top]}
        )


def _decided(path: str, body: Body) -> dict[str, Any]:
    """A decision about two options or more, the first of them with `p_first` of the input."""
    if path == "systemone":
        content, question = json.dumps(body["state"]), body["questions"]["verdict"]
        options = list(question["criteria"])
    else:
        content, question = json.dumps(body["input"]), body["questions"][0]
        options = [choice["value"] for choice in question["choices"]]
    p = p_first(content + question["instructions"])
    shares = [p, *[(1 - p) / (len(options) - 1)] * (len(options) - 1)]
    usage = {"input_tokens": len(content.split()), "output_tokens": 0}
    if path == "systemone":
        answer: Any = {"type": "choice", "probabilities": dict(zip(options, shares, strict=True))}
        return {"model": body["model"], "answers": {"verdict": answer}, "usage": usage}
    rows = [{"value": option, "probability": share} for option, share in zip(options, shares, strict=True)]
    answer = {"type": "choice", "name": "verdict", "choice": options[0], "confidence": 0.5, "probabilities": rows}
    return {"model": body["model"], "answers": [answer], "usage": usage}


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": status}}, status, headers)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Run the app in a thread; the base URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--rate", type=float, default=0.3, help="share of requests that meet a fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before an answer")
    parser.add_argument("--hang", type=float, default=5.0, help="seconds of a request that hangs or drips")
    args = parser.parse_args()
    state = FaultServer(rate=args.rate, seed=args.seed, latency=args.latency, hang=args.hang)
    with suppress(KeyboardInterrupt):
        uvicorn.run(state.app, port=args.port, log_config=None, lifespan="off")


if __name__ == "__main__":
    main()
