"""The paper's comparisons, claim by claim: paired differences, intervals, verdicts, and their page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from paper import TABLES
from paper_claims import CLAIMS, FEW_SHOT, GFLOWNET, SFT, Claim, Found, found, page, read_all

ABOVE = Claim("arithmetic", "vote_accuracy", GFLOWNET, SFT)
BELOW = Claim("arithmetic", "vote_accuracy", GFLOWNET, SFT, lower=True)


def leave(folder: Path, method: str, seed: int, metrics: dict[str, float] | None) -> None:
    run = folder / "arithmetic" / method / f"seed{seed}"
    run.mkdir(parents=True)
    task = {"_target_": "gfn_runner.tasks.arithmetic.IntegerArithmetic"}
    (run / "config.yaml").write_text(yaml.safe_dump({"task": task, "seed": seed}))
    (run / "environment.json").write_text(json.dumps({"git": {"commit": "c" * 40}, "threads": 1}))
    if metrics is not None:
        (run / "metrics.json").write_text(json.dumps(metrics | {"run/minutes": 6.0}))


def numbers(better, worse, claim=ABOVE):
    return Found(claim, dict(enumerate(better)), dict(enumerate(worse)), "final", "final")


@pytest.mark.parametrize(
    ("better", "worse", "claim", "verdict"),
    [
        ([0.9, 0.9, 0.9], [0.1, 0.2, 0.15], ABOVE, "holds"),
        ([0.1, 0.2, 0.15], [0.9, 0.9, 0.9], ABOVE, "reversed"),
        ([0.1, 0.2, 0.15], [0.9, 0.9, 0.9], BELOW, "holds"),
        ([0.9, 0.5, 0.7], [0.6, 0.6, 0.6], ABOVE, "not told apart"),
        # 0.1 in every seed, whatever the seeds have in common.
        ([0.9, 0.5, 0.1], [0.8, 0.4, 0.0], ABOVE, "holds"),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], ABOVE, "equal"),
        ([0.9], [0.1], ABOVE, "one seed"),
    ],
)
def test_verdicts(better, worse, claim, verdict):
    assert numbers(better, worse, claim).verdict == verdict


def test_the_margin_is_that_of_a_paired_t_interval():
    # Differences 1, 2, 3: sd 1, three seeds, t of 2 degrees of freedom 4.3027.
    assert numbers([2, 4, 6], [1, 2, 3]).margin == pytest.approx(4.30265 / 3**0.5, abs=1e-4)


def test_sides_are_means_over_sets_and_the_best_of_several_rows(tmp_path):
    few = {"base_0_shot": 0.99, "base_3_shot": 0.4, "base_5_shot": 0.6, "base_10_shot": 0.5}
    for seed in (0, 1):
        final = {"final/vote_accuracy/3_operands": 0.8, "final/vote_accuracy/4_operands": 0.6}
        leave(tmp_path, "gflownet", seed, final | {"final/vote_accuracy_low/3_operands": 0.0})
        rows = {f"{row}/vote_accuracy/{n}_operands": v for row, v in few.items() for n in (3, 4)}
        leave(tmp_path, "prompting", seed, rows)
    leave(tmp_path, "gflownet", 2, None)  # not finished: no part of any mean
    claim = Claim("arithmetic", "vote_accuracy", GFLOWNET, FEW_SHOT)
    own = found(read_all(tmp_path), claim)
    assert own.better == pytest.approx({0: 0.7, 1: 0.7})
    assert (own.worse_row, own.worse) == ("base_5_shot", {0: 0.6, 1: 0.6})
    assert found(read_all(tmp_path), ABOVE) is None  # supervised fine-tuning was not run
    text = page(tmp_path, tmp_path / "docs", [0, 1])
    assert "| arithmetic | 4 | 24 |  | 1 | cccccccccc |" in text
    assert "that is 0.2 hours. Of computing" in text
    row = "| arithmetic | vote accuracy (%) | best few-shot (5) above 0-shot | 2 | 60.0 | 99.0 "
    assert row + "| -39.0 ± 0.0 | reversed |" in text
    # What was not run is named once, and not claim by claim.
    assert "below: arithmetic sft, arithmetic sft_on_gflownet, arithmetic ppo," in text
    assert "arithmetic resampling, infilling, subjectivity_10," in text
    assert "above supervised |" not in text and "| infilling |" not in text
    # A method at hand has all its seeds, or says which are missing.
    assert "- arithmetic, gflownet, seed 2: " in text
    assert "arithmetic, gflownet, seed 0" not in text
    leave(tmp_path, "sft", 1, None)
    text = page(tmp_path, tmp_path / "docs", [0, 1])
    assert "| GFlowNet above supervised | 0 |  |  |  | no data |" in text
    assert "- arithmetic, sft, seed 0: no run" in text
    assert "- arithmetic, sft, seed 1: " in text


def test_only_seeds_and_sets_that_both_have_are_compared(tmp_path):
    """A set that one of them lacks, or a seed, would move one mean and not the other."""
    easy, hard = "final/vote_accuracy/3_operands", "final/vote_accuracy/5_operands"
    leave(tmp_path, "gflownet", 0, {easy: 0.9, hard: 0.1})
    leave(tmp_path, "gflownet", 1, {easy: 0.8, hard: 0.2})
    leave(tmp_path, "sft", 1, {easy: 0.6})
    leave(tmp_path, "sft", 2, {easy: 0.0})
    own = found(read_all(tmp_path), ABOVE)
    assert (own.better, own.worse) == ({1: 0.8}, {1: 0.6}) and own.verdict == "one seed"


def test_a_vote_stands_beside_one_chosen_among_as_many(tmp_path):
    leave(tmp_path, "gflownet", 0, {"final/vote_accuracy/x": 0.9})
    rival = {"resampled_16/single_accuracy/x": 0.7, "resampled_16/vote_accuracy/x": 0.2}
    leave(tmp_path, "resampling", 0, rival)
    claims = [claim for own in CLAIMS.values() for claim in own if claim.worse_metric]
    (claim,) = (claim for claim in claims if claim.worse.row == "resampled_16")
    assert found(read_all(tmp_path), claim).differences == [pytest.approx(0.2)]


def test_every_claim_is_of_a_table_and_methods_that_are_run():
    for claim in (claim for own in CLAIMS.values() for claim in own):
        assert {claim.better.method, claim.worse.method} <= TABLES[claim.table].methods.keys()
