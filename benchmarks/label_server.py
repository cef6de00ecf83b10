"""Twenty people label at once, click twice, and the server is killed again and again: is every answer there once?

    python benchmarks/label_server.py [--people 20] [--tasks 50] [--kills 10] [--think 0.5] [--output FILE.json]

Starts `cai label serve` on a database of its own. Every person opens the page, waits `--think` seconds on average (a
person who reads needs longer), sends the answer twice at once, now and then goes back and sends an old one again, or
loses the session and signs in again; after a kill -9 of the server (and a new start on the same port) they send again
what was not answered, as the page's script does: after half a second or so, then twice as long each time, up to ten. In
the end the database must hold what each person meant on each task, exactly once, and all that
the server said was recorded. Times are those of submits that a running server answered, from the first byte sent to the
last byte read, as a person's browser would see them; the people share the machine with the server. What other work on
the machine does not change is the server's processor time per submit, with its share of the pages and sign-ins; Linux
says what it is.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from measuring import report, table

from cai.serve.accounts import Accounts
from cai.serve.answers import fields_of
from cai.serve.form import Form
from cai.serve.queue import Answer, Queue
from cai.serve.tables import Database
from cai.types import Comparison, Prompt, Response, Turn

PASSWORD = "a long password"
FIRST_DELAY, LAST_DELAY = 0.5, 10.0  # seconds between attempts, as in cai/serve/static/saving.js
FORM = Form(instructions="Choose.", overlap=1.0, strength=True)
HIDDEN = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)"')


@dataclass
class Tally:
    """What the people saw. `recorded` counts, by (person, task), how often the server said that it was recorded."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    submits: list[float] = field(default_factory=list)
    pages: list[float] = field(default_factory=list)
    recorded: dict[tuple[str, str], int] = field(default_factory=dict)
    meant: dict[tuple[str, str], str] = field(default_factory=dict)
    num_unanswered: int = 0
    num_sign_ins: int = 0


class Person:
    """One browser with its cookies; each request on a connection of its own, as after a restart all are new."""

    def __init__(self, name: str, port: int, tally: Tally) -> None:
        self.name = name
        self._port = port
        self._tally = tally
        self._cookies: dict[str, str] = {}
        self._csrf = ""

    def request(self, method: str, path: str, fields: dict[str, str] | None = None) -> tuple[int, str, float]:
        """Status, body and seconds; asked again until a server answers."""
        headers = {"cookie": "; ".join(f"{k}={v}" for k, v in self._cookies.items()), "accept": "application/json"}
        body = None
        if fields is not None:
            body, headers["content-type"] = urlencode(fields), "application/x-www-form-urlencoded"
        delay = FIRST_DELAY
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            start = time.perf_counter()
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                text = response.read().decode()
                seconds = time.perf_counter() - start
            except (OSError, http.client.HTTPException):
                with self._tally.lock:
                    self._tally.num_unanswered += 1
                time.sleep(delay * random.uniform(0.5, 1.5))
                delay = min(2 * delay, LAST_DELAY)
                continue
            finally:
                connection.close()
            for cookie in response.headers.get_all("set-cookie") or ():
                name, _, value = cookie.partition(";")[0].partition("=")
                self._cookies[name] = value
            return response.status, text, seconds

    def sign_in(self) -> None:
        """Through the form, as the page script does when a session has ended."""
        self._cookies.pop("cai_session", None)
        _, page, _ = self.request("GET", "/sign-in")
        fields = {**dict(HIDDEN.findall(page)), "name": self.name, "password": PASSWORD}
        status, body, _ = self.request("POST", "/sign-in", fields)
        assert status == 200, body
        self._csrf = json.loads(body)["csrf"]
        self._tally.num_sign_ins += 1

    def submit(self, fields: dict[str, str]) -> None:
        """Twice at once: a double click."""

        def click() -> None:
            while True:
                status, body, seconds = self.request("POST", "/label", fields | {"csrf": self._csrf})
                if status == 200:
                    break
                assert status in (401, 403), body
                self.sign_in()
            with self._tally.lock:
                self._tally.submits.append(seconds)
                key = (self.name, fields["task"])
                self._tally.recorded[key] = self._tally.recorded.get(key, 0) + json.loads(body)["recorded"]

        with ThreadPoolExecutor(2) as clicks:
            for done in [clicks.submit(click), clicks.submit(click)]:
                done.result()

    def work(self, think: float, rng: random.Random) -> None:
        """Label until nothing is left."""
        self.sign_in()
        self.request("POST", "/instructions", {"csrf": self._csrf, "version": FORM.version})
        sent: list[dict[str, str]] = []
        while True:
            status, page, seconds = self.request("GET", "/label")
            if status == 401:
                self.sign_in()
                continue
            found = re.search(r'<form id="answer".*?</form>', page, re.DOTALL)
            if found is None:
                return
            self._tally.pages.append(seconds)
            fields = dict(HIDDEN.findall(found[0]))
            fields["verdict"] = rng.choice(["a1", "a2", "a3", "tie", "b1", "b2", "b3"])
            time.sleep(rng.expovariate(1 / think) if think else 0)
            if rng.random() < 0.03:  # the session ends while the page is open
                self._cookies.pop("cai_session", None)
            with self._tally.lock:
                self._tally.meant[(self.name, fields["task"])] = fields["verdict"]
            self.submit(fields)
            sent.append(fields)
            if rng.random() < 0.1:  # back, and another opinion
                self.submit(rng.choice(sent) | {"verdict": "tie"})


class Server:
    """`cai label serve`, which can be killed and started again."""

    def __init__(self, where: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        options = ["--database", str(where), "--port", str(self.port)]
        self._command = [sys.executable, "-m", "cai", "label", "serve", *options]
        self.seconds = 0.0  # of processor time, from the first answer on
        self.start()

    def start(self) -> None:
        """Returns once it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                self.seconds -= self._processor_seconds()
                return
            except OSError:
                if self._process.poll() is not None:
                    sys.exit("the server did not start")
                time.sleep(0.05)

    def kill(self) -> None:
        """kill -9."""
        self.seconds += self._processor_seconds()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _processor_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, see proc(5)


def comparison(number: int) -> Comparison:
    """Two responses of a few hundred words."""
    name = f"c{number}"
    rng = random.Random(number)
    texts = [" ".join(rng.choice(["some", "words", "of", "a", "response"]) for _ in range(300)) for _ in range(2)]
    responses = tuple(
        Response(id=f"{name}/{k}", prompt_id=name, text=text, model="m", num_tokens=300, finished=True)
        for k, text in enumerate(texts)
    )
    return Comparison(id=name, prompt=Prompt(id=name, turns=(Turn("user", "A question?"),)), responses=responses)


def main() -> None:
    """Set up, let them work, kill, and count; exits with 1 when anything is lost, twice, or other than meant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=50, help="that each person labels")
    parser.add_argument("--kills", type=int, default=10, help="of the server")
    parser.add_argument("--think", type=float, default=0.5, help="mean seconds between a page and its answer")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "labels.db"
        figures = run(where, num_people=args.people, num_tasks=args.tasks, num_kills=args.kills, think=args.think)
    rows = {name: figures[name] for name in ("submit", "page")}
    print(table("seconds", rows))
    print(f"processor seconds of the server per submit {figures['server_seconds_per_submit']:.4f}")
    print(", ".join(f"{name} {figures[name]:,}" for name in figures if isinstance(figures[name], int)))
    report(args.output, {k: v for k, v in vars(args).items() if k != "output"}, figures)
    sys.exit(1 if figures["num_wrong"] or figures["num_answers"] != args.people * args.tasks else 0)


def run(where: Path, *, num_people: int, num_tasks: int, num_kills: int, think: float) -> dict[str, Any]:
    """The figures; see `main`."""
    comparisons = [comparison(number) for number in range(num_tasks)]
    asked = replace(FORM, num_labels=num_people)
    database = Database(str(where), create=True)
    queue, accounts, tally = Queue(database), Accounts(database), Tally()
    queue.ask(comparisons, asked)
    names = [f"person {number}" for number in range(num_people)]
    for name in names:
        accounts.accept(accounts.invite(name), PASSWORD)
    server = Server(where)
    people = [Person(name, server.port, tally) for name in names]
    threads = [threading.Thread(target=p.work, args=(think, random.Random(i))) for i, p in enumerate(people)]
    for thread in threads:
        thread.start()
    total = num_people * num_tasks
    for number in range(num_kills):
        while len(tally.recorded) < total * (number + 0.5) / num_kills:
            time.sleep(0.01)
        server.kill()
        server.start()
    for thread in threads:
        thread.join()
    server.kill()
    answers = queue.ask(comparisons, asked).answers or {}
    database.close()
    return {
        "submit": spread(tally.submits),
        "page": spread(tally.pages),
        "server_seconds_per_submit": server.seconds / len(tally.submits),
        **checked(answers, tally, num_kills),
    }


def checked(answers: dict[str, list[Answer]], tally: Tally, kills: int) -> dict[str, int]:
    """Counts of what is in the database against what people meant and were told."""
    found: dict[tuple[str, str], list[str]] = {}
    for task, given in answers.items():
        for answer in given:
            found.setdefault((answer.person, task), []).append(fields_of(answer.feedback)["verdict"])
    lost = [key for key, times in tally.recorded.items() if times and key not in found]
    twice = [key for key, said in found.items() if len(said) > 1] + [k for k, n in tally.recorded.items() if n > 1]
    other = [key for key, said in found.items() if said[0] != tally.meant.get(key)]
    return {
        "num_answers": len(found),
        "num_submits": len(tally.submits),
        "num_kills": kills,
        "num_unanswered": tally.num_unanswered,
        "num_sign_ins": tally.num_sign_ins,
        "num_lost": len(lost),
        "num_twice": len(twice),
        "num_other_than_meant": len(other),
        "num_wrong": len(lost) + len(twice) + len(other),
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Quantiles."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(seconds)}


if __name__ == "__main__":
    main()
