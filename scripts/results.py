"""Run the main job over seeds and objectives; write its part of docs/results.md and README's table.

    python scripts/results.py                      # three seeds of the main job, about 25 minutes
    python scripts/results.py --variants joint=objective=joint subtb=objective=subtb --seeds 0 1

Each run is `python -m gfn_runner` in a process of its own, so that memory is measured per run. Runs that
are finished in the folder are not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from gfn_runner.report.figures import draw_all
from gfn_runner.runtime.environment import cores
from gfn_runner.runtime.terminal import escape_unencodable_output
from gfn_runner.tasks.arithmetic import IntegerArithmetic

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ["joint=objective=joint"]
QUESTIONS = 500  # of each evaluation set; a run's default is fewer
GROUPS = ("3_operands", "4_operands", "5_operands")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="name=override[,override]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "results")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "results.md")
    parser.add_argument("--readme", action="store_true", help="README's table and docs/images too")
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for variant in arguments.variants:
        name, _, overrides = variant.partition("=")
        results[name] = [
            run_once(
                arguments.folder / name / f"seed{seed}",
                [
                    *overrides.split(","),
                    f"evaluation.final={QUESTIONS}",
                    f"seed={seed}",
                ],
            )
            for seed in arguments.seeds
        ]
    write_block(arguments.write, "arithmetic", page(results, arguments.seeds))
    print(f"written to {arguments.write}")
    if arguments.readme:
        first = next(iter(results))
        write_readme(ROOT / "README.md", results[first])
        pictures = ROOT / "docs" / "images"
        pictures.mkdir(parents=True, exist_ok=True)
        draw_all(arguments.folder / first / f"seed{arguments.seeds[0]}")
        for name in ("accuracy", "loss_and_reward", "phi_spread", "log_reward"):
            run = arguments.folder / first / f"seed{arguments.seeds[0]}"
            shutil.copy(run / "figures" / f"{name}.png", pictures / f"{name}.png")


def run_once(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Metrics of a run in ``folder``; runs it if it is not finished."""
    done = folder / "metrics.json"
    if done.is_file() and not same_run(folder, overrides):
        # Of other settings: a number of one run may not stand under the command of another.
        folder.rename(folder.with_name(f"{folder.name}-other-{int(time.time())}"))
    if done.is_file():
        commit = json.loads((folder / "environment.json").read_text("utf-8"))["git"]["commit"]
        print(f"{folder} is finished already, at commit {commit}", flush=True)
    else:
        command = [sys.executable, "-m", "gfn_runner", *overrides, f"hydra.run.dir={folder}"]
        if any(folder.glob("checkpoints/*.ckpt")):
            command = [sys.executable, "-m", "gfn_runner", f"resume={folder}"]
        elif folder.exists():
            # It ended before its first checkpoint: nothing to go on with, nothing to be mixed up with.
            folder.rename(folder.with_name(f"{folder.name}-unfinished-{int(time.time())}"))
        print(" ".join(command), flush=True)
        subprocess.run(command, cwd=ROOT, check=True)
    return json.loads(done.read_text(encoding="utf-8"))


def same_run(folder: Path, overrides: list[str]) -> bool:
    """Whether a finished run was asked for by the same overrides."""
    said = yaml.safe_load((folder / "overrides.yaml").read_text(encoding="utf-8"))
    return sorted(map(_with_whole_path, said)) == sorted(map(_with_whole_path, overrides))


def _with_whole_path(line: str) -> str:
    """A line as a run keeps it: local paths, which are relative to ``ROOT``, are absolute."""
    key, _, value = line.partition("=")
    bare = value.strip("'")
    return f"{key}={ROOT / bare}" if bare and (ROOT / bare).exists() else line


def page(results: dict[str, list[dict[str, Any]]], seeds: list[int]) -> str:
    """The arithmetic part of docs/results.md."""
    first = next(iter(results.values()))
    minutes = [run["run/minutes"] for run in first]
    memory = [run["run/peak_memory_gib"] for run in first]
    lines = [
        "## arithmetic",
        "",
        "Written by `make results` (`scripts/results.py`). Accuracy in % on "
        f"{QUESTIONS} unseen questions each of",
        "3, 4 and 5 operands (5 never trained on); mean over seeds "
        f"{', '.join(map(str, seeds))} ± half the 95 % t-interval.",
        "*Vote*: majority of 10 samples at temperature 0.1. *Single*: one sample at temperature 1.",
        "*Greedy*: the one at temperature 0.",
        "",
        "| | vote 3 | vote 4 | vote 5 | single 3 | single 4 | single 5 | greedy 3 / 4 / 5 "
        "| right rationale 3 / 4 / 5 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        lines.append(row(f"**{name}**", runs, "final"))
    shots = sorted({int(m[1]) for key in first[0] if (m := re.match(r"base_(\d+)_shot/", key))})
    lines += [row(f"base model, {k}-shot", first, f"base_{k}_shot") for k in shots]
    lines += [reference_line(r.label, r.values) for r in IntegerArithmetic().reference_rows()]
    lines += [
        "",
        "† A different model on other questions; printed in the paper's table.",
        "",
        f"Runs of *{next(iter(results))}* took {min(minutes):.1f} to {max(minutes):.1f} minutes with "
        f"evaluation and at most {max(memory):.2f} GiB, on {cores()} CPU cores ({platform.machine()}). "
        f"{first[0]['run/steps']:.0f} optimizer steps.",
        "",
        "`python scripts/results.py --variants NAME=OVERRIDES --seeds …` makes other comparisons.",
    ]
    return "\n".join(lines)


def write_readme(path: Path, runs: list[dict[str, Any]]) -> None:
    """Put the short table between the two marks in the README."""
    lines = ["| accuracy in % at | 3 | 4 | 5 operands |", "|---|---|---|---|"]
    rows = [
        ("**gfn_runner**, vote of 10", "final", "vote_accuracy"),
        ("**gfn_runner**, one sample", "final", "single_accuracy"),
        ("base model, no examples, vote", "base_0_shot", "vote_accuracy"),
        ("base model, 3 worked examples, vote", "base_3_shot", "vote_accuracy"),
    ]
    for label, prefix, metric in rows:
        cells = [
            spread([100 * run[f"{prefix}/{metric}/{group}"] for run in runs]) for group in GROUPS
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for reference in IntegerArithmetic().reference_rows():
        if reference.label.endswith(("0-shot", "GFlowNet")) and "10" not in reference.label:
            cells = [f"{100 * reference.values[f'vote_accuracy/{group}']:.1f}" for group in GROUPS]
            lines.append(f"| *the paper's {reference.label}, vote* † | {' | '.join(cells)} |")
    lines += ["", "† A different model on other questions, as printed in the paper."]
    write_block(path, "results", "\n".join(lines))


def write_block(path: Path, name: str, block: str) -> None:
    """Put text between the marks ``<!-- name -->`` and ``<!-- /name -->`` of a file."""
    text = path.read_text(encoding="utf-8")
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not marked.search(text):
        raise SystemExit(f"{path} lacks the marks <!-- {name} --> and <!-- /{name} -->")
    path.write_text(marked.sub(lambda m: m[1] + block + "\n" + m[2], text), encoding="utf-8")


def row(label: str, runs: list[dict[str, Any]], prefix: str) -> str:
    """One line of the table."""
    cells = [
        spread([100 * run[f"{prefix}/{metric}/{group}"] for run in runs])
        for metric in ("vote_accuracy", "single_accuracy")
        for group in GROUPS
    ]
    for metric in ("greedy_accuracy", "right_rationale"):
        means = [sum(run[f"{prefix}/{metric}/{g}"] for run in runs) / len(runs) for g in GROUPS]
        cells.append(" / ".join(f"{100 * mean:.1f}" for mean in means))
    return f"| {label} | {' | '.join(cells)} |"


def reference_line(label: str, values: Any) -> str:
    cells = [f"{100 * values[f'vote_accuracy/{group}']:.1f}" for group in GROUPS]
    return f"| {label} † | {' | '.join(cells)} | | | | | |"


def spread(values: list[float], digits: int = 1) -> str:
    """Mean ± half the 95 % t-interval; the mean alone for one value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {t_margin(values):.{digits}f}"


def t_margin(values: Sequence[float]) -> float:
    """Half the 95 % t-interval of a mean, of two values or more."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


if __name__ == "__main__":
    escape_unencodable_output()
    main()
