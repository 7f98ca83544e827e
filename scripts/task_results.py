"""Run every task but arithmetic over seeds; write their part of docs/results.md: tables, figures.

    python scripts/task_results.py                          # all of them, three seeds each
    python scripts/task_results.py --tasks infilling --seeds 0
    python scripts/task_results.py --shared ../shared       # real models and data of that folder too

Each run is `python -m gfn_runner` in a process of its own. Runs that are finished in the folder are not
repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import ROOT, run_once, spread, write_block

from gfn_runner.report.figures import draw_all
from gfn_runner.report.table import row_labels
from gfn_runner.runtime.environment import cores, threads_per_process
from gfn_runner.runtime.terminal import escape_unencodable_output


@dataclass(frozen=True)
class Shown:
    """What the page shows of a task.

    Attributes:
        overrides: of its runs.
        measures: the table's columns, without evaluation sets.
        figure: beside the table.
    """

    overrides: tuple[str, ...]
    measures: tuple[str, ...]
    figure: str


_LABELS = ("vote_accuracy", "predictive_accuracy", "single_accuracy")
_DEMANDS = ("satisfied_share", "unique", "log_reward")
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
    "posterior": Shown(("task=posterior",), (*_DEMANDS, "phi_spread"), "phi_spread"),
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
            # After three examples the longest reviews would not fit the model's context.
            "evaluation.baseline_shots=[0,1]",
            f"task.data.n_train={n}",
        )
        for n in (10, 20, 50)
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), help=", ".join(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "task_results")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "results.md")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; they share the cores")
    parser.add_argument("--shared", type=Path, help="folder with models/ and data/ to try by hand")
    arguments = parser.parse_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        finished = {
            name: [
                pool.submit(run_shared, *run, arguments.jobs) for run in runs_of(name, arguments)
            ]
            for name in arguments.tasks
        }
        real = {
            name: pool.submit(run_shared, *real_run(name, arguments), arguments.jobs)
            for name in (REAL if arguments.shared else ())
        }
        # A section is written as soon as its runs have ended: what comes later may be interrupted.
        for name, runs in finished.items():
            block = section(name, [run.result() for run in runs], arguments)
            write_block(arguments.write, f"task {name}", block)
        for name, run in real.items():
            write_block(
                arguments.write, f"real {name}", real_section(name, run.result(), arguments)
            )
    print(f"written to {arguments.write}")


def runs_of(name: str, arguments: argparse.Namespace) -> list[tuple[Path, list[str]]]:
    """Folder and overrides of a task's runs, one a seed."""
    return [
        (arguments.folder / _slug(name) / f"seed{seed}", [*TASKS[name].overrides, f"seed={seed}"])
        for seed in arguments.seeds
    ]


def run_shared(folder: Path, overrides: list[str], jobs: int) -> dict[str, Any]:
    """Metrics of a run that shares the cores with ``jobs`` - 1 others."""
    threads = [f"num_threads={threads_per_process(jobs)}"] if jobs > 1 else []
    return run_once(folder, [*overrides, *threads])


def section(name: str, runs: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> str:
    """Table, figure and samples of one task."""
    shown = TASKS[name]
    minutes = [run["run/minutes"] for run in runs]
    memory = max(run["run/peak_memory_gib"] for run in runs)
    lines = [f"### {name}", "", *table(runs, shown.measures), ""]
    lines.append(
        f"`python -m gfn_runner {' '.join(shown.overrides)}`: {min(minutes):.1f} to "
        f"{max(minutes):.1f} minutes with evaluation ({cores()} CPU cores, {arguments.jobs} such runs at "
        f"a time), {memory:.2f} GiB at most, {runs[0]['run/steps']:.0f} optimizer steps. "
        f"Seeds {', '.join(map(str, arguments.seeds))}; {_revisions(name, arguments)}."
    )
    first = arguments.folder / _slug(name) / f"seed{arguments.seeds[0]}"
    draw_all(first)
    picture = first / "figures" / f"{shown.figure}.png"
    if picture.is_file():
        target = arguments.write.parent / "images" / f"{_slug(name)}_{shown.figure}.png"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(picture, target)
        lines += ["", f"![{name}: {shown.figure}](images/{target.name})"]
    samples = first / "samples.md"
    if samples.is_file() and name != "random_number":
        first_lines = samples.read_text(encoding="utf-8").splitlines()[:8]
        lines += ["", f"First samples (seed {arguments.seeds[0]}):", "", *first_lines]
    return "\n".join(lines) + "\n"


def _revisions(name: str, arguments: argparse.Namespace) -> str:
    """Of the code that the runs were made with: they may be older than the page."""
    commits = []
    for folder, _ in runs_of(name, arguments):
        git = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["git"]
        commits.append(str(git["commit"])[:7])
    different = list(dict.fromkeys(commits))
    return f"revision{'s' if len(different) > 1 else ''} {', '.join(different)}"


def _slug(name: str) -> str:
    """For paths and Hydra's overrides, which know quotes and commas."""
    return re.sub(r"[^\w-]+", "_", name)


def table(runs: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> list[str]:
    """One line a row of the runs' tables, one column a measure and evaluation set."""
    names = [
        key.removeprefix("final/")
        for measure in measures
        for key in runs[0]
        if key.startswith(f"final/{measure}/")
    ]
    titles = [name.replace("_share", "").replace("_", " ").replace("/", ", ") for name in names]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(names) + 1) + "|"]
    for prefix, label in row_labels(runs[0]).items():
        cells = []
        for name in names:
            values = [run.get(f"{prefix}/{name}") for run in runs]
            known = [value for value in values if value is not None]
            if prefix == "resampled" and name.startswith("phi_spread/"):
                known = []  # runs of an older revision have it: 0 by definition
            cells.append(_cell(name, known) if len(known) == len(runs) else "")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def _cell(name: str, values: list[float]) -> str:
    if name.partition("/")[0].endswith(("_share", "accuracy")):
        rare = max(values) < 0.01
        return spread([100 * value for value in values], digits=3 if rare else 1)
    return spread(values, digits=5 if max(map(abs, values)) < 0.1 else 2)


def real_run(name: str, arguments: argparse.Namespace) -> tuple[Path, list[str]]:
    """Folder and overrides of a run on real data; one seed."""
    shared = arguments.shared.resolve()
    prompts = arguments.folder / "children.txt"
    if not prompts.is_file():
        write_prompts(shared / "data" / "pratham_books" / "stories.txt", prompts)
    filled = [o.format(shared=shared, prompts=prompts) for o in REAL[name]]
    return arguments.folder / "real" / _slug(name), filled


def real_section(name: str, run: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    """Table of a real model or real data, whatever comes out; no samples, which would show the data."""
    measures = next(s.measures for s in TASKS.values() if s.overrides[0] == REAL[name][0])
    shown = " ".join(o.format(shared="../shared", prompts="children.txt") for o in REAL[name])
    lines = [f"### {name}", "", *table([run], measures), ""]
    lines += [
        f"`python -m gfn_runner {shown}`: {run['run/minutes']:.1f} minutes "
        f"({cores()} CPU cores, {arguments.jobs} such runs at a time)."
    ]
    return "\n".join(lines) + "\n"


def write_prompts(stories: Path, path: Path, n: int = 400) -> None:
    """The first two sentences of each story as a prompt, straight quotes for curly ones."""
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
    escape_unencodable_output()
    main()
