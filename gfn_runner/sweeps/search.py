"""A search by Optuna that goes on where it was interrupted; what a trial is worth is another's word."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import optuna
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

logger = logging.getLogger(__name__)
_PATIENCE = 3  # batches without a single value, after which a search has no sense


def search(sweeper: Any, arguments: Sequence[str], seed: int | None) -> None:
    """Run trials until there are ``n_trials``, those of an interrupted search included.

    A trial's number is its run's number in the sweep. What was interrupted is taken up first, in the
    folder and with the values that it had.

    Args:
        sweeper: hydra-optuna-sweeper's, set up by Hydra.
        arguments: override lines, those with ``interval(…)`` or ``choice(…)`` span the space.
        seed: of the sampler; together with the number of trials before, so that a search that goes on
            does not draw the same values again. ``None``: another one each time.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(str(sweeper.sweep_dir)).mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=sweeper.study_name,
        storage=sweeper.storage,
        directions=sweeper._get_directions(),
        load_if_exists=True,
    )
    _take_up(sweeper, study, arguments)
    before = len(study.trials)
    _choose_sampler(sweeper, seed, before)
    sweeper.launcher = _Hopeful(sweeper.launcher)
    sweeper.job_idx, sweeper.n_trials = before, sweeper.n_trials - before
    if sweeper.n_trials > 0:
        try:
            sweeper.sweep(list(arguments))
        except ValueError:
            # The sweeper asks for the best trial, and Optuna raises that there is none.
            if study.get_trials(states=(TrialState.COMPLETE,)):
                raise
            _ends_without_value(sweeper.launcher.batches)
    else:
        logger.info("all %d trials have been made; hydra.sweeper.n_trials asks for no more", before)
    _say_best(sweeper, study)


def _choose_sampler(sweeper: Any, seed: int | None, before: int) -> None:
    """Give the sampler its seed; Optuna's grid gets its values from the sweeper instead."""
    chosen = sweeper.sampler
    if isinstance(chosen, functools.partial) and chosen.func is not optuna.samplers.GridSampler:
        sweeper.sampler = chosen(seed=None if seed is None else seed + before)


def _take_up(sweeper: Any, study: Any, arguments: Sequence[str]) -> None:
    """Bring the trials to their end that an earlier search has begun."""
    from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

    params = [*sweeper._parse_sweeper_params_config(), *arguments]
    space, fixed = create_params_from_overrides(params)
    trials = []
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if trial.params.keys() == space.keys():
            trials.append(trial)
        else:
            # It has not come to its values, or the space was another one.
            study.tell(trial.number, state=TrialState.FAIL)
    for batch in _batches(trials, sweeper.n_jobs):
        values = [{**trial.params, **fixed} for trial in batch]
        lines = [[f"{name}={value}" for name, value in given.items()] for given in values]
        returns = sweeper.launcher.launch(lines, initial_job_idx=batch[0].number)
        for trial, done in zip(batch, returns, strict=True):
            _tell(study, trial, done.return_value)


def _batches(trials: Sequence[FrozenTrial], size: int) -> list[list[FrozenTrial]]:
    """At most so many at a time; a launcher numbers the runs of a batch from its first."""
    batches: list[list[FrozenTrial]] = []
    for trial in trials:
        last = batches[-1] if batches else []
        if last and len(last) < size and last[-1].number + 1 == trial.number:
            last.append(trial)
        else:
            batches.append([trial])
    return batches


def _tell(study: Any, trial: FrozenTrial, value: Any) -> None:
    if value is None:
        study.tell(trial.number, state=TrialState.FAIL)
    else:
        study.tell(trial.number, float(value))


class _Hopeful:
    """A launcher that gives up a search in which nothing works."""

    def __init__(self, launcher: Any):
        self.launcher, self.batches, self.values = launcher, 0, 0

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
        if self.batches >= _PATIENCE and self.values == 0:
            _ends_without_value(self.batches)
        returns = self.launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        self.batches += 1
        self.values += sum(done.return_value is not None for done in returns)
        return returns


def _ends_without_value(batches: int) -> NoReturn:
    said = "the one batch" if batches == 1 else f"{batches} batches"
    print(f"gfn_runner: the search ends: no trial of {said} has a value", file=sys.stderr)
    raise SystemExit(1)


def _say_best(sweeper: Any, study: Any) -> None:
    done = study.get_trials(states=(TrialState.COMPLETE,))
    if not done or len(study.directions) > 1:
        return
    best = study.best_trial
    values = " ".join(f"{name}={value}" for name, value in best.params.items())
    print(f"best of {len(done)} trials: #{best.number} with {best.value:.6g}: {values}", flush=True)
    found = {
        "name": "optuna",
        "best_params": best.params,
        "best_value": best.value,
        "best_trial": best.number,
    }
    OmegaConf.save(OmegaConf.create(found), f"{sweeper.sweep_dir}/optimization_results.yaml")
