"""Browsing in a real browser: a server that stops and starts, tabs, and a person who fills in the page as they mean."""

import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import uvicorn
from label_site import PASSWORD, Project
from playwright.sync_api import Browser, BrowserContext, Page
from worlds import comparison

from cai.serve.app import create_app
from cai.serve.form import Form
from cai.serve.site import Site
from cai.types import Comparison, Feedback


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

    def __init__(self, page: Page, seed: int, shown: Callable[[Page], tuple[int, ...]]) -> None:
        self._page = page
        self._rng = random.Random(seed)
        self._order = shown

    def answer(self, asked: Form, by_keys: bool) -> tuple[str, Feedback]:
        """Answer what is on the page; the task, and what should be recorded."""
        page, rng = self._page, self._rng
        task, shown = page.input_value("#answer input[name=task]"), self._order(page)
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
            page.locator("label:has(input[value='I do not know'])").click()
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
                if self._rng.random() < 0.5:
                    page.keyboard.press(value)
                else:  # one place too far, and back
                    for key in ["ArrowRight"] * (int(value) + 1) + ["ArrowLeft"] * (int(value) < len(names)):
                        page.keyboard.press(key)
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


def label_all(
    page: Page, forms: Callable[[Page], Form], seed: int = 0, shown: Callable[[Page], tuple[int, ...]] = shown_on
) -> dict[str, Feedback]:
    """Answer everything, by keys and with the mouse in turn; what was meant, by task."""
    person, meant = Person(page, seed, shown), {}
    task = ready(page)
    while task:
        answered, feedback = person.answer(forms(page), by_keys=len(meant) % 2 == 0)
        assert answered == task
        meant[task] = feedback
        task = after(page, task)
    return meant
