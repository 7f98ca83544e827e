"""Compare changes to training at equal CPU time, for docs/recipes.md.

    python scripts/recipes.py --list
    python scripts/recipes.py                                        # all of them, three seeds
    python scripts/recipes.py --tasks infilling --minutes 2 5 --seeds 0
    python scripts/recipes.py --report-only                          # the page of what is finished

The number of steps of a run is its minutes on one core divided by the CPU time of a step, see ``SECTIONS``;
the page shows the measured minutes of training. Runs are in outputs/recipes/<task>/<recipe> and may be
interrupted. Their numbers are kept next to the page, in docs/recipes.jsonl: another machine executes only
the runs that are missing there.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from run_records import TRAINING_MINUTES, Runs
from seed_tables import Job, cell, markdown, options, run_once, write_block

from gfn_runner.report.runs import Run
from gfn_runner.runtime.environment import threads_per_process
from gfn_runner.runtime.terminal import prepare_output


@dataclass(frozen=True)
class Recipe:
    """A row of the table.

    Attributes:
        seconds: CPU seconds of a step, measured on one core of an AMD EPYC (2.5 GHz).
        overrides: the changed settings; if empty, the task's defaults.
    """

    seconds: float
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """The recipes of a task.

    Attributes:
        recipes: recipes by their name in the table.
        columns: titles to metrics of ``metrics.json``.
        resampling: overrides of a run that resamples draws of the base model; ``None`` for no such run.
        common: overrides of all runs.
    """

    recipes: Mapping[str, Recipe]
    columns: Mapping[str, str]
    resampling: tuple[str, ...] | None = None
    common: tuple[str, ...] = ()


_COMMON = (
    "logger=local",
    "callbacks.report=null",
    "callbacks.evaluation.every_n_steps=0",
    "evaluation.baseline_shots=[]",
    "evaluation.baseline_temperatures=[]",
)
MINUTES = (2, 5, 10)
_DRAWS = 256
_RESAMPLED = f"resampled from {_DRAWS} draws"
# The settings of task=infilling before 2026-11-30, and before 2026-11-29.
_NO_SFT = ("sampling.sft_share=0", "optimizer.lr=2e-3")
_TEMPLATE = 'task.template="Beginning: {beginning}\\nEnding: {ending}\\nMiddle:"'
_NO_REPLAY = ("callbacks/replay_buffer=off", "callbacks.replay_buffer.beside_fresh=0")
_EARLIER = (
    "lm=tiny_head",
    "sampling=hot",
    *_NO_REPLAY,
    "objective.regression.kind=squared",
    "scheduler.warmup_steps=50",
)
_FEW_DRAWS = 16
_POSTERIOR = (
    "callbacks/replay_buffer=beside_fresh",
    f"callbacks.replay_buffer.posterior_draws={_FEW_DRAWS}",
)
SECTIONS: dict[str, Section] = {
    "infilling": Section(
        {
            "default": Recipe(0.44),
            "no SFT": Recipe(1.10, _NO_SFT),
            "SFT alone": Recipe(0.27, ("baseline=sft", *_NO_REPLAY)),
            **{
                f"{name}, no SFT": Recipe(seconds, (*_NO_SFT, *changes))
                for name, seconds, changes in (
                    ("earlier default", 1.15, (_TEMPLATE, *_EARLIER)),
                    ("the paper's prompt", 1.10, (_TEMPLATE,)),
                    ("no true middles beside fresh strings", 0.97, _NO_REPLAY),
                    ("squared loss", 1.10, ("objective.regression.kind=squared",)),
                    (
                        "8 conditions of 16 samples",
                        0.95,
                        ("sampling.n_conditions=8", "sampling.n_samples=16"),
                    ),
                    ("joint objective", 2.20, ("objective=joint",)),
                    ("1 beside fresh strings", 1.04, ("callbacks.replay_buffer.beside_fresh=1",)),
                )
            },
        },
        {
            "Jeffreys, nats": "jeffreys/stories",
            "fits both": "fits_both_share/stories",
            "diversity": "diversity/stories",
            "log R": "log_reward/stories",
        },
        resampling=("evaluation.final=100",),
    ),
    "continuation": Section(
        {
            "default": Recipe(1.20),
            "VarGrad, LoRA of rank 64": Recipe(1.25, ("objective=vargrad", "lm=tiny_wide")),
            "32 conditions of 4 samples": Recipe(1.50, ("sampling=few_samples",)),
            f"{_FEW_DRAWS} posterior draws beside fresh strings": Recipe(3.80, _POSTERIOR),
        },
        {
            "Jeffreys of news, nats": "jeffreys/news",
            "Jeffreys of stories": "jeffreys/stories",
            "log-likelihood of news": "log_likelihood/news",
            "diversity of news": "diversity/news",
            "log-likelihood of stories": "log_likelihood/stories",
            "diversity of stories": "diversity/stories",
        },
    ),
    "arithmetic": Section(
        {
            "default": Recipe(1.35, ("objective=vargrad",)),
            "earlier default, joint objective": Recipe(1.80, ("objective=joint",)),
            "output layer, rate 1e-3 with decay": Recipe(
                1.40,
                ("objective=vargrad", "lm=tiny_head", "scheduler=linear", "optimizer.lr=1e-3"),
            ),
            "32 conditions of 4 samples, rationales beside fresh strings": Recipe(
                2.00,
                (
                    "objective=vargrad",
                    "sampling=few_samples",
                    "callbacks/replay_buffer=beside_fresh",
                ),
            ),
        },
        {
            "Jeffreys, 3 operands, nats": "jeffreys/3_operands",
            "5 operands": "jeffreys/5_operands",
            "one sample, 3": "single_accuracy/3_operands",
            "4": "single_accuracy/4_operands",
            "5": "single_accuracy/5_operands",
            "vote, 5": "vote_accuracy/5_operands",
        },
    ),
    "constrained": Section(
        {
            "default": Recipe(1.90),
            "joint objective": Recipe(2.60, ("objective=joint",)),
            "32 conditions of 4 samples": Recipe(1.40, ("sampling=few_samples",)),
            f"32 conditions of 4 samples, {_FEW_DRAWS} posterior draws beside fresh strings": Recipe(
                3.60, ("sampling=few_samples", *_POSTERIOR)
            ),
        },
        {
            "Jeffreys, 1 word, nats": "jeffreys/1_words",
            "3 words": "jeffreys/3_words",
            "satisfied, 1": "satisfied_share/1_words",
            "3": "satisfied_share/3_words",
            "diversity, 1": "diversity/1_words",
            "diversity, 3": "diversity/3_words",
        },
    ),
}


def main(given: Sequence[str] | None = None) -> None:
    parser = options(__doc__, "recipes", "recipes.md", jobs=2)
    parser.add_argument("--tasks", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument(
        "--minutes",
        nargs="+",
        type=int,
        default=MINUTES,
        choices=MINUTES,
        help="minutes of one core per run",
    )
    parser.add_argument(
        "--list", action="store_true", help="list the runs, done or not; run nothing"
    )
    parser.add_argument("--report-only", action="store_true", help="only report on finished runs")
    arguments = parser.parse_args(given)
    folder, at_once = arguments.folder.resolve(), arguments.jobs
    runs, lock = Runs(folder, arguments.write.with_suffix(".jsonl")), Lock()
    jobs = [
        (task, job)
        for seed in arguments.seeds
        for task in arguments.tasks
        for job in jobs_of(task, arguments.minutes, seed)
    ]
    missing = [(task, job) for task, job in jobs if not runs.done(task, job)]
    if arguments.list:
        state = {True: "not run", False: "done"}
        print(
            "\n".join(f"{t:14} {j.name} seed {j.seed}: {state[(t, j) in missing]}" for t, j in jobs)
        )
        return

    def make(pair: tuple[str, Job]) -> None:
        task, job = pair
        run_once(job, folder / task, threads_per_process(at_once))
        with lock:
            runs.add(task, job)
            write_block(arguments.write, "recipes", page(runs))

    if not arguments.report_only:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(make, missing))
    write_block(arguments.write, "recipes", page(runs))


def jobs_of(task: str, minutes: Sequence[int], seed: int) -> list[Job]:
    """Return the runs of each recipe and time, and the run that resamples from the posterior."""
    section = SECTIONS[task]
    common = (f"task={task}", *_COMMON, *section.common)
    jobs = [
        Job(
            f"{name}, {limit} min",
            [*common, *recipe.overrides, f"trainer.max_steps={round(limit * 60 / recipe.seconds)}"],
            seed,
        )
        for limit in minutes
        for name, recipe in section.recipes.items()
    ]
    if section.resampling is not None:
        lines = [*common, *section.resampling, "baseline=resampling", f"baseline.draws=[{_DRAWS}]"]
        jobs.append(Job(_RESAMPLED, lines, seed))
    return jobs


def page(runs: Runs) -> list[str]:
    """Return one table per task with the finished runs; recipes without a run have no row."""
    lines: list[str] = []
    for task in SECTIONS:
        rows = _rows(task, runs)
        if rows:
            header = ["recipe", "seeds", "steps", "CPU minutes"]
            lines += [f"### {task}", "", *markdown([*header, *SECTIONS[task].columns], rows), ""]
            lines += _commands(task)
    return lines


def _rows(task: str, runs: Runs, most_seeds: int = 5) -> list[list[str]]:
    found: dict[str, list[Run]] = {}
    for seed in range(most_seeds):
        for job in jobs_of(task, MINUTES, seed):
            if run := runs.done(task, job):
                found.setdefault(job.name, []).append(run)
    rows = []
    for name, own in found.items():
        row = f"resampled_{_DRAWS}" if name == _RESAMPLED else "final"
        metrics = list(SECTIONS[task].columns.values())
        trained = row == "final"
        cost = (
            [f"{own[0].metrics['run/steps']:.0f}", cell(TRAINING_MINUTES, own)]
            if trained
            else ["", ""]
        )
        rows.append([name, str(len(own)), *cost, *(cell(f"{row}/{m}", own) for m in metrics)])
    return rows


def _commands(task: str) -> list[str]:
    """List the overrides of each recipe."""
    section = SECTIONS[task]
    common = " ".join((f"task={task}", *section.common))
    lines = [f"Runs: `python -m gfn_runner {common} trainer.max_steps=…` and", ""]
    for name, recipe in section.recipes.items():
        changes = f"`{shlex.join(recipe.overrides)}`" if recipe.overrides else "nothing else"
        lines.append(f"- {name}: {changes}")
    return [*lines, ""]


if __name__ == "__main__":
    prepare_output()
    main()
