"""A search that is interrupted goes on: same study, values and numbers; the runs are a stand-in."""

from __future__ import annotations

import warnings
from functools import partial
from types import SimpleNamespace

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from omegaconf import OmegaConf

from gfn_runner.config.compose import CONF
from gfn_runner.errors import UserError
from gfn_runner.report.headline import direction_of, headline_numbers, optimized_value
from gfn_runner.sweeps.search import _next_batch, search
from hydra_plugins.gfn_runner_launchers import SearchSweeper

SPACE = ["x=interval(0.0, 1.0)", "kind=choice(a,b)", "seed=3"]


class Launcher:
    """Values of x; stops in the middle of a batch where it is told to."""

    def __init__(self, stop_at: int | None = None, fails: bool = False):
        self.stop_at, self.fails = stop_at, fails
        self.done: dict[int, list[str]] = {}
        self.batches: list[int] = []

    def launch(self, job_overrides, initial_job_idx):
        self.batches.append(len(job_overrides))
        returns = []
        for number, lines in enumerate(job_overrides, initial_job_idx):
            if number == self.stop_at:
                raise KeyboardInterrupt
            self.done[number] = sorted(lines)
            value = None if self.fails else float(dict(line.split("=") for line in lines)["x"])
            returns.append(JobReturn(status=JobStatus.COMPLETED, _return_value=value))
        return returns


def searched(folder, launcher, n_trials, seed=0):
    sweeper = OptunaSweeperImpl(
        sampler=partial(optuna.samplers.TPESampler, n_startup_trials=2),
        direction="maximize",
        storage=f"sqlite:///{folder}/search.db",
        study_name="s",
        n_trials=n_trials,
        n_jobs=2,
        max_failure_rate=1.0,
        search_space=None,
        custom_search_space=None,
        params=None,
    )
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    sweeper.sweep_dir, sweeper.launcher, sweeper.hydra_context = str(folder), launcher, object()
    search(sweeper, SPACE, seed)
    return optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/search.db")


def test_an_interrupted_search_takes_up_its_trials_and_makes_no_more_than_asked_for(tmp_path):
    first = Launcher(stop_at=3)  # the second batch, of trials 2 and 3: 2 is not told either
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, first, 6)
    second = Launcher()
    study = searched(tmp_path, second, 6)
    assert sorted(second.done) == [2, 3, 4, 5], "by the numbers that they had"
    assert second.done[2] == first.done[2], "and with the same values"
    assert second.batches == [2, 2], "n_jobs at a time, also what is taken up"
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 6
    found = OmegaConf.load(tmp_path / "optimization_results.yaml")
    assert found.best_value == max(trial.value for trial in study.trials)
    third = Launcher()
    assert len(searched(tmp_path, third, 6).trials) == 6 and not third.done, "there is nothing left"
    assert len(searched(tmp_path, Launcher(), 7).trials) == 7


def test_interrupted_trials_are_taken_up_in_batches_of_numbers_that_follow_each_other():
    left = [SimpleNamespace(number=number) for number in (1, 2, 3, 5, 6, 9)]
    batches = []
    while left:
        batch = _next_batch(SimpleNamespace(n_jobs=2), None, {}, left)
        batches.append([trial.number for trial in batch])
    assert batches == [[1, 2], [3], [5, 6], [9]]


def test_a_search_that_goes_on_does_not_draw_the_same_again(tmp_path):
    first, second = Launcher(), Launcher()
    searched(tmp_path, first, 1)
    searched(tmp_path, second, 2)
    assert first.done[0] != second.done[1]


def test_the_same_seed_searches_the_same(tmp_path):
    runs = [Launcher(), Launcher(), Launcher()]
    for number, (launcher, seed) in enumerate(zip(runs, (0, 0, 1), strict=True)):
        (tmp_path / str(number)).mkdir()
        searched(tmp_path / str(number), launcher, 4, seed)
    assert runs[0].done == runs[1].done != runs[2].done


def test_a_search_in_which_nothing_works_ends(tmp_path, capsys):
    launcher = Launcher(fails=True)
    with pytest.raises(SystemExit):
        searched(tmp_path, launcher, 20)
    assert len(launcher.done) == 6 and "no trial has a value" in capsys.readouterr().err


def test_a_search_warns_of_nothing_that_its_own_config_has_chosen(monkeypatch):
    def draws(*arguments):
        optuna.samplers.TPESampler(multivariate=True)

    monkeypatch.setattr("gfn_runner.sweeps.search.search", draws)
    sweeper = SearchSweeper.__new__(SearchSweeper)
    sweeper.sweeper, sweeper.seed = None, 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sweeper.sweep([])
    assert not caught
    with initialize_config_dir(str(CONF), version_base=None):
        hydra = compose("config", return_hydra_config=True).hydra
    assert hydra.hydra_logging.loggers.alembic.level == "WARNING"
    assert hydra.hydra_logging.root.level == "INFO"


METRICS = {
    "final/accuracy/3": 0.5,
    "final/accuracy/4": 1.0,
    "final/log_reward/3": -2.0,
    "base_0_shot/accuracy/3": 0.1,
    "train/loss": 4.0,
    "run/steps": 3.0,
}


def test_what_a_run_is_worth():
    untrained = {"base_3_shot/accuracy/3": 0.2, "run/steps": 0.0}
    assert optimized_value("accuracy", "", untrained) == 0.2, "its first row"
    headline = ("accuracy", "unmeasured", "log_reward")
    assert headline_numbers(headline, METRICS) == {"accuracy": 0.75, "log_reward": -2.0}
    assert optimized_value(None, headline[0], METRICS) == 0.75
    assert optimized_value(None, "", METRICS) is None
    assert optimized_value("log_reward", headline[0], METRICS) == -2
    assert optimized_value("base_0_shot/accuracy", "", METRICS) == 0.1
    assert optimized_value("train/loss", "", METRICS) == 4
    assert optimized_value("final/accuracy/4", "", METRICS) == 1
    with pytest.raises(UserError, match="final/accuracy"):
        optimized_value("acuracy", "", METRICS)


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("vote_accuracy", "maximize"), ("log_z_bound", "maximize"), ("final/log_reward/3", "maximize"),
        ("exact_kl", "minimize"), ("final/kl/numbers", "minimize"), ("train/loss", "minimize"),
    ],
)  # fmt: skip
def test_which_way_a_metric_gets_better(metric, direction):
    assert direction_of(metric) == direction
