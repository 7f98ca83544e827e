"""The command line: what is asked for, and the run, sweep or use of a policy that it starts."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gfn_runner.cli.hooks import HYDRA_ERRORS, NoFolder, Refused, before_run
from gfn_runner.cli.saved import hydra_arguments
from gfn_runner.config.compose import CONF, check_config
from gfn_runner.errors import NotBegun, UserError, show
from gfn_runner.runtime.environment import limit_thread_spinning
from gfn_runner.runtime.files import report_write_errors, warn_once_if_unwritable
from gfn_runner.runtime.overrides import absolute_lines, kept_overrides
from gfn_runner.runtime.terminal import check_arguments_decodable, prepare_output

if TYPE_CHECKING:
    from gfn_runner.config.run_config import RunConfig


class ConfigChecks(Callback):
    """Hydra's callback that checks a config before a folder is made; see ``hydra.callbacks`` in ``conf``."""

    # Of the command that is under way: what a sweep enters is left when Hydra has ended.
    stack: ClassVar[contextlib.ExitStack] = contextlib.ExitStack()
    called: ClassVar[bool] = False

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with _refusing():
            folder = before_run(config)
        # Hydra writes the first files there.
        fix = "free some, or hydra.run.dir=<another folder>"
        self.stack.enter_context(report_write_errors(folder, "hydra.run.dir", fix))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from gfn_runner.cli.multirun import before_multirun

        with _refusing():
            self.stack.enter_context(before_multirun(config))


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    ConfigChecks.called = True
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        raise Refused(error) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 and one screen of text at user errors."""
    limit_thread_spinning()
    prepare_output()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        check_arguments_decodable(arguments)
        try:
            run_hydra(hydra_arguments(arguments))
        except NoFolder as asked:
            _without_folder(asked.configs)
    except UserError as error:
        show(error.problems)
        raise SystemExit(2) from None


def run_hydra(arguments: list[str]) -> None:
    """Hand a command line to Hydra.

    Raises:
        UserError: for what Hydra or the checks of the config refuse.
        NoFolder: if the command needs none.
    """
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # it raises what it would else print
    ConfigChecks.called = False
    try:
        with contextlib.ExitStack() as stack:
            ConfigChecks.stack = stack
            hydra.main(version_base=None, config_path=str(CONF), config_name="config")(_job)()
        return
    except Refused as refused:
        error = refused.error
    except HYDRA_ERRORS as found:
        if ConfigChecks.called and not isinstance(found, HydraException):
            raise
        error = found
    if isinstance(error, UserError):
        raise error
    from gfn_runner.cli.suggestions import explained

    raise explained(error, arguments) from error


def _without_folder(configs: Sequence[RunConfig]) -> None:
    """A dry run, a finished run's policy at work, or a rank above 0."""
    for config in configs:
        if configs[0].dry_run:
            print(yaml.safe_dump(config.values, sort_keys=False, allow_unicode=True))
        elif config.mode == "train":
            from gfn_runner.train import train_and_evaluate

            train_and_evaluate(config, None)
        else:
            from gfn_runner.cli.policy_modes import use

            use(config)


def _job(composed: Any) -> float | None:
    """One job of Hydra's: a run in a folder of its own."""
    from gfn_runner.train import train_and_evaluate

    prepare_output()  # the job may be in a process of its own
    warn_once_if_unwritable(logging.getLogger())
    settings: Any = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    try:
        # Paths are relative to where the command was typed, whatever hydra.job.chdir says.
        with contextlib.chdir(settings.runtime.cwd):
            config = check_config(composed)
            if config.dry_run:  # where hydra.callbacks, which sees to it, was removed
                return None
            lines = absolute_lines(settings.overrides.task, [config.values])
        kept = kept_overrides(lines, settings.runtime.choices.task)
        return train_and_evaluate(config, folder, kept)
    except UserError as error:
        if isinstance(error, NotBegun):
            show(error.problems)
        else:
            _leave_reason(folder, str(error))
            show(error.problems, f"the run stops; its folder is {folder}")
        if settings.mode == RunMode.MULTIRUN:
            # Hydra notes it, and the other runs of the sweep go on.
            raise RuntimeError(str(error)) from None
        raise SystemExit(2) from None
    except Exception:
        _leave_reason(folder, traceback.format_exc())
        if settings.mode == RunMode.MULTIRUN:
            raise
        traceback.print_exc()
        raise SystemExit(1) from None


def _leave_reason(folder: Path, reason: str) -> None:
    """Say in the run's log why it failed: whoever looks through a sweep's folders has no terminal."""
    from gfn_runner.callbacks.live_report import end_pages

    with contextlib.suppress(OSError), (folder / "run.log").open("a", encoding="utf-8") as log:
        log.write(f"ERROR gfn_runner.train: the run has failed: {reason.rstrip()}\n")
    end_pages(folder)
