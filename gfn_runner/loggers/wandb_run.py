"""A single W&B run, from start to finish; any failure is reported once, and training continues.

No other module calls ``wandb.init`` or ends the W&B run itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gfn_runner.runtime.environment import default_variables
from gfn_runner.runtime.files import write_atomically
from gfn_runner.runtime.json_lines import object_or_empty
from gfn_runner.runtime.seeds import derived_seed
from gfn_runner.runtime.sweep_record import is_sweep

logger = logging.getLogger(__name__)

STEP = "trainer/global_step"
"""Optimizer steps: the x-axis of every series, under the name that Lightning gives it."""
# Maximum time for one table that a server must accept; the next one would take as long.
_PATIENCE_S = 10.0
_INIT_TIMEOUT_S = 20.0  # for starting an online run
_LONGEST_TAG = 64  # characters
_ID_FILE = ".wandb_id.json"  # in a run's folder


class WandbRun:
    """A started run.

    Attributes:
        folder: folder of our run; W&B's files are in its ``wandb/``.
    """

    def __init__(self, run: Any, folder: Path):
        self.run, self.folder = run, folder
        self._given_up: set[str] = set()

    @property
    def offline(self) -> bool:
        return bool(self.run.offline)

    def attempt(self, what: str, action: Callable[[], object]) -> None:
        """Run an action; if it fails, or the server takes too long, skip all later ones of this kind.

        Args:
            what: kind of the action, a plural noun for messages, such as ``"histograms"``.
        """
        if what in self._given_up:
            return
        started, reason = time.perf_counter(), ""
        try:
            # Keep W&B's copies of unsent files here, not in the user's home.
            with default_variables(WANDB_DATA_DIR=str(self.folder / "wandb")):
                action()
        except Exception as error:  # whatever W&B raises, training goes on
            reason = _first_line(error)
        waited = time.perf_counter() - started
        if not reason and waited > _PATIENCE_S and not self.offline:
            reason = f"the last upload waited {waited:.0f} s for the server"
        if reason:
            self._given_up.add(what)
            logger.warning(
                "W&B gets no more %s of this run (%s); training continues, and metrics.jsonl and "
                "samples.jsonl are complete",
                what,
                reason,
            )

    def log(self, what: str, values: Mapping[str, Any], step: int | None) -> None:
        """Add values to the run's history; for ``what`` see :meth:`attempt`."""
        at = {} if step is None else {STEP: step}
        self.attempt(what, lambda: self.run.log({**values, **at}))

    def finish(self, *, failed: bool = False) -> None:
        """End the run, and print where it is or how to send it."""
        url = "" if self.offline else self.run.url
        try:
            self.run.finish(exit_code=int(failed))
        except Exception as error:
            logger.warning("W&B did not get all of this run (%s)", _first_line(error))
            url = ""
        where = f"W&B: {url}" if url else f"to send the run to W&B: {sync_command(self.folder)}"
        print(where, flush=True)


def sync_command(folder: Path) -> str:
    """Return the command that sends W&B's files in a run's folder; parts of a resumed run are in order."""
    parts = sorted((folder / "wandb").glob("*run-*-*"), key=lambda path: path.name.split("run-")[1])
    # If the run was started online, that part is here too, but skipped without the flag.
    begun_online = any(path.name.startswith("run-") for path in parts)
    flags = ["--include-online"] if begun_online else []
    return shlex.join(["wandb", "sync", *flags, *map(str, parts)])


def start_wandb(
    folder: Path,
    *,
    mode: str,
    finish_timeout: float,
    group: str | None,
    tags: Iterable[str],
    **options: Any,
) -> WandbRun | None:
    """Start a W&B run, without prompts; return ``None`` if W&B is off or cannot start.

    Its id is stored in the folder, so a resumed or requeued run continues its own.

    Args:
        mode, finish_timeout, group, tags: see :class:`~gfn_runner.loggers.wandb.RunLogger`.
        options: further arguments of ``wandb.init``.
    """
    mode = os.environ.get("WANDB_MODE", mode)
    if mode in ("disabled", "off"):
        return None
    if mode == "online" and not _has_credentials():
        logger.warning(
            "logger.wandb.mode=online, but no W&B account is set up here (no WANDB_API_KEY, nothing in "
            ".netrc): the run is logged offline; the command printed at its end syncs it later"
        )
        mode = "offline"
    arguments = options | {
        "name": "/".join(folder.parts[-3:]),
        "dir": str(folder),
        "group": group or sweep_of(folder),
        "tags": sorted(map(short_tag, set(tags))),
        "id": run_id(folder),
        # Also offline: `wandb sync` needs it to append the second part of a resumed run to the first.
        "resume": "allow",
        # An earlier run in this process must not receive this one's values.
        "reinit": "finish_previous",
    }
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return _start(folder, arguments, attempt, finish_timeout)
        except Exception as error:  # whatever W&B raises, training goes on
            logger.warning("W&B does not start %s (%s)", attempt, _first_line(error))
            _forget()
    return None


def _forget() -> None:
    """Shut down W&B's service, which treats the id of a failed start as one in use."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()
    # A service started by a parent process keeps running; this process gets its own.
    os.environ.pop("WANDB_SERVICE", None)


def _start(folder: Path, arguments: dict[str, Any], mode: str, finish_timeout: float) -> WandbRun:
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        # Offline, only a busy machine can cause a delay.
        init_timeout=_INIT_TIMEOUT_S if mode == "online" else 90.0,
        finish_timeout=finish_timeout,
        finish_timeout_raises=True,
    )
    run = wandb.init(**arguments, mode=mode, settings=settings)  # type: ignore[arg-type]
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return WandbRun(run, folder)


def short_tag(tag: str) -> str:
    """Shorten a tag to W&B's limit, with a hash at the end to keep different tags distinct."""
    if len(tag) <= _LONGEST_TAG:
        return tag
    digest = f"{derived_seed('tag', tag):016x}"[:8]
    return f"{tag[: _LONGEST_TAG - len(digest) - 1]}-{digest}"


def run_id(folder: Path) -> str:
    """Return the id of a folder's run, 16 hexadecimal digits, which is stored in the folder.

    A moved run keeps its id; a copy, and a new run in the place of an old one, get others.
    """
    path, here = folder / _ID_FILE, str(folder.resolve())
    known = _kept_id(folder)
    if known.get("folder") == here:
        return known["id"]
    moved = known and _kept_id(Path(known["folder"])).get("id") != known["id"]
    own = known["id"] if moved else uuid.uuid4().hex[:16]
    try:
        write_atomically(path, json.dumps({"id": own, "folder": here}) + "\n")
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): a resumed run will be a new run in W&B", path, error
        )
    return own


def _kept_id(folder: Path) -> dict[str, str]:
    """Return the stored id of a run and its folder at that time; empty if there is none."""
    known = object_or_empty(folder / _ID_FILE)
    names = ("id", "folder")
    return {name: str(known[name]) for name in names} if known.keys() >= set(names) else {}


def sweep_of(folder: Path) -> str | None:
    """Return the name of the multirun that a run's folder belongs to, or ``None``.

    This is ``<date>/<time>`` under a folder ``multirun``, otherwise the name of its folder. Sweeps are
    recognized by the files in their folder, so a job that is resumed alone stays in its group.
    """
    for parent in folder.resolve().parents[:5]:
        if is_sweep(parent):
            _, multirun, date_and_time = str(parent).rpartition("/multirun/")
            return date_and_time if multirun else parent.name
    return None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _has_credentials() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return bool(wandb.api.api_key)
