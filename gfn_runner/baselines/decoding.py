"""Rows of decoders of the base model, each with plain and with more compute; trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gfn_runner.baselines.methods import Decoding, Drawing, Rows
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.evaluation.draw import draw_answers, draw_many
from gfn_runner.lm.decoding import beam_search, diverse_beam_search, truncated_sample
from gfn_runner.rewards.reward import string_log_reward
from gfn_runner.runtime.seeds import torch_generator_for

# (token ids of prompts, strings for each, generator) → strings
Decode = Callable[[Sequence[Sequence[int]], int, torch.Generator], Trajectories]


def decoder_rows(drawing: Drawing, options: Decoding) -> Rows:
    """Every decoder's row, and with ``_x<compute>`` behind its name that with more compute."""
    for name in options.decoders:
        decode = _decoder(drawing, options, name)
        yield name, _drawn(drawing, name, name, _plain(drawing, decode, name == "greedy"))
        # More of what is always the same string would be the same string.
        if options.compute > 1 and name != "greedy":
            best = _likeliest(drawing, decode, options.compute)
            row = f"{name}_x{options.compute}"
            yield row, _drawn(drawing, name, row, best)


def _drawn(
    drawing: Drawing, name: str, row: str, draw: Callable[..., Trajectories]
) -> list[ConditionSamples]:
    d = drawing
    generator = torch_generator_for(d.lm.device, "decoding", name, d.seed)
    with d.lm.base():
        return draw_answers(
            d.lm,
            d.task,
            d.rule,
            d.conditions,
            d.options,
            generator,
            draw=draw,
            name=f"evaluation, {row}",
        )


def _decoder(drawing: Drawing, options: Decoding, name: str) -> Decode:
    lm, rule, task = drawing.lm, drawing.rule, drawing.task
    if name == "beam":
        return lambda prompts, n, _: beam_search(lm, prompts, n, rule)
    if name == "diverse_beam":
        penalty = options.diversity_penalty
        return lambda prompts, n, _: diverse_beam_search(lm, prompts, n, rule, penalty=penalty)
    if name == "nucleus":
        return lambda prompts, n, g: truncated_sample(lm, prompts, n, rule, g, top_p=options.top_p)
    if name == "top_k":
        return lambda prompts, n, g: truncated_sample(lm, prompts, n, rule, g, top_k=options.top_k)
    at = {"greedy": 0.0, "sampling": 1.0, "tempered": options.temperature}[name]
    how = drawing.options
    return lambda prompts, n, g: draw_many(lm, task, rule, prompts, [at] * n, how, g)


def _plain(drawing: Drawing, decode: Decode, once: bool) -> Callable[..., Trajectories]:
    def draw(
        conditions: Sequence[Condition], n: int, at: float, generator: torch.Generator
    ) -> Trajectories:
        # A decoder has its own temperature.
        return decode(_prompts(drawing, conditions), 1 if once else n, generator)

    return draw


def _likeliest(drawing: Drawing, decode: Decode, compute: int) -> Callable[..., Trajectories]:
    """Of ``compute`` times as many strings the likeliest different ones under log R, n or fewer."""

    def draw(
        conditions: Sequence[Condition], n: int, at: float, generator: torch.Generator
    ) -> Trajectories:
        d = drawing
        many = decode(_prompts(d, conditions), compute * n, generator)
        different, _ = many.distinct()
        asked = [d.task.without_answer(condition) for condition in conditions]
        log_reward_N, _ = string_log_reward(d.lm, asked, different, d.rule, d.task.constraints())
        kept: list[int] = []
        for place in range(len(conditions)):
            own = (different.condition_B == place).nonzero()[:, 0]
            best = log_reward_N[own].argsort(descending=True, stable=True)[:n]
            kept += own[best].tolist()
        return different.rows(torch.tensor(kept, device=d.lm.device))

    return draw


def _prompts(drawing: Drawing, conditions: Sequence[Condition]) -> list[tuple[int, ...]]:
    return [drawing.lm.encode_prompt(condition.prompt) for condition in conditions]
