"""Every yaml in conf/ is composed and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir

from gfn_runner.config.compose import CONF
from gfn_runner.config.run_config import RunConfig
from gfn_runner.lm import model_folders
from gfn_runner.objectives.losses import JointBalance, SubTB
from gfn_runner.runtime.targets import argument_hints, target_of
from tests.runs import composed

# What the program gives to an object, not its config.
RUNTIME_ARGUMENTS = {"optimizer", "total_steps", "n_rounds"}
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))


@pytest.fixture(autouse=True)
def smollm2_is_there(monkeypatch):
    """As if it had been made; another model stands for it."""
    monkeypatch.setattr(model_folders, "SMOLLM2_FOLDER", model_folders.EMBEDDED_FOLDER)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_yaml_composes_and_checks(file: Path):
    if file.name == "config.yaml" and len(file.parts) == 1:
        assert isinstance(composed().objective, JointBalance)
        return
    group, choice = str(file.parent), file.stem
    if file.parts[0] == "experiment":
        line = f"experiment={'/'.join(file.with_suffix('').parts[1:])}"
    elif group == "callbacks":
        line = f"callbacks={choice}"
    else:
        line = f"{group}={choice}"
    # Of the tasks only this one lists its strings.
    listed = ["task=random_number"] if line == "baseline=exact" else []
    config = composed(*listed, line)
    if group in ("task", "objective", "scheduler", "logger"):
        assert_objects_list_every_argument(config)


def test_yamls_list_every_key():
    """Files are documentation: nothing is left to a default that one cannot see."""
    from hydra import compose
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        listed = OmegaConf.to_container(compose("config"))
    checked = composed().as_dict()
    # Without a choice of these there is nothing of them to see.
    unchosen = {".experiment", ".baseline", ".recipe", ".sweep"}
    assert keys(listed) | unchosen == keys(checked) | unchosen


def assert_objects_list_every_argument(config: RunConfig) -> None:
    """Those of this program: every argument that its constructor takes from the config."""
    for key, node in nodes_with_target(config.as_dict()):
        if node["_target_"].startswith("gfn_runner."):
            given = {name for name in node if not name.startswith("_")}
            assert given == arguments_of(target_of(key, node)) - RUNTIME_ARGUMENTS, key


def arguments_of(target: Any) -> set[str]:
    if dataclasses.is_dataclass(target):
        return {field.name for field in dataclasses.fields(target)}
    return set(argument_hints(target))


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "baseline").glob("*.yaml")))
def test_baselines_list_every_key(name):
    from hydra import compose
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        listed = OmegaConf.to_container(compose("config", overrides=[f"baseline={name}"]))
    task = "random_number" if name == "exact" else "arithmetic"
    baseline = composed(f"task={task}", f"baseline={name}").baseline
    assert listed["baseline"].keys() == arguments_of(type(baseline)) | {"_target_"}
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
    from gfn_runner.config.validation import check

    config = composed("task=arithmetic_tool", "objective=tb", "task.max_len=21")
    again = check(config.as_dict())
    assert again.as_dict() == config.as_dict()
    assert type(again.task) is type(config.task) and again.task.max_len == 21
    assert again.task.data == config.task.data
