"""From the command line to overrides that Hydra will take, with every mistake found beforehand.

Hydra stops at the first unknown key or choice. Here all overrides are composed leniently first and
checked together, for every job of a multirun, before Hydra makes a folder or starts a job.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rapidfuzz import process

from gfn_runner.cli.overrides import absolute_lines, by_itself
from gfn_runner.cli.sources import Sources
from gfn_runner.config.validation import AUTO, RunConfig, check
from gfn_runner.distributed.ranks import Processes
from gfn_runner.errors import Problem, UserError
from gfn_runner.report.headline import direction_of
from gfn_runner.runtime.local_paths import local_paths
from gfn_runner.sweeps.check import checked_for, launcher_problems, sweeper_problems
from gfn_runner.sweeps.record import RECORD, Sweep

_PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout conf lies beside the package, in a wheel inside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
OVERRIDES_FILE = "overrides.yaml"
_ASKS_HYDRA = ("help", "hydra_help", "version", "cfg", "info", "shell_completion")
_MOST_JOBS_CHECKED = 100


@dataclass(frozen=True)
class Checked:
    """A command line that holds.

    Attributes:
        argv: what Hydra gets.
        jobs: the config of each job; of a search, or if there are very many, of so many that every
            value is among them.
        parent: folder in which the run's (or the sweep's) own is to be made; ``None`` if the command
            line names the folder itself.
        multirun: whether it is a sweep.
    """

    argv: list[str]
    jobs: list[RunConfig]
    parent: Path | None = None
    multirun: bool = False


def new_folder(parent: Path) -> Path:
    """Make ``<parent>/<date>/<time>``, with a number added where that is taken.

    Two programs that ask in the same second get different folders.
    """
    now = datetime.now()
    day = parent / f"{now:%Y-%m-%d}"
    day.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = day / (f"{now:%H-%M-%S}" + (f"-{number}" if number > 1 else ""))
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count never ends")


def checked(argv: Sequence[str]) -> Checked | None:
    """Check a command line (without the program's name).

    Returns:
        ``None`` if it asks Hydra itself for something (``--help``, ``--cfg``, …).

    Raises:
        UserError: with all mistakes of all jobs.
    """
    argv = [_with_quotes(word) for word in argv]
    arguments = get_args_parser().parse_args(argv)
    if any(getattr(arguments, name, None) for name in _ASKS_HYDRA):
        return None
    flags = [word for word in argv if word not in arguments.overrides]
    overrides = _parsed(arguments.overrides)
    overrides, folder = _resumed(overrides, arguments.multirun)
    extra = (
        [f"hydra.searchpath=[file://{Path(arguments.config_dir).resolve()}]"]
        if (arguments.config_dir)
        else []
    )
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        lines, problems = _lenient(overrides, extra)
        hydra = _compose([*_without_sweeps(lines), *extra]).hydra
        multirun = arguments.multirun or hydra.mode == RunMode.MULTIRUN
        problems += (
            _for_one_run(overrides) if not multirun else sweeper_problems(hydra.sweeper._target_)
        )
        jobs = _job_lines(lines, hydra.sweeper) if multirun else [lines]
        together = _together(lines, hydra, folder) if multirun else None
        configs = _check_jobs(jobs, extra, problems, together)
    if multirun and _searches(hydra.sweeper) and hydra.sweeper.get("direction", "") is None:
        lines = [*lines, f"hydra.sweeper.direction={_direction(configs)}"]
    lines = absolute_lines(lines, [path for c in configs for path in local_paths(c)])
    named = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    if folder is not None:
        lines = [*lines, f"{named}={_quoted(str(folder))}"]
    parent = None
    if not any(line.lstrip("+").startswith(f"{named}=") for line in lines):
        parent = Path(configs[0].output) / chosen_task(lines)
        parent = parent / "multirun" if multirun else parent
    return Checked([*flags, *lines], configs, parent, multirun)


def with_folder(prepared: Checked, folder: Path | None = None) -> list[str]:
    """The command line for Hydra with the folder of the run, or of the sweep: this one, or a new one."""
    if prepared.parent is None:
        return prepared.argv
    named = "hydra.sweep.dir" if prepared.multirun else "hydra.run.dir"
    folder = folder or new_folder(prepared.parent)
    return [*prepared.argv, f"{named}={_quoted(str(folder))}"]


def chosen_task(lines: Sequence[str]) -> str:
    """The choice of the group ``task`` in override lines; the default if they make none."""
    given = [line.partition("=")[2] for line in lines if line.lstrip("+").startswith("task=")]
    if given:
        return given[-1] if re.fullmatch(r"[\w-]+", given[-1]) else "tasks"
    defaults = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return next(entry["task"] for entry in defaults if isinstance(entry, dict) and "task" in entry)


def _with_quotes(word: str) -> str:
    """Quote the value of ``prompt=``: the shell has taken its quotes, and Hydra needs some."""
    key, equals, value = word.partition("=")
    bare = equals and key == "prompt" and value[:1] not in ("'", '"') and value != "null"
    return f"prompt={_quoted(value)}" if bare else word


def _parsed(lines: Sequence[str]) -> list[Override]:
    parser, overrides, problems = OverridesParser.create(), [], []
    for line in lines:
        try:
            overrides += parser.parse_overrides([line])
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.append(
                Problem(f"command line: {line}", reason, "key=value", "quote text with spaces")
            )
    if problems:
        raise UserError(problems)
    return overrides


# -- resume ---------------------------------------------------------------------------------------


def _resumed(overrides: list[Override], multirun: bool) -> tuple[list[Override], Path | None]:
    """Put the overrides of the run to be resumed or used before the new ones.

    Returns:
        All overrides, and the folder to go on writing to: the resumed run's, else ``None``.
    """
    named = ("resume", "run")
    given = [
        o
        for o in overrides
        if o.key_or_group in named and not o.is_sweep_override() and o.value() is not None
    ]
    if not given or (given[-1].key_or_group, given[-1].value()) == ("resume", AUTO):
        return overrides, None
    key = given[-1].key_or_group
    folder = Path(str(given[-1].value())).expanduser()
    saved_file = folder / OVERRIDES_FILE
    if multirun:
        return _resumed_sweep(overrides, given[-1], folder), folder
    if not saved_file.is_file():
        missing = f"has no {OVERRIDES_FILE}" if folder.is_dir() else "is no folder"
        raise UserError.one(
            str(key),
            f"given {str(folder)!r}, which {missing}",
            "the folder of a run, outputs/<task>/<date>/<time>",
        )
    saved = _parsed(by_itself(_saved_lines(saved_file, str(key))))
    _same_task(saved, overrides, folder, str(key))
    return [*saved, *overrides], folder if key == "resume" else None


def _saved_lines(file: Path, key: str) -> list[str]:
    """The override lines of a run; an empty list is written ``[]``, so an empty file has lost them."""
    try:
        lines = yaml.safe_load(file.read_text(encoding="utf-8"))
        reason = "it is empty" if lines is None else "it holds no list of overrides"
    except (OSError, ValueError, yaml.YAMLError) as error:
        lines, reason = None, str(error).splitlines()[0]
    if not isinstance(lines, list):
        raise UserError.one(
            key,
            f"{file} is unreadable: {reason}",
            "the command line that the run was begun with, as a list",
            "write it there again, a line `- key=value` for each",
        )
    return [str(line) for line in lines]


def _resumed_sweep(overrides: list[Override], given: Override, folder: Path) -> list[Override]:
    """The overrides of the sweep in ``folder``, then the new ones."""
    if given.key_or_group != "resume":
        raise UserError.one(str(given.key_or_group), "given with --multirun", "one run at a time")
    sweep = Sweep.read(folder)
    if not sweep.jobs:
        raise UserError.one(
            "resume",
            f"given {str(folder)!r} with --multirun, and no sweep lies there",
            f"the folder of a sweep, with its {RECORD}; without --multirun the folder of a run",
        )
    return [*_parsed(sweep.overrides), *(o for o in overrides if o is not given)]


def _same_task(saved: list[Override], new: list[Override], folder: Path, key: str) -> None:
    def task_of(overrides: list[Override]) -> Any:
        chosen = [o.value() for o in overrides if o.key_or_group == "task"]
        return chosen[-1] if chosen else None

    before, now = task_of(saved), task_of(new)
    if now is not None and now != before:
        raise UserError.one(
            key,
            f"{folder} is a run of task {before!r}, and task={now} was given",
            f"task={before}, or no task",
        )


# -- composing ------------------------------------------------------------------------------------


def _lenient(overrides: list[Override], extra: list[str]) -> tuple[list[str], list[Problem]]:
    """Override lines in which keys that the yaml files lack are added rather than refused.

    Choices that do not exist are left out of the lines and reported as problems.
    """
    loader = GlobalHydra.instance().config_loader()
    groups = [o for o in overrides if _is_group(loader, o, extra)]
    problems: list[Problem] = []
    for override in list(groups):
        found = list(_choice_problems(loader, override, extra))
        problems += found
        if found:
            groups.remove(override)
            overrides = [o for o in overrides if o is not override]
    base = _compose([str(o.input_line) for o in groups if not o.is_sweep_override()] + extra)
    lines = []
    for override in overrides:
        line = str(override.input_line)
        plain = not (override.is_add() or override.is_force_add() or override.is_delete())
        if override not in groups and plain and not _has_key(base, override.key_or_group):
            line = f"++{line}"
        lines.append(line)
    return lines, problems


def _is_group(loader: Any, override: Override, extra: list[str]) -> bool:
    name = override.key_or_group
    return "." not in name and any(
        _options(loader, name, kind, extra) for kind in (ObjectType.CONFIG, ObjectType.GROUP)
    )


def _options(loader: Any, group: str, kind: ObjectType, extra: list[str]) -> list[str]:
    # With a config name Hydra also looks into the folder that --config-dir adds.
    return loader.get_group_options(group, kind, config_name="config", overrides=extra)


def _choice_problems(loader: Any, override: Override, extra: list[str]) -> Iterator[Problem]:
    if override.is_delete():
        return
    known = sorted(_choices(loader, override.key_or_group, extra))
    if override.is_sweep_override():
        values = [str(v) for v in override.sweep_string_iterator()]
    else:
        value = override.value()
        values = [] if value is None else [str(value)]
    for value in values:
        if value not in known and value != "null":
            near = process.extractOne(value, known, score_cutoff=60)
            fix = f"did you mean {override.key_or_group}={near[0]}?" if near else ""
            yield Problem(
                override.key_or_group, f"given {value!r}", ", ".join(known), fix, "command line"
            )


def _choices(loader: Any, group: str, extra: list[str]) -> Iterator[str]:
    yield from _options(loader, group, ObjectType.CONFIG, extra)
    if group.split("/")[0] == "experiment":
        # Elsewhere an inner folder is a group of its own (callbacks/replay=…).
        for inner in _options(loader, group, ObjectType.GROUP, extra):
            yield from (f"{inner}/{n}" for n in _choices(loader, f"{group}/{inner}", extra))


def _has_key(config: DictConfig, key: str) -> bool:
    *parents, last = key.split(".")
    node: Any = config
    for name in parents:
        if not isinstance(node, DictConfig) or name not in node:
            return False
        node = node[name]
    if key.startswith("hydra.launcher."):
        return False  # its options are checked as ours are
    return key.startswith("hydra.") or (isinstance(node, DictConfig) and last in node)


def _compose(lines: Sequence[str]) -> DictConfig:
    try:
        return compose("config", overrides=list(lines), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        # ValueError: a group set to null; YAMLError: a broken file, whose message names the line.
        reason = " ".join(str(error).split())
        raise UserError.one("config", reason, "see python -m gfn_runner --help") from error


def _without_sweeps(lines: Sequence[str]) -> list[str]:
    parsed = OverridesParser.create().parse_overrides(list(lines))
    return [str(o.input_line) for o in parsed if not o.is_sweep_override()]


def _for_one_run(overrides: Sequence[Override]) -> Iterator[Problem]:
    for override in overrides:
        if override.key_or_group in ("hydra/launcher", "hydra/sweeper"):
            yield Problem(
                str(override.key_or_group),
                f"given {override.value()!r} for one run, which is made in this process",
                "a sweep",
                "-m; it may have a single run too",
            )


def _job_lines(lines: Sequence[str], sweeper: DictConfig) -> list[list[str]]:
    """Overrides of the jobs to be checked: of all, or of so many that each value is in one of them."""
    searches = _searches(sweeper)
    values = _values_of(lines, sweeper)
    number = math.prod(map(len, values.values()))
    if not searches and number <= _MOST_JOBS_CHECKED:
        return [list(job) for job in itertools.product(*values.values())]
    first = {key: lines[0] for key, lines in values.items()}
    others = [{**first, key: line} for key, lines in values.items() for line in lines[1:]]
    return [list(job.values()) for job in (first, *others)]


def _together(lines: Sequence[str], hydra: DictConfig, folder: Path | None) -> int:
    """How many runs are handed to the launcher at once.

    Of a sweep that has begun before it is not known: some have finished, others are in a queue already.
    """
    begun = folder is not None
    with contextlib.suppress(
        OmegaConfBaseException, ValueError
    ):  # a folder that only Hydra can name
        begun = begun or (Path(str(hydra.sweep.dir)) / RECORD).is_file()
    if begun:
        return 1
    if _searches(hydra.sweeper):
        given = hydra.sweeper.get("n_jobs")
        return given if isinstance(given, int) else 1
    return math.prod(map(len, _values_of(lines, hydra.sweeper).values()))


def _searches(sweeper: DictConfig) -> bool:
    return not str(sweeper._target_).endswith(".BasicSweeper")


def _direction(configs: Sequence[RunConfig]) -> str:
    """Which way a search goes.

    Raises:
        UserError: if it has nothing to go by, or two tasks want different ways.
    """
    names = {config.optimized_metric or config.default_metric for config in configs}
    directions = {direction_of(name) for name in names}
    if "" in names or len(directions) > 1:
        told = (
            "no metric"
            if "" in names
            else f"{' and '.join(sorted(names))}, of which one is minimized"
        )
        raise UserError.one(
            "optimized_metric",
            f"the search has {told}",
            "a metric of metrics.json, the same for all runs",
            "optimized_metric=log_reward",
        )
    return directions.pop()


def _values_of(lines: Sequence[str], sweeper: DictConfig) -> dict[str, list[str]]:
    """Every key with the lines that give it one of its values."""
    # Values that a config of the group sweep gives; the command line wins.
    given = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*given, *lines])
    last = {override.get_key_element(): override for override in overrides}
    searches = _searches(sweeper)
    return {
        key: [f"{key}={value}" for value in _values(override, searches)]
        for key, override in last.items()
    }


def _values(override: Override, searches: bool) -> list[str]:
    """What a sweep, or a search, may give a key; of an interval both ends."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if override.is_discrete_sweep():
        return [str(value) for value in override.sweep_string_iterator()]
    if not searches:
        raise UserError.one(
            str(override.key_or_group),
            f"given {override.input_line!r}: a sweep runs through values, an interval has no end of them",
            "values with commas between them, or hydra/sweeper=search",
        )
    interval: Any = override.value()
    return [str(interval.start), str(interval.end)]


def _check_jobs(
    jobs: Sequence[Sequence[str]],
    extra: list[str],
    known: Sequence[Problem],
    together: int | None,
) -> list[RunConfig]:
    """All jobs checked, and the launcher that is handed so many ``together``; without one ``None``."""
    problems = {str(problem): problem for problem in known}
    configs = []
    launchers: dict[str, list[tuple[Any, Processes]]] = {}
    launched = together is not None
    for lines in jobs:
        try:
            composed = _compose([*lines, *extra])
            with checked_for(composed.hydra.launcher._target_ if launched else ""):
                config = check_config(composed, [*lines, *extra])
        except UserError as error:
            problems |= {str(problem): problem for problem in error.problems}
            continue
        configs.append(config)
        launcher: Any = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
        asked = launcher, config.trainer.processes
        launchers.setdefault(repr(asked), []).append(asked)
    if together is not None:
        for alike in launchers.values():
            # Where there are several kinds, those that were looked at are counted.
            runs = together if len(launchers) == 1 else min(together, len(alike))
            found = launcher_problems(*alike[0], runs)
            problems |= {str(problem): problem for problem in found}
    if problems:
        raise UserError(list(problems.values()))
    return configs


def check_lines(lines: Sequence[str]) -> RunConfig:
    """Compose and check one job's overrides; call it with Hydra initialised."""
    return check_config(_compose(lines), lines)


def check_config(composed: DictConfig, lines: Sequence[str]) -> RunConfig:
    """Check a composed config that still holds Hydra's own section."""
    plain = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    choices = dict(composed.hydra.runtime.choices)
    keys = [o.key_or_group for o in OverridesParser.create().parse_overrides(list(lines))]
    source = Sources(CONF, choices, keys)
    try:
        values: Any = OmegaConf.to_container(plain, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError.one(str(error.full_key or "config"), str(error).splitlines()[0]) from error
    return check(values, source)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"
