"""Rows of the base model that are compared with a policy in a table."""

from __future__ import annotations

from gfn_runner.baselines.base import Rows
from gfn_runner.baselines.prompting import prompt_base_model, shot_rows
from gfn_runner.baselines.resampling import resample_base_model
from gfn_runner.evaluation.draw import Drawing


def baseline_rows(d: Drawing) -> Rows:
    """Yield name and samples of every base model row enabled in the settings."""
    yield from shot_rows(d, d.options.shots(d.task.default_shots))
    for at in d.options.baseline_temperatures:
        yield f"base_at_T{at:g}", prompt_base_model(d, temperature=at)
    if d.options.resampled:
        yield "resampled", resample_base_model(d)
