"""Entry point of the command line: parses it and starts a run, a sweep, or the use of a trained policy."""

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
    """Hydra callback that validates a config before folders are created (``hydra.callbacks`` in ``conf``)."""

    # Contexts of the current command: those that a sweep enters are exited when Hydra has finished.
    stack: ClassVar[contextlib.ExitStack] = contextlib.ExitStack()
    called: ClassVar[bool] = False

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with _refusing():
            folder = before_run(config)
        # Hydra writes its first files there.
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
    """Run the command line. On user errors, exit with status 2 and at most one screen of text."""
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
    """Pass a command line to Hydra.

    Raises:
        UserError: if Hydra or the validation of the config refuses it.
        NoFolder: if the command needs no run folder.
    """
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them
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
    """Execute a command without a folder: a dry run, a mode that uses a finished run, or a rank above 0."""
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
    """Execute one Hydra job: a run in its own folder."""
    from gfn_runner.train import train_and_evaluate

    prepare_output()  # the job may be in a separate process
    warn_once_if_unwritable(logging.getLogger())
    settings: Any = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    try:
        # Paths are relative to the directory of the command, regardless of hydra.job.chdir.
        with contextlib.chdir(settings.runtime.cwd):
            config = check_config(composed)
            if config.dry_run:  # if hydra.callbacks, which handles it, was removed
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
            # Hydra records it, and the other runs of the sweep continue.
            raise RuntimeError(str(error)) from None
        raise SystemExit(2) from None
    except Exception:
        _leave_reason(folder, traceback.format_exc())
        if settings.mode == RunMode.MULTIRUN:
            raise
        traceback.print_exc()
        raise SystemExit(1) from None


def _leave_reason(folder: Path, reason: str) -> None:
    """Log why a run failed, since whoever inspects a sweep's folders does not see its terminal."""
    from gfn_runner.callbacks.live_report import end_pages

    with contextlib.suppress(OSError), (folder / "run.log").open("a", encoding="utf-8") as log:
        log.write(f"ERROR gfn_runner.train: the run has failed: {reason.rstrip()}\n")
    end_pages(folder)
