"""What an experiment says of its data, posterior, answers and metrics: the hooks of every task.

:class:`~gfn_runner.tasks.base.GFlowNetModule` is the Lightning module that has them. They need no model, so a
config is validated, and data are read, before weights load.
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
    """Settings and hooks that every task has.

    Attributes:
        terminator: text of ⊤; one token of the model in use.
        terminator_role: ⊤ by its role in place of its text: ``end_of_turn``, the special token that the
            model's chat template writes after an assistant's message, or ``end_of_text``, the tokenizer's
            end-of-sequence token. ``terminator`` is a text like any other then. ``None``: by its text.
        min_len, max_len: bounds on actions in training. A minimum above 0 leaves the first tokens
            without credit under the purely within-trajectory objectives.
        eval_max_len: upper bound in evaluation.
        name: as in ``task=…``.
        headline: metrics of the table at the end.
        optimized: the metric that a search optimises where nothing else is said; empty: the first of
            ``headline``.
        writes_text: whether samples are text whose diversity means something.
        votes_by_answer: whether the answer choices are weighed after the votes and the greedy sample
            too.
        draws_greedy: whether a sample at temperature 0 is drawn too.
        default_shots: numbers of worked examples of the prompting baseline, unless the config gives others.
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
        """Make or read the conditions; raises ``UserError`` at malformed input."""

    def problems(self) -> Iterator[Problem]:
        """What is impossible in the settings, seen without a model. Extend, do not replace."""
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
        """The text that no string may hold, since it ends one; empty where that is a special token."""
        return self.terminator if self.terminator_role is None else ""

    def tool(self) -> Tool | None:
        """The tool that answers while the policy writes, if any."""
        return None

    def constraints(self) -> Sequence[Any]:
        """Factors of the posterior that need no language model."""
        return ()

    def forbidden_texts(self) -> Sequence[str]:
        """Texts that no token of a sample may hold; see ``lm.encoding.ids_holding``."""
        return ()

    def targets(self, condition: Condition) -> Sequence[str]:
        """What supervised fine-tuning is to learn to write for a condition; empty if that is unknown."""
        return condition.demonstrations

    def is_right(self, condition: Condition, text: str) -> bool | None:
        """Whether a sample leads to its condition's answer; ``None`` where its text does not tell."""
        return None

    def demonstration_prompt(self, condition: Condition) -> DemonstrationPrompt | None:
        """How the base model writes demonstrations of a training condition, or ``None``.

        ``load`` knows no model, so it gives demonstrations that are known; these are sampled when
        training begins.
        """
        return None

    @abstractmethod
    def metrics(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Flat metrics of an evaluation; names without a prefix."""

    def few_shot_prompt(self, condition: Condition, shots: int, rng: random.Random) -> str:
        """The condition's prompt after ``shots`` worked examples, for the prompting baseline.

        Raises:
            UserError: if the task has no examples, or not so many.
        """
        raise UserError.one(
            "evaluation.baseline_shots",
            f"given {shots}, but task {self.name} has no worked examples to show",
            "[0] for the bare base model, [] for no baseline",
        )

    def condition_for(self, prompt: str, seed: int) -> Condition | None:
        """The posterior of a prompt that a user has typed, or ``None`` if it is unknown.

        Args:
            prompt: as the policy reads it.
            seed: of the run, for what the task draws per condition.
        """
        return None

    def answer_suffix(self, answer: str) -> str | None:
        """The text by which a sample leads to an answer, or ``None`` if samples lead to none."""
        return None

    def answer_choices(
        self, condition: Condition, texts: Sequence[str]
    ) -> Sequence[tuple[str, object]]:
        """Answers to weigh after each sample: its suffix and the answer itself; empty for none.

        Args:
            condition: its first term's context is where the answer is read.
            texts: single samples of the condition, for tasks whose answers are found in them.
        """
        return ()

    def without_answer(self, condition: Condition) -> Condition:
        """The condition as a test question is asked: with p(Z ⊤ | X) alone for its posterior.

        Itself where it has no answer.
        """
        if condition.answer is None:
            return condition
        return replace(condition, terms=(Term(condition.terms[0].context),))

    def support(self, condition: Condition) -> Sequence[str]:
        """All strings that matter, where the space is small enough to list: for exact distances."""
        return ()

    def direct_choices(self, condition: Condition) -> Sequence[str]:
        """What the base model chooses from when it is to answer at once, in place of a sample.

        One text for each of the answer choices, in their order; empty for no such baseline. With them,
        worked examples are answers without samples: ``few_shot_prompt`` serves this baseline alone.
        """
        return ()

    def reference_rows(self) -> Sequence[ReferenceRow]:
        """Published numbers; empty if there are none."""
        return ()

    def reference_samples(self) -> Sequence[ReferenceSample]:
        """Published samples with their log R; empty if there are none."""
        return ()
