"""Hydra's callback that checks a config before a folder is made; see ``hydra.callbacks`` in ``conf``."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any, ClassVar

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gfn_runner.cli.hooks import Refused, before_run
from gfn_runner.errors import UserError


class ConfigChecks(Callback):
    """Checks a config when Hydra has composed it."""

    # Of the command that is under way: what a sweep enters is left when Hydra has ended.
    stack: ClassVar[contextlib.ExitStack] = contextlib.ExitStack()
    called: ClassVar[bool] = False

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        type(self).called = True
        with _refusing():
            before_run(config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        type(self).called = True
        from gfn_runner.cli.multirun import before_multirun

        with _refusing():
            self.stack.enter_context(before_multirun(config))


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        raise Refused(error) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
