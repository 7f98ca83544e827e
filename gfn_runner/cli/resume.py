"""Going on with a run: from which checkpoint, whether that may be, and that nobody else writes there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any, TextIO

import yaml
from hydra.errors import HydraException

from gfn_runner.cli.compose import OVERRIDES_FILE
from gfn_runner.cli.overrides import absolute_lines
from gfn_runner.config.validation import AUTO, RunConfig
from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.json_lines import keep_lines, read_metrics
from gfn_runner.runtime.local_paths import local_paths

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
    "sampling.conditions",
    "trainer.accumulate",  # batches are numbered by it, and Lightning counts them
)
_LOCK = ".lock"
_ATTEMPTS, _PAUSE = 10, 0.1  # at it, and seconds between two
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
    finished: Mapping[str, float | None] | None = None


def start_of(config: RunConfig, folder: Path) -> Start:
    """Decide where a run begins, and cut its ``metrics.jsonl`` back to there.

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
            f"resume={folder} to go on with it",
        )
    from gfn_runner.callbacks.checkpoint import damaged_checkpoints, newest_checkpoint

    _refuse_other_run(config, folder)
    newest = newest_checkpoint(folder / "checkpoints")
    damaged = 0 if newest else damaged_checkpoints(folder / "checkpoints")
    if newest is None and config.resume != AUTO:
        raise _no_checkpoint(folder, damaged)
    step = _steps_done(folder, newest)
    if _is_finished(config, folder, step):
        if config.resume == AUTO:
            return Start(newest, finished=_metrics(folder))
        raise UserError.one(
            "resume",
            f"{folder} is finished: it has done {step} of {config.trainer.max_steps} steps",
            f"trainer.max_steps above {step}",
            f"resume={config.resume} trainer.max_steps={2 * max(step, 1)}",
        )
    log = folder / "metrics.jsonl"
    if damaged:
        aside, why = _set_aside(log), _all_damaged(damaged)
        logger.warning("%s %s: it begins anew; what it had logged is in %s", folder, why, aside)
        return Start()
    # What comes behind the checkpoint is done again; so is a final evaluation that was cut off.
    ended = _metrics(folder).get("run/steps") == step
    keep_lines(log, lambda line: line["step"] <= step and (ended or not _is_cut_off(line, step)))
    logger.info("%s goes on from %s", folder, newest or "its beginning: it had saved nothing")
    return Start(newest)


def _is_cut_off(line: Mapping[str, Any], step: int) -> bool:
    return line["step"] == step and any(name.startswith("final/") for name in line)


def _no_checkpoint(folder: Path, damaged: int) -> UserError:
    if not damaged:
        what = f"{folder} has no checkpoint yet"
        return UserError.one("resume", what, "a run that has saved one")
    return UserError.one(
        "resume",
        f"{folder} {_all_damaged(damaged)}",
        "a run with a good checkpoint",
        f"put a good one back; resume=auto hydra.run.dir={folder} begins anew there",
    )


def _all_damaged(number: int) -> str:
    which = "its only checkpoint is" if number == 1 else f"all {number} checkpoints are"
    return f"cannot go on: {which} damaged"


def _set_aside(log: Path) -> Path:
    """Give a log another name, and no earlier one's; return it."""
    for number in count(1):
        name = f"{log.stem}.damaged" + (f"-{number}" if number > 1 else "") + log.suffix
        aside = log.with_name(name)
        if not aside.exists():
            if log.exists():
                log.rename(aside)
            return aside
    raise AssertionError("count never ends")


def finished_metrics(config: RunConfig, folder: Path) -> dict[str, float] | None:
    """Final metrics of this run if ``folder`` holds it and nothing of it is left to do; changes nothing.

    Raises:
        UserError: if the folder holds another run.
    """
    if not (folder / OVERRIDES_FILE).exists() or not _metrics(folder):
        return None
    from gfn_runner.callbacks.checkpoint import newest_checkpoint

    _refuse_other_run(config, folder)
    step = _steps_done(folder, newest_checkpoint(folder / "checkpoints"))
    if not _is_finished(config, folder, step):
        return None
    return {name: value for name, value in _metrics(folder).items() if value is not None}


def _steps_done(folder: Path, checkpoint: Path | None) -> int:
    """Optimizer steps behind a run: of its newest checkpoint; where all are damaged, as it had ended."""
    from gfn_runner.callbacks.checkpoint import damaged_checkpoints

    if checkpoint is not None:
        return int(checkpoint.stem.removeprefix("step-"))
    if damaged_checkpoints(folder / "checkpoints"):
        return int(_metrics(folder).get("run/steps") or 0)
    return 0


def _is_finished(config: RunConfig, folder: Path, step: int) -> bool:
    evaluated = _metrics(folder).get("run/steps")
    if _trains_nothing(config):
        return evaluated is not None
    from gfn_runner.algorithms.em import read_record

    trained = step >= config.total_steps and read_record(folder).m_steps == config.em.rounds
    return trained and evaluated == step


def _trains_nothing(config: RunConfig) -> bool:
    return config.baseline is not None and config.baseline.lightning_module is None


def _metrics(folder: Path) -> dict[str, float | None]:
    """The final metrics; none where there are none yet."""
    try:
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_other_run(config: RunConfig, folder: Path) -> None:
    """Refuse to go on with a run under settings that its checkpoint does not belong to."""
    from gfn_runner.rounds import resume_problems

    saved = _saved_config(folder / "config.yaml")
    now = config.as_dict()
    _make_paths_absolute(saved, config)
    problems = []
    for key in _FIXED:
        before, given = _at(saved, key), _at(now, key)
        if before != given:
            problems.append(
                Problem(key, f"given {given!r}", f"{before!r}, as in the run to be resumed")
            )
    problems += resume_problems(saved, config, folder)
    if problems:
        raise UserError(problems)


def _saved_config(file: Path) -> dict[str, Any]:
    """The config that a run was begun with.

    Raises:
        UserError: if it cannot be read; compared with nothing, every setting would be a mistake.
    """
    try:
        saved = yaml.safe_load(file.read_text(encoding="utf-8"))
        reason = "it is empty" if saved is None else "it holds no settings"
    except (OSError, ValueError, yaml.YAMLError) as error:
        saved, reason = None, str(error).splitlines()[0]
    if not isinstance(saved, dict) or not saved:
        raise UserError.one(
            "resume",
            f"{file} is unreadable: {reason}",
            "the config.yaml that the run has written",
            "put it back (python -m gfn_runner … dry_run=true prints one), or begin another run",
        )
    return saved


def _make_paths_absolute(saved: dict[str, Any], config: RunConfig) -> None:
    """Local paths of a saved config as a config of today holds them.

    Older runs have relative ones; and what is gone from its place has moved to where it is given now, if
    it has kept its name.
    """
    for key, mark, now in local_paths(config):
        parent, _, name = key.rpartition(".")
        section = _at(saved, parent)
        before = section.get(name) if isinstance(section, dict) else None
        if isinstance(before, str):
            section[name] = _as_now(mark.absolute(before), now)
        elif isinstance(before, list):
            texts = [mark.absolute(str(item)) for item in before]
            given = now if len(now) == len(texts) else texts
            section[name] = [_as_now(*pair) for pair in zip(texts, given, strict=True)]


def _as_now(before: str, now: str | None) -> str:
    moved = (
        now is not None
        and Path(before).is_absolute()
        and Path(before).name == Path(now).name
        and Path(now).exists()
        and not Path(before).exists()
    )
    return now if moved and now is not None else before


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


# -- resume=auto without a folder ---------------------------------------------------------------


def other_settings(config: RunConfig, folder: Path) -> list[str]:
    """Keys in which a run was made with others than these, as ``key=<what it was>``."""
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    before, now = dict(_leaves(saved)), dict(_leaves(config.as_dict()))
    passing = ("resume", "output", "dry_run", "logger.")
    return [
        f"{key}={before.get(key)}"
        for key in dict.fromkeys((*before, *now))
        if before.get(key) != now.get(key) and not key.startswith(passing)
    ]


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for name, branch in tree.items():
            yield from _leaves(branch, f"{key}.{name}" if key else str(name))
    else:
        yield key, tree


def seconds_before(folder: Path) -> float:
    """Time of a resumed run's earlier parts: of each, from its beginning to its last step that counts.

    What a part did behind the checkpoint that the next one went on from is lost, and its time with it;
    so is that of a part whose beginning nobody wrote down.
    """
    parts = sorted(folder.glob("environment*.json"), key=lambda path: (len(path.name), path.name))
    begun = [_begun(path) for path in parts]
    log = folder / "metrics.jsonl"
    times = [record["time"] for record in read_metrics(log)] if log.is_file() else []
    return sum(
        max((time - begin for time in times if begin <= time < end), default=0.0)
        for begin, end in pairwise(begun)
        if begin is not None and end is not None
    )


def _begun(path: Path) -> float | None:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))[BEGUN])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def newest_unfinished(parent: Path, config: RunConfig, overrides: Sequence[str]) -> Path | None:
    """The newest run below ``parent`` that was begun with the same overrides and has not ended.

    One that another process is writing is passed over.
    """
    paths = list(local_paths(config))
    for file in sorted(parent.glob(f"*/*/{OVERRIDES_FILE}"), reverse=True):
        folder = file.parent
        try:
            # Older runs have relative paths.
            begun = absolute_lines(yaml.safe_load(file.read_text(encoding="utf-8")), paths)
            same = sorted(begun) == sorted(overrides)
        except (OSError, ValueError, TypeError, yaml.YAMLError, HydraException):
            continue
        # Cheaply: which checkpoint a run has is not looked at.
        evaluated = _metrics(folder).get("run/steps")
        wanted = evaluated if _trains_nothing(config) else config.total_steps
        finished = evaluated is not None and evaluated == wanted
        if same and not finished and not is_held(folder):
            return folder
    return None


# -- one process a folder -----------------------------------------------------------------------


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within it no other process trains in ``folder``. The system lets go of it when the process ends.

    Raises:
        UserError: if another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    with contextlib.closing(_own(path)) as file:
        free = _locked(file, fcntl.LOCK_EX)
        file.seek(0)
        holder = file.read().strip()
        if free is False or (free is None and _is_alive(holder)):
            raise UserError.one(
                "resume",
                f"{folder} is being written by {holder or 'another process'}",
                "a folder in which no run is under way",
                "wait for it, or stop it first",
            )
        file.truncate(0)
        file.write(_this_process() + "\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _own(path: Path) -> TextIO:
    """The lock's file, locked if that can be had within a moment.

    Who only looks whether it is locked has it for that long; and who lets go of it removes the file, so
    that the one that was opened may be nobody's any more.
    """
    for attempt in range(_ATTEMPTS):
        file = path.open("a+", encoding="utf-8")
        free = _locked(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            there = os.path.samestat(os.fstat(file.fileno()), path.stat())
            if there and (free is not False or attempt == _ATTEMPTS - 1):
                return file
        file.close()
        time.sleep(_PAUSE)
    return path.open("a+", encoding="utf-8")


def is_held(folder: Path) -> bool:
    """Whether another process trains in ``folder``."""
    try:
        with (folder / _LOCK).open(encoding="utf-8") as file:
            # A shared lock is refused while another process has the exclusive one, and NFS gives it for a
            # file that is open for reading.
            free = _locked(file, fcntl.LOCK_SH)
            return not free if free is not None else _is_alive(file.read().strip())
    except OSError:
        return False


def _locked(file: Any, kind: int) -> bool | None:
    """Take a lock of an open file; whether nobody else has it, ``None`` where that cannot be known."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        # POSIX lets a system say either of the two.
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def _this_process() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def _is_alive(holder: str) -> bool:
    """Whether a process that has written its name into a lock runs, as far as this machine can tell.

    For file systems without locks. Of another machine's process nothing is known: it counts as gone, so
    that a run goes on when its job was killed and begins elsewhere.
    """
    found = re.fullmatch(r"process (\d+) on (.*)", holder)
    if found is None or found[2] != platform.node() or int(found[1]) == os.getpid():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True
