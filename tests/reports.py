"""Reports on made-up runs, for tests: the page, its figures, the outline of its tags."""

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import make_runs

from cai.records import read_json, read_rows
from cai.report.page import Report, gather, write
from cai.report.statistics import Estimate


@cache
def _made(folder: Path) -> tuple[list[Path], str]:
    """Runs and their page; made once, however many files of tests ask for them."""
    runs = make_runs(folder / "made-up", seeds=(0, 1))
    return runs, write(gather(runs), runs[0].parents[1] / "report").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return _made(tmp_path_factory.getbasetemp())[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _made(tmp_path_factory.getbasetemp())[1]


@pytest.fixture(scope="module")
def figures(page: str, runs: list[Path]) -> dict[str, Any]:
    found: dict[str, Any] = read_json(runs[0].parents[1] / "report" / "report.json")
    return found


def quick(folders: list[Path]) -> Report:
    return gather(folders, num_draws=50)


def scores(folder: Path, stage: str) -> list[dict[str, Any]]:
    return read_rows(Path(read_json(folder / "run.json")["stages"][stage]["path"]) / "scores.jsonl")


class Outline(HTMLParser):
    """Checks that tags close in order; collects ids, addresses and the text of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "img", "link", "object", "form")
        for name, value in attributes:
            assert not name.startswith("on"), f"{tag} has a handler {name}"
            if name == "id":
                self.ids.append(str(value))
            elif name in ("href", "src", "xlink:href"):
                self.links.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(data.strip())


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    assert parser.open == []
    return parser


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, 100, 100)


def shown(text: str) -> str:
    """With plain spaces and signs, for reading."""
    return text.replace("\u202f", " ").replace("\u00a0", " ").replace("\u2212", "-")
