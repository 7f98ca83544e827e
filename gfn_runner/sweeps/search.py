"""Optuna search that can be resumed after an interruption.

hydra-optuna-sweeper parses the search space and creates the launcher. On its own, when restarted, it would
run ``n_trials`` new trials, number them from 0, and draw the same values again.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

logger = logging.getLogger(__name__)
_PATIENCE = 3  # batches without any value after which the search ends
Space = dict[str, BaseDistribution]


def search(sweeper: Any, arguments: Sequence[str], seed: int | None) -> None:
    """Run trials until there are ``n_trials``, including those of an interrupted search.

    A trial's number is the number of its run in the sweep. Interrupted trials come first, with their folders
    and values.

    Args:
        arguments: overrides; those with ``interval(…)`` or ``choice(…)`` define the search space.
        seed: seed of the sampler; the number of earlier trials is added, so that a resumed search
            does not draw the same values again. ``None`` uses a different seed each time.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(str(sweeper.sweep_dir)).mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=sweeper.study_name,
        storage=sweeper.storage,
        directions=sweeper._get_directions(),
        load_if_exists=True,
    )
    before = len(study.trials)
    if isinstance(sweeper.sampler, functools.partial):
        study.sampler = sweeper.sampler(seed=None if seed is None else seed + before)
    elif sweeper.sampler is not None:
        study.sampler = sweeper.sampler
    space, fixed = _space(sweeper, arguments)
    if before >= sweeper.n_trials:
        logger.info("all %d trials are done; hydra.sweeper.n_trials asks for no more", before)
    interrupted = _interrupted(study, space)
    batches = values = 0
    while batch := _next_batch(sweeper, study, space, interrupted):
        lines = [_lines({**trial.params, **fixed}) for trial in batch]
        returns = sweeper.launcher.launch(lines, initial_job_idx=batch[0].number)
        found = [done.return_value for done in returns]
        for trial, value in zip(batch, found, strict=True):
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            study.tell(trial.number, None if value is None else float(value), state)
        batches += 1
        failed = found.count(None)
        values += len(found) - failed
        if failed / len(found) > sweeper.max_failure_rate or (batches == _PATIENCE and not values):
            break
    if batches and not study.get_trials(states=(TrialState.COMPLETE,)):
        print(
            f"gfn_runner: the search ends: no trial has a value (batches: {batches})",
            file=sys.stderr,
        )
        raise SystemExit(1)
    _report_best(sweeper, study)


def _space(sweeper: Any, arguments: Sequence[str]) -> tuple[Space, dict[str, Any]]:
    """Return the search space and the keys with a single value; the last override of a key wins."""
    from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

    lines = [*sweeper._parse_sweeper_params_config(), *arguments]
    last = {line.partition("=")[0].lstrip("+"): line for line in lines}
    return create_params_from_overrides(list(last.values()))


def _lines(values: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]


def _interrupted(study: Any, space: Space) -> list[Any]:
    """Return the trials that an earlier search started; fail those with a different search space."""
    running = study.get_trials(states=(TrialState.RUNNING,))
    for trial in running:
        if trial.params.keys() != space.keys():
            study.tell(trial.number, state=TrialState.FAIL)
    return [trial for trial in running if trial.params.keys() == space.keys()]


def _next_batch(sweeper: Any, study: Any, space: Space, interrupted: list[Any]) -> list[Any]:
    """Return up to ``n_jobs`` trials with consecutive numbers, as a launcher numbers its runs.

    Trials are taken from ``interrupted`` as long as there are any.
    """
    if not interrupted:
        number = min(sweeper.n_jobs, sweeper.n_trials - len(study.trials))
        return [study.ask(space) for _ in range(number)]
    batch = [interrupted.pop(0)]
    while (
        interrupted
        and len(batch) < sweeper.n_jobs
        and interrupted[0].number == batch[-1].number + 1
    ):
        batch.append(interrupted.pop(0))
    return batch


def _report_best(sweeper: Any, study: Any) -> None:
    done = study.get_trials(states=(TrialState.COMPLETE,))
    if not done:
        return
    best = study.best_trial
    values = " ".join(_lines(best.params))
    print(f"best of {len(done)} trials: #{best.number} with {best.value:.6g}: {values}", flush=True)
    found = {
        "name": "optuna",
        "best_params": best.params,
        "best_value": best.value,
        "best_trial": best.number,
    }
    OmegaConf.save(OmegaConf.create(found), f"{sweeper.sweep_dir}/optimization_results.yaml")
