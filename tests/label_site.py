"""A small labelling project for tests: a database in a folder, people in it, and browsers without a browser."""

import html
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import MetaData, create_engine, update
from starlette.testclient import TestClient
from worlds import comparison

from cai.serve.accounts import Account, Accounts
from cai.serve.app import create_app
from cai.serve.desk import Desk
from cai.serve.form import Form
from cai.serve.queue import Queue
from cai.serve.site import Site
from cai.serve.tables import Database, labelers
from cai.types import Comparison, Feedback

PASSWORD = "correct horse"
HASHED = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)  # quick to check, as it says itself
INSTRUCTIONS = "# What to do\n\nChoose.\n\n- one\n- two\n"

EVERYTHING: dict[str, Any] = {
    "strength": True,
    "ratings": True,
    "flags": {"harmful": "Is it harmful?", "off": "Off the point?"},
    "correction": True,
    "critique": True,
}


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1.8e9

    def __call__(self) -> float:
        """A little later at every look, so that no two answers are of the same moment."""
        self.now += 0.001
        return self.now


class Project:
    """The database `labels.db` in a folder, with everything that works on it."""

    def __init__(self, folder: Path, where: str | None = None) -> None:
        self.clock = Clock()
        self.where = where or str(folder / "labels.db")
        self.database = Database(self.where, create=True)
        self.queue = Queue(self.database, clock=self.clock)
        self.desk = Desk(self.database, clock=self.clock)
        self.accounts = Accounts(self.database, clock=self.clock)

    def person(self, name: str, *, is_admin: bool = False) -> Account:
        """Somebody who has a password."""
        self.accounts.invite(name, is_admin=is_admin)
        with self.database.write() as connection:
            connection.execute(update(labelers).where(labelers.c.name == name).values(password=HASHED, epoch=1))
        (account,) = (account for account in self.accounts.all() if account.name == name)
        return account

    def close(self) -> None:
        """Give back the connections."""
        self.database.close()

    def browser(self, **settings: Any) -> "Browser":
        """A new browser at a server that has just been started."""
        app = create_app(Site(self.database, **settings), hosts=["127.0.0.1"])
        return Browser(TestClient(app, f"http{'s' * settings.get('is_https', False)}://127.0.0.1"))


def anywhere(kind: str, folder: Path) -> Project:
    """On SQLite; and on Postgres where CAI_TEST_POSTGRES names a database that may be emptied, which is done."""
    if kind == "sqlite":
        return Project(folder)
    where = os.environ.get("CAI_TEST_POSTGRES")
    if not where:
        pytest.skip("set CAI_TEST_POSTGRES to the URL of a database that may be emptied")
    engine, tables = create_engine(where), MetaData()
    tables.reflect(engine)
    tables.drop_all(engine)
    engine.dispose()
    return Project(folder, where)


class Browser:
    """Cookies, and the forms of the last page."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.page = ""

    def get(self, path: str) -> str:
        """Open a page; where that led to."""
        response = self.client.get(path)
        self.page = response.text
        return response.url.path

    def post(self, path: str, fields: dict[str, str]) -> Any:
        """Send a form as the page script does."""
        return self.client.post(path, data=fields, headers={"accept": "application/json"}, follow_redirects=False)

    def hidden(self, action: str) -> dict[str, str]:
        """The hidden fields of the form with this action on the last page."""
        form = re.search(rf'<form[^>]*action="{re.escape(action)}".*?</form>', self.page, re.DOTALL)
        assert form, f"no form for {action} on this page"
        fields = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', form[0])
        return {name: html.unescape(value) for name, value in fields}

    def sign_in(self, name: str) -> str:
        """Through the form; where that led to."""
        self.get("/sign-in")
        fields = {**self.hidden("/sign-in"), "name": name, "password": PASSWORD}
        response = self.client.post("/sign-in", data=fields)
        self.page = response.text
        if response.url.path == "/instructions":
            response = self.client.post("/instructions", data=self.hidden("/instructions"))
            self.page = response.text
        return response.url.path

    def submit(self, **fields: str) -> Any:
        """Answer the comparison of the last page."""
        return self.post("/label", {**self.hidden("/label"), **fields})


def form(**settings: Any) -> Form:
    return Form(**{"instructions": INSTRUCTIONS, **settings})


def some(n: int, k: int = 2, prefix: str = "c") -> list[Comparison]:
    """n comparisons of k responses of different lengths."""
    rng = random.Random(n)
    return [comparison(f"{prefix}{i}", *("word " * rng.randint(1, 9) + str(j) for j in range(k))) for i in range(n)]


def prefer(shown: tuple[int, ...], best: int = 0) -> Feedback:
    """The response `best` is above all others, which are tied."""
    rest = tuple(index for index in sorted(shown) if index != best)
    return Feedback(shown=shown, ranking=((best,), rest))
