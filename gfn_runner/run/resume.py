"""Resuming a run: from which checkpoint, and whether its settings allow it."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gfn_runner.algorithms.em import read_record
from gfn_runner.callbacks.checkpoint import damaged_checkpoints, newest_checkpoint
from gfn_runner.config.run_config import AUTO, RunConfig
from gfn_runner.errors import Problem, UserError
from gfn_runner.report.methods import flat
from gfn_runner.report.runs import environment_files
from gfn_runner.report.states import steps_ended
from gfn_runner.runtime.files import read_yaml, remove_unfinished
from gfn_runner.runtime.json_lines import filter_lines, object_or_empty, read_metrics
from gfn_runner.runtime.overrides import OVERRIDES_FILE
from gfn_runner.runtime.run_lock import run_is_locked

logger = logging.getLogger(__name__)

# Settings that a checkpoint depends on; others (schedules, steps, evaluation, loggers) may change.
_FIXED = (
    "task",
    "objective._target_",
    "baseline",
    "lm.name",
    "lm.gguf_file",
    "lm.lora",
    "seed",
    "sampling.n_conditions",
    "trainer.accumulate_grad_batches",  # batch numbers and Lightning's counter depend on it
)
# Further settings that must not change after an M-step.
_FIXED_BY_M_STEPS = ("trainer.max_steps", "em.lora")
# Key in environment*.json: time of that start of the run, in seconds since 1970.
BEGUN = "begun"


@dataclass(frozen=True)
class Start:
    """Starting point of a run.

    Attributes:
        checkpoint: checkpoint to resume from; ``None`` to start from scratch.
        finished: with ``resume=auto``, the final metrics of a run that has nothing left to do.
    """

    checkpoint: Path | None = None
    finished: Mapping[str, float] | None = None


def start_of(config: RunConfig, folder: Path) -> Start:
    """Determine where a run starts; changes nothing except the names of damaged checkpoints.

    Raises:
        UserError: if the folder contains a run but ``resume`` is not set; if that run has other settings; if
            a checkpoint cannot be read; with ``resume=<folder>``, if there is nothing to resume from, or
            nothing left to do.
    """
    if not (folder / OVERRIDES_FILE).exists():
        return Start()
    if config.resume is None:
        raise UserError.one(
            "hydra.run.dir",
            f"{folder} already holds a run",
            "a folder without one",
            f"{_resume(folder)} to continue it",
        )
    _refuse_other_run(config, folder)
    newest = newest_checkpoint(folder / "checkpoints")
    step = _steps_done(folder, newest)
    if (metrics := _final_metrics(config, folder, step)) is not None:
        if config.resume == AUTO:
            return Start(newest, finished=metrics)
        wanted = int(steps_ended(metrics) or 0)
        early = f": it stopped early, after step {step} of {wanted}" if step < wanted else ""
        rounds = max(1, config.em.rounds)
        raise UserError.one(
            "resume",
            f"{folder} is finished{early}",
            f"trainer.max_steps above {max(step, wanted) // rounds}",
            f"{_resume(folder)} trainer.max_steps={2 * max(step, wanted, 1) // rounds}",
        )
    damaged = damaged_checkpoints(folder / "checkpoints")
    if newest is None and (damaged or config.resume != AUTO):
        why = (
            f"all of its checkpoints, {damaged}, are damaged"
            if damaged
            else "it has saved none yet"
        )
        fix = "restore a good one, or start a new run"
        raise UserError.one(
            "resume", f"{folder} cannot be resumed: {why}", "a run with a good checkpoint", fix
        )
    return Start(newest)


def _resume(folder: Path) -> str:
    """Return the argument to type on the command line."""
    return shlex.quote(f"resume={folder}")


def cut_back(folder: Path, checkpoint: Path | None) -> None:
    """Truncate a run's log to the state of its newest checkpoint; later steps will be repeated."""
    remove_unfinished(folder)
    step = _steps_done(folder, checkpoint)
    ended = object_or_empty(folder / "metrics.json").get("run/steps") == step

    def counts(line: Mapping[str, Any]) -> bool:
        # An interrupted final evaluation is repeated; a completed one is kept.
        is_final = any(name.startswith("final/") for name in line)
        return line["step"] < step or (line["step"] == step and (ended or not is_final))

    filter_lines(folder / "metrics.jsonl", counts)
    logger.info("%s resumes from %s", folder, checkpoint or "the beginning: nothing was saved")


def finished_metrics(config: RunConfig, folder: Path) -> dict[str, float] | None:
    """Return the final metrics if ``folder`` contains this run, finished; changes nothing.

    Raises:
        UserError: if the folder contains another run.
    """
    if not all((folder / name).exists() for name in (OVERRIDES_FILE, "metrics.json")):
        return None
    _refuse_other_run(config, folder)
    step = _steps_done(folder, newest_checkpoint(folder / "checkpoints"))
    return _final_metrics(config, folder, step)


def _steps_done(folder: Path, checkpoint: Path | None) -> int:
    """Return the step of the newest checkpoint; if all are damaged, the step at which the run ended."""
    if checkpoint is not None:
        return int(checkpoint.stem.removeprefix("step-"))
    if damaged_checkpoints(folder / "checkpoints"):
        return int(object_or_empty(folder / "metrics.json").get("run/steps") or 0)
    return 0


def _final_metrics(config: RunConfig, folder: Path, step: int) -> dict[str, float] | None:
    """Return the final metrics if nothing is left to do after ``step`` optimizer steps; else ``None``."""
    metrics = object_or_empty(folder / "metrics.json")
    evaluated = metrics.get("run/steps")
    if config.trains:
        trained = max(step, steps_ended(metrics) or 0) >= config.total_steps
        ended = trained and evaluated == step and read_record(folder).m_steps == config.em.rounds
    else:
        ended = evaluated is not None
    return {name: value for name, value in metrics.items() if value is not None} if ended else None


# -- comparison of settings ----------------------------------------------------------------------


def _refuse_other_run(config: RunConfig, folder: Path) -> None:
    """Refuse to resume a run with settings that do not match its checkpoint."""
    file, now = folder / "config.yaml", config.values
    try:
        saved = read_yaml(file, dict)
    except ValueError as error:  # without it, every setting would seem changed
        raise UserError.one(
            "resume",
            f"{file} is unreadable: {error}",
            "the config.yaml that the run wrote",
            "restore it (python -m gfn_runner … dry_run=true prints one), or start a new run",
        ) from None
    m_steps = read_record(folder).m_steps
    problems = [
        Problem(
            key, f"given {_at(now, key)!r}", f"{_at(saved, key)!r}, as in the run to be resumed"
        )
        for key in (*_FIXED, *(_FIXED_BY_M_STEPS if m_steps else ()))
        if not _is_same(_at(saved, key), _at(now, key))
    ]
    if config.em.rounds < m_steps:
        allowed = f"at least {m_steps}, the number of M-steps already made"
        problems.append(Problem("em.rounds", f"given {config.em.rounds}", allowed))
    if problems:
        raise UserError(problems)


def _is_same(before: Any, now: Any) -> bool:
    """Compare two values of a setting; a moved file counts as the same if its name is unchanged."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = before.keys() == now.keys()
        return keys and all(_is_same(value, now[name]) for name, value in before.items())
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_is_same, before, now))
    if isinstance(before, str) and isinstance(now, str) and before != now:
        old, new = Path(before), Path(now)
        return old.is_absolute() and old.name == new.name and new.exists() and not old.exists()
    return bool(before == now)


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def other_settings(config: RunConfig, folder: Path) -> list[str]:
    """Return the settings of an existing run that differ from this config, as ``key=<old value>``."""
    saved = read_yaml(folder / "config.yaml", dict)
    before, now = flat(saved), flat(config.values)
    passing = ("resume", "output", "dry_run", "logger.")
    return [
        f"{key}={before.get(key)}"
        for key in dict.fromkeys((*before, *now))
        if before.get(key) != now.get(key) and not key.startswith(passing)
    ]


# -- earlier starts, earlier runs ----------------------------------------------------------------


def seconds_before(folder: Path) -> float:
    """Return the seconds of earlier starts of a resumed run, each up to its last step that was kept.

    Steps after the checkpoint from which the run was resumed are discarded, and so is their time; a start
    without recorded start time does not count. As the system clock may have changed in between, a line is
    attributed to the start with the latest start time before it.
    """
    begun = [object_or_empty(path).get(BEGUN) for path in environment_files(folder)]
    log = folder / "metrics.jsonl"
    times = [record["time"] for record in read_metrics(log)] if log.is_file() else []
    known = [begin for begin in begun if isinstance(begin, int | float)]
    ends = {begin: min((b for b in known if b > begin), default=math.inf) for begin in known}
    return sum(
        max((time - begin for time in times if begin <= time < ends[begin]), default=0.0)
        for begin, following in pairwise(begun)
        if isinstance(begin, int | float) and isinstance(following, int | float)
    )


def newest_unfinished(parent: Path, config: RunConfig, overrides: Sequence[str]) -> Path | None:
    """Return the newest unfinished run below ``parent`` that was started with the same overrides.

    Runs that another process is writing to are skipped.
    """
    for file in sorted(parent.glob(f"*/*/{OVERRIDES_FILE}"), reverse=True):
        folder = file.parent
        same = False
        with contextlib.suppress(ValueError, TypeError):
            same = sorted(read_yaml(file, list)) == sorted(overrides)
        # A cheap check that does not look at checkpoints.
        ended = steps_ended(object_or_empty(folder / "metrics.json"))
        finished = ended is not None and (not config.trains or ended == config.total_steps)
        if same and not finished and not run_is_locked(folder):
            return folder
    return None
