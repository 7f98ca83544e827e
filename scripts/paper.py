"""The paper's tables on the embedded model: every method over seeds, then docs/results/.

    python scripts/paper.py                              # all tables, up to three hours on two cores
    python scripts/paper.py --tables arithmetic --seeds 0
    python scripts/paper.py --tables arithmetic --report-only
    python scripts/paper.py --tables arithmetic --overrides lm.name=<folder> --folder … --write …

A method's seeds are one Hydra multirun, in outputs/paper/<table>/<method>/seed<n>. What is finished there
under the same overrides is not run again; what was interrupted goes on from its checkpoint, and what has
failed is tried again. A run that fails is named in the report, with the end of its log; the others go on.
A report a table lies in docs/results/<table>/, and what they come to in docs/results/README.md.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from results import ROOT, same_run

from gfn_runner.runtime.environment import threads_per_process
from gfn_runner.runtime.terminal import escape_unencodable_output


@dataclass(frozen=True)
class Table:
    """A table of the paper at the embedded model's size.

    Attributes:
        common: overrides of all methods.
        methods: name to overrides; ``{runs}`` stands for the table's folder and ``{seed}`` for the seed,
            of methods that learn from another's run.
        metrics: columns of the report; the task's own choice if empty.
    """

    common: tuple[str, ...]
    methods: Mapping[str, tuple[str, ...]]
    metrics: tuple[str, ...] = field(default=())


NO_ROWS = (
    "evaluation.baseline_shots=[]",
    "evaluation.baseline_temperatures=[]",
)
_DRAWS = "baseline.draws=[1,2,4,8,16,32,64,128,256]"
# The ratio of KL and reward is that of the default; the value loss is a hundred times as large.
_PPO_AT_1 = ("baseline=ppo", "baseline.reward_scale=1", "baseline.kl_weight=0.05")
_OF_GFLOWNET = "baseline.samples_of={runs}/gflownet/seed{seed}"


def _subjectivity(n: int) -> Table:
    return Table(
        # Half of the generated reviews: five numbers of examples on all 500 do not go into three hours.
        ("task=subjectivity", f"task.data.n_train={n}", "evaluation.final=250", *NO_ROWS),
        {
            "gflownet": (),
            "prompting": (
                "baseline=prompting",
                f"baseline.shots={[k for k in (0, 3, 5, 10, 20) if k <= n]}".replace(" ", ""),
            ),
            "sft": ("baseline=sft", "trainer.max_steps=60"),
        },
        ("vote_accuracy", "predictive_accuracy", "single_accuracy"),
    )


TABLES: dict[str, Table] = {
    "arithmetic": Table(
        ("task=arithmetic", "evaluation.final=200", *NO_ROWS),
        {
            "gflownet": (),
            "prompting": ("baseline=prompting", "evaluation.baseline_limit=100"),
            "sft": ("baseline=sft",),
            "sft_on_gflownet": ("baseline=sft", _OF_GFLOWNET),
            "ppo": ("baseline=ppo",),
            "ppo_at_1": _PPO_AT_1,
            "grpo": ("baseline=grpo",),
            "resampling": ("baseline=resampling", _DRAWS, "evaluation.baseline_limit=50"),
        },
        ("vote_accuracy", "single_accuracy", "log_reward", "phi_spread"),
    ),
    "infilling": Table(
        ("task=infilling", *NO_ROWS),
        {
            "gflownet": (),
            "prompting": ("baseline=prompting", "baseline.shots=[0]"),
            "sft": ("baseline=sft", "lm=tiny_head"),
            "ppo": ("baseline=ppo", "trainer.max_steps=400"),
            "grpo": ("baseline=grpo", "trainer.max_steps=400"),
            "resampling": ("baseline=resampling", _DRAWS),
        },
    ),
    **{f"subjectivity_{n}": _subjectivity(n) for n in (10, 20, 50)},
    "random_number": Table(
        ("task=random_number", *NO_ROWS),
        {
            "gflownet": (),
            "prompting": ("baseline=prompting", "baseline.shots=[0]"),
            "sft": ("baseline=sft",),
            "ppo": _PPO_AT_1,
            "exact": ("baseline=exact",),
        },
    ),
    "continuation": Table(
        # Log-likelihoods differ from prompt to prompt: all methods have the same ones.
        ("task=continuation", "evaluation.final=15", *NO_ROWS),
        {
            "gflownet": (),
            "decoding": ("baseline=decoding",),
            "ppo": ("baseline=ppo", "trainer.max_steps=200"),
            "grpo": ("baseline=grpo", "trainer.max_steps=200"),
        },
        ("log_likelihood", "log_likelihood_max", "diversity", "unique", "log_reward"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--methods", nargs="+", help="of each table; all of them if not given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--overrides", nargs="+", default=[], help="of all runs, e.g. lm.name=<folder>"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "paper")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; they share the cores")
    parser.add_argument("--report-only", action="store_true", help="of what is finished already")
    arguments = parser.parse_args()
    for name in arguments.tables:
        if not arguments.report_only:
            make(name, arguments)
        report(name, arguments)
    claims = [sys.executable, "scripts/paper_claims.py", "--folder", short(arguments.folder)]
    claims += ["--write", short(arguments.write), "--seeds", *map(str, arguments.seeds)]
    if subprocess.run(claims, cwd=ROOT).returncode:
        raise SystemExit(1)


def make(name: str, arguments: argparse.Namespace) -> None:
    """Run what a table lacks; a method that learns from another's runs comes after those."""
    methods = TABLES[name].methods
    own = {m: lines for m, lines in methods.items() if m in (arguments.methods or methods)}
    teachers = {m: set(re.findall(r"\{runs\}/(\w+)/", " ".join(lines))) for m, lines in own.items()}
    jobs: dict[str, Future[None]] = {}

    def after(method: str) -> None:
        for teacher in teachers[method] & jobs.keys():
            jobs[teacher].result()
        # With overrides of its own each seed is a sweep of one, and one folder has one sweep at a time.
        for seed in arguments.seeds:
            run_seeds(name, method, [seed], arguments)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        # A method is submitted after those it waits for: a pool of one job would wait forever otherwise.
        for method in sorted(own, key=lambda m: bool(teachers[m])):
            if teachers[method]:
                jobs[method] = pool.submit(after, method)
            else:
                jobs[method] = pool.submit(run_seeds, name, method, arguments.seeds, arguments)
        for job in jobs.values():
            job.result()


def run_seeds(name: str, method: str, seeds: Sequence[int], arguments: argparse.Namespace) -> None:
    """Bring all seeds of a method to their end, or to a failure that is on record.

    They are one sweep, which goes on where it was: what has finished is not run again.
    """
    folder = arguments.folder / name / method
    folder.mkdir(parents=True, exist_ok=True)
    lines = {seed: overrides(name, method, seed, arguments) for seed in seeds}
    # All of them are looked at: what lies in a seed's place and is something else has to go.
    left = [seed for seed in seeds if not finished(folder / f"seed{seed}", lines[seed])]
    if not left:
        return
    sweep = [*lines[left[0]][:-1], f"seed={','.join(map(str, left))}"]
    places = [f"hydra.sweep.dir={short(folder)}", "hydra.sweep.subdir=seed${seed}"]
    threads = threads_per_process(arguments.jobs)
    attempt(folder, ["-m", *sweep, *places], f"{name}, {method}, seeds {left}", threads)


def overrides(name: str, method: str, seed: int, arguments: argparse.Namespace) -> list[str]:
    """Of one run; the seed last."""
    table = TABLES[name]
    own = [
        line.format(runs=short(arguments.folder / name), seed=seed)
        for line in table.methods[method]
    ]
    return [*table.common, *own, *arguments.overrides, f"seed={seed}"]


def finished(folder: Path, lines: Sequence[str]) -> bool:
    """Whether a run of these overrides has ended in a folder.

    What lies in its place and is something else is moved aside, never deleted.
    """
    known = (folder / "overrides.yaml").is_file() and same_run(folder, list(lines))
    if folder.exists() and not known:
        aside = folder.parent / "aside"
        aside.mkdir(exist_ok=True)
        folder.rename(aside / f"{folder.name}-{time.time_ns()}")
    return known and (folder / "metrics.json").is_file()


def attempt(folder: Path, arguments: Sequence[str], what: str, threads: int) -> None:
    """One call of the program; what it says goes to a log beside the runs.

    The number of threads is no override: on another machine, or with other ``--jobs``, the runs are the
    same ones.
    """
    command = [sys.executable, "-m", "gfn_runner", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    print(f"{what}: begins", flush=True)
    began = time.time()
    with (folder / "multirun.log").open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    end = "ends" if code == 0 else f"FAILED with exit code {code}; see {folder / 'multirun.log'}"
    print(f"{what}: {end}, {(time.time() - began) / 60:.1f} minutes", flush=True)


def report(name: str, arguments: argparse.Namespace) -> None:
    """The table's page."""
    folders = [
        str(arguments.folder / name / method / f"seed{seed}")
        for method in TABLES[name].methods
        for seed in arguments.seeds
        if (arguments.folder / name / method / f"seed{seed}").is_dir()
    ]
    if not folders:
        print(f"{name}: no run to report on")
        return
    shown = [short(folder) for folder in folders]
    command = [sys.executable, "-m", "gfn_runner.report", *shown, "--out"]
    command += [short(arguments.write / name)]
    if TABLES[name].metrics:
        command += ["--metrics", *TABLES[name].metrics]
    if subprocess.run(command, cwd=ROOT).returncode:
        print(f"{name}: no report, as it says above; the other tables go on", flush=True)


def short(path: Path | str) -> str:
    """Relative to the repository, where it lies within it: pages name no home folder."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    escape_unencodable_output()
    main()
