"""Constrained generation: sentences in proportion to p_LM(z) c(z) that contain given words.

The policy is given the words, ``Words: fox, river. Sentence:``, while the reward's language model reads
only the context ``Sentence:``; left-to-right sampling cannot draw from this posterior.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.readers import DataPath, Row, read_records
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.data.splits import Files, draw_sets, file_problems
from gfn_runner.data.synthetic.sentences import is_sentence, word_lists
from gfn_runner.errors import Problem
from gfn_runner.evaluation.groups import grammatical, label_probability, per_group, satisfied
from gfn_runner.rewards.factors import CONSTRAINT, PENALTY, ClassifierFactor, ConstraintPenalty
from gfn_runner.rewards.text_constraints import ClassifierLabel, TextConstraint
from gfn_runner.tasks.base import GFlowNetModule

FIELDS: dict[str, Any] = {
    "words": tuple[str, ...],
    "pattern": str,
    "min_words": Annotated[int, Field(ge=0)],
    "max_words": Annotated[int, Field(ge=0)],
    "classifier": ClassifierLabel,
    "prompt": str,
}
_CONSTRAINT_FIELDS = ("words", "pattern", "min_words", "max_words", "classifier")
_SLOT = "{words}"


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class ConstrainedData:
    """Where constraints come from: generated word lists by default, or JSONL files.

    Attributes:
        train: file of records with any of ``words``, ``pattern``, ``min_words``, ``max_words`` and
            ``classifier`` (``{"name", "label", "weight"}``), and optionally ``prompt`` to replace the
            template's prompt; or ``hub:owner/name:split``.
        test: evaluation records in the same format; without it, part of ``train`` is held out.
        n_train, n_test: number of each, the first ones of a file; generated lists have one to three words.
    """

    train: DataPath | None = None
    test: DataPath | None = None
    n_train: Annotated[int, Field(ge=1)] = 8000
    n_test: Annotated[int, Field(ge=1)] = 50


class ConstrainedTask(GFlowNetModule):
    """Base class of experiments whose conditions carry a constraint.

    Attributes:
        penalty: nats subtracted for each constraint that a text violates.
        forbidden: texts that no token of a sample may contain, except the terminator. Texts of several
            characters can still be composed of smaller tokens: exclude them with a constraint's pattern.
    """

    writes_text: ClassVar[bool] = True

    def __init__(
        self,
        *,
        penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = PENALTY,
        forbidden: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.penalty = penalty
        self.forbidden = forbidden

    def constraints(self) -> Sequence[Any]:
        return (ConstraintPenalty(self.penalty), ClassifierFactor())

    def forbidden_texts(self) -> Sequence[str]:
        return self.forbidden

    def constraint_problems(
        self, constraint: TextConstraint, at: Callable[[str], str]
    ) -> Iterator[Problem]:
        """Yield constraints that no string of this task can satisfy; see :meth:`TextConstraint.problems`."""
        shortest = min(self.max_len, self.eval_max_len)
        return constraint.problems(at, self.closed_text, shortest)


class ConstrainedGeneration(ConstrainedTask):
    """Generation of sentences that contain given words.

    Attributes:
        data: the constraints.
        prompt_template: prompt of the policy; ``{words}`` stands for the comma-separated words.
        context: prompt of the reward's language model.
    """

    name: ClassVar[str] = "constrained"
    headline: ClassVar[tuple[str, ...]] = (
        "satisfied_share",
        "grammatical_share",
        "unique",
        "log_reward",
    )

    def __init__(
        self,
        *,
        data: ConstrainedData | None = None,
        prompt_template: str = "Words: {words}. Sentence:",
        context: str = "Sentence:",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.data = data or ConstrainedData()
        self.prompt_template = prompt_template
        self.context = context

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.prompt_template.count(_SLOT) != 1:
            yield Problem(
                "task.prompt_template",
                f"given {self.prompt_template!r}, in which {_SLOT} occurs "
                f"{self.prompt_template.count(_SLOT)} times",
                f"a text with {_SLOT} once",
            )
        yield from file_problems("train", self.data.train, self.data.test)

    # -- data ---------------------------------------------------------------------------------

    def load(self, seed: int) -> TaskData:
        """Load constraints for training and test; no test word list occurs in training.

        Raises:
            UserError: with file, line and field of all malformed lines.
        """
        files = Files(
            self.data.train,
            self.data,
            read=self._read,
            key=_identity,
            condition=lambda row, _: self._from_row(row),
            what="lists",
            group="",
        )
        return files.load(partial(self._generated, seed))

    def _generated(self, seed: int) -> TaskData:
        # Word lists that differ only in order are the same.
        by_words: Callable[[tuple[str, ...]], frozenset[str]] = frozenset
        train, test = draw_sets(
            self.name,
            seed,
            lambda rng, _: word_lists(rng, 1)[0],
            by_words,
            self.data.n_train,
            self.data.n_test,
        )
        return TaskData(
            [self._of_words(words) for words in train.values()],
            [self._of_words(words) for words in test.values()],
        )

    def _read(self, path: str) -> list[Row]:
        # The policy sees only the prompt, so a prompt cannot have two constraints.
        return read_records(
            path,
            FIELDS,
            optional=tuple(FIELDS),
            check=self._row_problems,
            key=self._row_prompt,
            what="prompt",
        )

    def _row_problems(self, row: Row) -> Iterator[Problem]:
        constraint, prompt = _constraint(row), row.get("prompt")
        if constraint.is_empty:
            yield Problem(row.where, "asks for nothing", f"any of {', '.join(_CONSTRAINT_FIELDS)}")
        elif not constraint.words and prompt is None:
            yield Problem(
                row.at("prompt"),
                "missing; without words task.prompt_template does not tell the policy what is asked",
                "a prompt that does",
            )
        if prompt is not None and not prompt.strip():
            yield Problem(row.at("prompt"), f"given {prompt!r}", "a text")
        yield from self.constraint_problems(constraint, row.at)

    def _row_prompt(self, row: Row) -> str:
        return row.get("prompt") or self._prompt(row.get("words", ()))

    def _from_row(self, row: Row) -> Condition:
        where = row.at("words") if row.get("words") else row.where
        return self._condition(_constraint(row), self._row_prompt(row), where)

    def _condition(
        self, constraint: TextConstraint, prompt: str, where: str | None = None
    ) -> Condition:
        facts: dict[str, Any] = {CONSTRAINT: constraint} | ({"where": where} if where else {})
        return Condition(
            key=prompt,
            prompt=prompt,
            terms=(Term(self.context),),
            group=f"{len(constraint.words)}_words" if constraint.words else "no_words",
            facts=facts,
        )

    def _of_words(self, words: tuple[str, ...]) -> Condition:
        """Return the condition of a generated list, whose samples the grammar can judge."""
        condition = self._condition(TextConstraint(words=words), self._prompt(words))
        return dataclasses.replace(condition, facts={**condition.facts, "grammar": True})

    def _prompt(self, words: Sequence[str]) -> str:
        return self.prompt_template.replace(_SLOT, ", ".join(words))

    # -- use and metrics ----------------------------------------------------------------------

    def condition_for(self, prompt: str, seed: int) -> Condition | None:
        """Return the posterior of a prompt that matches the template."""
        before, _, behind = self.prompt_template.partition(_SLOT)
        found = re.fullmatch(f"{re.escape(before)}(.+){re.escape(behind)}", prompt)
        if found is None:
            return None
        words = tuple(word.strip() for word in found.group(1).split(","))
        return self._condition(TextConstraint(words=words), prompt) if all(words) else None

    def metrics(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Compute, per number of words, satisfied shares with intervals and label probabilities; in 0..1."""
        by_grammar = partial(grammatical, is_sentence=is_sentence)
        return per_group(samples, satisfied, label_probability, by_grammar)


def _constraint(row: Row) -> TextConstraint:
    return TextConstraint(
        **{name: row[name] for name in _CONSTRAINT_FIELDS if row.get(name) is not None}
    )


def _identity(row: Row) -> object:
    """Identify a list across training and test set, by its own prompt or by its words in any order."""
    return row.get("prompt") or frozenset(word.casefold() for word in row["words"])
