"""The page in a real browser: keys and mouse, every kind of question, and nothing lost or said twice.

Needs Chromium (`apt install chromium`); without it these tests are skipped, and say so.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from browsing import Server, after, label_all, num_answers, numbered, ready, tab
from chromium import CHROMIUM, violations
from label_site import EVERYTHING, PASSWORD, Project, form
from playwright.sync_api import Browser, expect, sync_playwright

from cai.records import read_json, read_records
from cai.serve.form import Form, Gold, shown_order, task_id
from cai.types import Comparison, Feedback, Judgment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page was tested in no browser"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with closing(Project(tmp_path)) as project:
        project.clock = time.time  # type: ignore[assignment]
        yield project


@pytest.fixture
def server(project: Project) -> Iterator[Server]:
    server = Server(project)
    yield server
    server.stop()


KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "pairs": ((2,), {}),
    "strength": ((2,), {"strength": True}),
    "rankings": ((3, 4, 5, 6, 7, 8, 9), {}),
    "ratings": ((2, 3), {"ratings": True, "flags": EVERYTHING["flags"]}),
    "corrections": ((2, 4), {"correction": True, "critique": True}),
    "everything": ((2, 3), EVERYTHING),
}


def asked_in_all_kinds(project: Project, numbers: dict[str, int]) -> dict[str, tuple[Form, list[Comparison]]]:
    """A batch for every kind; the page shows the last one first."""
    asked = {}
    for kind, number in numbers.items():
        sizes, settings = KINDS[kind]
        kinds = form(skip_reasons=("unclear", "I do not know"), **settings)
        comparisons = [numbered(f"{kind}-{i}", sizes[i % len(sizes)]) for i in range(number)]
        project.queue.ask(comparisons, kinds)
        asked[kind] = (kinds, comparisons)
    return asked


def check_all_kinds(chromium: Browser, server: Server, project: Project, numbers: dict[str, int]) -> None:
    """Label everything, and compare what is recorded with what was meant."""
    project.person("ada")
    asked = asked_in_all_kinds(project, numbers)
    expected: dict[str, Form] = {task_id(c, kind): kind for kind, group in asked.values() for c in group}
    with tab(chromium, server, "ada", viewport={"width": 1280, "height": 900}) as page:
        meant = label_all(page, lambda page: expected[page.input_value("#answer input[name=task]")])
    assert meant.keys() == expected.keys()
    for kind, comparisons in asked.values():
        answers = project.queue.ask(comparisons, kind).answers
        assert answers is not None
        for task, given in answers.items():
            assert [answer.feedback for answer in given] == [meant[task]]
            assert 0 < given[0].seconds < 60


def test_every_kind_by_keys_and_by_mouse(chromium: Browser, server: Server, project: Project) -> None:
    check_all_kinds(chromium, server, project, {kind: 2 for kind in KINDS})


@pytest.mark.slow
def test_two_hundred_comparisons_in_all_kinds(chromium: Browser, server: Server, project: Project) -> None:
    numbers = {"pairs": 50, "strength": 30, "rankings": 35, "ratings": 30, "corrections": 30, "everything": 25}
    assert sum(numbers.values()) == 200
    check_all_kinds(chromium, server, project, numbers)


@pytest.mark.slow
def test_a_run_goes_on_with_what_was_said_on_the_page(chromium: Browser, workdir: Path) -> None:
    """The sandbox's recipe with a labeler of one's own making: three responses, and every question that there is."""
    preset = Path("conf/labeler/ours.yaml")
    preset.parent.mkdir(parents=True)
    questions = "ratings: true\ncorrection: true\ncritique: true\noverlap: 0.0\nflags: {stray: off the point}\n"
    skip = "skip_reasons: [unclear, I do not know]\n"
    preset.write_text(f"defaults: [human, _self_]\n{questions}{skip}")
    sizes = {"red_team": 8, "demonstrations": 8, "comparisons": 24, "rl": 8, "evaluation": 8}
    small = [f"data.source.num_{name}={size}" for name, size in sizes.items()]
    arm = "arms.rlhf=['labeler=ours','sample.num_responses=3']"
    command = [sys.executable, "-m", "cai", "run", "experiment=smoke", arm, *small]
    assert subprocess.run(command, capture_output=True).returncode == 3
    with closing(Project(workdir)) as project:
        project.person("ada")
        asked = project.desk.latest_form()
        assert asked is not None and asked.ratings and asked.flags == {"stray": "off the point"}
        server = Server(project)
        with tab(chromium, server, "ada") as page:
            order = lambda page: shown_order(page.input_value("#answer input[name=task]"), "ada", 3)  # noqa: E731
            meant = label_all(page, lambda page: asked, shown=order)
        server.stop()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stages = read_json(Path(done.stdout.splitlines()[-1]).parent / "rlhf" / "run.json")["stages"]
    judgments = read_records(Path(stages["label"]["path"]) / "judgments.jsonl", Judgment)
    assert len(judgments) == 24 and all(j.provenance is not None for j in judgments)
    said = Counter(repr(judgment.feedback) for judgment in judgments)
    assert said == Counter(map(repr, meant.values()))
    assert sum(judgment.feedback.corrected is not None for judgment in judgments if judgment.feedback) > 5


# --- exactly once, and nothing lost -----------------------------------------------------------------------------------


# The key of an answer, in the moment in which a page is there.
KEY_AT_ONCE = """
addEventListener("DOMContentLoaded", () =>
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "1", bubbles: true })));
"""


def test_double_clicks_and_held_keys_answer_one_comparison(chromium: Browser, server: Server, project: Project) -> None:
    project.person("ada")
    project.queue.ask([numbered(f"c{i}", 2) for i in range(6)], form())
    with tab(chromium, server, "ada") as page:
        task = ready(page)
        page.locator("label:has(input[value=b])").dblclick()
        task = after(page, task)
        assert num_answers(project) == 1
        page.add_init_script(KEY_AT_ONCE)  # from here on: before anybody can have read the next one
        page.keyboard.press("1")
        page.keyboard.press("1")
        after(page, task)
        assert num_answers(project) == 2
        page.keyboard.press("u")
        page.wait_for_selector(f"#answer input[name=task][value='{task}']", state="attached")
        ready(page)
        assert num_answers(project) == 1 and page.is_checked("input[value=a]"), "taken back, and filled in again"


def test_what_is_typed_survives_reloads_and_the_back_button(
    chromium: Browser, server: Server, project: Project
) -> None:
    project.person("ada")
    project.queue.ask([numbered(f"c{i}", 2) for i in range(2)], form(**EVERYTHING))
    with tab(chromium, server, "ada") as page:
        task = ready(page)
        page.keyboard.press("6")
        page.locator("#critique").fill("as I said")
        page.locator("#response-1 .edit").click()
        page.locator("#correction").fill("much better")
        for leave in (lambda: page.reload(), lambda: (page.goto(f"{server.url}/instructions"), page.go_back())):
            leave()
            assert ready(page) == task
            assert page.is_checked("input[name='rating.0'][value='6']")
            assert page.input_value("#critique") == "as I said" and page.input_value("#correction") == "much better"
            assert page.locator("#edited-letter").inner_text() == "B"
        page.locator("#save").click()
        expect(page.locator("#message")).to_have_text("This question has no answer yet.")
        assert num_answers(project) == 0


def test_a_session_that_ends_is_begun_again_on_the_page(chromium: Browser, server: Server, project: Project) -> None:
    project.person("ada")
    project.queue.ask([numbered("c", 2), numbered("d", 2)], form(critique=True))
    with tab(chromium, server, "ada") as page:
        task = ready(page)
        page.keyboard.press("2")
        page.locator("#critique").fill("not to be lost")
        page.context.clear_cookies()
        page.locator("#save").click()
        page.locator("#password-again").fill("wrong horse")
        page.keyboard.press("Enter")
        expect(page.locator("#sign-in-dialog .problem")).to_have_text("Name and password do not go together.")
        page.locator("#password-again").fill(PASSWORD)
        page.keyboard.press("Enter")
        assert after(page, task)
        (answer,) = next(given for _, given in project.queue.answered(project.queue.latest() or 0))
        assert answer.feedback.critique == "not to be lost"


def test_a_server_that_restarts_is_waited_for(chromium: Browser, server: Server, project: Project) -> None:
    project.person("ada")
    project.queue.ask([numbered(f"c{i}", 2) for i in range(2)], form())
    with tab(chromium, server, "ada") as page:
        task = ready(page)
        server.stop()
        page.keyboard.press("1")
        expect(page.locator("#message")).to_contain_text("cannot be reached. Your answer is kept here")
        server.start()
        assert after(page, task)
        assert num_answers(project) == 1


def test_an_answer_from_before_undo_is_kept_on_the_page_that_comes(
    chromium: Browser, server: Server, project: Project
) -> None:
    project.person("ada")
    project.queue.ask([numbered(f"c{i}", 2) for i in range(2)], form(critique=True))
    with tab(chromium, server, "ada") as page:
        task = ready(page)
        other = page.context.new_page()
        other.goto(f"{server.url}/label")
        ready(other)
        other.keyboard.press("1")
        other.keyboard.press("Enter")
        after(other, task)
        other.keyboard.press("u")
        other.wait_for_selector("#answer input[name=attempt][value='1']", state="attached")
        page.keyboard.press("2")
        page.locator("#critique").fill("not to be lost")
        page.locator("#save").click()
        page.wait_for_selector("#answer input[name=attempt][value='1']", state="attached")
        assert ready(page) == task and num_answers(project) == 0
        expect(page.locator("#message")).to_contain_text("You took this answer back after it was sent")
        assert page.is_checked("input[value=b]") and page.input_value("#critique") == "not to be lost"
        page.locator("#save").click()
        after(page, task)
        assert num_answers(project) == 1


def test_two_tabs_and_two_people_in_one_browser(chromium: Browser, server: Server, project: Project) -> None:
    project.person("ada")
    project.person("bob")
    project.queue.ask([numbered(f"c{i}", 2) for i in range(3)], form(overlap=1.0, strength=True))
    with tab(chromium, server, "ada") as page:
        task = ready(page)
        other = page.context.new_page()
        other.goto(f"{server.url}/label")
        assert ready(other) == task, "the same on both"
        other.keyboard.press("1")
        other.keyboard.press("Enter")
        after(other, task)
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        after(page, task)
        assert num_answers(project) == 1, "the first answer stands"
        other.get_by_role("button", name="Sign out").click()
        other.fill("#name", "bob")
        other.fill("#password", PASSWORD)
        other.keyboard.press("Enter")
        other.wait_for_url("**/instructions")
        ready(page)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(page.locator("#message")).to_contain_text("Somebody else has signed in here")
        assert num_answers(project) == 1


# --- how it looks to whom ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 1280)])
def test_pages_can_be_read_named_and_fit(
    chromium: Browser, server: Server, project: Project, scheme: Any, width: int
) -> None:
    project.person("ada", is_admin=True)
    gold = [Gold(comparison=numbered("g", 2), feedback=Feedback(shown=(), ranking=((0,), (1,))))]
    everything = form(**EVERYTHING)
    project.queue.ask([numbered("c0", 2), numbered("c1", 9)], everything, gold)
    size = {"width": width, "height": 800}
    with tab(chromium, server, "ada", color_scheme=scheme, viewport=size, reduced_motion="reduce") as page:
        for path in ("/label", "/label", "/instructions", "/admin", "/label"):
            page.goto(f"{server.url}{path}")
            if path == "/label" and (task := ready(page)):
                page.locator(".response .edit").first.click()
                page.locator("#critique").fill("a critique")
            page.wait_for_timeout(200)
            assert violations(page) == [], path
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width, path
            assert page.locator("h1").count() == 1
            if path == "/label" and task:
                page.locator("#show-skip").click()
                assert violations(page) == []
                page.get_by_role("button", name="Skip it").click()
                after(page, task)
