"""Reproduce the paper's tables on the embedded model: every method over seeds, then docs/results/.

    python scripts/paper.py                              # all tables, up to three hours on two cores
    python scripts/paper.py --tables arithmetic --seeds 0
    python scripts/paper.py --tables arithmetic --report-only
    python scripts/paper.py --tables arithmetic --overrides lm.name=<folder> --folder … --write …

Runs are in outputs/paper/<table>/<method>/seed<n>. Runs that finished with the same overrides are not
repeated, interrupted ones are resumed from their checkpoint, and failed ones are retried. A failing run does
not stop the others; the report lists it with the end of its log.
Each table has a report in docs/results/<table>/; docs/results/README.md summarizes them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from seed_tables import ROOT, Job, options, run_all, short

from gfn_runner.runtime.terminal import prepare_output


@dataclass(frozen=True)
class Table:
    """A table of the paper, scaled to the embedded model.

    Attributes:
        common: overrides of all methods.
        methods: name to overrides; for methods that learn from another method's run, ``{runs}`` is replaced
            by the table's folder and ``{seed}`` by the seed.
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
# The ratio of KL and reward is the default one; the value loss is a hundred times as large.
_PPO_AT_1 = ("baseline=ppo", "baseline.reward_scale=1", "baseline.kl_weight=0.05")
_OF_GFLOWNET = "baseline.samples_of={runs}/gflownet/seed{seed}"


def _subjectivity(n: int) -> Table:
    return Table(
        # Half of the generated reviews: five numbers of examples on all 500 would take more than three hours.
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
            "ppo": ("baseline=ppo", "trainer.max_steps=400", "sampling.sft_share=0"),
            "grpo": ("baseline=grpo", "trainer.max_steps=400", "sampling.sft_share=0"),
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
        # Log-likelihoods differ between prompts: all methods are evaluated on the same ones.
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
    parser = options(__doc__, "paper", "results")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--methods", nargs="+", help="methods of each table; default: all")
    parser.add_argument(
        "--overrides", nargs="+", default=[], help="overrides of all runs, e.g. lm.name=<folder>"
    )
    parser.add_argument("--report-only", action="store_true", help="only report on finished runs")
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
    """Execute a table's missing runs; methods that learn from another method's runs come last."""
    jobs = jobs_of(name, arguments)
    learns = [job for job in jobs if any("samples_of=" in line for line in job.overrides)]
    for own in ([job for job in jobs if job not in learns], learns):
        for _ in run_all(own, arguments.folder / name, at_once=arguments.jobs):
            pass  # the report lists failed runs


def jobs_of(name: str, arguments: argparse.Namespace) -> list[Job]:
    """Return the runs of a table's methods."""
    table, runs = TABLES[name], short(arguments.folder / name)
    jobs = []
    for method in arguments.methods or table.methods:
        for seed in arguments.seeds if method in table.methods else ():
            own = [line.format(runs=runs, seed=seed) for line in table.methods[method]]
            jobs.append(Job(method, [*table.common, *own, *arguments.overrides], seed))
    return jobs


def report(name: str, arguments: argparse.Namespace) -> None:
    """Write the table's report."""
    places = [
        arguments.folder / name / method / f"seed{seed}"
        for method in TABLES[name].methods
        for seed in arguments.seeds
    ]
    shown = [short(place) for place in places if place.is_dir()]
    if not shown:
        print(f"{name}: no run to report on")
        return
    command = [sys.executable, "-m", "gfn_runner.report", *shown]
    command += ["--out", short(arguments.write / name)]
    if TABLES[name].metrics:
        command += ["--metrics", *TABLES[name].metrics]
    if subprocess.run(command, cwd=ROOT).returncode:
        print(f"{name}: no report, see above; continuing with the other tables", flush=True)


if __name__ == "__main__":
    prepare_output()
    main()
