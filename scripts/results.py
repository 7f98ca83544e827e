"""Run arithmetic over seeds and objectives; write its section of docs/results.md and README's table.

    python scripts/results.py                      # three seeds of the main job, about 25 minutes
    python scripts/results.py --variants vargrad=objective=vargrad subtb=objective=subtb --seeds 0 1

Finished runs in the folder are not repeated.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from statistics import fmean

from seed_tables import ROOT, Job, cell, markdown, options, run_all, write_block

from gfn_runner.data.samples import ReferenceRow
from gfn_runner.report.figures import draw_all
from gfn_runner.report.runs import Run
from gfn_runner.runtime.environment import cores
from gfn_runner.runtime.terminal import prepare_output
from gfn_runner.tasks.arithmetic import IntegerArithmetic

VARIANTS = ["vargrad=objective=vargrad"]
QUESTIONS = 500  # per evaluation set; by default, runs use fewer
GROUPS = ("3_operands", "4_operands", "5_operands")
PICTURES = ("accuracy", "loss_and_reward", "phi_spread", "log_reward")


def main() -> None:
    parser = options(__doc__, "results", "results.md", jobs=1)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="name=override[,override]")
    parser.add_argument("--readme", action="store_true", help="README's table and docs/images too")
    arguments = parser.parse_args()
    jobs = []
    for variant in arguments.variants:
        name, _, overrides = variant.partition("=")
        lines = [*overrides.split(","), f"evaluation.final={QUESTIONS}"]
        jobs += [Job(name, lines, seed) for seed in arguments.seeds]
    results = dict(run_all(jobs, arguments.folder, at_once=arguments.jobs))
    if any(len(runs) < len(arguments.seeds) for runs in results.values()):
        raise SystemExit("not all runs have finished: the page is left as it was")
    write_block(arguments.write, "arithmetic", page(results))
    if arguments.readme:
        runs = next(iter(results.values()))
        write_block(ROOT / "README.md", "results", readme_table(runs))
        draw_all(runs[0].folder)
        images = ROOT / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        for name in PICTURES:
            shutil.copy(runs[0].folder / "figures" / f"{name}.png", images)


def page(results: Mapping[str, Sequence[Run]]) -> list[str]:
    """Return the arithmetic section of docs/results.md."""
    name, first = next(iter(results.items()))
    minutes = [run.metrics["run/minutes"] for run in first]
    memory = max(run.metrics["run/peak_memory_gib"] for run in first)
    shots = sorted(
        {int(m[1]) for row in first[0].rows if (m := re.fullmatch(r"base_(\d+)_shot", row))}
    )
    rows = [row(f"**{variant}**", runs, "final") for variant, runs in results.items()]
    rows += [row(f"base model, {k}-shot", first, f"base_{k}_shot") for k in shots]
    for reference in IntegerArithmetic().reference_rows():
        rows.append([f"{reference.label} †", *published(reference), *[""] * 5])
    columns = [f"{kind} {n}" for kind in ("vote", "single") for n in (3, 4, 5)]
    columns += ["greedy 3 / 4 / 5", "right rationale 3 / 4 / 5"]
    return [
        "## arithmetic",
        "",
        "Written by `make results` (`scripts/results.py`). Accuracy in % on "
        f"{QUESTIONS} unseen questions each of",
        "3, 4 and 5 operands (5 never trained on); mean over seeds "
        f"{', '.join(str(run.seed) for run in first)} ± half the 95 % t-interval.",
        "*Vote*: majority of 10 samples at temperature 0.1. *Single*: one sample at temperature 1.",
        "*Greedy*: the one at temperature 0.",
        "",
        *markdown(["", *columns], rows),
        "",
        "† A different model on other questions; printed in the paper's table.",
        "",
        f"Runs of *{name}* took {min(minutes):.1f} to {max(minutes):.1f} minutes with "
        f"evaluation and at most {memory:.2f} GiB, on {cores()} CPU core{'s' * (cores() > 1)} ({platform.machine()}). "
        f"{first[0].metrics['run/steps']:.0f} optimizer steps.",
        "",
        "`python scripts/results.py --variants NAME=OVERRIDES --seeds …` makes other comparisons.",
    ]


def row(label: str, runs: Sequence[Run], prefix: str) -> list[str]:
    """Return one row of the table."""
    cells = [
        cell(f"{prefix}/{metric}/{group}", runs)
        for metric in ("vote_accuracy", "single_accuracy")
        for group in GROUPS
    ]
    for metric in ("greedy_accuracy", "right_rationale"):
        means = [
            fmean(run.metrics[f"{prefix}/{metric}/{group}"] for run in runs) for group in GROUPS
        ]
        cells.append(" / ".join(f"{100 * mean:.1f}" for mean in means))
    return [label, *cells]


def published(reference: ReferenceRow) -> list[str]:
    return [f"{100 * reference.values[f'vote_accuracy/{group}']:.1f}" for group in GROUPS]


def readme_table(runs: Sequence[Run]) -> list[str]:
    """Return README's short table."""
    rows = [
        [label, *(cell(f"{prefix}/{metric}/{group}", runs) for group in GROUPS)]
        for label, prefix, metric in (
            ("**gfn_runner**, vote of 10", "final", "vote_accuracy"),
            ("**gfn_runner**, one sample", "final", "single_accuracy"),
            ("base model, no examples, vote", "base_0_shot", "vote_accuracy"),
            ("base model, 3 worked examples, vote", "base_3_shot", "vote_accuracy"),
        )
    ]
    for reference in IntegerArithmetic().reference_rows():
        if reference.label.endswith(("0-shot", "GFlowNet")) and "10" not in reference.label:
            rows.append([f"*the paper's {reference.label}, vote* †", *published(reference)])
    lines = markdown(["accuracy in % at", "3", "4", "5 operands"], rows)
    return [*lines, "", "† A different model on other questions, as printed in the paper."]


if __name__ == "__main__":
    prepare_output()
    main()
