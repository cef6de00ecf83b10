"""Chromium, if there is one, and what axe finds wrong with a page in it."""

import shutil

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)


def violations(page: Page) -> list[str]:
    """Elements that break a rule of WCAG 2.1 A or AA, or what is held to be good, as the page is now."""
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
    found = Axe().run(page, options={"runOnly": rules, "resultTypes": ["violations"]}).response
    assert found["passes"], "it looked at nothing"
    return [f"{v['id']}: {node['html'][:100]}" for v in found["violations"] for node in v["nodes"]]
