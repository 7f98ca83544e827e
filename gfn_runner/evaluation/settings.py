"""Settings of what an evaluation samples and measures: the config group ``evaluation``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.errors import Problem
from gfn_runner.lm.model_config import WORDS, sentence_model_problems
from gfn_runner.lm.model_folders import MINILM
from gfn_runner.metrics.judge import JudgeSettings
from gfn_runner.runtime.local_paths import LocalPath


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class EvaluationSettings:
    """How much to sample and measure in an evaluation.

    Attributes:
        during: conditions per evaluation set during training.
        final: conditions per set after training, the first ones; ``None`` for all. With 200, a share of one
            half has a 95 % interval of ± 7 %.
        votes: samples per condition for the vote; 0 for none.
        vote_temperature: sampling temperature of the votes; 0 is greedy.
        singles: samples per condition at temperature 1.
        singles_during: the same for evaluations during training; ``None`` uses ``singles``.
        batch: conditions evaluated at once.
        rows: maximum number of strings sampled at once.
        memory_gib: memory limit for them in GiB; fewer strings are sampled at once if one needs more than
            ``memory_gib`` / ``rows``: 24 bytes per vocabulary entry, plus twice the keys and values of its
            prompt and of ``task.eval_max_len`` tokens.
        encoder: text encoder for diversity: ``words`` (hashed word counts, offline), ``minilm``
            (all-MiniLM-L6-v2 from a package, offline), or path or hub id of a sentence encoder (the
            paper's: sentence-transformers/all-mpnet-base-v2).
        bertscore: model for BERTScore against references, in the final evaluation; ``None`` for none.
        judge: language model that rates samples in the final evaluation; ``None`` for none.
        baseline_shots: numbers of worked examples with which to evaluate the base model; empty for
            no baseline; ``None`` for the task's default.
        baseline_temperatures: per-token sampling temperatures other than 1 at which the base model is also
            evaluated, without worked examples.
        baseline_limit: conditions per set for these baselines; ``None`` for all.
        posterior_draws: base model draws per condition, after each of the policy's prompt and the context
            of the posterior's first term, from which posterior samples are resampled by importance, for
            ``eubo`` and ``jeffreys``. 0 for none.
        posterior_limit: conditions per set with posterior samples; ``None`` for all.
        resampled: base model draws per condition from which its posterior is resampled by importance, as
            an approximation of exact sampling; 0 for none.
    """

    during: Annotated[int, Field(ge=1)] = 40
    final: Annotated[int, Field(ge=1)] | None = 200
    votes: Annotated[int, Field(ge=0)] = 10
    vote_temperature: Annotated[float, Field(ge=0)] = 0.1
    singles: Annotated[int, Field(ge=1)] = 2
    singles_during: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 25
    rows: Annotated[int, Field(ge=1)] = 2048
    memory_gib: Annotated[float, Field(gt=0)] = 2.0
    encoder: Annotated[str, LocalPath((WORDS, MINILM))] = WORDS
    bertscore: Annotated[str, LocalPath()] | None = None
    judge: JudgeSettings | None = None
    baseline_shots: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    baseline_temperatures: tuple[Annotated[float, Field(gt=0)], ...] = ()
    baseline_limit: Annotated[int, Field(ge=1)] | None = None
    posterior_draws: Annotated[int, Field(ge=0)] = 0
    posterior_limit: Annotated[int, Field(ge=1)] | None = 10
    resampled: Annotated[int, Field(ge=0)] = 0

    def problems(self) -> Iterator[Problem]:
        """Yield the problems of the optional metrics that can be found without a model."""
        if self.judge is not None:
            yield from self.judge.problems()
        if self.encoder != WORDS:
            yield from sentence_model_problems(self.encoder)

    def shots(self, default: Sequence[int]) -> tuple[int, ...]:
        """Return the shots of the prompting baseline; ``default`` is the task's own."""
        return tuple(default) if self.baseline_shots is None else self.baseline_shots
