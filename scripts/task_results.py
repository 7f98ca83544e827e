"""Run every task but arithmetic over seeds; write their sections of docs/results.md: tables, figures.

    python scripts/task_results.py                          # all of them, three seeds each
    python scripts/task_results.py --tasks infilling --seeds 0
    python scripts/task_results.py --shared ../shared       # real models and data of that folder too

Finished runs in the folder are not repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seed_tables import Job, cell, markdown, options, run_all, slug, write_block

from gfn_runner.report.figures import draw_all
from gfn_runner.report.runs import Run
from gfn_runner.report.table import row_labels
from gfn_runner.runtime.environment import cores
from gfn_runner.runtime.terminal import prepare_output


@dataclass(frozen=True)
class Shown:
    """What the page shows of a task.

    Attributes:
        overrides: overrides of its runs.
        measures: columns of the table, without evaluation sets.
        figure: figure shown with the table.
    """

    overrides: tuple[str, ...]
    measures: tuple[str, ...]
    figure: str


_LABELS = ("vote_accuracy", "predictive_accuracy", "single_accuracy")
_CONSTRAINED = ("satisfied_share", "unique", "log_reward")
TASKS: dict[str, Shown] = {
    "random_number": Shown(
        ("task=random_number",),
        ("kl", "kl_floor", "invalid_share", "exact_kl", "exact_tv"),
        "histogram",
    ),
    "continuation": Shown(
        ("task=continuation",),
        ("log_likelihood", "log_likelihood_max", "diversity", "grammatical_share", "phi_spread"),
        "likelihood_diversity",
    ),
    "infilling": Shown(
        ("task=infilling",),
        ("fits_both_share", "fits_beginning_share", "fits_ending_share", "bleu", "gleu"),
        "shares",
    ),
    **{
        f"subjectivity, {n} examples": Shown(
            ("task=subjectivity", f"task.data.n_train={n}", "evaluation.final=500"),
            _LABELS,
            "accuracy",
        )
        for n in (10, 20, 50)
    },
    "translation": Shown(
        ("task=translation",), ("right_share", "found_share", "all_found_share", "bleu"), "shares"
    ),
    "contrastive": Shown(
        ("task=contrastive",),
        ("specific_share", "pointwise_mutual_information", "diversity", "grammatical_share"),
        "shares",
    ),
    "constrained": Shown(
        ("task=constrained",), ("satisfied_share", "grammatical_share", "unique"), "shares"
    ),
    "posterior": Shown(("task=posterior",), (*_CONSTRAINED, "phi_spread"), "phi_spread"),
}
REAL: dict[str, tuple[str, ...]] = {
    "stories260K, continuation of OpenWebText prompts": (
        "task=continuation",
        "lm.name={shared}/models/stories260K",
        "task.data.prompts={shared}/data/openwebtext/prompts.txt",
    ),
    "stories260K, continuation of children's stories": (
        "task=continuation",
        "lm.name={shared}/models/stories260K",
        "task.data.prompts={prompts}",
    ),
    **{
        f"embedded model, subjectivity of real reviews, {n} examples": (
            "task=subjectivity",
            "task.data.train={shared}/data/subj/train.jsonl",
            "task.data.test={shared}/data/subj/test.jsonl",
            "task.data.n_test=1000",
            "evaluation.final=null",
            # After three examples, the longest reviews would exceed the model's context.
            "evaluation.baseline_shots=[0,1]",
            f"task.data.n_train={n}",
        )
        for n in (10, 20, 50)
    },
}


def main() -> None:
    parser = options(__doc__, "task_results", "results.md")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), help=", ".join(TASKS))
    parser.add_argument("--shared", type=Path, help="folder with models/ and data/ to try by hand")
    arguments = parser.parse_args()
    folder, at_once = arguments.folder, arguments.jobs
    jobs = [Job(n, TASKS[n].overrides, seed) for n in arguments.tasks for seed in arguments.seeds]
    # Each section is written as soon as its runs have ended, since later ones may be interrupted.
    for name, runs in run_all(jobs, folder, at_once=at_once):
        if len(runs) == len(arguments.seeds):
            pictures = arguments.write.parent / "images"
            write_block(arguments.write, f"task {name}", section(name, runs, at_once, pictures))
        else:
            print(f"{name}: not all runs have finished, its section is left as it was")
    if arguments.shared:
        real = real_jobs(arguments.shared.resolve(), folder / "children.txt")
        for name, runs in run_all(real, folder / "real", at_once=at_once):
            if runs:
                write_block(arguments.write, f"real {name}", real_section(name, runs, at_once))


def section(name: str, runs: Sequence[Run], at_once: int, pictures: Path) -> list[str]:
    """Return table, figure and samples of one task; copy its figure to the folder of pictures."""
    shown, first = TASKS[name], runs[0]
    minutes = [run.metrics["run/minutes"] for run in runs]
    memory = max(run.metrics["run/peak_memory_gib"] for run in runs)
    commits = list(dict.fromkeys(commit[:7] for run in runs for commit in run.commits))
    lines = [
        f"### {name}",
        "",
        *table(runs, shown.measures),
        "",
        f"`python -m gfn_runner {' '.join(shown.overrides)}`: {min(minutes):.1f} to "
        f"{max(minutes):.1f} minutes with evaluation ({cores()} CPU cores, {at_once} such runs at "
        f"a time), {memory:.2f} GiB at most, {first.metrics['run/steps']:.0f} optimizer steps. "
        f"Seeds {', '.join(str(run.seed) for run in runs)}; "
        f"revision{'s' if len(commits) > 1 else ''} {', '.join(commits)}.",
    ]
    draw_all(first.folder)
    picture = first.folder / "figures" / f"{shown.figure}.png"
    if picture.is_file():
        target = pictures / f"{slug(name)}_{shown.figure}.png"
        pictures.mkdir(exist_ok=True)
        shutil.copy(picture, target)
        lines += ["", f"![{name}: {shown.figure}](images/{target.name})"]
    samples = first.folder / "samples.md"
    if samples.is_file() and name != "random_number":
        first_lines = samples.read_text(encoding="utf-8").splitlines()[:8]
        lines += ["", f"First samples (seed {first.seed}):", "", *first_lines]
    return [*lines, ""]


def table(runs: Sequence[Run], measures: Sequence[str]) -> list[str]:
    """Tabulate the rows of the runs' tables (rows) by measure and evaluation set (columns)."""
    metrics = runs[0].metrics
    names = [
        key.removeprefix("final/")
        for measure in measures
        for key in metrics
        if key.startswith(f"final/{measure}/")
    ]
    titles = [name.replace("_share", "").replace("_", " ").replace("/", ", ") for name in names]
    rows = [
        [label, *(cell(f"{prefix}/{name}", runs) for name in names)]
        for prefix, label in row_labels(metrics).items()
    ]
    return markdown(["", *titles], rows)


def real_jobs(shared: Path, prompts: Path) -> list[Job]:
    """Return the runs on real data, with one seed each."""
    if not prompts.is_file():
        write_prompts(shared / "data" / "pratham_books" / "stories.txt", prompts)
    return [
        Job(name, [line.format(shared=shared, prompts=prompts) for line in lines], 0)
        for name, lines in REAL.items()
    ]


def real_section(name: str, runs: Sequence[Run], at_once: int) -> list[str]:
    """Return the table of a real model or real data, without samples, which would reveal the data."""
    measures = next(s.measures for s in TASKS.values() if s.overrides[0] == REAL[name][0])
    shown = " ".join(o.format(shared="../shared", prompts="children.txt") for o in REAL[name])
    return [
        f"### {name}",
        "",
        *table(runs, measures),
        "",
        f"`python -m gfn_runner {shown}`: {runs[0].metrics['run/minutes']:.1f} minutes "
        f"({cores()} CPU cores, {at_once} such runs at a time).",
        "",
    ]


def write_prompts(stories: Path, path: Path, n: int = 400) -> None:
    """Write the first two sentences of each story as a prompt, with straight instead of curly quotes."""
    text = stories.read_text(encoding="utf-8")
    text = text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
    prompts: dict[str, None] = {}
    for story in text.split("<|endofstory|>"):
        sentences = [line.strip() for line in story.strip().splitlines() if line.strip()]
        prompt = " ".join(sentences[:2])
        if 20 < len(prompt) < 300:
            prompts.setdefault(prompt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(list(prompts)[:n]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    prepare_output()
    main()
