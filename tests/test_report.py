"""The page of the report: whole, self-contained, safe, the same for the same runs; in a browser too."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from chromium import CHROMIUM, violations
from playwright.sync_api import sync_playwright
from reports import outline, page, quick, runs
from synthetic_runs import HOSTILE, NOTICE, make_runs

from cai import config
from cai.records import read_json, write_json
from cai.report.layout import render
from cai.report.page import gather, pictures, write

__all__ = ["page", "runs"]  # fixtures


# --- the page ---------------------------------------------------------------------------------------------------------


def test_page_stands_alone_and_runs_nothing(page: str) -> None:
    found = outline(page)
    assert "default-src 'none'" in page
    assert all(link.startswith("#") for link in found.links)
    assert {link[1:] for link in found.links} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"url\((?!#)", page)
    assert len(page) < 2_000_000


def test_first_words_are_the_notice_of_the_data(page: str) -> None:
    assert outline(page).texts[:3] == [
        "RLHF and RLAIF compared",
        NOTICE,
        "RLHF and RLAIF compared",
    ]  # title, notice, h1


def test_real_runs_on_the_sandbox_say_so_first(tmp_path: Path) -> None:
    folders = make_runs(tmp_path, arms={"rlaif": "ai"}, num_prompts=4, num_comparisons=4)
    settings = asdict(config.compose(["experiment=rlaif"]))
    (folders[0] / "config.yaml").write_text(yaml.safe_dump(settings))
    assert quick(folders).notice.startswith("Made on the embedded sandbox")


@pytest.mark.slow
def test_what_was_interrupted_cost_at_least_this(tmp_path: Path) -> None:
    folders = make_runs(tmp_path, num_prompts=8, num_comparisons=8)
    run = read_json(folders[0] / "run.json")
    run["stages"]["label"]["resumed"] = True
    run["stages"]["label"]["facts"]["cost"] = 1.254  # a server's bill
    write_json(folders[0] / "run.json", run)
    report = quick(folders)
    assert [(c.stage, c.arms, c.usd) for c in report.costs if c.at_least] == [("label", ("RLHF",), 1.254)]
    page = render(report, {**dict.fromkeys(pictures(report), "")})
    assert page.count("<b>at least ") == 2  # the stage, and the total of its column
    assert page.count(" USD") == 1 and ", 1.25 USD" in page


def test_every_constitution_and_template_that_was_used_is_told(tmp_path: Path) -> None:
    folders = make_runs(tmp_path, num_prompts=8, num_comparisons=8)
    other = yaml.safe_load((folders[0] / "constitution.yaml").read_text())
    (folders[1] / "constitutions").mkdir()
    (folders[1] / "constitutions" / "win_rate.labeler.constitution.yaml").write_text(
        yaml.safe_dump({**other, "name": "other"})
    )
    (folders[1] / "prompts" / "judge.jinja").write_text("which is worse?")
    (folders[1] / "prompts" / "critique.jinja").write_text("what is bad?")
    own, judges = quick(folders).constitutions
    assert judges.arms == ("RLAIF (win_rate.labeler.constitution)",)
    assert judges.constitution is not None and judges.constitution.name == "other"
    assert own.arms == ("RLHF", "RLAIF")
    assert list(own.templates) == ["judge.jinja", "critique.jinja", "judge.jinja (RLAIF, 0)"]


def test_texts_of_models_and_people_are_escaped(page: str) -> None:
    assert "<script" not in page and "<b>{{" not in page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; {{ 7 * 7 }}" in page
    assert "\u202e" not in page and "\x07" not in page
    assert "\u202e" in HOSTILE  # so that the line above means something


def test_every_part_is_there_in_order(page: str) -> None:
    parts = re.findall(r'<section id="(\w+)">', page)
    assert parts == ["responses", "differences", "wins", "labels", "reward", "rl", "principles", "samples",
                     "constitution", "revise", "cost", "limits", "provenance"]  # fmt: skip
    assert [int(n) for n in re.findall(r"<b>Figure (\d)\.</b>", page)] == list(range(1, 9))
    assert 'class="absent"' not in page


@pytest.mark.slow
def test_same_runs_in_any_order_same_bytes(runs: list[Path], tmp_path: Path, page: str) -> None:
    again = write(gather(runs[::-1]), tmp_path)
    assert again.read_text(encoding="utf-8") == page
    assert (tmp_path / "report.json").read_bytes() == (runs[0].parents[1] / "report" / "report.json").read_bytes()


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page was opened in no browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_has_nothing_to_complain_about(page: str, runs: list[Path], scheme: Any) -> None:
    messages: list[str] = []
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = window.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("request", lambda request: messages.append(request.url))
        tab.goto((runs[0].parents[1] / "report" / "report.html").as_uri())
        messages.remove((runs[0].parents[1] / "report" / "report.html").as_uri())
        assert messages == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1200
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(252, 252, 250)", "dark": "rgb(21, 23, 27)"}[scheme]
        tab.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
        assert violations(tab) == []
        tab.set_viewport_size({"width": 390, "height": 844})  # a phone
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert violations(tab) == [], "tables that scroll can be reached by keys"
        window.close()
