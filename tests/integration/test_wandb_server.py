"""A W&B server that goes away, or that was never there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from gfn_runner.loggers.wandb_run import STEP
from tests.fake_wandb import fake_wandb
from tests.runs import ROOT
from tests.wandb_files import history, parts_of

RUN = """
import json, logging, sys
from pathlib import Path
logging.basicConfig(format="%(message)s")
from gfn_runner.callbacks.wandb_media import add_samples
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.conditions import Condition
from gfn_runner.loggers.wandb_run import start_wandb

folder = Path(sys.argv[1])
own = start_wandb(
    folder, mode="online", finish_timeout=3, group=None, tags=(), project="p", config={},
)
own.log("scalars", {"train/loss": 1.0}, 1)
print(json.dumps({"offline": own.offline}), flush=True)
sys.stdin.readline()
drawn = [ConditionSamples(Condition("x", "x", ()), (), ["a"], [-1.0], [-2.0])]
for step in range(2, 200):
    own.log("scalars", {"train/loss": 0.5}, step)
for step in range(200, 220):
    add_samples(own, 9, "eval", drawn, step, 1.0)
own.finish()
"""


@pytest.mark.slow
def test_a_server_that_vanishes_is_waited_for_and_spoken_of_once(tmp_path):
    """One table is waited for; the others are not tried."""
    with fake_wandb() as server:
        variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "x" * 40}
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | variables, cwd=ROOT,
        )  # fmt: skip
        assert json.loads(process.stdout.readline()) == {"offline": False}
        assert "UpsertBucket" in server.asked
        server.vanish()
        out, said = process.communicate("gone\n", timeout=300)
    assert process.returncode == 0, said
    assert said.count("W&B gets no more tables of samples") == 1
    assert said.count("W&B did not get all of this run") == 1 and "more scalars" not in said
    # Nothing that was a scalar is lost: it is in the file that the command sends.
    assert "wandb sync --include-online" in out
    (part,) = tmp_path.glob("wandb/run-*/*.wandb")
    assert [i[STEP] for i in history(part)] == [*range(1, 200)]


@pytest.mark.slow
def test_a_server_that_was_never_there_makes_the_run_an_offline_one(tmp_path):
    code = "from gfn_runner.loggers import wandb_run; wandb_run._INIT_TIMEOUT_S = 3.0\n" + RUN
    variables = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "x" * 40}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        input="\n", capture_output=True, text=True, timeout=300, env=os.environ | variables, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, end = done.stdout.strip().splitlines()
    assert json.loads(first) == {"offline": True} and "wandb sync" in end
    assert done.stderr.count("W&B does not start online") == 1
    (part,) = parts_of(tmp_path)
    assert [i[STEP] for i in history(part) if "train/loss" in i] == [*range(1, 200)]
