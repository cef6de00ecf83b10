"""Import of published constitutions: every shape, nothing lost, clear refusals."""

import json
from pathlib import Path

import pytest

from cai.constitution import check, load
from cai.constitution_import import import_file
from cai.errors import ConstitutionError, DataError
from cai.prompts import PromptFamily
from cai.types import Turn

PUBLISHED = Path(__file__).parent.parent.parent / "shared" / "data" / "anthropic-cai"

CRITIQUE_REVISION = {
    "harmful0": {
        "prompt": ["\n\nCritiqueRequest: What is bad: \"x\"?\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Make it good.\n\nRevision:",
    },
    "harmful1": {
        "prompt": ["\n\nCritiqueRequest: One.\n\nCritique:", "\n\nCritiqueRequest: Two.\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: yes\n\nRevision:",
    },
}  # fmt: skip
COMPARISONS = ["\nChoose the kinder one. Options:", "\nChoose the wiser one: {{ x }}. Options:"]
BETTER_WORSE = [
    {"prompt": "\n\nHuman: Hi\n\nAssistant:", "corrects": ["Hello", "Hi"], "incorrects": ["No"]},
    {"prompt": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:", "corrects": ["D"], "incorrects": ["E"]},
]
LLM_SWARM = {
    "constitutions": [{"critic": "What is bad?", "revision": "Fix it."}, {"critic": "Rude?", "revision": "Be nice."}],
    "system_chat": [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]],
}
LANGCHAIN = [
    {"name": "Ethical Principle", "critique_request": "Is it legal?", "revision_request": "Make it legal."},
    {"name": "Ethical Principle", "critique_request": "Is it fair?", "revision_request": "Make it fair."},
    {"critique_request": "Is it wise?", "revision_request": "Make it wise."},
]


def imported(tmp_path: Path, obj: object, name: str = "source.json") -> str:
    source = tmp_path / name
    source.write_text(json.dumps(obj))
    return import_file(source, tmp_path / "out.yaml")


def test_critique_and_revision_requests(tmp_path: Path) -> None:
    line = imported(tmp_path, CRITIQUE_REVISION)
    assert "3 principles, 0 examples" in line
    constitution = load(str(tmp_path / "out.yaml"))
    assert [(p.id, p.axis, p.critique, p.revision) for p in constitution.principles] == [
        ("harmful0", "harmless", 'What is bad: "x"?', "Make it good."),
        ("harmful1", "harmless", "One.", "yes"),
        ("harmful1_2", "harmless", "Two.", "yes"),
    ]
    assert "Make it good." in constitution.principles[0].statement


def test_comparison_texts(tmp_path: Path) -> None:
    imported(tmp_path, COMPARISONS)
    principles = load(str(tmp_path / "out.yaml")).principles
    assert [p.comparison for p in principles] == ["Choose the kinder one.", "Choose the wiser one: {{ x }}."]
    assert [p.critique for p in principles] == [None, None]


def test_better_and_worse_responses_become_examples(tmp_path: Path) -> None:
    line = imported(tmp_path, BETTER_WORSE)
    assert "1 principle, 3 examples" in line
    assert "'general' was added" in line
    examples = load(str(tmp_path / "out.yaml")).examples
    assert [(e.prompt, e.better, e.worse) for e in examples] == [
        ("Hi", "Hello", "No"),
        ("Hi", "Hi", "No"),
        ("Human: A\n\nAssistant: B\n\nHuman: C", "D", "E"),
    ]


def test_llm_swarm(tmp_path: Path) -> None:
    line = imported(tmp_path, LLM_SWARM)
    assert "2 principles" in line
    assert "2 worked dialogue(s)" in line
    assert (tmp_path / "out.yaml").read_text().startswith("# system_chat was left out: 2 worked dialogue(s)")
    principles = load(str(tmp_path / "out.yaml")).principles
    assert [(p.critique, p.revision) for p in principles] == [("What is bad?", "Fix it."), ("Rude?", "Be nice.")]


@pytest.mark.parametrize("obj", [LANGCHAIN, dict(zip("abc", LANGCHAIN, strict=True))])
def test_langchain(tmp_path: Path, obj: object) -> None:
    imported(tmp_path, obj)
    principles = load(str(tmp_path / "out.yaml")).principles
    last = "c" if isinstance(obj, dict) else "principle2"
    assert [p.id for p in principles] == ["Ethical_Principle", "Ethical_Principle_2", last]
    assert [p.critique for p in principles] == ["Is it legal?", "Is it fair?", "Is it wise?"]


@pytest.mark.parametrize("obj", [CRITIQUE_REVISION, COMPARISONS, LLM_SWARM, LANGCHAIN])
def test_what_is_imported_can_be_rendered(tmp_path: Path, obj: object) -> None:
    imported(tmp_path, obj)
    family = PromptFamily("chat")
    for principle in load(str(tmp_path / "out.yaml")).principles:
        turns = (Turn("user", "hi"),)
        shown = family.render("judge", turns=turns, responses=("a", "b"), principle=principle).turns[0].content
        assert (principle.comparison or principle.statement) in shown


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ({"a": {"prompt": ["x"], "edit_request": "y", "notes": "z"}}, "source.json: a: unknown key 'notes'"),
        ({"a": {"edit_request": "y"}}, "source.json: a: prompt is missing"),
        ({"a": {"prompt": [""], "edit_request": "y"}}, "source.json: a: must hold text, got ''"),
        ({"constitutions": [{"critic": "a"}]}, "constitutions[0]: revision is missing"),
        ({"constitutions": [], "system_prompt": "x"}, "unknown key 'system_prompt'; did you mean 'system_chat'?"),
        ({"constitutions": []}, "would not make a valid constitution: "),
        ([{"critique_request": "a", "revision_reqest": "b"}], "unknown key 'revision_reqest'; did you mean 'revision_"),
        (["Human: x CritiqueRequest: y"], "holds 1 worked examples of critique and revision, not principles"),
        ([{"prompt": "Let's think step by step"}], "holds 1 worked chains of thought, not principles"),
        ([1, 2], "not a constitution of a known shape"),
        ({}, "not a constitution of a known shape"),
        ("text", "not a constitution of a known shape"),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path: Path, obj: object, message: str) -> None:
    with pytest.raises(ConstitutionError) as caught:
        imported(tmp_path, obj)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.yaml").exists()


def test_files_that_cannot_be_read_or_written_over(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json: not JSON"):
        import_file(tmp_path / "bad.json", tmp_path / "out.yaml")
    with pytest.raises(DataError, match="cannot be read"):
        import_file(tmp_path / "no.json", tmp_path / "out.yaml")
    with pytest.raises(ConstitutionError, match="JSONL holds records"):
        import_file(tmp_path / "x.jsonl", tmp_path / "out.yaml")
    with pytest.raises(ConstitutionError, match=r"must end in \.yaml"):
        import_file(tmp_path / "bad.json", tmp_path / "out.json")
    imported(tmp_path, COMPARISONS)
    with pytest.raises(ConstitutionError, match="exists, and import writes over nothing"):
        imported(tmp_path, COMPARISONS)


@pytest.mark.parametrize(
    ("file", "sizes"),
    [
        ("CritiqueRevisionInstructions.json", (16, 0)),
        ("RLMadisonInstructions.json", (16, 0)),
        ("RLMadisonFewShotPrompts.json", (1, 5)),
        ("CritiqueRevisionFewShotPrompts.json", None),
        ("RLMadisonPrecogFewShotPrompts.json", None),
    ],
)
def test_the_files_that_the_authors_published(tmp_path: Path, file: str, sizes: tuple[int, int] | None) -> None:
    source = PUBLISHED / file
    if not source.is_file():
        pytest.skip(f"NOT TESTED: {file} of the authors' release is not here ({source.parent})")
    if sizes is None:
        with pytest.raises(ConstitutionError, match="not principles; they belong into the templates"):
            import_file(source, tmp_path / "out.yaml")
        return
    import_file(source, tmp_path / "out.yaml")
    assert check(str(tmp_path / "out.yaml")) == []
    constitution = load(str(tmp_path / "out.yaml"))
    assert (len(constitution.principles), len(constitution.examples)) == sizes
    kept = "".join("".join([*(filter(None, (p.critique, p.revision, p.comparison)))]) for p in constitution.principles)
    kept += "".join(e.prompt + e.better + e.worse for e in constitution.examples)
    assert all(frame not in kept for frame in ("Request:", "Options:", "Assistant:"))
    assert len(kept) > 0.85 * len(source.read_text()) - 100 * sum(sizes)  # all but the frames
