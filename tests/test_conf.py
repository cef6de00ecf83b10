"""Every YAML of conf/ composes, passes the checks, is commented; the arms of the demo differ in `labeler` alone."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cai import cli, config
from cai.errors import ConfigError
from cai.nodes import signature
from cai.paths import packaged
from cai.pipeline import chosen, plan

CONF = packaged("conf")
PRESETS = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))
GROUPS = ("model", "engine", "data", "labeler", "rl", "evaluation_sets")
# What a preset leaves for the user to say, as a test says it.
HH = ["data=hh", "data.source.path=hh.jsonl"]
NEEDED = {
    "model=hf": ["model.path=model"],
    "data=hh": ["data.source.path=hh.jsonl"],
    "data=recorded": ["data.source.path=records"],
    "labeler=recorded": ["labeler.path=records"],
    "labeler=custom": ["labeler._target_=own_labeler.Own"],
    "engine=endpoint": ["steps=[data,revise]"],
    "labeler=endpoint": ["labeler.model=judge"],
    "experiment=recorded": HH,
    "evaluation_sets=perplexity": ["evaluation_sets.sets.perplexity.documents.path=hh.jsonl"],
    **{
        f"evaluation_sets={name}": [f"evaluation_sets.sets.{name}.path=hh.jsonl"]
        for name in ("hhh", "over_refusal", "crows_pairs", "winogender")
    },
}


@pytest.fixture(autouse=True)
def files(workdir: Path) -> None:
    """What NEEDED names: a file of dialogues, a folder of records, one that could be a model's, and a labeler."""
    (workdir / "own_labeler.py").write_text("class Own:\n    pass\n")
    (workdir / "hh.jsonl").write_text("")
    (workdir / "records").mkdir()
    (workdir / "model").mkdir()
    (workdir / "model" / "config.json").write_text("{}")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def choices() -> list[str]:
    return [f"{group}={option}" for group in (*GROUPS, "experiment") for option in options(group)]


@cache
def composed(*overrides: str) -> config.Settings:
    """Composed once, however many tests ask."""
    return config.compose(list(overrides))


def build(settings: config.Settings) -> dict[str, Any]:
    keys = [step.key for step in chosen(settings.steps, settings.nodes())]
    return config.build(settings, keys)


def some_slow(cases: list[Any], quick: Callable[[int, Any], bool]) -> list[Any]:
    """Composing takes a quarter of a second: those that are not `quick` wait for the slow tests."""
    return [case if quick(i, case) else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(cases)]


PRESET_CHOICES = some_slow(
    [("seed=0",), *((choice,) for choice in choices())], lambda _, case: "=ablation_" not in case[0]
)


@pytest.mark.parametrize(("choice",), PRESET_CHOICES)
def test_every_preset_composes_and_builds(choice: str) -> None:
    settings = composed(choice, *NEEDED.get(choice, []))
    stages = build(settings)
    assert set(stages) == {step.key for step in chosen(settings.steps, settings.nodes())}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_arm_of_every_experiment_composes_and_plans(experiment: str) -> None:
    overrides = [f"experiment={experiment}", "model.path=model", *NEEDED.get(f"experiment={experiment}", [])]
    settings = config.compose(overrides)
    for arm in settings.arms.values() or [[]]:
        armed = config.compose([*overrides, *arm])
        names = [name for name in armed.steps if not name.startswith("sets_")]  # there are none by default
        assert [p.step.name for p in plan(armed.steps, armed.nodes(), build(armed))] == names


def test_every_preset_is_known_to_this_file() -> None:
    """A new group must be tried too."""
    known = {"config.yaml", *(f"{choice.replace('=', '/')}.yaml" for choice in choices())}
    stages = {f"stage/{option}.yaml" for option in options("stage")}
    assert set(PRESETS) == known | stages
    used = {path.read_text(encoding="utf-8") for path in (CONF / "config.yaml", *CONF.glob("experiment/*.yaml"))}
    for option in options("stage"):
        assert any(re.search(rf"stage@\w+: {option}\b", text) for text in used), f"stage/{option}.yaml is used nowhere"


def test_the_arms_of_the_demo_differ_in_the_labeler_alone() -> None:
    """In the command, and in every resolved setting: nothing but who labels is another."""
    settings = config.compose(["experiment=demo"])
    assert settings.arms == {"rlhf": ["labeler=simulated"], "rlaif": ["labeler=ai"]}
    rlhf, rlaif = (config.compose(["experiment=demo", *arm]) for arm in settings.arms.values())
    changed = {key for key, value in vars(rlhf).items() if value != vars(rlaif)[key]}
    assert changed == {"labeler", "label"}
    assert {k for k, v in rlhf.label.items() if v != rlaif.label[k]} == {"labeler"}
    assert rlhf.label["labeler"] == rlhf.labeler and rlaif.label["labeler"] == rlaif.labeler


def test_evaluation_sets_are_put_to_every_model_once_there_are_some() -> None:
    """Several presets make one stage; without any, the steps of that stage are left out."""
    two = ["evaluation_sets=[hhh,sandbox]", *NEEDED["evaluation_sets=hhh"]]
    settings = config.compose(two)
    assert list(settings.evaluation_sets["sets"]) == ["hhh", "pretraining"]
    names = [step.name for step in chosen(settings.steps, settings.nodes())]
    assert names == settings.steps and names[0] == "sets_base" and {"sets_sl_cai", "sets_policy"} < set(names)
    without = config.compose([])
    assert not any(step.name.startswith("sets_") for step in chosen(without.steps, without.nodes()))
    with pytest.raises(ConfigError, match="steps: nothing to do, since no stage is configured for sets_base"):
        chosen(["sets_base"], without.nodes())


@pytest.mark.slow
@pytest.mark.parametrize("experiment", sorted({*options("experiment")} - {"sandbox_pretrain"}))  # that has no recipe
def test_evaluation_sets_are_put_to_the_models_of_every_experiment(experiment: str) -> None:
    given = [f"experiment={experiment}", *NEEDED.get(f"experiment={experiment}", []), "evaluation_sets=sandbox"]
    settings = config.compose(given)
    names = {step.name for step in chosen(settings.steps, settings.nodes())}
    models = {"sets_base": "data", "sets_sl_cai": "sft", "sets_policy": "rl"}
    assert {name for name in models if name in names} == {name for name, made in models.items() if made in names}


def test_the_judge_of_win_rates_does_not_follow_the_labeler() -> None:
    labelers = [f"labeler={name}" for name in options("labeler")]
    judges = [composed(labeler, *NEEDED.get(labeler, [])).win_rate for labeler in labelers]
    assert all(judge == judges[0] for judge in judges)


def test_the_constitution_reaches_every_part_that_reads_one() -> None:
    settings = config.compose(["constitution=minimal"])
    for node in (settings.revise, settings.labeler, settings.win_rate["labeler"]):
        assert node["constitution"]["path"] == "minimal"


def test_the_seed_reaches_every_node_that_takes_one() -> None:
    settings = config.compose(["seed=77"])

    def seeds(node: object) -> list[object]:
        if not isinstance(node, dict):
            return []
        own = [node["seed"]] if "seed" in node else []
        return own + [seed for value in node.values() for seed in seeds(value)]

    found = [seed for node in settings.nodes().values() for seed in seeds(node)]
    assert len(found) > 8 and set(found) == {77}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_key_has_a_comment(preset: str) -> None:
    """The line before a key, or the one before the first of its neighbours, says what it is for."""
    lines = (CONF / preset).read_text(encoding="utf-8").splitlines()
    plain = re.compile(r"^\s*(seed|engine|scorer|_target_|defaults|hydra|constitution|prompts|data|source|path|name):")
    bare = []
    commented = False
    for line in lines:
        if line.lstrip().startswith("#"):
            commented = True
        elif not line.strip():
            commented = False
        elif re.match(r"^\s*\w+:", line) and not commented and not plain.match(line) and "#" not in line:
            bare.append(line)
    assert not bare, bare


@pytest.mark.parametrize("preset", [p for p in PRESETS if p != "config.yaml" and not p.startswith("stage/")])
def test_the_head_of_every_preset_says_how_to_run_it(preset: str) -> None:
    group, option = preset.removesuffix(".yaml").split("/")
    head = [line for line in (CONF / preset).read_text(encoding="utf-8").splitlines()[:2] if "@package" not in line]
    assert head[0].startswith(f"# cai run {group}={option}")


def test_every_argument_of_a_target_is_in_its_yaml() -> None:
    """A setting that is only in the code would be found by nobody; what the code's default is, the YAML says too."""
    settings = config.compose(["experiment=sandbox_pretrain"])
    for key, node in settings.nodes().items():
        if not node.get("_partial_"):
            missing = set(signature(node["_target_"])) - set(node)
            assert not missing, f"{key}: {sorted(missing)}"


MISTAKES = [
    (
        "labeler=simulated labeler.column=golld",
        "labeler: column: unknown column of the scorer 'golld'; did you mean 'gold'? Allowed: garbled,",
    ),
    (
        "experiment=rlhf data=hh data.source.path=hh.jsonl",
        "labeler: column: unknown column of the scorer 'gold'. Allowed: boilerplate,",
    ),
    (
        "experiment=rlhf data=hh data.source.path=hh.jsonl labeler=recorded",
        "labeler.path: the labels in hh.jsonl are of responses that are recorded there too; to train on those in ",
    ),
    ("labeler.temperature=-1", "labeler: temperature: must be 0 or more, got -1"),
    ("labeler=noisy labeler.labeler.temperature=-1", "labeler.labeler: temperature: must be 0 or more, got -1"),
    ("win_rate.labeler.temperature=-1", "win_rate.labeler: temperature: must be 0 or more, got -1"),
    ("revise.temperature=-1", "revise: temperature: must be 0 or more, got -1"),
    ("sample.temperature=-0.5", "sample: temperature: must be 0 or more, got -0.5"),
    ("evaluate.temperature=nan", "evaluate: temperature: must be 0 or more, got nan"),
    ("revise.max_new_tokens=0", "revise: max_new_tokens: must be 1 or more, got 0"),
    ("sample.max_new_tokens=0", "sample: max_new_tokens: must be 1 or more, got 0"),
    ("evaluate.max_new_tokens=-3", "evaluate: max_new_tokens: must be 1 or more, got -3"),
    ("engine.dtype=flot32", "engine.dtype: must be one of float32, bfloat16, float16, got 'flot32'"),
    ("engine.device=cudaa", "engine: unknown device 'cudaa'; did you mean 'cuda'? Allowed: auto,"),
    ("engine.device=1", "engine.device: must be text, got 1"),
    ("engine.max_batch_tokens=0", "engine: max_batch_tokens: must be 1 or more, got 0"),
    ("engine=endpoint", "evaluate: engine: must have the weights at hand: servers do not tell log-probabilities"),
    ("labeler=endpoint", "labeler.model: must be text, got None"),
    ("endpoint.mode=logprobs", "endpoint.mode: must be one of auto, logprob, decision, sampled, parsed, got"),
    ("endpoint.base_urls=[localhost:8000]", "endpoint: base_urls: must be like http://localhost:8000/v1, got 'loc"),
    ("endpoint.base_urls=['http://me:pw@x/v1']", "endpoint: base_urls: must not hold a password; name a variable"),
    ("endpoint.api_key_env=NOT_SET", "endpoint: api_key_env: the environment has no variable 'NOT_SET'"),
    ("endpoint.concurrency=0", "endpoint: concurrency: must be 1 or more, got 0"),
    ("endpoint.prices={x:{input:1}}", "endpoint: prices.x: needs input and output, in USD per million tokens, got"),
    ("endpoint.prices={x:{input:1,output:1,cash:1}}", "endpoint: prices.x: unknown price 'cash'; did you mean 'ca"),
    ("rl.device=cudaa", "rl: unknown device 'cudaa'; did you mean 'cuda'? Allowed: auto,"),
    ("sft.device=gpu", "sft: unknown device 'gpu'; did you mean 'cpu'? Allowed: auto,"),
    ("reward.device=cuda:1", "reward: device: this trainer takes the first GPU it sees, got 'cuda:1'; set CUDA_V"),
    ("data.source.num_rl=-4", "data.source: num_rl: must be 1 or more, got -4"),
    ("data.source.num_evaluation=0", "data.source: num_evaluation: must be 1 or more, got 0"),
    ("data.source.num_demonstrations=-1", "data.source: num_demonstrations: must be 0 or more, got -1"),
    (
        "data=hh data.source.path=hh.jsonl data.source.num_red_team=0",
        "data.source: num_red_team: must be 1 or more, got 0",
    ),
    ("model=hf model.path=mamba", "mamba: a model of type 'mamba' cannot become a reward model"),
]


@pytest.mark.parametrize(("command", "message"), some_slow(MISTAKES, lambda i, _: i % 3 == 0))
def test_a_mistake_in_a_value_is_one_line_before_anything_runs(
    command: str, message: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "mamba").mkdir()
    (workdir / "mamba" / "config.json").write_text('{"model_type": "mamba"}')
    assert cli.main(["run", *command.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"cai: {message}")
    assert captured.out == "" and not (workdir / "store").exists()


def test_a_mistake_in_a_value_is_found_without_torch(workdir: Path) -> None:
    program = "import sys, cai.cli; print(cai.cli.main(), 'torch' in sys.modules)"
    command = [sys.executable, "-c", program, "run", "win_rate.labeler.temperature=-1"]
    done = subprocess.run(command, env=dict(os.environ), check=True, capture_output=True, text=True)
    assert done.stdout == "2 False\n"


@pytest.mark.slow
def test_an_arm_can_be_changed_on_the_command_line() -> None:
    """Each override of an arm in quotes of its own, as the README shows."""
    arm = "arms.rlhf=['labeler=simulated','labeler.agreement=0.6']"
    settings = config.compose(["experiment=demo", arm])
    assert settings.arms["rlhf"] == ["labeler=simulated", "labeler.agreement=0.6"]
    assert config.compose(["experiment=demo", arm, *settings.arms["rlhf"]]).labeler["agreement"] == 0.6
