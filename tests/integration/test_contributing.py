"""CONTRIBUTING's examples, taken from its text: a task, reward, metric, callback, logger and objective of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gfn_runner.report.methods import methods_of
from gfn_runner.report.runs import read_run
from gfn_runner.report.summary import commands
from tests.runs import ROOT, TINY, exit_code, lines_of, metrics_of


@pytest.fixture(scope="module")
def extension(tmp_path_factory) -> Path:
    """A folder outside the repository with CONTRIBUTING's code in ``extension.py`` and its yamls in ``conf``."""
    folder = tmp_path_factory.mktemp("extension")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    first, *others = blocks
    (folder / "extension.py").write_text("\n\n".join([first, *others]))
    yamls = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    places = [
        "task/greeting.yaml",
        "callbacks/longest/default.yaml",
        "objective/first_and_last.yaml",
    ]
    for place, content in zip(places, yamls, strict=True):
        file = folder / "conf" / place
        file.parent.mkdir(parents=True)
        file.write_text(
            re.sub(r"_target_: gfn_runner\.[\w.]+\.(\w+)", r"_target_: extension.\1", content)
        )
    return folder


def run(folder: Path, name: str, *overrides: str) -> dict[str, float]:
    """The program's command line with the folder on its path."""
    lines = [
        "--config-dir", folder / "conf", "task=greeting", *TINY,
        "evaluation.baseline_shots=[0]", "evaluation.singles=4", "callbacks/report=off",
        f"hydra.run.dir={folder / name}", *overrides,
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        assert exit_code(*lines) == 0
    return metrics_of(folder / name)


def test_the_task_of_contributing_runs(extension):
    metrics = run(extension, "task")
    assert metrics["final/log_reward/all"] < 0
    assert metrics["base_0_shot/log_reward/all"] < 0


def test_reward_metric_callback_logger_and_objective_are_added_without_touching_the_package(
    extension,
):
    metrics = run(
        extension, "all", "task._target_=extension.MeasuredGreeting", "objective=first_and_last",
        "+callbacks/longest=default", "+logger.csv._target_=lightning.pytorch.loggers.CSVLogger",
        "callbacks.replay_buffer=null", "+trainer.profiler=simple",
    )  # fmt: skip
    assert 0 <= metrics["final/short_share/all"] <= 1
    records = lines_of(extension / "all/metrics.jsonl")
    assert all(r["train/longest"] <= 8 for r in records if "train/longest" in r)
    assert sum("train/longest" in r for r in records) == 3
    assert not any("train/buffer_size" in r for r in records)
    assert list((extension / "all").rglob("metrics.csv"))
    (hparams,) = (extension / "all").rglob("hparams.yaml")
    assert "n_conditions" in hparams.read_text()
    (method,) = methods_of([read_run(extension / "all")])[:1]
    (command,) = commands(method)
    assert f"-m gfn_runner --config-dir={extension / 'conf'} task=greeting" in command
