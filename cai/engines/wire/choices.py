"""Texts and choices as requests to a server, by what that can do; answers as log-probabilities of the options."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from cai.engines.base import EnginePrompt, Receipt, Sampling, Scored, taken_together
from cai.engines.wire import requests
from cai.engines.wire.client import Client
from cai.engines.wire.ledger import Answer
from cai.engines.wire.options import Options
from cai.engines.wire.probe import Ability
from cai.engines.wire.replies import Reply, decision_reply, logprobs_reply, text_reply, verdict_reply
from cai.engines.wire.requests import Manner, Request
from cai.engines.wire.session import Job, job_id
from cai.errors import EngineError
from cai.records import seed_of

__all__ = ["receipt_of", "scores", "text_job"]

Read = Callable[[dict[str, Any]], Reply]


def text_job(manner: Manner, index: int, prompt: EnginePrompt, sampling: Sampling, seed: int, key: str) -> Job:
    """The request for the text that continues prompt number `index`."""
    own = seed_of(seed, key) % 2**31  # not every server takes more
    request = requests.text(manner, prompt, sampling, seed=own)
    read = partial(text_reply, begun=prompt.text, stop=sampling.stop)
    return Job(index=index, id=job_id(request, key), request=request, read=read, mode="text")


def scores(
    client: Client, prompts: Sequence[EnginePrompt], choices: Sequence[Sequence[str]], num_samples: int
) -> Iterator[Scored]:
    """See `EndpointEngine.score`; `num_samples` answers per choice where the server can do no better."""
    options = {texts: Options(texts) for texts in {tuple(texts) for texts in choices}}
    if any(len(texts) < 2 for texts in options):
        raise EngineError("endpoint: can choose between options, but not score a whole text: take a local model")
    abilities = {chat: client.ability(chat=chat) for chat in sorted({bool(prompt.turns) for prompt in prompts})}
    jobs = (
        job
        for index, prompt in enumerate(prompts)
        for job in _jobs(
            client.manner, abilities[bool(prompt.turns)], index, prompt, options[tuple(choices[index])], num_samples
        )
    )
    waiting: dict[int, list[Answer]] = {}
    for job, answer in client.ask(jobs):
        own = waiting.setdefault(job.index, [])
        own.append(answer)
        if len(own) == (num_samples if job.mode == "sampled" else 1):
            yield _scored(job.index, waiting.pop(job.index), len(choices[job.index]))


def _jobs(
    manner: Manner, ability: Ability, index: int, prompt: EnginePrompt, options: Options, num_samples: int
) -> Iterator[Job]:
    """The requests (one, or `num_samples` of them) that score the options of prompt number `index`."""
    for number, (request, read) in enumerate(_made(manner, ability, prompt, options, num_samples)):
        key = [number, ability.mode, *options.texts]
        yield Job(index=index, id=job_id(request, key), request=request, read=read, mode=ability.mode)


def _made(
    manner: Manner, ability: Ability, prompt: EnginePrompt, options: Options, num_samples: int
) -> Iterator[tuple[Request, Read]]:
    if ability.mode == "logprob":
        manner = replace(manner, top_logprobs=ability.top_logprobs)
        yield requests.logprobs(manner, prompt), partial(logprobs_reply, options=options)
    elif ability.mode == "decision":
        request = requests.decision(manner, prompt, options.texts, ability.dialect)
        yield request, partial(decision_reply, options=options, dialect=ability.dialect)
    else:
        sampled, constrained = ability.mode == "sampled", ability.constrained
        read = partial(verdict_reply, options=options, begun=prompt.text, constrained=constrained)
        for number in range(num_samples if sampled else 1):
            request = requests.verdict(
                manner, prompt, options.texts, temperature=float(sampled), seed=number, constrained=constrained
            )
            yield request, read


def _scored(index: int, answers: Sequence[Answer], num_options: int) -> Scored:
    """The only answer as it is; of several, each option's share. Answers without a verdict, in whose place another was
    asked for, are what the options' probabilities lack to 1.
    """
    receipt = receipt_of(answers)
    if receipt.failed:
        return Scored(index, np.full(num_options, -math.inf), receipt)
    odds = [0.0] * num_options
    for answer in answers:
        for number, logp in enumerate(answer.logps):
            odds[number] += math.exp(logp) if logp is not None else 0.0
    total = len(answers) + receipt.attempts.count("no_verdict")
    return Scored(index, np.array([math.log(odd / total) if odd > 0 else -math.inf for odd in odds]), receipt)


def receipt_of(answers: Sequence[Answer]) -> Receipt:
    """What these answers took together; failed when one of them did."""
    failed = next((answer for answer in answers if answer.failed), None)
    return Receipt(
        provenance=taken_together([answer.provenance for answer in answers]),
        attempts=tuple(outcome for answer in answers for outcome in answer.attempts),
        failed=failed.failed if failed else None,
        detail=failed.detail if failed else "",
    )
