"""What an evaluation draws and measures: the config group ``evaluation``."""

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
    """How much is drawn and measured.

    Attributes:
        during: conditions per evaluation set during training.
        final: conditions per set at the end, the first ones; ``None`` for all. Of 200, a share of one
            half has a 95 % interval of ± 7 %.
        votes: samples per condition for the vote; 0 for none.
        vote_temperature: of those samples; 0 is greedy.
        singles: samples per condition at temperature 1.
        singles_during: the same on the way; ``None`` for as many.
        batch: conditions evaluated at once.
        rows: strings drawn at once, at most.
        memory_gib: GiB that they may need; fewer are drawn at once where a string needs more than
            ``memory_gib`` / ``rows``: 24 bytes for every token of the vocabulary, and twice the keys and
            values of its prompt and of ``task.eval_max_len`` tokens.
        encoder: of texts, for their diversity: ``words`` (hashed word counts, offline), ``minilm``
            (all-MiniLM-L6-v2 from a package, offline), or a sentence encoder's path or hub id (the
            paper's: sentence-transformers/all-mpnet-base-v2).
        bertscore: model of BERTScore against references, in the final evaluation; ``None`` for none.
        judge: a language model that rates samples in the final evaluation; ``None`` for none.
        baseline_shots: numbers of worked examples with which the base model is evaluated; empty for
            no baseline; ``None`` for the task's own.
        baseline_temperatures: temperatures below or above 1 at which the base model is evaluated too,
            token by token, bare.
        baseline_limit: conditions per set for all that; ``None`` for all.
        posterior_draws: draws of the base model per condition, after each of the policy's prompt and the
            context of the posterior's first term, from which samples of the posterior are resampled by
            importance: for ``eubo`` and ``jeffreys``. 0 for none.
        posterior_limit: conditions per set for that; ``None`` for all.
        resampled: draws per condition of the base model from which its posterior is resampled by
            importance, as a picture of exact sampling; 0 for none.
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
        """What is impossible in the optional metrics, seen without a model."""
        if self.judge is not None:
            yield from self.judge.problems()
        if self.encoder != WORDS:
            yield from sentence_model_problems(self.encoder)

    def shots(self, default: Sequence[int]) -> tuple[int, ...]:
        """Numbers of worked examples of the prompting baseline; ``default`` is the task's own."""
        return tuple(default) if self.baseline_shots is None else self.baseline_shots
