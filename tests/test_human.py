"""Labels by people in a run: it waits for them with a code of its own, goes on from where it was, and keeps them."""

import http.client
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from label_site import Project, prefer, some
from worlds import WordCount, comparison

from cai import cli
from cai.errors import LabelerError, LabelsMissing
from cai.labelers.base import Labeler
from cai.labelers.human import HumanLabeler
from cai.labelers.journaled import label_journaled
from cai.labelers.mixed import MixedLabeler
from cai.labelers.simulated import SimulatedLabeler
from cai.records import read_json, read_records, write_records
from cai.serve.form import Gold
from cai.stages.label import Label
from cai.types import Comparison, Feedback, Judgment, Preference, Provenance

INSTRUCTIONS = str(Path(__file__).resolve().parent.parent / "cai" / "serve" / "instructions.txt")


def people(**settings: object) -> HumanLabeler:
    return HumanLabeler(**{"database": "labels.db", "instructions": INSTRUCTIONS, **settings})  # type: ignore[arg-type]


def label_everything(folder: Path, *names: str) -> None:
    """Each person answers what is there for them: the longer response is better."""
    with closing(Project(folder)) as project:
        for name in names:
            person = next((a for a in project.accounts.all() if a.name == name), None) or project.person(name)
            while screen := project.desk.next(person):
                lengths = [len(response.text) for response in screen.comparison.responses]
                project.clock.now += 5
                project.desk.answer(person, screen.task, prefer(screen.shown, lengths.index(max(lengths))), 5.0)


def test_it_waits_then_gives_every_judgment_in_a_stable_order(workdir: Path) -> None:
    comparisons = some(6)
    labeler = people(overlap=1.0)
    assert isinstance(labeler, Labeler)
    with pytest.raises(LabelsMissing, match=r"12 of 12 labels are missing\. `cai label serve` serves the page"):
        list(labeler.label(comparisons))
    label_everything(workdir, "ada")
    with pytest.raises(LabelsMissing, match="6 of 12 labels are missing"):
        list(labeler.label(comparisons))
    label_everything(workdir, "bob")
    found = list(labeler.label(comparisons))
    assert [j.id for j in found] == [f"c{i}/{number}" for i in range(6) for number in range(2)]
    assert {(j.id[-1], j.person) for j in found} == {("0", "ada"), ("1", "bob")}
    for judgment in found:
        assert judgment.labeler == "human" and judgment.feedback is not None and judgment.provenance is not None
        assert judgment.feedback.shown and len(judgment.pairs) == 1
        assert judgment.provenance.seconds == 5.0 and re.fullmatch(r"20.*\+00:00", judgment.provenance.labeled_at)
    assert labeler.facts() == {"num_people": 2, "people_seconds": pytest.approx(60.0)}
    label_everything(workdir, "cem")
    assert list(people(overlap=1.0).label(comparisons)) == found, "nobody was asked once there was enough"
    assert list(labeler.label(comparisons, done={"c0", "c5"})) == found[2:10]


def test_a_run_that_was_given_up_is_told_of_until_it_is_closed(workdir: Path) -> None:
    asked = "4 of 4 labels are missing.* then the same command goes on"
    with pytest.raises(LabelsMissing, match=f"{asked}$"):
        list(people().label(some(4)))
    with pytest.raises(LabelsMissing, match=rf"{asked}$"):
        list(people(margins=[1, 2, 3]).label(some(4)))  # other settings, the same comparisons
    with pytest.raises(
        LabelsMissing, match=rf"{asked}\. People are asked for 4 labels of other runs as well; the admin"
    ):
        list(people().label(some(4, prefix="d")))
    with closing(Project(workdir)) as project:
        for batch in (1, 2):
            project.queue.set_open(batch, False)
    with pytest.raises(LabelsMissing, match=f"{asked}$"):
        list(people().label(some(4, prefix="d")))


def test_a_skip_is_no_label_while_somebody_else_gave_one(workdir: Path) -> None:
    (one,) = comparisons = [comparison("c", "a b", "a")]
    labeler = people(overlap=1.0)
    with pytest.raises(LabelsMissing):
        list(labeler.label(comparisons))
    with closing(Project(workdir)) as project:
        for name in ("ada", "bob"):
            person = project.person(name)
            screen = project.desk.next(person)
            assert screen is not None and screen.comparison == one
            said = Feedback(shown=screen.shown, skipped="unclear") if name == "ada" else prefer(screen.shown)
            project.desk.answer(person, screen.task, said, 1.0)
    found = list(labeler.label(comparisons))
    assert [(j.person, j.abstained) for j in found] == [("bob", None), ("ada", "unclear")]


def test_what_others_said_is_kept_while_people_are_waited_for(workdir: Path) -> None:
    comparisons = some(10)
    others = SimulatedLabeler(scorer=WordCount(), seed=1, overlap=0.0)
    mixed = MixedLabeler(labelers={"others": others, "people": people()}, seed=0, shares={"others": 0.5, "people": 0.5})
    with pytest.raises(LabelsMissing):
        label_journaled(mixed, comparisons, workdir / "judgments.journal", title="label")
    kept = read_records(workdir / "judgments.journal", Judgment)
    assert 1 < len(kept) < 10 and {judgment.labeler for judgment in kept} == {"others"}
    label_everything(workdir, "ada")
    found = label_journaled(mixed, comparisons, workdir / "judgments.journal", title="label")
    assert [judgment.comparison_id for judgment in found] == [c.id for c in comparisons]
    assert [judgment for judgment in found if judgment.labeler == "others"] == sorted(kept, key=found.index)


def test_strength_becomes_a_margin_where_one_is_given(workdir: Path) -> None:
    comparisons = some(1)
    for margins, expected in (((), 0.0), ((0.5, 1.0, 2.0), 1.0)):
        labeler = people(strength=True, margins=margins)
        try:
            found = list(labeler.label(comparisons))
        except LabelsMissing:
            with closing(Project(workdir)) as project:
                person = project.person("ada")
                screen = project.desk.next(person)
                assert screen is not None
                project.desk.answer(person, screen.task, replace(prefer(screen.shown), strength=2), 1.0)
            found = list(labeler.label(comparisons))
        assert found[0].pairs[0].margin == expected


def test_the_stage_keeps_what_people_said(workdir: Path) -> None:
    comparisons = some(5)
    write_records(workdir / "sample" / "comparisons.jsonl", comparisons)
    (workdir / "out").mkdir()
    stage = Label(labeler=people(), scorer=WordCount())
    assert stage.texts().keys() >= {"instructions"}
    for _ in range(2):
        with pytest.raises(LabelsMissing):
            stage.run({"sample": workdir / "sample"}, workdir / "out")
    assert list((workdir / "out").iterdir()) == [], "nothing half-done"
    label_everything(workdir, "ada")
    facts = stage.run({"sample": workdir / "sample"}, workdir / "out")
    assert facts["num_people"] == 1 and facts["gold_agreement"] == 1.0
    preferences = read_records(workdir / "out" / "preferences.jsonl", Preference)
    assert [(p.id, p.labeler, p.pairs[0].p in (0.0, 1.0)) for p in preferences] == [
        (c.id, "human", True) for c in comparisons
    ]
    assert read_json(workdir / "out" / "label.json")["people"] == {"ada": 5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instructions": "nothing.txt"}, "instructions: nothing.txt: cannot be read"),
        ({"overlap": 2.0}, "overlap: must be a share from 0 to 1, got 2.0"),
        ({"flags": {"a b": "x"}}, "flags: must be name: question"),
        ({"flags": {False: "what YAML makes of off"}}, "flags: must be name: question"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str, workdir: Path) -> None:
    with pytest.raises(LabelerError, match=message):
        people(**settings)


def test_more_responses_than_people_can_rank_are_refused(workdir: Path) -> None:
    with pytest.raises(LabelerError, match=r"people can rank 9 responses at most, got 10"):
        list(people().label([comparison("c", *"abcdefghij")]))


# --- the commands -----------------------------------------------------------------------------------------------------


def test_invitations_status_and_export(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["label", "status"]) == 2
    assert "'labels.db': is not there" in capsys.readouterr().err
    assert cli.main(["label", "invite", "root", "--admin", "--url", "https://labels.example/"]) == 0
    assert re.fullmatch(r"https://labels\.example/invitation/[\w-]{43}\n", capsys.readouterr().out)
    assert cli.main(["label", "invite", "x", "--url", "labels.example"]) == 2
    assert cli.main(["label", "export", "out"]) == 2
    assert "nobody has answered anything" in capsys.readouterr().err
    with pytest.raises(LabelsMissing):
        list(people(overlap=1.0).label(some(4)))
    label_everything(workdir, "ada", "bob")
    assert cli.main(["label", "status"]) == 0
    shown = capsys.readouterr().out
    assert "8 of 8 labels on 4 comparisons" in shown and "ada: 4 answers, 0 skipped, 5 s each" in shown
    assert cli.main(["label", "export", "out"]) == 0
    assert "out: 4 comparisons and 8 judgments of batch 1" in capsys.readouterr().out
    judgments = read_records(Path("out/judgments.jsonl"), Judgment)
    assert judgments == list(people(overlap=1.0).label(some(4)))
    assert read_records(Path("out/comparisons.jsonl"), Comparison) == some(4)
    assert cli.main(["label", "export", "out", "--gold-of", "adda"]) == 2
    assert "unknown person with answers 'adda'; did you mean 'ada'?" in capsys.readouterr().err
    assert cli.main(["label", "export", "out", "--gold-of", "ada"]) == 0
    gold = read_records(Path("out/gold.jsonl"), Gold)
    assert [item.comparison for item in gold] == some(4)
    with pytest.raises(LabelsMissing, match="1 of 1 labels"):
        list(people(gold="out/gold.jsonl").label(some(1, prefix="d")))
    assert people(gold="out/gold.jsonl").texts().keys() == {"instructions", "gold"}


def test_an_export_has_what_a_run_has(workdir: Path) -> None:
    """No gold items, which no run labels, and the margins that its reward model is to keep."""
    write_records(
        Path("gold.jsonl"),
        [Gold(comparison=c, feedback=Feedback(shown=(), ranking=((0,), (1,)))) for c in some(3, prefix="gold")],
    )
    labeler = people(gold="gold.jsonl", gold_share=0.9, strength=True, margins=(0.5, 1.0, 2.0))
    with pytest.raises(LabelsMissing):
        list(labeler.label(some(4)))
    with closing(Project(workdir)) as project:
        person, seen = project.person("ada"), set()
        while screen := project.desk.next(person):
            seen.add(screen.comparison.id)
            project.desk.answer(person, screen.task, replace(prefer(screen.shown), strength=2), 5.0)
    assert any(name.startswith("gold") for name in seen), "or this test says nothing"
    assert cli.main(["label", "export", "out"]) == 0
    judgments = read_records(Path("out/judgments.jsonl"), Judgment)
    assert judgments == list(labeler.label(some(4))) and judgments[0].pairs[0].margin == 1.0
    assert read_records(Path("out/comparisons.jsonl"), Comparison) == some(4)


def first_status(port: int) -> int:
    """Of the sign-in page, once somebody listens."""
    while True:
        with closing(http.client.HTTPConnection("::1", port, timeout=60)) as connection:
            try:
                connection.request("GET", "/sign-in")
                return connection.getresponse().status
            except ConnectionRefusedError:
                time.sleep(0.05)


def test_a_server_on_the_other_loopback_address(workdir: Path) -> None:
    """Its address can be opened as printed, nobody is warned of other machines, and links to it can be made."""
    with closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cai", "label", "serve", "--host", "::1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = [process.stdout.readline() for _ in range(2)]
        try:
            assert f"http://[::1]:{port} " in printed[0] and "Nobody can sign in yet" in printed[1]
            assert first_status(port) == 200
        finally:
            process.terminate()
        assert process.stdout.read() == ""
    assert cli.main(["label", "invite", "ada", "--url", f"http://[::1]:{port}"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--url: needed with --host 0.0.0.0"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 8400: cannot be listened on"),
        (["--database", "postgresql+psycopg://me:secret@host/name"], "holds a password"),
    ],
)
def test_servers_that_cannot_be(
    arguments: list[str], message: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["label", "serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "secret" not in error


@pytest.mark.slow
def test_a_run_waits_for_people_and_the_same_command_goes_on(workdir: Path) -> None:
    """The sandbox, both arms: the one without people is done when the other begins to wait."""
    sizes = {"red_team": 8, "demonstrations": 8, "comparisons": 24, "rl": 8, "evaluation": 8}
    command = [sys.executable, "-m", "cai", "run", "experiment=smoke", "arms.rlhf=['labeler=human']"]
    command += [f"data.source.num_{name}={size}" for name, size in sizes.items()]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=dict(os.environ), capture_output=True, text=True)

    first = run()
    assert first.returncode == 3, first.stderr
    assert re.match(r"cai: arm rlhf: (\d+) of \1 labels are missing\. `cai label serve`", first.stderr.splitlines()[-1])
    (folder,) = Path("runs").iterdir()
    assert read_json(folder / "rlhf" / "run.json")["stages"].keys() == {"data", "revise", "sft", "sample"}
    assert "evaluate_policy" in read_json(folder / "rlaif" / "run.json")["stages"], "it did not have to wait"
    label_everything(workdir, "ada")
    assert run().returncode == 3, "a fifth of the comparisons wants a second person"
    label_everything(workdir, "bob")
    done = run()
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]) == folder.absolute() / "report.html"
    stages = read_json(folder / "rlhf" / "run.json")["stages"]
    assert stages["label"]["facts"]["num_people"] == 2
    judgments = read_records(Path(stages["label"]["path"]) / "judgments.jsonl", Judgment)
    assert len({j.comparison_id for j in judgments}) == 24 < len(judgments)
    assert all(isinstance(j.provenance, Provenance) for j in judgments)
    os.remove("labels.db")
    assert run().returncode == 0, "a finished stage needs the database no more"
