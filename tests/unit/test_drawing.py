"""What an evaluation draws: prompts read once, temperatures by kind, a bound on memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gfn_runner.evaluation import draw as evaluation
from gfn_runner.evaluation.draw import draw_answers, draw_kinds, draw_many, rows_at_once
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.cache import row_bytes
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.vocabulary import StringRule
from tests.tiny_models import random_model

from .test_baselines import CONDITIONS, drawing


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def counted_draws(monkeypatch) -> list[int]:
    """Rows of every call of ``sample``."""
    drawn: list[int] = []

    def counted(lm, prompts, n, *rest, **options):
        drawn.append(n * len(prompts))
        return sample(lm, prompts, n, *rest, **options)

    monkeypatch.setattr(evaluation, "sample", counted)
    return drawn


def test_votes_samples_and_the_greedy_one_read_a_prompt_once(monkeypatch):
    d = drawing()
    monkeypatch.setattr(type(d.task), "draws_greedy", True)
    drawn = counted_draws(monkeypatch)
    (first, second) = draw_answers(d, generator())
    assert drawn == [2 * (d.options.votes + d.options.singles + 1)]
    for samples in (first, second):
        assert len(samples.votes) == d.options.votes and len(samples.singles) == d.options.singles
        assert samples.greedy is not None


def test_every_kind_has_its_own_temperature():
    """By frequencies: at temperature 0.3 the likeliest first token is drawn far more often than at 3."""
    d, n = drawing(), 300
    prompts = [d.lm.encode_prompt(c.prompt) for c in CONDITIONS]
    numbers, temperatures = (n, n, 2, 0), (0.02, 3.0, 0.0, 1.0)
    cold, hot, greedy, none = draw_kinds(d, prompts, numbers, temperatures, generator())
    assert none is None
    alone = sample(d.lm, prompts, 1, d.rule, generator(), temperature=0.0)
    for place in (0, 1):
        likeliest = alone.ids(place)
        assert greedy.ids(2 * place) == greedy.ids(2 * place + 1) == likeliest
        cold_share, hot_share = (
            sum(rows.ids(row) == likeliest for row in range(place * n, (place + 1) * n)) / n
            for rows in (cold, hot)
        )
        assert cold_share > 0.9 > 0.6 > hot_share
        assert (cold.condition_B == place).sum() == (hot.condition_B == place).sum() == n


def test_rows_at_once_follow_from_vocabulary_cache_and_memory(monkeypatch):
    d, settings = drawing(), EvaluationSettings(rows=50)
    row = row_bytes(d.lm.model, d.lm.vocab_size, 10 + 6)
    d = d.replace(rule=StringRule(2, 0, 6), options=settings)
    assert rows_at_once(d, 10) == 50
    half, least = (
        d.replace(options=dataclasses.replace(settings, memory_gib=gib))
        for gib in (20.5 * row / 2**30, 1e-12)
    )
    assert rows_at_once(half, 10) == 20
    assert rows_at_once(half, 10_000) < 20
    assert rows_at_once(least, 10) == 1
    drawn = counted_draws(monkeypatch)
    prompts = [[0] * 10, [1] * 10]
    rows = draw_many(half, prompts, [1.0] * 25, generator())
    assert drawn == [20, 5, 20, 5] and len(rows) == 50
    assert rows.condition_B.tolist() == [0] * 25 + [1] * 25


def test_prompts_that_are_too_many_for_a_batch_are_read_once_each(monkeypatch):
    """Greedy strings and others, of two prompts at a time: as those of each prompt alone."""
    d = drawing()
    d = d.replace(options=EvaluationSettings(rows=7))
    prompts = [[place % 2] * (3 + place) for place in range(5)]
    read = []
    prefill = type(d.lm).prefill
    monkeypatch.setattr(
        type(d.lm), "prefill", lambda lm, given: [read.extend(given), prefill(lm, given)][1]
    )
    rows = draw_many(d, prompts, [0.0, 1.0, 0.0], generator())
    assert read == prompts
    assert rows.condition_B.tolist() == [place for place in range(5) for _ in range(3)]
    for place, prompt in enumerate(prompts):
        alone = sample(d.lm, [prompt], 1, d.rule, generator(), temperature=0.0)
        assert rows.ids(3 * place) == rows.ids(3 * place + 2) == alone.ids(0)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_cache_of_a_row_is_as_large_as_it_is_counted(architecture):
    """Keys and values that the model itself leaves, against the estimate without the logits."""
    model, tokens = random_model(architecture, 11), 7
    cache = model(
        input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=True
    ).past_key_values
    held = sum(
        t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)
    )
    assert row_bytes(model, 0, tokens) == 2 * held
    assert row_bytes(model, 1000, tokens) == 2 * held + 24 * 1000
