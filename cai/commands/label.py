"""`cai label serve|invite|status|export`: the page for people who label, and what they said."""

import re
import socket
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from cai.errors import ConfigError, DataError, unknown
from cai.labelers.human import judgments_of
from cai.records import write_records
from cai.serve.accounts import Accounts
from cai.serve.form import Gold
from cai.serve.queue import Answer, Queue
from cai.serve.tables import Database
from cai.types import Comparison

__all__ = ["export", "invite", "serve", "status"]

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE: Final = ("0.0.0.0", "::")


def serve(where: str, *, host: str, port: int, url: str | None) -> None:
    """Serve the page until interrupted. Listens on this machine alone unless told otherwise."""
    import uvicorn

    from cai.serve.app import create_app
    from cai.serve.site import Site

    database = Database(where, create=True)
    address = _address(host, port, url)
    listener = _listen(host, port)
    site = Site(database, is_https=address.startswith("https://"))
    print(f"Labelling at {address} (Ctrl-C stops; every answer is saved as it comes)", flush=True)
    if not any(account.is_admin for account in site.accounts.all()):
        print("Nobody can sign in yet: `cai label invite NAME --admin` prints a link.", flush=True)
    if host not in _LOOPBACK and not address.startswith("https://"):
        print(
            "Other machines can reach this, and passwords cross the network as they are: put a server that speaks",
            end=" ",
        )
        print("https in front of it and give its address with --url.", flush=True)
    app = create_app(site, hosts=_hosts(host, address))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listener])


def invite(where: str, name: str, *, is_admin: bool, url: str | None) -> None:
    """Print a link that is good once, for a week."""
    base = _address("127.0.0.1", 8400, url)
    with closing(Database(where, create=True)) as database:
        token = Accounts(database).invite(name, is_admin=is_admin)
    print(f"{base}/invitation/{token}")


def status(where: str) -> None:
    """Print how far every batch is, what each person did, and how well they agree."""
    from cai.serve.overview import lines, overview

    with closing(Database(where)) as database:
        print("\n".join(lines(overview(database))))


def export(where: str, output: str, *, batch: int | None, gold_of: str | None) -> None:
    """Write what people said about one batch, the latest by default, as its run has it: without gold items, and without
    people who were set aside.
    """
    with closing(Database(where)) as database:
        queue = Queue(database)
        number = queue.latest() if batch is None else batch
        form = queue.form(number) if number is not None else None
        answered = queue.answered(number) if number is not None else []
    if form is None or not answered:
        raise DataError(f"database {where!r}: nobody has answered anything of batch {number or 1}")
    folder = Path(output)
    if gold_of is not None:
        gold = [
            Gold(comparison=comparison, feedback=answer.feedback)
            for comparison, answers in answered
            for answer in answers
            if answer.person == gold_of and answer.feedback.skipped is None
        ]
        if not gold:
            raise DataError(f"--gold-of: {unknown('person with answers', gold_of, _people(answered))}")
        write_records(folder / "gold.jsonl", gold)
        print(f"{folder / 'gold.jsonl'}: {len(gold)} comparisons of batch {number} with the answers of {gold_of}")
        return
    judgments = [
        judgment
        for comparison, answers in answered
        for judgment in judgments_of(comparison, answers, margins=form.margins)
    ]
    write_records(folder / "comparisons.jsonl", [comparison for comparison, _ in answered])
    write_records(folder / "judgments.jsonl", judgments)
    print(f"{folder}: {len(answered)} comparisons and {len(judgments)} judgments of batch {number}")


def _people(answered: Sequence[tuple[Comparison, Sequence[Answer]]]) -> set[str]:
    return {answer.person for _, answers in answered for answer in answers}


def _address(host: str, port: int, url: str | None) -> str:
    """Where people reach the page."""
    if url is None:
        if host in _EVERYWHERE:
            raise ConfigError(
                f"--url: needed with --host {host}: the address that people type, such as https://labels.example"
            )
        return f"http://{_in_address(host)}:{port}"
    if not re.fullmatch(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d+)?/?", url):
        raise ConfigError(f"--url: must be http(s)://name or http(s)://name:port, got {url!r}")
    return url.rstrip("/")


def _hosts(host: str, address: str) -> list[str]:
    """The names by which requests may call this server."""
    named = re.sub(r"https?://|:\d+$", "", address)
    return sorted({*map(_in_address, {*_LOOPBACK, host} - set(_EVERYWHERE)), named})


def _in_address(host: str) -> str:
    """IPv6 addresses stand in brackets there."""
    return f"[{host}]" if ":" in host else host


def _listen(host: str, port: int) -> socket.socket:
    """A socket of our own, so that a taken port is one line."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"--host {host} --port {port}: cannot be listened on: {error.strerror}") from None
    return listener
