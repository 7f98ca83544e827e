"""Constrained generation: sentences in proportion to p_LM(z) c(z), which hold given words.

The policy is told the words, ``Words: fox, river. Sentence:``, while the reward's language model reads
the bare context ``Sentence:``: a posterior that left-to-right sampling cannot draw from.
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
    """Where the constraints come from: generated word lists by default, else JSONL files.

    Attributes:
        train: file of records with any of ``words``, ``pattern``, ``min_words``, ``max_words`` and
            ``classifier`` (``{"name", "label", "weight"}``), and ``prompt`` for another prompt than the
            template's; or ``hub:owner/name:split``.
        test: likewise; without it some of ``train`` are kept out.
        n_train, n_test: how many of each, the first ones of a file; generated lists have one to three words.
    """

    train: DataPath | None = None
    test: DataPath | None = None
    n_train: Annotated[int, Field(ge=1)] = 8000
    n_test: Annotated[int, Field(ge=1)] = 50


class ConstrainedTask(GFlowNetModule):
    """What experiments whose conditions carry a constraint share.

    Attributes:
        penalty: nats for each constraint that a text does not meet.
        forbidden: texts that no token of a sample may hold; the terminator stays open. A text of several
            characters can still be put together from smaller tokens: a constraint's pattern excludes it.
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
        """What of a constraint no string of this task can meet; see :meth:`TextConstraint.problems`."""
        shortest = min(self.max_len, self.eval_max_len)
        return constraint.problems(at, self.closed_text, shortest)


class ConstrainedGeneration(ConstrainedTask):
    """The experiment.

    Attributes:
        data: the constraints.
        prompt_template: what the policy reads; ``{words}`` stands for the words, with commas.
        context: what the reward's language model reads instead.
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
                f"given {self.prompt_template!r}, in which {_SLOT} stands "
                f"{self.prompt_template.count(_SLOT)} times",
                f"a text with {_SLOT} once",
            )
        yield from file_problems("train", self.data.train, self.data.test)

    # -- data ---------------------------------------------------------------------------------

    def load(self, seed: int) -> TaskData:
        """Constraints for training and test; no word list that is tested occurs in training.

        Raises:
            UserError: naming file, line and field, for all malformed lines at once.
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
        # The same words in another order are the same list.
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
        # The policy sees the prompt only: it cannot be asked for two things by one.
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
                "a text that tells it",
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
        """A generated list, of whose sentences the grammar can judge."""
        condition = self._condition(TextConstraint(words=words), self._prompt(words))
        return dataclasses.replace(condition, facts={**condition.facts, "grammar": True})

    def _prompt(self, words: Sequence[str]) -> str:
        return self.prompt_template.replace(_SLOT, ", ".join(words))

    # -- use and metrics ----------------------------------------------------------------------

    def condition_for(self, prompt: str, seed: int) -> Condition | None:
        """The posterior of a prompt of the template's form."""
        before, _, behind = self.prompt_template.partition(_SLOT)
        found = re.fullmatch(f"{re.escape(before)}(.+){re.escape(behind)}", prompt)
        if found is None:
            return None
        words = tuple(word.strip() for word in found.group(1).split(","))
        return self._condition(TextConstraint(words=words), prompt) if all(words) else None

    def metrics(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Per number of words, shares satisfied with intervals, and what classifiers say; in 0..1."""
        by_grammar = partial(grammatical, is_sentence=is_sentence)
        return per_group(samples, satisfied, label_probability, by_grammar)


def _constraint(row: Row) -> TextConstraint:
    return TextConstraint(
        **{name: row[name] for name in _CONSTRAINT_FIELDS if row.get(name) is not None}
    )


def _identity(row: Row) -> object:
    """By what a training list is known again in the test set: its own prompt, or words in any order."""
    return row.get("prompt") or frozenset(word.casefold() for word in row["words"])
