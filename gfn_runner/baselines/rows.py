"""The rows that stand below the policy in a table: which samples of the base model, by which name."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence

from gfn_runner.baselines.direct import answer_directly, answers_directly
from gfn_runner.baselines.methods import Baseline, Drawing, Prompting, Rows
from gfn_runner.baselines.prompting import few_shot_conditions, prompt_base_model
from gfn_runner.baselines.resampling import resample_base_model

logger = logging.getLogger(__name__)


def made_rows(drawing: Drawing, baseline: Baseline) -> Rows:
    """Name and samples of everything that a baseline does without training, one after the other."""
    assert baseline.row_maker is not None  # it trains nothing
    module_name, _, name = baseline.row_maker.rpartition(".")
    make = getattr(importlib.import_module(module_name), name)
    yield from make(drawing, baseline)


def prompted_rows(drawing: Drawing, options: Prompting) -> Rows:
    """The base model behind the numbers of worked examples that are asked for."""
    yield from shot_rows(drawing, options.shots)


def shot_rows(drawing: Drawing, shots: Sequence[int]) -> Rows:
    """The base model behind numbers of worked examples; what does not fit its context is left out."""
    d = drawing
    at_once = answers_directly(d.task, d.conditions)
    for k in shots:
        too_long = _beyond_context(d, k)
        if too_long:
            logger.warning(
                "no row of %d worked examples: a prompt with them is up to %d tokens too long",
                k,
                too_long,
            )
            continue
        if at_once:
            with d.lm.base():
                answers = answer_directly(
                    d.lm, d.task, d.rule, d.conditions, shots=k, batch=d.options.batch, seed=d.seed
                )
            yield f"direct_{k}_shot", answers
        # Labelled examples show how to answer, and not how to write a sample.
        if not (at_once and k):
            drawn = prompt_base_model(
                d.lm, d.task, d.rule, d.conditions, d.options, shots=k, seed=d.seed
            )
            yield f"base_{k}_shot", drawn


def _beyond_context(d: Drawing, shots: int) -> int:
    """Tokens by which the longest prompt and a string exceed the model's context; 0 if they fit."""
    if d.lm.context_length is None:
        return 0
    prompted = few_shot_conditions(d.task, d.conditions, shots, d.seed)
    longest = max(len(d.lm.encode_prompt(condition.prompt)) for condition in prompted)
    return max(0, longest + d.rule.max_len + 1 - d.lm.context_length)


def baseline_rows(drawing: Drawing) -> Rows:
    """Name and samples of every row of the base model that the settings ask for, one after the other."""
    d = drawing
    yield from shot_rows(d, d.options.shots(d.task))
    for at in d.options.baseline_temperatures:
        drawn = prompt_base_model(
            d.lm, d.task, d.rule, d.conditions, d.options, shots=0, seed=d.seed, temperature=at
        )
        yield f"base_at_T{at:g}", drawn
    if d.options.resampled:
        drawn = resample_base_model(
            d.lm, d.task, d.rule, d.conditions, d.options, seed=d.seed, temperature=d.temperature
        )
        yield "resampled", drawn
