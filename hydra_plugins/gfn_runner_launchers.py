"""This project's launchers and its search, where Hydra looks for plugins; the work is elsewhere.

Every Hydra program of the environment imports this file: it imports nothing that is slow or optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn


class HereLauncher(BasicLauncher):
    """One run after the other, in this process."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from gfn_runner.sweeps.launching.launch import launch

        return launch(self, job_overrides, initial_job_idx)


if find_spec("hydra_plugins.hydra_submitit_launcher") is not None:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

    class _Submitted(BaseSubmititLauncher):
        def __call__(self, *arguments: Any) -> JobReturn:
            """What a job does, in a process of its own."""
            job = super().__call__(*arguments)
            # Hydra has caught what the run has raised; its job is to fail for the cluster too.
            _ = job.return_value
            return job

        def launch(
            self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
        ) -> Sequence[JobReturn]:
            from gfn_runner.sweeps.launching.launch import launch

            return launch(self, job_overrides, initial_job_idx)

    class LocalLauncher(_Submitted):
        """Several runs at a time on this machine."""

        def __call__(self, *arguments: Any) -> JobReturn:
            from gfn_runner.distributed.ranks import end_with_parent
            from gfn_runner.sweeps.launching.signals import ends_when_told

            end_with_parent()
            # submitit ignores SIGTERM. A run that does not train has nothing to save: it ends at once.
            with ends_when_told():
                return super().__call__(*arguments)

    class SlurmLauncher(_Submitted):
        """A job of SLURM for each run."""


if find_spec("hydra_plugins.hydra_optuna_sweeper") is not None:
    from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper

    class SearchSweeper(OptunaSweeper):
        """Optuna's search, which goes on where it was interrupted."""

        def __init__(self, seed: int | None = None, **options: Any):
            super().__init__(search_space=None, custom_search_space=None, **options)
            self.seed = seed

        def sweep(self, arguments: list[str]) -> None:
            import warnings

            from optuna.exceptions import ExperimentalWarning

            from gfn_runner.sweeps.search import search

            # conf/hydra/sweeper/search.yaml has chosen it, and Optuna's version is pinned.
            warnings.filterwarnings("ignore", "``multivariate`` option", ExperimentalWarning)
            search(self.sweeper, arguments, self.seed)
