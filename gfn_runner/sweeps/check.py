"""What is wrong with a launcher's options, found before anything is submitted: SLURM itself is asked."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from gfn_runner.config.validation import validated
from gfn_runner.distributed.ranks import Processes
from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.settings import ELSEWHERE
from gfn_runner.sweeps import slurm
from gfn_runner.sweeps.settings import HereSettings, LauncherSettings, LocalSettings, SlurmSettings

KEY = "hydra.launcher"
PLUGINS = "hydra_plugins.gfn_runner_launchers"
_KINDS: dict[str, type] = {
    f"{PLUGINS}.HereLauncher": HereSettings,
    f"{PLUGINS}.LocalLauncher": LocalSettings,
    f"{PLUGINS}.SlurmLauncher": SlurmSettings,
}
# What SLURM says, and the option that it speaks of.
_SPOKEN_OF = (
    (r"partition", "partition"),
    (r"time", "timeout_min"),
    (r"qos", "qos"),
    (r"account", "account"),
    (r"feature", "constraint"),
    (r"node name", "exclude"),
    (r"generic resource|gres", "gpus_per_node"),
    (r"memory", "mem_gb"),
    (r"unrecognized option|unknown option|ambiguous", "additional_parameters"),
)


def launcher_settings(given: Mapping[str, Any]) -> LauncherSettings | None:
    """The settings of one of our launchers; ``None`` for another's.

    Args:
        given: ``hydra.launcher``, resolved.

    Raises:
        UserError: with all options that are unknown, or of the wrong kind.
    """
    values = dict(given)
    kind = _KINDS.get(str(values.pop("_target_", "")))
    return None if kind is None else validated(KEY, values, kind)


@contextlib.contextmanager
def checked_for(target: str) -> Iterator[None]:
    """Within it configs are checked for where the launcher of that class will run them."""
    before = ELSEWHERE.set(target == f"{PLUGINS}.SlurmLauncher")
    try:
        yield
    finally:
        ELSEWHERE.reset(before)


def launcher_problems(
    given: Mapping[str, Any], processes: Processes, runs: int = 1
) -> Iterator[Problem]:
    """What is wrong with a launcher; nothing is submitted.

    Args:
        given: ``hydra.launcher``, resolved.
        processes: of each run.
        runs: that will be submitted together.
    """
    try:
        options = launcher_settings(given)
    except UserError as error:
        for problem in error.problems:
            # Of a launcher without options the names of others' help more.
            allowed = (
                problem.allowed
                or "none with hydra/launcher=here; local, slurm, slurm_gpu have some"
            )
            yield replace(problem, allowed=allowed)
        return
    if options is None:
        return
    yield from options.problems(processes)
    if not isinstance(options, HereSettings):
        yield from _missing()
    if isinstance(options, SlurmSettings):
        yield from _cluster_problems(options, runs)


def sweeper_problems(target: str) -> Iterator[Problem]:
    """What keeps a sweeper, named by its class, from working here."""
    if target != f"{PLUGINS}.SearchSweeper":
        return
    if find_spec("optuna") is None or find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        yield Problem(
            "hydra/sweeper",
            "the packages for a search are missing",
            "hydra/sweeper=basic, or with the extra packages: search",
            "pip install 'gfn-runner[search]'",
        )


def _missing() -> Iterator[Problem]:
    if find_spec("submitit") is None or find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        yield Problem(
            "hydra/launcher",
            "the packages for it are missing",
            "hydra/launcher=here, or with the extra packages: local, slurm, slurm_gpu",
            "pip install 'gfn-runner[slurm]'",
        )


def _cluster_problems(options: SlurmSettings, runs: int) -> Iterator[Problem]:
    if not slurm.here():
        yield Problem(
            "hydra/launcher",
            "SLURM's commands (sbatch, srun, squeue, sinfo) are not on this machine",
            "a machine from which jobs can be submitted, or hydra/launcher=local",
        )
        return
    try:
        found = list(_partition_problems(options))
        yield from found
        if not found and not list(_missing()):
            yield from _refusals(options, runs)
    except slurm.Unreachable as error:
        yield Problem("hydra/launcher", f"SLURM gives no answer ({error})", "a cluster that is up")


def _partition_problems(options: SlurmSettings) -> Iterator[Problem]:
    known = {partition.name: partition for partition in slurm.partitions()}
    if not known:
        yield Problem(f"{KEY}.partition", "the cluster shows no partition to this user")
        return
    names = options.partition.split(",") if options.partition else []
    for name in names:
        if name not in known:
            yield Problem(f"{KEY}.partition", f"given {name!r}", ", ".join(known))
    chosen = [known[name] for name in names if name in known]
    if not names:
        chosen = [partition for partition in known.values() if partition.default]
        if not chosen:
            yield Problem(
                f"{KEY}.partition", "missing, and this cluster has no default", ", ".join(known)
            )
    limits = [partition.minutes for partition in chosen]
    if limits and all(limit is not None and limit < options.timeout_min for limit in limits):
        # SLURM would take such a job, and let it wait for ever.
        most = max(limit for limit in limits if limit is not None)
        where = ", ".join(partition.name for partition in chosen)
        yield Problem(
            f"{KEY}.timeout_min",
            f"given {options.timeout_min} minutes, above the limit of partition {where}",
            f"at most {most:.0f}",
        )


def _refusals(options: SlurmSettings, runs: int) -> Iterator[Problem]:
    said = slurm.refusal(batch_script(options, runs))
    if not said:
        return
    if runs > 1:
        alone = slurm.refusal(batch_script(options))
        if not alone:
            yield Problem(
                KEY,
                f"SLURM takes one such job, and refuses an array of {runs}: {said}",
                "fewer runs in a sweep (hydra.sweeper.n_jobs in a search); see MaxArraySize in "
                "scontrol show config, and sacctmgr show qos for the jobs that one may have",
            )
            return
        said = alone
    named = next((key for words, key in _SPOKEN_OF if re.search(words, said, re.IGNORECASE)), None)
    if named is None:
        asked = options.for_submitit()
        shown = ("nodes", "tasks_per_node", "cpus_per_task", "mem_gb", "gpus_per_node")
        given = ", ".join(f"{key}={asked[key]}" for key in shown if key in asked)
        yield Problem(KEY, f"SLURM refuses a job with {given}: {said}", "what a node of it has")
        return
    value = getattr(options, named)
    yield Problem(
        f"{KEY}.{named}", f"given {value!r}, and SLURM refuses it: {said}", "see sinfo -N -l"
    )


def batch_script(options: SlurmSettings, runs: int = 1) -> str:
    """A script such as submitit will submit; of several runs it makes an array."""
    import submitit

    executor = submitit.AutoExecutor(cluster="slurm", folder="/tmp/%j")
    executor.update_parameters(**options.for_submitit())
    inner: Any = executor._executor  # submitit has no public word for what comes next
    if runs > 1:
        inner.parameters["map_count"] = runs
    return str(inner._make_submission_file_text("true", "check"))
