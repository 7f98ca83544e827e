"""Checks of a run before Hydra creates its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gfn_runner.config.compose import check_config
from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.overrides import OVERRIDES_FILE, absolute_lines, kept_overrides

if TYPE_CHECKING:
    from gfn_runner.config.run_config import RunConfig


# Hydra's own errors, and those it raises on command lines that it did not anticipate.
HYDRA_ERRORS = (
    HydraException, OmegaConfBaseException, yaml.YAMLError,
    ValueError, TypeError, AttributeError, RecursionError,
)  # fmt: skip


class Refused(SystemExit):
    """A user error or Hydra error as ``SystemExit``: Hydra only warns of other exceptions in callbacks."""

    def __init__(self, error: Exception):
        super().__init__(2)
        self.error = error


class NoFolder(SystemExit):
    """The command needs no run folder: it shows a config, uses a trained policy, or is a rank above 0."""

    def __init__(self, configs: Sequence[RunConfig]):
        super().__init__(0)
        self.configs = configs


def before_run(config: DictConfig) -> Path:
    """Validate a run's config, and check that its folder is usable.

    Args:
        config: Hydra's config, including its own node; ``hydra.run.dir`` is set if ``resume=auto``
            finds a run.

    Returns:
        The folder.

    Raises:
        UserError: lists all problems of the config; if there are none, those of its texts or its folder.
        NoFolder: if the command needs no folder.
    """
    problems = list(_only_of_sweeps(config.hydra.overrides.hydra))
    try:
        run = check_config(config)
    except UserError as error:
        raise UserError([*problems, *error.problems]) from None
    if problems:
        raise UserError(problems)
    if run.dry_run or run.mode != "train":
        raise NoFolder([run])
    from gfn_runner.config.run_config import AUTO
    from gfn_runner.config.tokenizer_checks import check_texts  # needs transformers
    from gfn_runner.distributed.launch import check_launcher, is_worker
    from gfn_runner.run.resume import newest_unfinished, start_of
    from gfn_runner.runtime.run_lock import acquire_run_lock

    check_launcher(run.trainer.processes)
    check_texts(run)
    if is_worker(run.trainer.processes):
        raise NoFolder([run])  # rank 0 creates the folders
    if is_new(config.hydra.run) and run.resume == AUTO:
        task = config.hydra.runtime.choices.task
        lines = absolute_lines(config.hydra.overrides.task, [run.values])
        own = kept_overrides(lines, task)
        if (unfinished := newest_unfinished(Path(run.output) / task, run, own)) is not None:
            config.hydra.run.dir = str(unfinished)
    folder = prepared_folder(config, "run", run.output)
    if (folder / OVERRIDES_FILE).exists():
        # Refuse a run that cannot be resumed with this config before Hydra writes into its folder.
        with acquire_run_lock(folder):
            start_of(run, folder)
    return folder


def is_new(section: DictConfig) -> bool:
    """Return whether the program names the folder of a run or sweep, i.e. the user set no other one."""
    plain: Any = OmegaConf.to_container(section, resolve=False)
    return "${new_folder:" in str(plain["dir"])


def prepared_folder(config: DictConfig, kind: str, output: str) -> Path:
    """Create the folder of a run or sweep, check that it is writable, and return it.

    Args:
        kind: ``run`` or ``sweep``.
        output: parent folder of all runs, in which a new folder is created.
    """
    from gfn_runner.runtime.files import check_writable, report_write_errors

    def take_files(folder: Path, key: str) -> None:
        with report_write_errors(folder, key, f"{key}=<another folder>, or make it writable"):
            folder.mkdir(parents=True, exist_ok=True)
            check_writable(folder)

    if is_new(config.hydra[kind]):
        take_files(Path(output), "output")
    HydraConfig.instance().set_config(config)  # the name may contain ${hydra:job.name}
    named = f"hydra.{kind}.dir"
    try:
        folder = Path(str(OmegaConf.select(config, named)))
    except OmegaConfBaseException as error:
        raise UserError.one(named, str(error).splitlines()[0]) from None
    take_files(folder, named)
    return folder


def _only_of_sweeps(lines: Sequence[str]) -> Iterator[Problem]:
    for line in lines:
        group, _, choice = line.partition("=")
        if group in ("hydra/launcher", "hydra/sweeper"):
            yield Problem(
                group,
                f"given {choice!r} for a single run, which runs in this process",
                "a sweep",
                "-m; a sweep may have a single run",
            )
