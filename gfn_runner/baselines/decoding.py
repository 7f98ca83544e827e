"""Decoding methods for the base model, each also with more compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.baselines.base import Baseline, Rows, draw_row
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import TaskData
from gfn_runner.data.task import Task
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.errors import Problem
from gfn_runner.evaluation.draw import Drawing, draw_many
from gfn_runner.lm.decoding import beam_search, diverse_beam_search, truncated_sample
from gfn_runner.rewards.reward import string_log_reward

# (token ids of prompts, strings for each, generator) → strings
Decode = Callable[[Sequence[Sequence[int]], int, torch.Generator], Trajectories]

DECODERS = ("greedy", "beam", "diverse_beam", "sampling", "tempered", "nucleus", "top_k")


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Decoding(Baseline):
    """Decoding methods for the base model, each also with more compute.

    With more compute, a method draws ``compute`` times as many strings (or beams) and keeps the distinct ones
    with the highest log R.

    Attributes:
        decoders: subset of ``DECODERS``.
        compute: factor for the number of strings; 1 omits these rows.
        temperature: temperature of ``tempered``.
        top_p, top_k: parameters of ``nucleus`` and ``top_k``.
        diversity_penalty: for ``diverse_beam``, nats per earlier group that chose the same token
            (Vijayakumar et al. 2016, arXiv:1610.02424); every group has one beam.
    """

    decoders: tuple[str, ...] = DECODERS
    compute: Annotated[int, Field(ge=1)] = 5
    temperature: Annotated[float, Field(gt=0)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    top_k: Annotated[int, Field(ge=1)] = 50
    diversity_penalty: Annotated[float, Field(ge=0)] = 1.0

    label: ClassVar[str] = "decoding"

    def problems(self) -> Iterator[Problem]:
        unknown = [name for name in self.decoders if name not in DECODERS]
        if unknown or not self.decoders:
            yield Problem(
                "baseline.decoders", f"given {list(self.decoders)}", f"some of {list(DECODERS)}"
            )

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        if task.tool() is not None:
            yield Problem(
                "baseline",
                f"decoding for task {task.name} with a tool, but a decoder does not wait for its answers",
                "a task without a tool, e.g. task.calculator=null",
            )

    def rows(self, drawing: Drawing) -> Rows:
        """Yield each decoder's row, then the one with more compute as ``<name>_x<compute>``."""
        for name in self.decoders:
            decode = self._decoder(drawing, name)
            seed = ("decoding", name, drawing.seed)
            plain = _plain(drawing, decode, name == "greedy")
            yield name, draw_row(drawing, name, *seed, draw=plain)
            # Greedy decoding always gives the same string.
            if self.compute > 1 and name != "greedy":
                row = f"{name}_x{self.compute}"
                best = _likeliest(drawing, decode, self.compute)
                yield row, draw_row(drawing, row, *seed, draw=best)

    def _decoder(self, d: Drawing, name: str) -> Decode:
        lm, rule = d.lm, d.rule
        if name == "beam":
            return lambda prompts, n, _: beam_search(lm, prompts, n, rule)
        if name == "diverse_beam":
            penalty = self.diversity_penalty
            return lambda prompts, n, _: diverse_beam_search(lm, prompts, n, rule, penalty=penalty)
        if name in ("nucleus", "top_k"):
            cut: Any = {"top_p": self.top_p} if name == "nucleus" else {"top_k": self.top_k}
            return lambda prompts, n, g: truncated_sample(lm, prompts, n, rule, g, **cut)
        at = {"greedy": 0.0, "sampling": 1.0, "tempered": self.temperature}[name]
        return lambda prompts, n, g: draw_many(d, prompts, [at] * n, g)


def _plain(drawing: Drawing, decode: Decode, once: bool) -> Callable[..., Trajectories]:
    """Return a draw function for the requested number of strings, or for one."""

    def draw(
        conditions: Sequence[Condition], n: int, at: float, generator: torch.Generator
    ) -> Trajectories:
        # Decoders have their own temperature.
        return decode(drawing.prompts(conditions), 1 if once else n, generator)

    return draw


def _likeliest(drawing: Drawing, decode: Decode, compute: int) -> Callable[..., Trajectories]:
    """Return a draw function that keeps the n distinct strings with the highest log R of ``compute * n``."""

    def draw(
        conditions: Sequence[Condition], n: int, at: float, generator: torch.Generator
    ) -> Trajectories:
        d = drawing
        many = decode(d.prompts(conditions), compute * n, generator)
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
