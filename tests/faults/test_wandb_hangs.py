"""A W&B server that takes connections and does not answer: from the first one on, or once a run has begun."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import pytest

from gfn_runner.loggers import wandb_run
from tests.budget import with_budget
from tests.fake_wandb import fake_wandb
from tests.faults.folders import assert_explained, begin
from tests.runs import metrics_of
from tests.same_runs import logged, untimed
from tests.wandb_files import history

# That a run waits for a server here, in place of 20 at its beginning and 120 at its end.
SECONDS = 3.0


@dataclass(frozen=True)
class Server:
    """The server of a process's account."""

    url: str

    def __call__(self) -> None:
        os.environ |= {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "x" * 40}
        os.environ.pop("WANDB_MODE", None)
        wandb_run._INIT_TIMEOUT_S = SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("answers", with_budget([False, True], [False]), ids=str)
def test_a_server_that_hangs_costs_seconds_and_no_metric(answers, straight, tmp_path):
    expected, folder = straight("random_number").folder, tmp_path / "run"
    lines = ["logger=wandb", f"logger.wandb.finish_timeout={SECONDS}"]
    with fake_wandb() as server:
        if not answers:
            server.hang()
        run = begin("random_number", folder, *lines, prepare=Server(server.url))
        while not (folder / "metrics.jsonl").exists() and run.process.is_alive():
            time.sleep(0.05)
        server.hang()
        assert run.ended(timeout=300) == 0, run.text()
    assert_explained(run, "a server that hangs")
    print(f"answers first: {answers}, {time.monotonic() - run.begun:.0f} s\n{run.text()}")
    assert logged(folder) == logged(expected)
    assert untimed(metrics_of(folder)) == untimed(metrics_of(expected))
    said = "did not get all of this run" if answers else "W&B does not start online"
    assert run.text().count(said) == 1 and "wandb sync" in run.text()
    steps = [record for part in folder.glob("wandb/*run-*/*.wandb") for record in history(part)]
    assert sum("train/loss" in record for record in steps) == 4, "they can be sent later"
