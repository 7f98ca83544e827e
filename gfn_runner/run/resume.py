"""Going on with a run: from which checkpoint, and whether that may be."""

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

# What a checkpoint depends on; the rest (schedules, steps, evaluation, loggers) may change.
_FIXED = (
    "task",
    "objective._target_",
    "baseline",
    "lm.name",
    "lm.gguf_file",
    "lm.lora",
    "seed",
    "sampling.n_conditions",
    "trainer.accumulate_grad_batches",  # batches are numbered by it, and Lightning counts them
)
# What an M-step depends on as well, once one was made.
_FIXED_BY_M_STEPS = ("trainer.max_steps", "em.lora")
# In environment*.json: seconds since 1970 at which that part of the run began.
BEGUN = "begun"


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: to go on from; ``None`` to begin.
        finished: with ``resume=auto``, the final metrics of a run that has nothing left to do.
    """

    checkpoint: Path | None = None
    finished: Mapping[str, float] | None = None


def start_of(config: RunConfig, folder: Path) -> Start:
    """Decide where a run begins; changes nothing but the names of damaged checkpoints.

    Raises:
        UserError: if the folder holds a run and ``resume`` does not say to go on with it; if it is
            another one; if a checkpoint cannot be read; with ``resume=<folder>``, if there is nothing to
            go on from, or nothing to do.
    """
    if not (folder / OVERRIDES_FILE).exists():
        return Start()
    if config.resume is None:
        raise UserError.one(
            "hydra.run.dir",
            f"{folder} holds a run already",
            "a folder without one",
            f"{_resume(folder)} to go on with it",
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
        fix = "put a good one back, or begin another run"
        raise UserError.one(
            "resume", f"{folder} cannot go on: {why}", "a run with a good checkpoint", fix
        )
    return Start(newest)


def _resume(folder: Path) -> str:
    """The word to type."""
    return shlex.quote(f"resume={folder}")


def cut_back(folder: Path, checkpoint: Path | None) -> None:
    """Leave in a run's log what its newest checkpoint knows of; what comes after it is done again."""
    remove_unfinished(folder)
    step = _steps_done(folder, checkpoint)
    ended = object_or_empty(folder / "metrics.json").get("run/steps") == step

    def counts(line: Mapping[str, Any]) -> bool:
        # A final evaluation that was cut off is done again; one that had ended stays.
        is_final = any(name.startswith("final/") for name in line)
        return line["step"] < step or (line["step"] == step and (ended or not is_final))

    filter_lines(folder / "metrics.jsonl", counts)
    logger.info("%s resumes from %s", folder, checkpoint or "the beginning: nothing was saved")


def finished_metrics(config: RunConfig, folder: Path) -> dict[str, float] | None:
    """Final metrics of this run if ``folder`` holds it and nothing of it is left to do; changes nothing.

    Raises:
        UserError: if the folder holds another run.
    """
    if not all((folder / name).exists() for name in (OVERRIDES_FILE, "metrics.json")):
        return None
    _refuse_other_run(config, folder)
    step = _steps_done(folder, newest_checkpoint(folder / "checkpoints"))
    return _final_metrics(config, folder, step)


def _steps_done(folder: Path, checkpoint: Path | None) -> int:
    """Optimizer steps of a run: of its newest checkpoint; where all are damaged, as it had ended."""
    if checkpoint is not None:
        return int(checkpoint.stem.removeprefix("step-"))
    if damaged_checkpoints(folder / "checkpoints"):
        return int(object_or_empty(folder / "metrics.json").get("run/steps") or 0)
    return 0


def _final_metrics(config: RunConfig, folder: Path, step: int) -> dict[str, float] | None:
    """Those of a run of which, after so many steps, nothing is left to do; else ``None``."""
    metrics = object_or_empty(folder / "metrics.json")
    evaluated = metrics.get("run/steps")
    if config.trains:
        trained = max(step, steps_ended(metrics) or 0) >= config.total_steps
        ended = trained and evaluated == step and read_record(folder).m_steps == config.em.rounds
    else:
        ended = evaluated is not None
    return {name: value for name, value in metrics.items() if value is not None} if ended else None


# -- the same settings ----------------------------------------------------------------------------


def _refuse_other_run(config: RunConfig, folder: Path) -> None:
    """Refuse to go on with a run under settings that its checkpoint does not belong to."""
    file, now = folder / "config.yaml", config.values
    try:
        saved = read_yaml(file, dict)
    except ValueError as error:  # compared with nothing, every setting would be another one
        raise UserError.one(
            "resume",
            f"{file} is unreadable: {error}",
            "the config.yaml that the run has written",
            "put it back (python -m gfn_runner … dry_run=true prints one), or begin another run",
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
        allowed = f"at least {m_steps}: so many M-steps were made"
        problems.append(Problem("em.rounds", f"given {config.em.rounds}", allowed))
    if problems:
        raise UserError(problems)


def _is_same(before: Any, now: Any) -> bool:
    """Whether a setting is as it was; a file that is gone from its place may be at another, by its name."""
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
    """Keys in which a run was made with others than these, as ``key=<what it was>``."""
    saved = read_yaml(folder / "config.yaml", dict)
    before, now = flat(saved), flat(config.values)
    passing = ("resume", "output", "dry_run", "logger.")
    return [
        f"{key}={before.get(key)}"
        for key in dict.fromkeys((*before, *now))
        if before.get(key) != now.get(key) and not key.startswith(passing)
    ]


# -- earlier parts, earlier runs ------------------------------------------------------------------


def seconds_before(folder: Path) -> float:
    """Time of a resumed run's earlier parts: of each, from its beginning to its last step that counts.

    What a part did after the checkpoint that the next one went on from is lost, and its time with it;
    so is that of a part whose beginning nobody wrote down. The clock may have been set between parts: a line
    is of the part that had begun last before it.
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
    """The newest run below ``parent`` that was begun with the same overrides and has not ended.

    One that another process is writing is passed over.
    """
    for file in sorted(parent.glob(f"*/*/{OVERRIDES_FILE}"), reverse=True):
        folder = file.parent
        same = False
        with contextlib.suppress(ValueError, TypeError):
            same = sorted(read_yaml(file, list)) == sorted(overrides)
        # Cheaply: which checkpoint a run has is not looked at.
        ended = steps_ended(object_or_empty(folder / "metrics.json"))
        finished = ended is not None and (not config.trains or ended == config.total_steps)
        if same and not finished and not run_is_locked(folder):
            return folder
    return None
