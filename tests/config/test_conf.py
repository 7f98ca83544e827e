"""Every yaml in conf/ is composed and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gfn_runner.config.compose import CONF
from gfn_runner.config.run_config import RunConfig
from gfn_runner.config.validation import check
from gfn_runner.lm import model_folders
from gfn_runner.objectives.losses import SubTB
from gfn_runner.runtime.targets import _signature_fields, target_of
from tests.runs import composed

# What the program gives to an object, not its config.
RUNTIME_ARGUMENTS = {"optimizer", "total_steps", "n_rounds"}


@pytest.fixture(autouse=True)
def smollm2_is_there(monkeypatch):
    """As if it had been made; another model stands for it."""
    monkeypatch.setattr(model_folders, "SMOLLM2_FOLDER", model_folders.EMBEDDED_FOLDER)


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


# Of these groups any choice goes with any other's: one config has a choice of each.
GROUPS = [
    "lm",
    "sampling",
    "evaluation",
    "objective",
    "scheduler",
    "trainer",
    "logger",
    "optimizer",
]
GROUPS += [f"callbacks/{path.name}" for path in CONF.glob("callbacks/*") if path.is_dir()]
GROUPS += ["hydra/launcher", "callbacks"]
ROUNDS = range(max(len(choices(group)) for group in GROUPS))
OTHERS = ("em", "task", "baseline", "recipe", "sweep", "hydra/sweeper", ".")
# tests/integration/test_paper_experiments.py composes those of the paper, test_sweeps_checked.py every sweep.
EXPERIMENTS = [
    f"{group}/{name}" for group in ("smollm2", "tiny") for name in choices(f"experiment/{group}")
]


def test_no_yaml_is_missed():
    folders = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")}
    assert folders == {*GROUPS, *OTHERS} | {f"experiment/{n}" for n in ("paper", "smollm2", "tiny")}
    assert set(choices("recipe")) <= {"none", *choices("task")}, "a task composes its recipe"


@pytest.mark.parametrize("number", ROUNDS)
def test_choices_compose_and_check(number):
    lines = [f"{g}={choices(g)[number % len(choices(g))]}" for g in GROUPS]
    assert_objects_list_every_argument(composed("task=random_number", "recipe=none", *lines))


@pytest.mark.parametrize("name", choices("task"))
def test_tasks_compose_and_check_with_their_recipes(name):
    assert_objects_list_every_argument(composed(f"task={name}"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_compose_and_check(name):
    composed(f"experiment={name}")


def test_yamls_list_every_key():
    """Files are documentation: nothing is left to a default that one cannot see."""
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        listed = OmegaConf.to_container(compose("config"))
    checked = composed().values
    # Without a choice of these there is nothing of them to see.
    unchosen = {".experiment", ".baseline", ".recipe", ".sweep"}
    assert keys(listed) | unchosen == keys(checked) | unchosen


def assert_objects_list_every_argument(config: RunConfig) -> None:
    """Those of this program: every argument that its constructor takes from the config."""
    for key, node in nodes_with_target(config.values):
        if node["_target_"].startswith("gfn_runner."):
            given = {name for name in node if not name.startswith("_")}
            assert given == arguments_of(target_of(key, node)) - RUNTIME_ARGUMENTS, key


def arguments_of(target: Any) -> set[str]:
    if dataclasses.is_dataclass(target):
        return {field.name for field in dataclasses.fields(target)}
    return set(_signature_fields(target, ()) or ())


@pytest.mark.parametrize("name", choices("baseline"))
def test_baselines_list_every_key(name):
    task = {"exact": "random_number", "prompting": "arithmetic"}.get(name, "translation")
    baseline = composed(f"task={task}", f"baseline={name}").baseline
    listed = yaml.safe_load((CONF / "baseline" / f"{name}.yaml").read_text())
    assert listed.keys() - {"defaults"} == arguments_of(type(baseline)) | {"_target_"}
    # What a yaml shows is what the class has by itself.
    own, shown = vars(type(baseline)()), vars(baseline)
    plain = {key: value for key, value in own.items() if not key.startswith("_")}
    assert plain == {key: shown[key] for key in plain}


def nodes_with_target(tree: object, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield at, tree
        for name, value in tree.items():
            yield from nodes_with_target(value, f"{at}.{name}")


def keys(tree: object, at: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {at}
    return {key for name, value in tree.items() for key in keys(value, f"{at}.{name}")}


def test_the_command_line_wins_over_an_experiment_and_an_experiment_over_a_group():
    config = composed("experiment=paper/arithmetic", "scheduler.warmup_steps=7")
    assert isinstance(config.objective, SubTB)
    assert config.scheduler.keywords["warmup_steps"] == 7
    assert config.optimizer.keywords["lr"] == 1e-4
    assert config.trainer.arguments["gradient_clip_val"] == 1.0


def test_a_task_may_choose_its_em_and_the_command_line_chooses_last():
    assert composed("task=arithmetic").em.rounds == 0
    assert composed("task=subjectivity").em.rounds == 1
    assert composed("task=subjectivity", "em=off").em.rounds == 0
    assert composed("task=subjectivity", "em.rounds=3").em.rounds == 3


def test_the_resolved_config_leads_to_itself(tmp_path):
    config = composed("task=arithmetic_tool", "objective=tb", "task.max_len=21")
    again = check(config.values)
    assert again.values == config.values
    assert type(again.task) is type(config.task) and again.task.max_len == 21
    assert again.task.data == config.task.data
