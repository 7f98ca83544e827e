"""What the paper's comparisons come to on the embedded model: an index of its tables, claim by claim.

    python scripts/paper_claims.py      # docs/results/README.md of what lies in outputs/paper

A claim sets two methods beside each other in one metric, paired by seed. It holds, or is reversed, where
the 95 % t-interval of the difference leaves out 0; else the seeds do not tell the two apart.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

from results import ROOT
from scipy.stats import t as student

from gfn_runner.errors import UserError
from gfn_runner.report.runs import Run, read_run
from gfn_runner.report.summary import spread
from gfn_runner.report.table import is_share


@dataclass(frozen=True)
class Side:
    """One of the two methods of a claim.

    Attributes:
        name: as a reader knows it.
        method: its folder below the table's.
        row: a pattern of the row's name; of several rows the one with the best mean counts.
    """

    name: str
    method: str
    row: str = "final"


GFLOWNET = Side("GFlowNet", "gflownet")
SFT = Side("supervised", "sft")
PPO = Side("PPO", "ppo")
GRPO = Side("GRPO", "grpo")
ZERO_SHOT = Side("0-shot", "prompting", "base_0_shot")
FEW_SHOT = Side("best few-shot", "prompting", r"base_[1-9]\d*_shot")


@dataclass(frozen=True)
class Claim:
    """``better`` is above ``worse`` in a metric, or below it where ``lower`` is what is claimed.

    The metric is averaged over its evaluation sets.
    """

    table: str
    metric: str
    better: Side
    worse: Side
    lower: bool = False


def _order(table: str, metric: str, *sides: Side, lower: bool = False) -> list[Claim]:
    """Each side before the next one."""
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
    "PPO and GRPO reach a higher reward": [
        Claim("arithmetic", "log_reward", PPO, GFLOWNET),
        Claim("arithmetic", "log_reward", GRPO, GFLOWNET),
        Claim("continuation", "log_reward", PPO, GFLOWNET),
        Claim("continuation", "log_reward", GRPO, GFLOWNET),
        Claim("infilling", "log_reward", PPO, GFLOWNET),
    ],
    "… and a lower accuracy": [
        Claim("arithmetic", "vote_accuracy", PPO, GFLOWNET, lower=True),
        Claim("arithmetic", "vote_accuracy", GRPO, GFLOWNET, lower=True),
        Claim("arithmetic", "single_accuracy", PPO, GFLOWNET, lower=True),
        Claim("arithmetic", "single_accuracy", GRPO, GFLOWNET, lower=True),
        Claim("infilling", "fits_both_share", PPO, GFLOWNET, lower=True),
        Claim("random_number", "kl", GFLOWNET, PPO, lower=True),
    ],
    "… with nearly no diversity": [
        Claim("continuation", "diversity", PPO, GFLOWNET, lower=True),
        Claim("continuation", "diversity", GRPO, GFLOWNET, lower=True),
        Claim("continuation", "unique", PPO, GFLOWNET, lower=True),
        Claim("continuation", "unique", GRPO, GFLOWNET, lower=True),
        Claim("infilling", "diversity", PPO, GFLOWNET, lower=True),
        Claim("infilling", "unique", PPO, GFLOWNET, lower=True),
    ],
}


@dataclass(frozen=True)
class Found:
    """A claim's numbers: both sides' values by seed, and the row that each was taken from."""

    claim: Claim
    better: dict[int, float]
    worse: dict[int, float]
    better_row: str
    worse_row: str

    @property
    def differences(self) -> list[float]:
        """Better less worse, of the seeds that both have."""
        return [
            self.better[seed] - self.worse[seed] for seed in sorted(self.better.keys() & self.worse)
        ]

    @property
    def margin(self) -> float | None:
        """Half the 95 % t-interval of the mean difference; ``None`` of one seed."""
        d = self.differences
        if len(d) < 2:
            return None
        return float(student.ppf(0.975, len(d) - 1)) * stdev(d) / len(d) ** 0.5

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


def runs_of(folder: Path, table: str) -> dict[str, list[Run]]:
    """The runs of a table by method, finished or not; what cannot be read is passed over."""
    found: dict[str, list[Run]] = {}
    for place in sorted((folder / table).glob("*/seed*/config.yaml")):
        if place.parent.parent.name != "aside":
            found.setdefault(place.parent.parent.name, []).append(read_run(place.parent))
    return found


def measured(
    runs: Sequence[Run], side: Side, metric: str, *, lower: bool
) -> tuple[str, dict[int, float]]:
    """A side's row and its values by seed, averaged over evaluation sets.

    Of several rows the one with the best mean: the comparison is with the strongest rival.
    """
    by_row: dict[str, dict[int, float]] = {}
    for run in runs:
        if run.status != "finished":
            continue
        for row in run.rows:
            values = [v for name, v in run.metrics.items() if name.startswith(f"{row}/{metric}/")]
            if values and re.fullmatch(side.row, row):
                by_row.setdefault(row, {})[run.seed] = fmean(values)
    if not by_row:
        return "", {}
    choose = min if lower else max
    row = choose(by_row, key=lambda name: fmean(by_row[name].values()))
    return row, by_row[row]


def found(folder: Path, claim: Claim) -> Found | None:
    """The claim's numbers; ``None`` if a side has none, or the two no seed in common."""
    runs = runs_of(folder, claim.table)
    # Where lower is claimed of a maximised metric (accuracy of PPO), both sides have one row only.
    sides = [
        measured(runs.get(side.method, []), side, claim.metric, lower=claim.lower)
        for side in (claim.better, claim.worse)
    ]
    (better_row, better), (worse_row, worse) = sides
    if not better.keys() & worse.keys():
        return None
    return Found(claim, better, worse, better_row, worse_row)


def page(folder: Path, write: Path, tables: Sequence[str]) -> str:
    """``docs/results/README.md``: what there is, what it took, and the claims."""
    lines = [
        "# The paper's tables on the embedded model",
        "",
        "Written by `python scripts/paper_claims.py` from the runs of `make paper-tiny`; what it means "
        "is in [comparison.md](../comparison.md). Mean ± standard error over seeds; shares in %, the "
        "rest in the metric's unit.",
        "",
        "| table | finished runs | not finished | minutes of all runs | commits |",
        "|---|---:|---:|---:|---|",
    ]
    total = 0.0
    for table in tables:
        runs = [run for own in runs_of(folder, table).values() for run in own]
        ended = [run for run in runs if run.status == "finished"]
        minutes = sum(run.metrics.get("run/minutes", 0.0) for run in ended)
        total += minutes
        commits = ", ".join(dict.fromkeys(commit for run in ended for commit in run.commits))
        name = f"[{table}]({table}/report.md)" if (write / table / "report.md").is_file() else table
        lines.append(
            f"| {name} | {len(ended)} | {len(runs) - len(ended)} | {minutes:.0f} | {commits} |"
        )
    lines += [
        "",
        f"All runs together took {total:.0f} minutes on one thread each; two at a time that is "
        f"{total / 120:.1f} hours.",
    ]
    for title, claims in CLAIMS.items():
        own = [numbers for claim in claims if (numbers := found(folder, claim))]
        lines += ["", f"## {title}", ""]
        lines += _claim_table(own) if own else ["No runs of it yet."]
    return "\n".join(lines) + "\n"


def _claim_table(rows: Sequence[Found]) -> list[str]:
    lines = [
        "| table | metric | claimed | the first | the second | difference, 95 % interval | here |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for row in rows:
        claim = row.claim
        sign = "below" if claim.lower else "above"
        first, second = _called(claim.better, row.better_row), _called(claim.worse, row.worse_row)
        cells = [
            claim.table,
            claim.metric.replace("_", " ") + (" (%)" if is_share(claim.metric) else ""),
            f"{first} {sign} {second}",
            spread(claim.metric, list(row.better.values())),
            spread(claim.metric, list(row.worse.values())),
            _difference(row),
            row.verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _called(side: Side, row: str) -> str:
    shots = re.fullmatch(r"base_(\d+)_shot", row)
    return f"{side.name} ({shots[1]})" if shots and side is FEW_SHOT else side.name


def _difference(row: Found) -> str:
    scale = 100 if is_share(row.claim.metric) else 1
    mean, margin = scale * fmean(row.differences), row.margin
    digits = 1 if scale == 100 else 3
    return f"{mean:+.{digits}f}" + (f" ± {scale * margin:.{digits}f}" if margin is not None else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "paper")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    tables = sorted({path.name for path in arguments.folder.glob("*") if path.is_dir()})
    try:
        if not any(runs_of(arguments.folder, table) for table in tables):
            raise SystemExit(f"{arguments.folder}: no run lies there; make paper-tiny makes them")
        text = page(arguments.folder, arguments.write, tables)
    except UserError as error:
        raise SystemExit("\n".join(map(str, error.problems))) from None
    arguments.write.mkdir(parents=True, exist_ok=True)
    (arguments.write / "README.md").write_text(text, encoding="utf-8")
    print(f"written to {arguments.write / 'README.md'}")


if __name__ == "__main__":
    main()
