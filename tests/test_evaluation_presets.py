"""The presets of evaluation sets beside the default data, and the commands that docs/evaluation_sets.md shows."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import random_model
from set_files import CROWS, WINOGENDER, XSTEST, file, lines

from cai import cli, config
from cai.paths import packaged
from cai.records import read_json, read_rows

DOCS = Path(__file__).parent.parent / "docs" / "evaluation_sets.md"
PRESETS = sorted(path.stem for path in (packaged("conf") / "evaluation_sets").glob("*.yaml"))
QUESTIONS = lines(
    {"prompt": "Is the sky blue?", "corrects": [" yes"], "incorrects": [" no"]},
    {"prompt": "Is the sea dry?", "choices": [" yes", " no"], "answer": 1},
)
DIALOGUES = lines(
    *(
        {"chosen": f"\n\nHuman: {ask}?\n\nAssistant: Yes.", "rejected": f"\n\nHuman: {ask}?\n\nAssistant: No."}
        for ask in ("Is the sky blue", "May I kill a process", "Can women drive")
    )
)
# By preset: what its file is called on the page, what is in it, and what else it needs.
FILES = {
    "hhh": ("hhh_eval.jsonl", QUESTIONS),
    "over_refusal": ("xstest_v2_prompts.csv", XSTEST),
    "crows_pairs": ("crows_pairs_anonymized.csv", CROWS),
    "winogender": ("all_sentences.tsv", WINOGENDER),
    "perplexity": ("held_out.jsonl", lines({"text": "The sky is blue."}, {"text": "The sea is not dry."})),
}
NEEDED = {
    **{name: [f"evaluation_sets.sets.{name}.path={path}"] for name, (path, _) in FILES.items()},
    "over_refusal": [
        "evaluation_sets.sets.over_refusal.path=xstest_v2_prompts.csv",
        "evaluation_sets.sets.over_refusal.label=type",
        "evaluation_sets.sets.over_refusal.unsafe=contrast_",
    ],
    "perplexity": ["evaluation_sets.sets.perplexity.documents.path=held_out.jsonl"],
    "sandbox": ["evaluation_sets.sets.pretraining.num_tokens=300"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokens are bytes, and pieces of the dialogues."""
    folder = tmp_path_factory.mktemp("random")
    text = Path(file(folder, DIALOGUES, "dialogues.jsonl"))
    random_model.make_model(text, folder / "model", hidden=32, layers=1, vocab=300, context=512)
    return folder / "model"


@pytest.fixture
def files(workdir: Path, model: Path) -> Path:
    """Every file that a preset, or the page, names."""
    for name, text in FILES.values():
        file(workdir, text, name)
    file(workdir, DIALOGUES, "harmless-base.jsonl.gz")
    (workdir / "MODEL").symlink_to(model)
    return workdir


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_measures_beside_the_default_data(preset: str, files: Path) -> None:
    """What a set asks is none of the data's business: its prompts are foreign to the sandbox's scorer."""
    asked = [] if preset == "sandbox" else ["model=hf", "model.path=MODEL", "model.max_new_tokens=8"]
    settings = config.compose(["data=sandbox", f"evaluation_sets={preset}", *asked, *NEEDED[preset]])
    stage = config.build(settings, ["evaluation_sets"])["evaluation_sets"]
    (files / "out").mkdir()
    stage.run({}, files / "out")
    for name, told in read_json(files / "out" / "sets.json")["sets"].items():
        assert told["means"] and all(map(math.isfinite, told["means"].values()))
        assert len(read_rows(files / "out" / f"{name}.jsonl")) == told["num_items"] > 0
    if preset == "over_refusal":
        assert {"refused_safe", "refused_unsafe"} <= told["means"].keys() and "unscored" not in told["means"]


def commands() -> list[str]:
    """The page's `cai run` commands, each in one line."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    shown = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in shown if line.startswith("cai run ")]


def test_the_page_shows_commands() -> None:
    assert len(commands()) >= 3 and {word for c in commands() for word in PRESETS if word in c} == set(PRESETS)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_the_commands_of_the_page_run(command: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As printed, but that the base model alone is asked, and little of the sandbox's corpus."""
    own = ["name=page", "steps=[sets_base]"]
    if "evaluation_sets=sandbox" in command:
        own += NEEDED["sandbox"]
    assert cli.main([*shlex.split(command, comments=True)[1:], *own]) == 0, capsys.readouterr().err
    runs = sorted((files / "runs").rglob("run.json"))
    assert runs
    for run in runs:
        told = json.loads(run.read_text())["stages"]
        assert list(told) == ["sets_base"] and (run.parent / told["sets_base"]["path"] / "sets.json").is_file()
