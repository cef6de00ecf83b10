"""The web application over HTTP: who gets in, what pages show and hide, and answers that are recorded exactly once."""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from label_site import EVERYTHING, PASSWORD, Browser, Project, form, some
from worlds import comparison

from cai.serve.form import Form, shown_order, task_id
from cai.types import Comparison, Feedback, Turn


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with closing(Project(tmp_path)) as project:
        yield project


@pytest.fixture
def ada(project: Project) -> Browser:
    """Signed in at a project with ten comparisons; the first one is on the screen."""
    project.queue.ask(some(10), form())
    project.person("ada")
    browser = project.browser()
    assert browser.sign_in("ada") == "/label"
    return browser


def said(project: Project, comparisons: list[Comparison], asked: Form) -> dict[str, list[Feedback]]:
    """Feedback by comparison id, once all is there."""
    found = project.queue.ask(comparisons, asked).answers
    assert found is not None
    return {c.id: [answer.feedback for answer in found[task_id(c, asked)]] for c in comparisons}


# --- coming in --------------------------------------------------------------------------------------------------------


def test_without_signing_in_there_is_only_the_form(project: Project) -> None:
    browser = project.browser()
    for path in ("/", "/label", "/instructions", "/admin"):
        assert browser.get(path) == "/sign-in", path
    for path in ("/label", "/undo", "/instructions", "/sign-out", "/admin/people", "/admin/batches"):
        assert browser.post(path, {"csrf": ""}).status_code == 401, path
    assert browser.client.get("/docs").status_code == browser.client.get("/openapi.json").status_code == 404


def test_names_and_passwords(project: Project) -> None:
    project.person("ada")
    browser = project.browser()
    browser.get("/sign-in")
    fields = {**browser.hidden("/sign-in"), "name": "ada", "password": "wrong horse"}
    response = browser.client.post("/sign-in", data=fields)
    assert response.status_code == 422 and "Name and password do not go together" in response.text
    assert browser.sign_in("ada") == "/label"
    assert browser.get("/admin") == "/admin" and "There is no such page" in browser.page
    browser.get("/label")
    browser.client.post("/sign-out", data=browser.hidden("/sign-out"))
    assert browser.get("/label") == "/sign-in"


def test_cookies_are_out_of_reach_of_scripts_and_of_other_sites(project: Project) -> None:
    project.person("ada")
    for is_https in (False, True):
        browser = project.browser(is_https=is_https)
        browser.get("/sign-in")
        fields = {**browser.hidden("/sign-in"), "name": "ada", "password": PASSWORD}
        response = browser.client.post("/sign-in", data=fields, follow_redirects=False)
        (cookie,) = response.headers.get_list("set-cookie")
        assert cookie.startswith("cai_session=")
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and ("Secure" in cookie) == is_https


def test_an_invitation_ends_on_the_comparisons_and_is_used_up(project: Project) -> None:
    project.queue.ask(some(1), form())
    link = f"/invitation/{project.accounts.invite('ada')}"
    browser = project.browser()
    browser.get(link)
    assert "Welcome, ada" in browser.page
    fields = {**browser.hidden(link), "password": PASSWORD, "again": "something else"}
    assert "The two passwords differ" in browser.client.post(link, data=fields).text
    assert "has 10 to 1000 characters" in browser.client.post(link, data=fields | {"password": "x", "again": "x"}).text
    browser.page = browser.client.post(link, data=fields | {"again": PASSWORD}).text
    assert "I have read this" in browser.page and "<h1>What to do</h1>" in browser.page
    assert "used already" in project.browser().client.get(link).text


def test_a_session_ends_with_a_new_password_or_when_set_aside(project: Project, ada: Browser) -> None:
    (account,) = project.accounts.all()
    token = project.accounts.invite("ada")
    assert ada.get("/label") == "/label"
    project.accounts.accept(token, "another horse")
    assert ada.get("/label") == "/sign-in"
    bob = project.person("bob")
    browser = project.browser()
    browser.sign_in("bob")
    project.accounts.set_active(bob.id, False)
    assert browser.get("/label") == "/sign-in"
    project.accounts.set_active(bob.id, True)
    assert browser.get("/label") == "/sign-in", "sessions of before stay over"
    assert account.name == "ada"


def test_signing_out_ends_the_session_on_the_server_too(project: Project, ada: Browser) -> None:
    kept = ada.client.cookies["cai_session"]
    assert ada.client.post("/sign-out", data=ada.hidden("/sign-out"), follow_redirects=False).status_code == 303
    ada.client.cookies.set("cai_session", kept, domain="127.0.0.1")
    assert ada.get("/label") == "/sign-in"
    assert project.browser().sign_in("ada") == "/label"


@pytest.mark.parametrize("cookie", ["", "x", "eyJsYWJlbGVyIjogMX0.c2lnbmF0dXJl"])
def test_forged_cookies_are_nothing(project: Project, cookie: str) -> None:
    project.person("ada")
    browser = project.browser()
    browser.client.cookies.set("cai_session", cookie, domain="127.0.0.1")
    assert browser.get("/label") == "/sign-in"


# --- what pages show and hide -----------------------------------------------------------------------------------------


def test_every_page_has_a_strict_policy_and_nothing_inline(project: Project) -> None:
    project.queue.ask([comparison("c0", "one", "two")], form(**EVERYTHING))
    project.person("ada", is_admin=True)
    browser = project.browser()
    pages = [browser.client.get("/sign-in")]
    browser.sign_in("ada")
    pages += [browser.client.get(path) for path in ("/label", "/instructions", "/admin", "/nothing")]
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert page.headers["cache-control"] == "no-store" and page.headers["x-frame-options"] == "DENY"
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page.text), page.url
        assert not re.findall(r"(?:src|href|action)=\"(?!/|#)", page.text), "everything is from here"
    for name in re.findall(r'"(/static/[^"]+)"', pages[1].text):
        found = browser.client.get(name)
        assert found.status_code == 200 and "immutable" in found.headers["cache-control"]
        assert "http" not in found.text.replace("http://www.w3.org/2000/svg", "")


def test_the_page_is_blind_and_texts_are_texts(project: Project) -> None:
    texts = ("<script>alert(1)</script>\n  two  spaces", "&lt;b&gt; {{ 7*7 }}")
    shown = comparison("c0", *texts)
    named = replace(shown, responses=tuple(replace(r, model="the-model-name") for r in shown.responses))
    turns = (Turn("system", "Be <b>brief</b>."), Turn("user", "q1"), Turn("assistant", "a1"), Turn("user", "q2"))
    project.queue.ask([replace(named, prompt=replace(named.prompt, turns=turns))], form())
    project.person("ada")
    browser = project.browser()
    browser.sign_in("ada")
    assert "the-model-name" not in browser.page and "c0/0" not in browser.page and "c0/1" not in browser.page
    assert '<div class="text" dir="auto">&lt;script&gt;alert(1)&lt;/script&gt;\n  two  spaces</div>' in browser.page
    assert "&amp;lt;b&amp;gt; {{ 7*7 }}" in browser.page
    positions = [browser.page.index(text) for text in ("&lt;b&gt;brief", ">q1<", ">a1<", ">q2<", "response-0")]
    assert positions == sorted(positions), "every turn is there, in its order"


def test_the_order_on_the_page_is_the_seeded_one_and_the_same_again(project: Project) -> None:
    comparisons = [comparison(f"c{i}", "text zero", "text one", "text two") for i in range(4)]
    project.queue.ask(comparisons, form(overlap=1.0))
    for name in ("ada", "bob"):
        project.person(name)
        browser = project.browser()
        browser.sign_in(name)
        for _ in range(2):
            browser.get("/label")
            found = re.findall(r'dir="auto">text (\w+)<', browser.page)
            order = shown_order(browser.hidden("/label")["task"], name, 3)
            assert found == [("zero", "one", "two")[index] for index in order]


def test_other_names_for_this_machine_are_refused(project: Project) -> None:
    client = project.browser().client
    assert client.get("/sign-in", headers={"host": "127.0.0.1:8400"}).status_code == 200
    assert client.get("/sign-in", headers={"host": "evil.example"}).status_code == 400


def test_instructions_come_first_and_again_when_they_change(project: Project) -> None:
    project.queue.ask(some(2), form())
    project.person("ada")
    browser = project.browser()
    assert browser.sign_in("ada") == "/label"
    browser.submit(verdict="a")
    project.queue.ask(some(2), form(instructions="Now choose otherwise."))
    assert browser.submit(verdict="a").json() == {"recorded": False}
    assert browser.get("/label") == "/instructions" and "Now choose otherwise." in browser.page
    browser.client.post("/instructions", data=browser.hidden("/instructions"))
    assert browser.get("/label") == "/label"
    browser.submit(verdict="b")
    found = said(project, some(2), form())
    versions = [found[name][0].instructions for name in ("c0", "c1")]
    assert versions == [form().version, form(instructions="Now choose otherwise.").version]


# --- exactly once -----------------------------------------------------------------------------------------------------


def test_double_clicks_and_the_back_button_record_nothing_twice(project: Project, ada: Browser) -> None:
    sent = []
    while ada.get("/label") == "/label" and "verdict" in ada.page:
        fields = {**ada.hidden("/label"), "verdict": "a"}
        sent.append(fields)
        assert [ada.post("/label", fields).json()["recorded"] for _ in range(2)] == [True, False]
    assert len(sent) == 10 and "That was all of it" in ada.page
    for fields in sent:  # the back button, and another opinion
        assert ada.post("/label", fields | {"verdict": "b"}).json() == {"recorded": False}
    found = said(project, some(10), form())
    assert all(len(given) == 1 and given[0].ranking[0] == (given[0].shown[0],) for given in found.values())


def test_a_session_that_ended_costs_nothing_that_was_typed(project: Project, ada: Browser) -> None:
    fields = {**ada.hidden("/label"), "verdict": "b"}
    ada.client.cookies.clear()
    refused = ada.post("/label", fields)
    assert refused.status_code == 401 and "session has ended" in refused.json()["error"]
    wrong = {"csrf": refused.json()["csrf"], "name": "ada", "password": "wrong horse"}
    assert ada.post("/sign-in", wrong).status_code == 422
    back = ada.post("/sign-in", wrong | {"password": PASSWORD})
    assert back.status_code == 200
    assert ada.post("/label", fields).status_code == 403, "the token was of the session before"
    assert ada.post("/label", fields | {"csrf": back.json()["csrf"]}).json() == {"recorded": True}


def test_a_token_is_good_for_its_own_session_only(project: Project, ada: Browser) -> None:
    project.person("bob")
    bob = project.browser()
    bob.sign_in("bob")
    stolen = ada.hidden("/label")["csrf"]
    for token in ("", "x", stolen):
        refused = bob.post("/label", {**bob.hidden("/label"), "csrf": token, "verdict": "a"})
        assert refused.status_code == 403
    assert bob.post("/label", {**bob.hidden("/label"), "csrf": refused.json()["csrf"], "verdict": "a"}).is_success
    assert bob.post("/sign-in", {"csrf": stolen, "name": "ada", "password": PASSWORD}).status_code == 403
    swapped = ada.post("/label", {**bob.hidden("/label"), "csrf": stolen, "verdict": "a"})
    assert swapped.status_code == 409 and "Somebody else has signed in here" in swapped.json()["error"]


def test_a_server_that_was_restarted_knows_everybody(project: Project, ada: Browser) -> None:
    fields = ada.hidden("/label")
    again = project.browser()
    again.client.cookies = ada.client.cookies
    assert again.post("/label", {**fields, "verdict": "a"}).json() == {"recorded": True}
    assert again.get("/label") == "/label"
    task = again.hidden("/label")["task"]
    assert ada.get("/label") == "/label" and ada.hidden("/label")["task"] == task != fields["task"]


def test_undo_brings_the_answer_back_to_the_page(project: Project, ada: Browser) -> None:
    task = ada.hidden("/label")["task"]
    ada.submit(verdict="b")
    ada.get("/label")
    undo = ada.hidden("/undo")
    assert undo["task"] == task
    for _ in range(2):  # a double click
        ada.page = ada.client.post("/undo", data=undo).text
        assert ada.hidden("/label")["task"] == task and "0</b> done, 10 to go" in ada.page
    assert 'data-draft="{&#34;critique&#34;: &#34;&#34;, &#34;verdict&#34;: &#34;b&#34;}"' in ada.page


def test_a_late_duplicate_after_undo_is_refused_and_the_page_shown_anew(project: Project, ada: Browser) -> None:
    sent = {**ada.hidden("/label"), "verdict": "a"}
    assert ada.post("/label", sent).json() == {"recorded": True}
    ada.get("/label")
    ada.page = ada.client.post("/undo", data=ada.hidden("/undo")).text
    late = ada.post("/label", sent)
    assert late.status_code == 409 and "You took this answer back" in late.json()["error"] and late.json()["reload"]
    assert ada.submit(verdict="b").json() == {"recorded": True}
    assert ada.post("/label", sent).json() == {"recorded": False}


def test_an_answer_to_a_batch_that_was_closed_is_refused_kindly(project: Project, ada: Browser) -> None:
    batch = project.queue.latest()
    assert batch is not None
    project.queue.set_open(batch, False)
    refused = ada.submit(verdict="a")
    assert refused.status_code == 409 and "Nothing that you saved is lost" in refused.json()["error"]
    assert not refused.json()["reload"], "there is no other one to show"
    project.queue.set_open(batch, True)
    assert ada.submit(verdict="a").json() == {"recorded": True}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "Which response is better?"),
        ({"verdict": "c"}, "Which response is better?"),
        ({"verdict": "a3"}, "Which response is better?"),
        ({"verdict": "a", "task": "made up"}, "The questions have changed"),
        ({"verdict": "a", "attempt": "9" * 5000}, "The questions have changed"),
        ({"verdict": "a", "instructions": "made up"}, "The questions have changed"),
    ],
)
def test_what_cannot_be_recorded_is_told_and_can_be_sent_again(
    ada: Browser, fields: dict[str, str], message: str
) -> None:
    refused = ada.submit(**fields)
    assert refused.status_code in (409, 422) and message in refused.json()["error"]
    assert ada.submit(verdict="tie", seconds="nan").json() == {"recorded": True}


def test_odd_requests(ada: Browser) -> None:
    assert ada.client.post("/label", json={"verdict": "a"}).status_code == 400
    assert ada.submit(critique="x" * 1_100_000).status_code == 413
    too_many = "&".join(f"f{i}=1" for i in range(2000))
    kind = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
    assert ada.client.post("/label", content=too_many, headers=kind).status_code == 400
    assert ada.client.post("/label", content=b"\xff=\xfe", headers=kind).status_code == 400
    assert "There is no such page" in ada.client.get("/label/other").text
    assert ada.client.get("/static/..%2fapp.py").status_code == 404


# --- those who look after it ------------------------------------------------------------------------------------------


def test_the_admin_page(project: Project, ada: Browser) -> None:
    project.person("root", is_admin=True)
    while ada.get("/label") == "/label" and "verdict" in ada.page:
        ada.submit(verdict="a")
    root = project.browser()
    root.sign_in("root")
    assert root.get("/admin") == "/admin"
    assert "10 of 10" in root.page and form().version in root.page and "Prefers the first shown" in root.page
    fields = {"csrf": root.hidden("/admin/people")["csrf"]}
    people = {account.name: str(account.id) for account in project.accounts.all()}
    assert root.post("/admin/people", fields | {"labeler": people["root"], "active": "no"}).status_code == 409
    for number in ("x", "9" * 5000, "\u0663"):
        assert root.post("/admin/people", fields | {"labeler": number, "active": "no"}).status_code == 400
    assert root.post("/admin/people", fields | {"labeler": people["ada"], "active": "no"}).status_code == 303
    assert ada.get("/label") == "/sign-in"
    root.get("/admin")
    assert "set aside" in root.page and "0 of 10" in root.page
    batch = root.hidden("/admin/batches")
    assert root.post("/admin/batches", batch).status_code == 303
    root.get("/label")
    assert "Nothing to do yet" in root.page
    root.get("/admin")
    assert root.hidden("/admin/batches")["open"] == "yes"


def test_others_do_not_find_it(ada: Browser) -> None:
    csrf = ada.hidden("/label")["csrf"]
    assert ada.client.get("/admin").status_code == 404
    for path in ("/admin/people", "/admin/batches"):
        assert ada.post(path, {"csrf": csrf, "labeler": "1", "batch": "1"}).status_code == 404
