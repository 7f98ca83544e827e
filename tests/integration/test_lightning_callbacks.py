"""Lightning's own callbacks, added by yaml alone: they find the run's metrics by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gfn_runner.errors import UserError
from gfn_runner.report.runs import read_run
from tests.runs import TINY, lines_of, metrics_of, run

LINES = (
    "task=random_number",
    "trainer.max_steps=4",
    "callbacks.evaluation.every_n_steps=1",
    "callbacks/report=off",
)


def logged(folder: Path) -> list[dict[str, float]]:
    """Lines of training and of evaluations on the way, without times."""
    return [
        {name: value for name, value in line.items() if not name.startswith(("time", "seconds/"))}
        | {"train/seconds": 0, "train/cpu_seconds": 0, "train/tokens_per_second": 0}
        for line in lines_of(folder / "metrics.jsonl")
        if not any(name.startswith("final/") for name in line)
    ]


def test_early_stopping_and_the_best_checkpoint_by_a_metric_of_evaluations(tmp_path):
    plain = run(tmp_path / "plain", *LINES, base=TINY)
    stop, best = "+callbacks.early_stopping", "+callbacks.best"
    lines = [
        *LINES,
        f"{stop}._target_=lightning.pytorch.callbacks.EarlyStopping",
        f"{stop}.monitor=eval/n_samples/numbers",  # the same in every evaluation
        f"{stop}.patience=1",
        f"{best}._target_=lightning.pytorch.callbacks.ModelCheckpoint",
        f"{best}.monitor=train/reward_temperature",
        f"{best}.dirpath={tmp_path / 'best'}",
    ]
    stopped = run(tmp_path / "stopped", *lines, base=TINY)
    before = metrics_of(stopped)
    assert (before["run/steps"], before["run/stopped_early_of"]) == (2, 4)
    records = logged(stopped)
    assert records == logged(plain)[: len(records)], "what is logged stays as it was"
    assert read_run(stopped).is_finished
    run(stopped, *lines, "resume=auto", base=TINY)
    assert metrics_of(stopped) == before, "nothing is left to do"
    with pytest.raises(UserError, match="stopped early, after step 2 of 4") as refused:
        run(stopped, *lines, f"resume={stopped}", base=TINY)
    assert refused.value.problems[0].allowed == "trainer.max_steps above 4"
    (checkpoint,) = (tmp_path / "best").glob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert all("lora" in name for name in state["state_dict"])


def test_a_monitor_that_names_no_scalar_is_a_user_error(tmp_path):
    with pytest.raises(UserError) as error:
        run(
            tmp_path / "run",
            *LINES,
            "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping",
            "+callbacks.stop.monitor=eval/exact_vt/numbers",
            base=TINY,
        )
    (problem,) = error.value.problems
    assert problem.where == "monitor of EarlyStopping" and "eval/exact_tv/numbers" in str(problem)
