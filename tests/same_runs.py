"""Small runs of every task, and whether an interrupted run is the same as one that was not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import runs
from tests.copied_runs import assert_same
from tests.runs import TINY, lines_of, metrics_of, newest_state

COMMON = (
    *TINY,
    "callbacks.evaluation.every_n_steps=2",
    "evaluation.votes=2",
    "evaluation.singles=3",
    "evaluation.during=1",
    "evaluation.final=1",
    "evaluation.baseline_shots=[]",
    "callbacks.checkpoint.every_n_steps=2",
    "callbacks.replay_buffer.probability=0.4",
    "callbacks/report=off",
    "trainer.max_steps=5",
)
FEW = list(runs.ARITHMETIC)
DRAWN = "evaluation.posterior_draws=8"
ARITHMETIC = ["task=arithmetic", *FEW]
LEARNT = [*ARITHMETIC, "callbacks/replay_buffer=off", "callbacks.replay_buffer.probability=0"]
EM = [
    "task=subjectivity",
    "task.data.n_train=4",
    "task.data.n_test=2",
    "em.rounds=2",
    "em.m_steps=2",
    "em.m_batch=2",
    "trainer.max_steps=3",
]
FOUR = ["task=random_number", "trainer.max_steps=4", DRAWN]
CASES: dict[str, list[str]] = {
    "arithmetic": [*ARITHMETIC, DRAWN],
    "arithmetic_tool": ["task=arithmetic_tool", *FEW],
    "continuation": ["task=continuation", "task.data.n_test=2"],
    "contrastive": ["task=contrastive"],
    "translation": ["task=translation", "task.data.n_test=3"],
    "constrained": ["task=constrained", "task.data.n_train=8", "task.data.n_test=2"],
    "posterior": ["task=posterior"],
    "infilling": ["task=infilling", "task.data.n_test=3", "task.data.n_train=20", DRAWN],
    "draws of the base model beside fresh strings": [
        "task=infilling",
        "task.data.n_test=3",
        "task.data.n_train=10",
        "callbacks.replay_buffer.posterior_draws=4",
        "callbacks.replay_buffer.beside_fresh=2",
    ],
    "learned log Z, accumulated": [
        *ARITHMETIC,
        "objective=tb",
        "trainer.accumulate_grad_batches=2",
    ],
    "supervised steps first": [*ARITHMETIC, "objective=tb", "sampling.sft_share=0.6"],
    "sft": [*LEARNT, "baseline=sft"],
    "ppo": [*LEARNT, "baseline=ppo"],
    "grpo": [*LEARNT, "baseline=grpo"],
    "another optimizer and schedule": [
        *ARITHMETIC,
        "optimizer._target_=torch.optim.SGD",
        "~optimizer.betas",
        "+optimizer.momentum=0.9",
        "scheduler._target_=torch.optim.lr_scheduler.ExponentialLR",
        "~scheduler.warmup_steps",
        "~scheduler.decay",
        "+scheduler.gamma=0.7",
    ],
}


def state_of(folder: Path) -> dict[str, Any]:
    """Weights, optimizer, schedules and buffer of the newest checkpoint."""
    state = newest_state(folder)
    state["callbacks"].pop("TrainingLog")  # its record holds seconds
    kept = (
        "state_dict optimizer_states lr_schedulers callbacks global_step m_steps rollouts".split()
    )
    return {name: state[name] for name in kept if name in state}


def logged(folder: Path) -> list[dict[str, Any]]:
    return [untimed(record) for record in lines_of(folder / "metrics.jsonl")]


def untimed(record: Mapping[str, Any]) -> dict[str, Any]:
    timed = ("time", "seconds/", "train/seconds", "train/cpu_", "train/tokens_per_second", "run/")
    return {name: value for name, value in record.items() if not name.startswith(timed)}


def assert_same_run(found: Path, expected: Path) -> None:
    assert_same(state_of(found), state_of(expected))
    assert logged(found) == logged(expected)
    names = ["adapter/adapter_model.safetensors", "samples.jsonl", "overrides.yaml"]
    if (expected / "answer_adapter").is_dir():
        names.append("answer_adapter/adapter_model.safetensors")
    for name in names:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    assert untimed(metrics_of(found)) == untimed(metrics_of(expected))
