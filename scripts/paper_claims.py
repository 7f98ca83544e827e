"""Summarize the paper's comparisons on the embedded model: an index of its tables, claim by claim.

    python scripts/paper_claims.py      # docs/results/README.md of what lies in outputs/paper

A claim compares two methods in one metric, paired by seed. It holds, or is reversed, if the 95 % t-interval
of the difference excludes 0; otherwise the seeds do not separate the two methods.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from paper import TABLES
from seed_tables import ROOT, short, t_margin

from gfn_runner.errors import UserError
from gfn_runner.report.names import is_share
from gfn_runner.report.runs import Run, read_run
from gfn_runner.report.summary import spread
from gfn_runner.runtime.terminal import prepare_output


@dataclass(frozen=True)
class Side:
    """One of the two methods of a claim.

    Attributes:
        name: display name.
        method: its folder below the table's.
        row: pattern of the row's name; if several rows match, the one with the best mean is used.
    """

    name: str
    method: str
    row: str = "final"


GFLOWNET = Side("GFlowNet", "gflownet")
SFT = Side("supervised", "sft")
PPO = Side("PPO", "ppo")
PPO_AT_1 = Side("PPO at scale 1", "ppo_at_1")
GRPO = Side("GRPO", "grpo")
ZERO_SHOT = Side("0-shot", "prompting", "base_0_shot")
# With worked examples, a task's base model writes a rationale, or answers directly (subjectivity).
FEW_SHOT = Side("best few-shot", "prompting", r"(base|direct)_[1-9]\d*_shot")
AT_EQUAL_COMPUTE = {
    n: [
        Side(f"best of {n}", "resampling", f"best_of_{n}"),
        Side(f"one of {n}, resampled", "resampling", f"resampled_{n}"),
    ]
    for n in (1, 16)
}


@dataclass(frozen=True)
class Claim:
    """The claim that ``better`` is above ``worse`` in a metric, or below it if ``lower``.

    The metric is averaged over the evaluation sets that both have. ``worse_metric`` replaces it for
    the second side, e.g. to compare the vote over n strings with one string picked from n.
    """

    table: str
    metric: str
    better: Side
    worse: Side
    lower: bool = False
    worse_metric: str = ""


def _order(table: str, metric: str, *sides: Side, lower: bool = False) -> list[Claim]:
    """Return claims that each side beats the next one."""
    return [Claim(table, metric, better, worse, lower) for better, worse in pairwise(sides)]


_SUBJECTIVITY = [f"subjectivity_{n}" for n in (10, 20, 50)]
CLAIMS: Mapping[str, Sequence[Claim]] = {
    "GFlowNet above supervised above few-shot": [
        *_order("arithmetic", "vote_accuracy", GFLOWNET, SFT, FEW_SHOT, ZERO_SHOT),
        *_order("arithmetic", "single_accuracy", GFLOWNET, SFT, FEW_SHOT, ZERO_SHOT),
        *_order("infilling", "fits_both_share", GFLOWNET, SFT, ZERO_SHOT),
        *_order("infilling", "bleu", GFLOWNET, SFT, ZERO_SHOT),
        *(
            claim
            for table in _SUBJECTIVITY
            for claim in _order(table, "vote_accuracy", GFLOWNET, SFT, FEW_SHOT, ZERO_SHOT)
        ),
        *_order("random_number", "kl", GFLOWNET, SFT, ZERO_SHOT, lower=True),
    ],
    "GFlowNet above best-of-n and resampling at equal test-time compute": [
        *(Claim("arithmetic", "single_accuracy", GFLOWNET, rival) for rival in AT_EQUAL_COMPUTE[1]),
        *(
            Claim("arithmetic", "vote_accuracy", GFLOWNET, rival, worse_metric="single_accuracy")
            for rival in AT_EQUAL_COMPUTE[16]
        ),
        *(Claim("infilling", "fits_both_share", GFLOWNET, rival) for rival in AT_EQUAL_COMPUTE[1]),
    ],
    "PPO and GRPO reach a higher reward": [
        *(Claim("arithmetic", "log_reward", rival, GFLOWNET) for rival in (PPO, PPO_AT_1, GRPO)),
        Claim("continuation", "log_reward", PPO, GFLOWNET),
        Claim("continuation", "log_reward", GRPO, GFLOWNET),
        *(Claim("infilling", "log_reward", rival, GFLOWNET) for rival in (PPO, GRPO)),
    ],
    "… and a lower accuracy": [
        *(
            Claim("arithmetic", metric, rival, GFLOWNET, lower=True)
            for metric in ("vote_accuracy", "single_accuracy")
            for rival in (PPO, PPO_AT_1, GRPO)
        ),
        *(
            Claim("infilling", "fits_both_share", rival, GFLOWNET, lower=True)
            for rival in (PPO, GRPO)
        ),
        Claim("random_number", "kl", GFLOWNET, PPO, lower=True),
    ],
    "… with nearly no diversity": [
        Claim("continuation", "diversity", PPO, GFLOWNET, lower=True),
        Claim("continuation", "diversity", GRPO, GFLOWNET, lower=True),
        Claim("continuation", "unique", PPO, GFLOWNET, lower=True),
        Claim("continuation", "unique", GRPO, GFLOWNET, lower=True),
        *(
            Claim("infilling", metric, rival, GFLOWNET, lower=True)
            for metric in ("diversity", "unique")
            for rival in (PPO, GRPO)
        ),
    ],
}


@dataclass(frozen=True)
class Found:
    """Numbers of a claim: values of both sides by seed, for the same seeds, and the row of each."""

    claim: Claim
    better: dict[int, float]
    worse: dict[int, float]
    better_row: str
    worse_row: str

    @property
    def differences(self) -> list[float]:
        """Better minus worse, for the seeds that both have."""
        return [
            self.better[seed] - self.worse[seed] for seed in sorted(self.better.keys() & self.worse)
        ]

    @property
    def margin(self) -> float | None:
        """Half the 95 % t-interval of the mean difference; ``None`` for a single seed."""
        return t_margin(self.differences) if len(self.differences) > 1 else None

    @property
    def verdict(self) -> str:
        mean, margin = fmean(self.differences), self.margin
        if mean == 0 and not margin:
            return "equal"
        if margin is None:
            return "one seed"
        if abs(mean) <= margin:
            return "not told apart"
        return "holds" if (mean < 0) == self.claim.lower else "reversed"


Runs = Mapping[str, Mapping[str, Sequence[Run]]]  # by table and method


def read_all(folder: Path) -> dict[str, dict[str, list[Run]]]:
    """Read the runs below a folder by table and method, finished or not.

    Raises:
        UserError: if a run's file cannot be read.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for place in sorted(folder.glob("*/*/seed*/config.yaml")):
        table, method, _ = place.parent.relative_to(folder).parts
        found.setdefault(table, {}).setdefault(method, []).append(read_run(place.parent))
    return found


def measured(
    runs: Sequence[Run], side: Side, metric: str, *, lower: bool
) -> tuple[str, dict[int, dict[str, float]]]:
    """Return a side's row, and its values by seed and evaluation set.

    Of several rows, the one with the best mean is used, i.e. the comparison is with the strongest rival.
    """
    by_row: dict[str, dict[int, dict[str, float]]] = {}
    for run in runs:
        for row in run.rows if run.is_finished else ():
            start = f"{row}/{metric}/"
            values = {
                n.removeprefix(start): v for n, v in run.metrics.items() if n.startswith(start)
            }
            if values and re.fullmatch(side.row, row):
                by_row.setdefault(row, {})[run.seed] = values
    if not by_row:
        return "", {}
    choose = min if lower else max
    row = choose(by_row, key=lambda name: fmean(fmean(v.values()) for v in by_row[name].values()))
    return row, by_row[row]


def found(runs: Runs, claim: Claim) -> Found | None:
    """Return the claim's numbers for seeds and evaluation sets that both sides have; ``None`` without any."""
    metrics = (claim.metric, claim.worse_metric or claim.metric)
    (better_row, better), (worse_row, worse) = (
        measured(runs[claim.table].get(side.method, ()), side, metric, lower=claim.lower)
        for side, metric in zip((claim.better, claim.worse), metrics, strict=True)
    )
    first: dict[int, float] = {}
    second: dict[int, float] = {}
    for seed in sorted(better.keys() & worse.keys()):
        if sets := sorted(better[seed].keys() & worse[seed].keys()):
            first[seed] = fmean(better[seed][name] for name in sets)
            second[seed] = fmean(worse[seed][name] for name in sets)
    return Found(claim, first, second, better_row, worse_row) if first else None


# -- page -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Cost of a table's finished runs: wall-clock minutes, and CPU minutes where they were recorded."""

    runs: Sequence[Run]

    @property
    def minutes(self) -> float:
        return sum(run.metrics.get("run/minutes", 0.0) for run in self.runs)

    @property
    def computing(self) -> float | None:
        known = [run.metrics.get("run/cpu_minutes") for run in self.runs]
        return None if None in known else sum(value for value in known if value is not None)

    def row(self, name: str) -> str:
        commits = dict.fromkeys(commit for run in self.runs for commit in run.commits)
        threads = {str(e.get("threads", "unknown")) for r in self.runs for e in r.environments[:1]}
        computing = "" if self.computing is None else f"{self.computing:.0f}"
        cells = [name, str(len(self.runs)), f"{self.minutes:.0f}", computing]
        return f"| {' | '.join([*cells, ', '.join(sorted(threads)), ', '.join(commits)])} |"


def page(folder: Path, write: Path, seeds: Sequence[int]) -> str:
    """Return ``docs/results/README.md``: the available runs, their cost, and the claims."""
    runs = read_all(folder)
    account = os.path.relpath(ROOT / "docs" / "comparison.md", write)
    costs = {
        table: Cost([r for own in methods.values() for r in own if r.is_finished])
        for table, methods in runs.items()
    }
    total = sum(cost.minutes for cost in costs.values())
    computed = sum(
        cost.minutes if cost.computing is None else cost.computing for cost in costs.values()
    )
    rows = []
    for table, cost in costs.items():
        has_report = (write / table / "report.md").is_file()
        rows.append(cost.row(f"[{table}]({table}/report.md)" if has_report else table))
    lines = [
        "# The paper's tables on the embedded model",
        "",
        f"Written by `python scripts/paper_claims.py` from the runs in `{short(folder)}`, which "
        f"`scripts/paper.py` makes; what it means is in [comparison.md]({account}). Mean ± standard "
        "error over seeds; shares in %, the rest in the metric's unit. A claim holds where the 95 % "
        "t-interval of the difference, paired by seed, leaves out 0. Which side was measured on fewer "
        "questions stands in each table's report.",
        "",
        "| table | finished runs | minutes of all runs | of computing | threads of a run | commits |",
        "|---|---:|---:|---:|---:|---|",
        *rows,
        "",
        f"All runs together took {total:.0f} minutes, evaluation included; two at a time, that is "
        f"{total / 120:.1f} hours. Of computing, which other work on the machine does not lengthen, "
        f"{computed:.0f} minutes (where that was not written down, the minutes that passed): "
        f"{computed / 120:.1f} hours on two cores.",
    ]
    if others := [name for table in TABLES for name in _never_run(runs, table)]:
        lines += ["", f"Not run, and in no claim below: {', '.join(others)}."]
    if absent := [line for table in runs for line in _missing(table, runs[table], seeds)]:
        lines += ["", "Not finished:", "", *(f"- {line}" for line in absent)]
    for title, claims in CLAIMS.items():
        own_claims = [
            c for c in claims if {c.better.method, c.worse.method} <= runs.get(c.table, {}).keys()
        ]
        if own_claims:
            table_of_them = [_claim_row(claim, found(runs, claim)) for claim in own_claims]
            lines += ["", f"## {title}", "", *_CLAIM_HEADER, *table_of_them]
    return "\n".join(lines) + "\n"


def _never_run(runs: Runs, table: str) -> list[str]:
    """Return the methods of a table without any run; just the table if none has one."""
    there = runs.get(table, {})
    return [f"{table} {m}" for m in TABLES[table].methods if m not in there] if there else [table]


def _missing(table: str, there: Mapping[str, Sequence[Run]], seeds: Sequence[int]) -> list[str]:
    """Describe unfinished and missing runs of the methods that have any run, with the reason if known."""
    lines = []
    for method, runs in there.items():
        own = {run.seed: run for run in runs}
        for seed in sorted({*seeds, *own}):
            run = own.get(seed)
            why = "no run" if run is None else str(run.state)
            if run is None or not run.is_finished:
                lines.append(f"{table}, {method}, seed {seed}: {why}")
    return lines


_CLAIM_HEADER = (
    "| table | metric | claimed | seeds | first | second | difference, 95 % interval | here |",
    "|---|---|---|---:|---:|---:|---:|---|",
)


def _claim_row(claim: Claim, row: Found | None) -> str:
    sign = "below" if claim.lower else "above"
    first = _called(claim.better, row.better_row if row else "")
    second = _called(claim.worse, row.worse_row if row else "")
    metric = claim.metric.replace("_", " ") + (" (%)" if is_share(claim.metric) else "")
    if claim.worse_metric:
        metric += f" against {claim.worse_metric.replace('_', ' ')}"
    cells = [claim.table, metric, f"{first} {sign} {second}"]
    if row is None:
        cells += ["0", "", "", "", "no data"]
    else:
        sides = (spread(claim.metric, list(own.values())) for own in (row.better, row.worse))
        cells += [str(len(row.better)), *sides, _difference(row), row.verdict]
    return f"| {' | '.join(cells)} |"


def _called(side: Side, row: str) -> str:
    shots = re.fullmatch(r"\w+_(\d+)_shot", row)
    return f"{side.name} ({shots[1]})" if shots and side is FEW_SHOT else side.name


def _difference(row: Found) -> str:
    scale, digits = (100, 1) if is_share(row.claim.metric) else (1, 3)
    mean, margin = scale * fmean(row.differences), row.margin
    return f"{mean:+.{digits}f}" + (f" ± {scale * margin:.{digits}f}" if margin is not None else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "paper")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds that the folder should have"
    )
    arguments = parser.parse_args()
    if not any(arguments.folder.glob("*/*/seed*/config.yaml")):
        raise SystemExit(f"{arguments.folder}: no runs there; make paper-tiny makes them")
    try:
        text = page(arguments.folder, arguments.write, arguments.seeds)
    except UserError as error:
        raise SystemExit("\n".join(map(str, error.problems))) from None
    arguments.write.mkdir(parents=True, exist_ok=True)
    (arguments.write / "README.md").write_text(text, encoding="utf-8")
    print(f"written to {arguments.write / 'README.md'}")


if __name__ == "__main__":
    prepare_output()
    main()
