"""Who may sign in, and the file that everything is in."""

import sqlite3
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import pytest
from label_site import PASSWORD, Browser, Project, anywhere, form, prefer, some
from sqlalchemy import select, text, update
from starlette.testclient import TestClient

from cai.errors import LabelerError, StoreError
from cai.serve.accounts import Account, Accounts, Throttle
from cai.serve.app import create_app
from cai.serve.site import Site
from cai.serve.tables import NUM_CONNECTIONS, Database, labelers, meta


@pytest.fixture(params=["sqlite", "postgres"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    with closing(anywhere(request.param, tmp_path)) as project:
        yield project


def test_an_invitation_is_good_once_and_for_a_week(project: Project) -> None:
    token = project.accounts.invite("ada")
    assert project.accounts.invited("made up") is None
    with pytest.raises(LabelerError, match="10 to 1000 characters; this one has 5"):
        project.accounts.accept(token, "short")
    assert project.accounts.accept(token, "correct horse") is not None
    assert project.accounts.accept(token, "another horse") is None
    newer = [project.accounts.invite("ada"), project.accounts.invite("ada")]
    assert project.accounts.invited(newer[0]) is None, "replaced"
    assert project.accounts.sign_in("ada", "correct horse") is not None, "the old password works until then"
    project.clock.now += 8 * 24 * 3600
    assert project.accounts.accept(newer[1], "another horse") is None
    with pytest.raises(LabelerError, match="name: must be 1 to 40 printable characters"):
        project.accounts.invite("a\nb")


def test_guessing_passwords_has_to_wait(project: Project) -> None:
    project.person("ada")
    assert [project.accounts.sign_in("ada", f"wrong {i}") for i in range(5)] == [None] * 5
    with pytest.raises(LabelerError, match="try again in 30 seconds"):
        project.accounts.sign_in("ada", "correct horse")
    project.clock.now += 31
    assert project.accounts.sign_in("ada", "correct horse") is not None
    assert project.accounts.sign_in("nobody", "correct horse") is None


def test_many_who_sign_in_take_nothing_from_those_who_label(project: Project) -> None:
    """More sign-ins than there are threads wait for one that is stuck; a page still comes, and then they come in."""
    project.person("ada")
    app = create_app(Site(project.database), hosts=["127.0.0.1"])
    accounts, go_on, under_way = app.state.site.accounts, threading.Event(), []

    def stuck(name: str, password: str) -> Account | None:
        under_way.append(name)
        assert go_on.wait(60)
        return Accounts.sign_in(accounts, name, password)

    with TestClient(app, "http://127.0.0.1") as client, patch.object(accounts, "sign_in", stuck):
        browser = Browser(client)
        browser.get("/sign-in")
        fields = {**browser.hidden("/sign-in"), "name": "ada", "password": PASSWORD}
        with ThreadPoolExecutor(NUM_CONNECTIONS + 4) as people:
            waiting = [people.submit(browser.post, "/sign-in", fields) for _ in range(NUM_CONNECTIONS + 4)]
            while not under_way:
                time.sleep(0.01)
            assert client.get("/sign-in").status_code == 200 and len(under_way) == 1
            go_on.set()
            assert {response.result().status_code for response in waiting} == {200}


def test_a_password_is_kept_as_owasp_asks(project: Project) -> None:
    assert project.accounts.accept(project.accounts.invite("ada"), PASSWORD) is not None
    with project.database.read() as connection:
        (kept,) = connection.execute(select(labelers.c.password)).scalars()
    assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_guesses_at_once_are_counted_before_they_are_tried(project: Project) -> None:
    project.person("ada")
    barrier = threading.Barrier(15)

    def guess(number: int) -> str:
        barrier.wait()
        try:
            return str(project.accounts.sign_in("ada", f"wrong {number}"))
        except LabelerError:
            return "has to wait"

    with ThreadPoolExecutor(15) as guessers:
        assert Counter(guessers.map(guess, range(15))) == {"None": 5, "has to wait": 10}


def test_made_up_names_reset_nobodys_count() -> None:
    now = 0.0
    throttle = Throttle(lambda: now)
    assert [throttle.wait("ada", is_known=True) for _ in range(5)] == [0.0] * 5
    for number in range(20_000):
        assert throttle.wait(f"made up {number}", is_known=False) == 0.0
    assert throttle.wait("ada", is_known=True) == 30.0
    now = 10.0
    assert throttle.wait("ada", is_known=True) == 20.0, "trying too early makes the wait no longer"
    now = 30.0
    assert throttle.wait("ada", is_known=True) == 0.0 and throttle.wait("ada", is_known=True) == 30.0, "one more try"
    throttle.clear("ada")
    assert throttle.wait("ada", is_known=True) == 0.0


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("3", "has schema version 3, this cai knows 2; update cai"),
        ("1", "has schema version 1, this cai knows 2; name another file, or go on with the cai that made it"),
    ],
)
def test_a_database_of_another_version_is_refused(version: str, message: str, tmp_path: Path) -> None:
    with closing(Project(tmp_path)) as project, project.database.write() as connection:
        connection.execute(update(meta).where(meta.c.key == "schema_version").values(value=version))
    with pytest.raises(StoreError, match=message):
        Database(project.where)


def test_only_its_owner_reads_the_file(tmp_path: Path) -> None:
    with closing(Project(tmp_path)) as project:
        pass
    assert stat.S_IMODE(Path(project.where).stat().st_mode) == 0o600
    connection = sqlite3.connect(project.where)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nothing.db", r"'nothing.db': is not there; `cai run labeler=human` makes it"),
        (".", "is a folder"),
        ("text.db", "file is not a database"),
        ("other.db", "is no database of labels"),
        ("postgresql+psycopg://me:secret@host/name", r"//me:\*\*\*@host/name': holds a password, .* set PGPASSWORD"),
        ("mysql://host/name", "must be SQLite or Postgres, got mysql"),
        ("://", "must be a file"),
    ],
)
def test_what_is_no_database_of_labels(where: str, message: str, workdir: Path) -> None:
    Path("text.db").write_text("some text, long enough to be looked at as a header of a database" * 9)
    connection = sqlite3.connect("other.db")
    connection.execute("CREATE TABLE things (id INTEGER)")
    connection.close()
    with pytest.raises(StoreError, match=message):
        Database(where)


def test_what_was_acknowledged_is_on_the_disk(tmp_path: Path) -> None:
    """synchronous is FULL (2) whenever an answer is written, whatever the connection was used for before."""
    with closing(Project(tmp_path)) as project:
        for durable, expected in ((True, 2), (False, 1), (True, 2)):
            with project.database.write(durable=durable) as connection:
                assert connection.execute(text("PRAGMA synchronous")).scalar_one() == expected
        project.queue.ask(some(1), form())
        ada = project.person("ada")
        with patch.object(project.database, "write", wraps=project.database.write) as write:
            screen = project.desk.next(ada)
            assert screen is not None
            project.desk.answer(ada, screen.task, prefer(screen.shown), 1.0)
            project.desk.undo(ada, screen.task)
        levels = [call.kwargs.get("durable", True) for call in write.call_args_list]
        assert levels == [False, True, True], "what is on a screen, the answer, and undo"
