"""Every yaml in conf/ is composed and checked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import initialize_config_dir

from gfn_runner.cli.compose import CONF, check_lines
from gfn_runner.lm import settings as lm_settings
from gfn_runner.objectives.losses import JointBalance, SubTB

N_YAMLS = 99
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))


@pytest.fixture(autouse=True)
def smollm2_is_there(monkeypatch):
    """As if it had been made; another model stands for it."""
    monkeypatch.setitem(lm_settings._NAMED, lm_settings.SMOLLM2, lm_settings.EMBEDDED_FOLDER)


def compose_and_check(*lines: str):
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        return check_lines(list(lines))


def test_no_yaml_is_missed():
    assert len(FILES) == N_YAMLS, "a yaml was added or removed: say so here"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_yaml_composes_and_checks(file: Path):
    if file.name == "config.yaml" and len(file.parts) == 1:
        assert isinstance(compose_and_check().objective, JointBalance)
        return
    group, choice = str(file.parent), file.stem
    if file.parts[0] == "experiment":
        line = f"experiment={'/'.join(file.with_suffix('').parts[1:])}"
    elif group == "callbacks":
        line = f"callbacks={choice}"
    else:
        line = f"{group}={choice}"
    # Of the tasks only this one lists its strings.
    compose_and_check(*(["task=random_number"] if line == "baseline=exact" else []), line)


def test_yamls_list_every_key():
    """Files are documentation: nothing is left to a default that one cannot see."""
    from hydra import compose
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        composed = OmegaConf.to_container(compose("config"))
        checked = check_lines([]).as_dict()
    # Without a choice of these there is nothing of them to see.
    unchosen = {".experiment", ".baseline"}
    assert keys(composed) | unchosen == keys(checked) | unchosen


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "baseline").glob("*.yaml")))
def test_baselines_list_every_key(name):
    import dataclasses

    from hydra import compose
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        composed = OmegaConf.to_container(compose("config", overrides=[f"baseline={name}"]))
    task = "random_number" if name == "exact" else "arithmetic"
    baseline = compose_and_check(f"task={task}", f"baseline={name}").baseline
    known = {field.name for field in dataclasses.fields(baseline)}
    assert composed["baseline"].keys() == known | {"_target_"}
    # What a yaml shows is what the class has by itself.
    assert type(baseline)() == baseline


def keys(tree: object, at: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {at}
    return {key for name, value in tree.items() for key in keys(value, f"{at}.{name}")}


def test_the_command_line_wins_over_an_experiment_and_an_experiment_over_a_group():
    config = compose_and_check("experiment=paper/arithmetic", "optim.warmup=7")
    assert isinstance(config.objective, SubTB)
    assert config.optim.warmup == 7
    assert config.optim.lr == 1e-4
    assert config.optim.grad_clip == 1.0


def test_a_task_may_choose_its_em_and_the_command_line_chooses_last():
    assert compose_and_check("task=arithmetic").em.rounds == 0
    assert compose_and_check("task=subjectivity").em.rounds == 1
    assert compose_and_check("task=subjectivity", "em=off").em.rounds == 0
    assert compose_and_check("task=subjectivity", "em.rounds=3").em.rounds == 3


def test_the_resolved_config_leads_to_itself(tmp_path):
    from gfn_runner.config.validation import check

    config = compose_and_check("task=arithmetic_tool", "objective=tb", "task.max_len=21")
    again = check(config.as_dict())
    assert again.as_dict() == config.as_dict()
    assert again.task == config.task
