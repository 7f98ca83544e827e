"""The page of ``make paper-real``: one section per table, with the runs finished so far."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from paper_real_data import DROPPED
from paper_real_tables import TABLES, Row, Table, jobs_of
from run_records import Runs
from seed_tables import Job, cell, markdown

from gfn_runner.config.compose import CONF
from gfn_runner.report.runs import Run
from gfn_runner.tasks.arithmetic import IntegerArithmetic

_UNTRAINED = ("Prompting", "Decoding")


def page(folder: Path, runs: Runs) -> str:
    """Return all tables with the finished runs; runs that are missing are marked as not run.

    Args:
        folder: folder of all runs and of the data.
        runs: the finished runs.
    """
    lines = [
        "# The paper's tables on SmolLM2-135M",
        "",
        "Written by `make paper-real` (`scripts/paper_real.py`). Mean ± half the 95 % t-interval over seeds; "
        "accuracies and shares in %. In brackets the paper's own number, of a much larger model (GPT-J 6B; GPT-2 "
        "large for infilling). Minutes: estimated, of a run on two quiet cores; measured, of computing on one or two.",
    ]
    for name, table in TABLES.items():
        lines += ["", f"## {table.title}", "", *_section(name, table, folder, runs)]
    return "\n".join(lines) + "\n"


def _section(name: str, table: Table, folder: Path, runs: Runs) -> list[str]:
    jobs = jobs_of(name, folder)
    by_method: dict[str, list[Run]] = {method: [] for method in table.methods}
    for job in jobs:
        if run := runs.done(name, job):
            by_method[job.name].append(run)
    header = ["", "seeds", *table.columns]
    cells = [_cells(row, table, by_method[row.method]) for row in table.rows]
    lines = [*markdown(header, cells), ""]
    dropped = folder / "data" / DROPPED
    if "task.data.rationales" in table.data and dropped.is_file():
        lines += [dropped.read_text(encoding="utf-8").strip(), ""]
    if table.note:
        lines += [table.note, ""]
    lines += _sizes(table, jobs, by_method, folder)
    found = [run for own in by_method.values() for run in own]
    if found:
        commits = ", ".join(dict.fromkeys(commit for run in found for commit in run.commits))
        last = datetime.datetime.fromtimestamp(max(run.ended for run in found), datetime.UTC)
        lines += ["", f"Commit {commits}; the last run ended on {last:%Y-%m-%d}."]
    if name == "arithmetic":
        lines += ["", "### Rationales and their log R (Table E.4)", "", *_rationales(by_method)]
    return lines


def _cells(row: Row, table: Table, runs: Sequence[Run]) -> list[str]:
    cells = [row.title, f"{len(runs)} of {table.methods[row.method].seeds}"]
    for place, metric in enumerate(table.columns.values()):
        ours = (cell(f"{row.row}/{metric}", runs) or "not measured") if runs else "not run"
        paper = row.paper[place] if place < len(row.paper) else ""
        cells.append(f"{ours} ({paper})" if paper else ours)
    return cells


# -- sizes ----------------------------------------------------------------------------------------


def _sizes(
    table: Table, jobs: Sequence[Job], by_method: dict[str, list[Run]], folder: Path
) -> list[str]:
    """Tabulate the cost of a run of each method, derived from its config."""
    header = ["run", "steps", "strings a step", "longest string", "evaluated", "votes + samples"]
    first = {job.name: job for job in reversed(jobs)}
    rows = []
    for method, own in table.methods.items():
        # Neither the data nor the folder of another run affects the sizes.
        config = _composed(*(line for line in first[method].lines if str(folder) not in line))
        measured = [run.metrics.get("run/cpu_minutes", 0.0) for run in by_method[method]]
        minutes = f"{own.minutes}, {fmean(measured):.0f}" if measured else f"{own.minutes}"
        rows.append([method, *_sizes_of(config), minutes])
    return markdown([*header, "minutes: estimated, CPU minutes"], rows)


@cache
def _composed(*lines: str) -> DictConfig:
    # Cached, since the page is written after every run.
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        return compose("config", overrides=list(lines))


def _sizes_of(config: DictConfig) -> list[str]:
    baseline = config.get("baseline")  # without a baseline the key is missing
    target = str(baseline._target_).rpartition(".")[2] if baseline else ""
    task, sampling, evaluation = config.task, config.sampling, config.evaluation
    questions = evaluation.final
    steps, strings = "", ""
    if target in _UNTRAINED:
        questions = evaluation.baseline_limit or questions
    else:
        steps = str(config.trainer.max_steps)
        each = baseline.n_strings if target == "SFT" else sampling.n_samples
        strings = f"{sampling.n_conditions} × {each}"
        if config.trainer.accumulate_grad_batches > 1:
            strings += f" × {config.trainer.accumulate_grad_batches}"
        if config.em.rounds:
            steps += f" + {config.em.m_steps}"
    length = f"{task.max_len}, {task.eval_max_len} in evaluation"
    drawn = f"{evaluation.votes} + {evaluation.singles}"
    return [steps, strings, length, f"{questions} a set", drawn]


# -- table E.4 ------------------------------------------------------------------------------------


def _rationales(by_method: dict[str, list[Run]], questions: int = 6) -> list[str]:
    """Tabulate what PPO and the GFlowNet policy write for some questions, with log R."""
    if not by_method["ppo"] or not by_method["gflownet"]:
        return ["Not run: needs ppo and gflownet above."]
    ppo = {record["condition"]: record for record in by_method["ppo"][0].samples("final")}
    ours = {record["condition"]: record for record in by_method["gflownet"][0].samples("final")}
    both = [key for key in ppo if key in ours]
    # As in the paper, questions that PPO answers wrongly come first.
    both.sort(key=lambda key: _is_right(ppo[key]))
    rows = []
    for key in both[:questions]:
        for who, record in (("PPO", ppo[key]), ("GFlowNet", ours[key])):
            right = "yes" if _is_right(record) else "no"
            text = record["singles"][0].strip().replace("|", "\\|").replace("\n", " ")
            rows.append(
                [key, who, f"`{text or '(empty)'}`", f"{record['log_reward'][0]:.2f}", right]
            )
    return [
        *markdown(["question", "", "rationale", "log R, nats", "right"], rows),
        "",
        "In the paper: for `1 - 9 + 8`, PPO's `1 - 9 - 8` −13.17 and the right `1 - 9 = -8, -8 + 8 = 0` −27.75; for "
        "`8 + 7 + 2 + 7`, PPO's `8 + 7 + 2 + 7` −2.39 and the right chain −11.72.",
    ]


def _is_right(record: dict) -> bool:
    return IntegerArithmetic.read_answer(record["singles"][0]) == record["answer"]
