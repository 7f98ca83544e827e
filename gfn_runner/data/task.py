"""Interface of a task: the hooks that define its data, posterior, answers and metrics.

:class:`~gfn_runner.tasks.base.GFlowNetModule` is the Lightning module that implements them. The hooks need no
model, so the config is validated and the data are read before weights are loaded.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.samples import (
    ConditionSamples,
    DemonstrationPrompt,
    ReferenceRow,
    ReferenceSample,
    TaskData,
)
from gfn_runner.data.tools import Tool
from gfn_runner.errors import Problem, UserError


class Task(ABC):
    """Settings and hooks common to all tasks.

    Attributes:
        terminator: text of the terminator ⊤; a single token of the model.
        terminator_role: selects ⊤ by its role instead of its text: ``end_of_turn``, the special token that
            the chat template writes after an assistant message, or ``end_of_text``, the tokenizer's
            end-of-sequence token. ``terminator`` is then ordinary text. ``None`` selects ⊤ by its text.
        min_len, max_len: bounds on the number of actions in training. With a minimum above 0, the first
            tokens get no credit under the purely within-trajectory objectives.
        eval_max_len: maximum number of actions in evaluation.
        name: name of the task, as in ``task=…``.
        headline: metrics shown in the final table.
        optimized: metric that a search optimizes by default; if empty, the first of ``headline``.
        writes_text: whether samples are texts whose diversity is meaningful.
        votes_by_answer: whether answer choices are also scored after the votes and the greedy sample.
        draws_greedy: whether evaluation also draws a sample at temperature 0.
        default_shots: default numbers of worked examples for the prompting baseline.
    """

    terminator: str
    terminator_role: str | None
    min_len: int
    max_len: int
    eval_max_len: int

    name: ClassVar[str]
    headline: ClassVar[tuple[str, ...]] = ()
    optimized: ClassVar[str] = ""
    writes_text: ClassVar[bool] = False
    votes_by_answer: ClassVar[bool] = False
    draws_greedy: ClassVar[bool] = False
    default_shots: ClassVar[tuple[int, ...]] = (0,)

    @abstractmethod
    def load(self, seed: int) -> TaskData:
        """Generate or read the conditions; raise ``UserError`` on malformed input."""

    def problems(self) -> Iterator[Problem]:
        """Yield problems of the settings that can be found without a model. Overrides must call ``super``."""
        if self.min_len > self.max_len:
            yield Problem(
                "task.min_len",
                f"given {self.min_len}, above task.max_len = {self.max_len}",
                f"0 to {min(self.max_len, self.eval_max_len)}",
            )
        elif self.min_len > self.eval_max_len:
            yield Problem(
                "task.eval_max_len",
                f"given {self.eval_max_len}, below task.min_len = {self.min_len}",
                f"at least {self.min_len}",
            )

    @property
    def closed_text(self) -> str:
        """Text that no string may contain because it ends one; empty if the terminator is a special token."""
        return self.terminator if self.terminator_role is None else ""

    def tool(self) -> Tool | None:
        """Return the tool that answers while the policy generates, if any."""
        return None

    def constraints(self) -> Sequence[Any]:
        """Return the factors of the posterior that need no language model."""
        return ()

    def forbidden_texts(self) -> Sequence[str]:
        """Return texts that no token of a sample may contain; see ``lm.encoding.ids_holding``."""
        return ()

    def targets(self, condition: Condition) -> Sequence[str]:
        """Return the target texts of supervised fine-tuning for a condition; empty if unknown."""
        return condition.demonstrations

    def is_right(self, condition: Condition, text: str) -> bool | None:
        """Return whether a sample leads to its condition's answer; ``None`` if its text does not tell."""
        return None

    def demonstration_prompt(self, condition: Condition) -> DemonstrationPrompt | None:
        """Return how the base model generates demonstrations of a training condition, or ``None``.

        ``load`` has no model, so it only gives demonstrations that are already known; these ones are
        sampled when training starts.
        """
        return None

    @abstractmethod
    def metrics(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Return the metrics of an evaluation as a flat dict; names have no prefix."""

    def few_shot_prompt(self, condition: Condition, shots: int, rng: random.Random) -> str:
        """Return the condition's prompt preceded by ``shots`` worked examples, for the prompting baseline.

        Raises:
            UserError: if the task has no worked examples, or too few.
        """
        raise UserError.one(
            "evaluation.baseline_shots",
            f"given {shots}, but task {self.name} has no worked examples to show",
            "[0] for the bare base model, [] for no baseline",
        )

    def condition_for(self, prompt: str, seed: int) -> Condition | None:
        """Return the posterior of a prompt that the user entered, or ``None`` if it is undefined.

        Args:
            prompt: the prompt, as the policy reads it.
            seed: seed of the run, for anything the task draws per condition.
        """
        return None

    def answer_suffix(self, answer: str) -> str | None:
        """Return the text that leads from a sample to an answer, or ``None`` if samples have no answers."""
        return None

    def answer_choices(
        self, condition: Condition, texts: Sequence[str]
    ) -> Sequence[tuple[str, object]]:
        """Return the answers to score after each sample, as (suffix, answer) pairs; empty for none.

        Args:
            condition: the condition; answers are scored in the context of its first term.
            texts: single samples of the condition, for tasks that extract the answers from them.
        """
        return ()

    def without_answer(self, condition: Condition) -> Condition:
        """Return the condition as a test question, whose posterior is p(Z ⊤ | X) alone.

        A condition without an answer is returned unchanged.
        """
        if condition.answer is None:
            return condition
        return replace(condition, terms=(Term(condition.terms[0].context),))

    def support(self, condition: Condition) -> Sequence[str]:
        """Return all relevant strings, if there are few enough to enumerate; used for exact distances."""
        return ()

    def direct_choices(self, condition: Condition) -> Sequence[str]:
        """Return the texts among which the base model chooses when it answers directly, without a sample.

        They correspond to the answer choices, in order; empty disables this baseline. With direct choices,
        worked examples are answers without rationales, and only this baseline uses ``few_shot_prompt``.
        """
        return ()

    def reference_rows(self) -> Sequence[ReferenceRow]:
        """Return published results for comparison, if any."""
        return ()

    def reference_samples(self) -> Sequence[ReferenceSample]:
        """Return published samples with their log R, if any."""
        return ()
