"""Hydra plugins of this project: its launchers and its search; the implementation is in ``gfn_runner``.

Every Hydra program in the environment imports this file, so it must not import anything slow or optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig


class BasicConfigs(SearchPathPlugin):
    """Replaces ``hydra/launcher=basic`` and ``hydra/sweeper=basic``, for the configs of this project only.

    A YAML file of that name would be merged with Hydra's own config.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        folders = [Path(str(item.path).removeprefix("file://")) for item in search_path.get_path()]
        if any((folder / "hydra" / "launcher" / "slurm_gpu.yaml").is_file() for folder in folders):
            node = {"_target_": f"{__name__}.BasicLauncher"}
            ConfigStore.instance().store("basic", node, group="hydra/launcher")
            node = {"_target_": f"{__name__}.BasicSweeper", "params": None}
            ConfigStore.instance().store("basic", node, group="hydra/sweeper")


class BasicLauncher(Launcher):
    """Executes one run after the other, in this process."""

    def __init__(self, **options: Any):
        self.options = options
        self.hydra_context: Any = None
        self.task_function: Any = None
        self.config: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self.hydra_context, self.task_function = hydra_context, task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from gfn_runner.sweeps.launching.launch import launch

        return launch(self, job_overrides, initial_job_idx)

    def __call__(self, config: DictConfig, singletons: dict[type, Any]) -> JobReturn:
        """Execute a job in a separate process."""
        Singleton.set_state(singletons)
        setup_globals()
        return self.run(config)

    def run(self, config: DictConfig) -> JobReturn:
        """Execute a job; re-raise exceptions that Hydra catches, so that the job fails for SLURM too."""
        done = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        if done.status != JobStatus.COMPLETED:
            raise done._return_value
        return done


if find_spec("hydra_plugins.hydra_submitit_launcher") is not None:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
else:  # options are refused with a hint on what to install
    BaseSubmititLauncher = Launcher


class LocalLauncher(BasicLauncher, BaseSubmititLauncher):
    """Executes several runs at a time on this machine."""

    def __call__(self, config: DictConfig, singletons: dict[type, Any]) -> JobReturn:
        from gfn_runner.distributed.launch import exit_with_parent
        from gfn_runner.sweeps.launching.signals import exit_on_termination

        exit_with_parent()
        # submitit ignores SIGTERM. A run that does not train has nothing to save and exits at once.
        with exit_on_termination():
            return super().__call__(config, singletons)


class SlurmLauncher(BasicLauncher, BaseSubmititLauncher):
    """Executes each run as a SLURM job."""


class BasicSweeper(Sweeper):
    """Sweeps over all combinations; Hydra's own composes each again, and submits batches unvalidated."""

    def __init__(self, params: Any = None):
        self.launcher: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from gfn_runner.sweeps.launching.launch import planned_overrides

        # Composed and validated, with the values of ``params``, before the folder was created.
        return self.launcher.launch(planned_overrides(), 0)


if find_spec("hydra_plugins.hydra_optuna_sweeper") is not None:
    from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper

    class SearchSweeper(OptunaSweeper):
        """Optuna search that can be resumed after an interruption."""

        def __init__(self, seed: int | None = None, **options: Any):
            super().__init__(search_space=None, custom_search_space=None, **options)
            self.seed = seed

        def sweep(self, arguments: list[str]) -> None:
            import warnings

            from optuna.exceptions import ExperimentalWarning

            from gfn_runner.sweeps.search import search

            # Chosen deliberately in conf/hydra/sweeper/search.yaml, and Optuna's version is pinned.
            warnings.filterwarnings("ignore", "``multivariate`` option", ExperimentalWarning)
            search(self.sweeper, arguments, self.seed)
