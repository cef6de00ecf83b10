"""The page in a real browser: keys and mouse, every kind of question, and nothing lost or said twice.

Needs Chromium (`apt install chromium`); without it these tests are skipped, and say so.
"""

import random
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from label_site import EVERYTHING, PASSWORD, Project, form
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from worlds import comparison

from cai.serve.app import create_app
from cai.serve.form import Form, Gold, task_id
from cai.serve.site import Site
from cai.types import Comparison, Feedback

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page was tested in no browser")


class Server:
    """The application on a port of its own, which can be stopped and started again."""

    def __init__(self, project: Project) -> None:
        self._project = project
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Serve, in a thread."""
        app = create_app(Site(self._project.database), hosts=["127.0.0.1"])
        config = uvicorn.Config(app, port=self.port, log_level="error", access_log=False, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        """And wait until the port is free."""
        self._server.should_exit = True
        self._thread.join()


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


@contextmanager
def tab(chromium: Browser, server: Server, name: str, **settings: Any) -> Iterator[Page]:
    """A page, signed in; at the end nothing was fetched from elsewhere and no script complained."""
    problems: list[str] = []
    context: BrowserContext = chromium.new_context(**settings)
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Content Security" in message.text else None)
    page.on("request", lambda request: None if request.url.startswith(server.url) else problems.append(request.url))
    page.goto(f"{server.url}/sign-in")
    page.fill("#name", name)
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/label|/instructions"))
    if page.url.endswith("/instructions"):
        page.get_by_role("button", name="I have read this").click()
        page.wait_for_url("**/label")
    yield page
    context.close()
    assert problems == []


def ready(page: Page) -> str:
    """Wait until the page takes answers; the task on it, or nothing when all is done."""
    page.wait_for_selector("html[data-ready], .finish")
    return "" if page.query_selector(".finish") else page.input_value("#answer input[name=task]")


def after(page: Page, task: str) -> str:
    """Wait until another page than that of `task` is there."""
    another = f"#answer input[name=task]:not([value='{task}']), .finish"
    page.wait_for_selector(another, state="attached")
    return ready(page)


def num_answers(project: Project) -> int:
    batch = project.queue.latest()
    return sum(len(given) for _, given in project.queue.answered(batch)) if batch is not None else 0


def numbered(name: str, k: int) -> Comparison:
    """Responses that say which they are."""
    return comparison(name, *(f"{index} is this\nof {name}" for index in range(k)))


def shown_on(page: Page) -> tuple[int, ...]:
    """The responses in the order of the page, by what they say."""
    return tuple(int(text.split()[0]) for text in page.locator(".response > .text").all_inner_texts())


# --- a person who answers ---------------------------------------------------------------------------------------------


class Person:
    """Fills the page with an answer of its own choice, by keys or with the mouse, and knows what it meant."""

    def __init__(self, page: Page, seed: int) -> None:
        self._page = page
        self._rng = random.Random(seed)

    def answer(self, asked: Form, by_keys: bool) -> tuple[str, Feedback]:
        """Answer what is on the page; the task, and what should be recorded."""
        page, rng = self._page, self._rng
        task, shown = page.input_value("#answer input[name=task]"), shown_on(page)
        self._shown = shown
        k = len(shown)
        if rng.random() < 0.05:
            self._skip(by_keys)
            return task, Feedback(shown=shown, skipped="I do not know", instructions=asked.version)
        ratings, flags = self._about_each(asked, by_keys)
        places = [rng.randint(1, k) for _ in shown]
        if k > 2:
            self._choose([f"place.{p}" for p in range(k)], [str(place) for place in places], by_keys, rated=asked)
            groups = [tuple(sorted(shown[p] for p in range(k) if places[p] == n)) for n in sorted(set(places))]
            strength = 0
        else:
            verdict, strength = rng.choice(["a", "b", "tie"]), rng.randint(1, 3) if asked.strength else 0
            strength = 0 if verdict == "tie" else strength
            order = {"a": shown, "b": shown[::-1]}.get(verdict)
            groups = [(order[0],), (order[1],)] if order else [tuple(sorted(shown))]
        correction, critique = self._write(asked, by_keys)
        if k == 2:  # last: where nothing else is asked, it saves
            self._verdict(verdict, strength, by_keys)
        self._save(asked, k, by_keys)
        return task, Feedback(
            shown=shown,
            ranking=tuple(groups),
            strength=strength,
            ratings=self._by_response(ratings),
            flags=self._by_response(flags),
            corrected=shown[correction[0]] if correction else None,
            correction=correction[1] if correction else "",
            critique=critique,
            instructions=asked.version,
        )

    def _by_response(self, values: list[Any]) -> tuple[Any, ...]:
        return tuple(value for _, value in sorted(zip(self._shown, values, strict=False), key=lambda pair: pair[0]))

    def _click(self, name: str, value: str) -> None:
        self._page.locator(f"label:has(input[name='{name}'][value='{value}'])").click()

    def _skip(self, by_keys: bool) -> None:
        page = self._page
        if by_keys:
            page.keyboard.press("s")
            page.keyboard.press("2")
            page.keyboard.press("Enter")
        else:
            page.locator("#show-skip").click()
            page.get_by_text("I do not know").click()
            page.get_by_role("button", name="Skip it").click()

    def _about_each(self, asked: Form, by_keys: bool) -> tuple[list[int], list[tuple[str, ...]]]:
        """Ratings and flags, from response to response; by keys, the page goes from question to question itself."""
        page, rng = self._page, self._rng
        ratings: list[int] = []
        flags: list[tuple[str, ...]] = []
        for place in range(len(self._shown)):
            if asked.ratings:
                ratings.append(rng.randint(1, 7))
                if by_keys:
                    page.keyboard.press(str(ratings[-1]))
                else:
                    self._click(f"rating.{place}", str(ratings[-1]))
            if asked.flags:
                flags.append(tuple(name for name in asked.flags if rng.random() < 0.4))
                for number, name in enumerate(asked.flags, start=1):
                    if name in flags[-1] and by_keys:
                        page.keyboard.press(str(number))
                    elif name in flags[-1]:
                        self._click(f"flag.{place}.{name}", "yes")
                if by_keys:
                    page.keyboard.press("ArrowDown")
            if by_keys and len(self._shown) > 2 and (asked.ratings or asked.flags):
                page.keyboard.press("ArrowDown")  # past the place, which comes when all is rated
        return ratings, flags

    def _choose(self, names: list[str], values: list[str], by_keys: bool, rated: Form) -> None:
        page = self._page
        if by_keys:
            for _ in range(4 * len(names)):
                page.keyboard.press("ArrowUp")
            for name, value in zip(names, values, strict=True):
                while page.evaluate("() => document.activeElement.name") != name:
                    page.keyboard.press("ArrowDown")
                page.keyboard.press(value)
        else:
            for name, value in zip(names, values, strict=True):
                self._click(name, value)

    def _verdict(self, verdict: str, strength: int, by_keys: bool) -> None:
        page = self._page
        if by_keys:
            key = {"a": "1", "b": "2", "tie": "0"}[verdict]
            while page.evaluate("() => document.activeElement.name") != "verdict":
                page.keyboard.press("ArrowDown")
            for _ in range(max(1, strength)):
                page.keyboard.press(key)
        else:
            self._click("verdict", f"{verdict}{strength or ''}")

    def _write(self, asked: Form, by_keys: bool) -> tuple[tuple[int, str] | None, str]:
        page, rng = self._page, self._rng
        correction, critique = None, ""
        if asked.correction and rng.random() < 0.6:
            place = rng.randrange(len(self._shown))
            page.locator(f"#response-{place} .edit").click()
            page.locator("#correction").press("ControlOrMeta+a")
            page.keyboard.type(f"better {rng.random():.3f}")
            page.keyboard.press("Enter")
            page.keyboard.type("and longer")
            correction = (place, page.input_value("#correction"))
            assert correction[1].endswith("\nand longer")
            page.keyboard.press("Escape")
        if asked.critique and rng.random() < 0.6:
            if by_keys:
                page.keyboard.press("c")
            else:
                page.locator("#critique").click()
            critique = f"1 because 2 <b>é</b> {rng.random():.3f}"
            page.keyboard.type(critique)
            page.keyboard.press("Escape")
        return correction, critique

    def _save(self, asked: Form, k: int, by_keys: bool) -> None:
        extras = (asked.strength, asked.ratings, asked.flags, asked.correction, asked.critique)
        if k == 2 and not any(extras):
            return
        if by_keys:
            self._page.keyboard.press("Enter")
        else:
            self._page.locator("#save").click()


def label_all(page: Page, forms: Callable[[Page], Form], seed: int = 0) -> dict[str, Feedback]:
    """Answer everything, by keys and with the mouse in turn; what was meant, by task."""
    person, meant = Person(page, seed), {}
    task = ready(page)
    while task:
        answered, feedback = person.answer(forms(page), by_keys=len(meant) % 2 == 0)
        assert answered == task
        meant[task] = feedback
        task = after(page, task)
    return meant


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

# Text against what is behind it, as WCAG 2.2 counts; elements that show no text of their own are passed over.
CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
                            return canvas.getImageData(0, 0, 1, 1).data; };
  const linear = (v) => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgba(getComputedStyle(node).backgroundColor);
      if (color[3] > 200) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (node.closest(".unseen, .skip-link, noscript, tr.off")) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push([node.outerHTML.slice(0, 80), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""
NAMELESS = """() => [...document.querySelectorAll("input:not([type=hidden]), textarea, button, a, progress, fieldset")]
  .filter((node) => !(node.labels?.length || node.getAttribute("aria-label") || node.textContent.trim()
                      || node.querySelector("legend"))).map((node) => node.outerHTML.slice(0, 80))"""


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
            assert page.evaluate(CONTRASTS) == [], path
            assert page.evaluate(NAMELESS) == [], path
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width, path
            assert page.locator("h1").count() == 1
            if path == "/label" and task:
                page.locator("#show-skip").click()
                assert page.evaluate(CONTRASTS) == []
                page.get_by_role("button", name="Skip it").click()
                after(page, task)
