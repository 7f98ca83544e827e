"""User-defined posteriors: strings in proportion to weighted language-model terms and constraints.

Each line of a JSONL file defines one posterior: the prompt of the policy, the terms
``p_LM(z suffix | context) ** weight``, and constraints on the text. Prompts and contexts are texts,
or messages for a chat model. See docs/own_posterior.md for worked examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.data.conditions import Chat, Condition, Term
from gfn_runner.data.readers import DataPath, Row, held_out, path_problems, raise_all, read_records
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.errors import Problem
from gfn_runner.evaluation.groups import label_probability, per_group, satisfied
from gfn_runner.rewards.factors import CONSTRAINT
from gfn_runner.rewards.text_constraints import TextConstraint
from gfn_runner.runtime.seeds import rng_for
from gfn_runner.tasks.constrained import ConstrainedTask

_NO_BOUND = 1_000_000
EXAMPLE = Path(__file__).parent / "examples" / "posterior.jsonl"


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class MessageRecord:
    """One message of a conversation, as given on a line."""

    role: Literal["system", "user", "assistant"]
    content: str


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TermRecord:
    """One factor ``p_LM(z suffix | context) ** weight``, as given on a line; see ``Term``.

    The context is a text or a list of messages.
    """

    context: str | None = None
    messages: tuple[MessageRecord, ...] | None = None
    suffix: str = ""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


FIELDS: dict[str, Any] = {
    "prompt": str,
    "messages": tuple[MessageRecord, ...],
    "terms": tuple[TermRecord, ...],
    "constraint": TextConstraint,
    "demonstrations": tuple[str, ...],
}


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class PosteriorData:
    """Where the posteriors come from.

    Attributes:
        train: JSONL file or ``hub:owner/name:split``; ``None`` uses the example included in the package.
        evaluation: the same for evaluation; ``None`` evaluates the training posteriors.
        held_out: share of ``train`` that is held out from training and used for evaluation instead.
    """

    train: DataPath | None = None
    evaluation: DataPath | None = None
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0


class UserPosterior(ConstrainedTask):
    """Sampling from user-defined posteriors.

    Attributes:
        data: the posteriors.
    """

    name: ClassVar[str] = "posterior"
    headline: ClassVar[tuple[str, ...]] = (
        "satisfied_share",
        "log_reward",
        "phi_spread",
        "log_z_bound",
        "unique",
    )

    def __init__(self, *, data: PosteriorData | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.data = data or PosteriorData()

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for key in ("train", "evaluation"):
            path = getattr(self.data, key)
            if path is not None:
                yield from path_problems(f"task.data.{key}", path)
        if self.data.held_out and self.data.evaluation is not None:
            yield Problem(
                "task.data.held_out",
                f"given {self.data.held_out} together with task.data.evaluation",
                "one of the two",
            )

    def load(self, seed: int) -> TaskData:
        """Read the posteriors. Evaluation ones are grouped into ``seen`` (also trained on) and ``unseen``.

        Raises:
            UserError: with file, line and field of all malformed lines.
        """
        rows = self._read(self.data.train or str(EXAMPLE))
        if self.data.evaluation is not None:
            evaluated = self._read(self.data.evaluation)
            raise_all(list(_two_posteriors(rows, evaluated)))
        elif self.data.held_out:
            rng = rng_for("posterior", "held out", seed)
            rows, evaluated = held_out(rows, self.data.held_out, rng)
        else:
            evaluated = rows
        train = [_condition(row) for row in rows]
        prompts = {condition.prompt for condition in train}
        evaluation = [
            dataclasses.replace(c, group="seen" if c.prompt in prompts else "unseen")
            for c in map(_condition, evaluated)
        ]
        return TaskData(train, evaluation)

    def _read(self, path: str) -> list[Row]:
        # The policy sees only the prompt, so a prompt cannot have two posteriors.
        return read_records(
            path,
            FIELDS,
            optional=tuple(FIELDS),
            check=self._row_problems,
            key=_prompt,
            what="prompt",
        )

    def _row_problems(self, row: Row) -> Iterator[Problem]:
        prompt, terms, constraint = map(row.get, ("prompt", "terms", "constraint"))
        if prompt is not None and not prompt.strip():
            yield Problem(row.at("prompt"), f"given {prompt!r}", "a text")
        yield from _messages_problems(row, "", "prompt", prompt, row.get("messages"))
        if not terms and constraint is None:
            yield Problem(
                row.at("terms"),
                "none, and no constraint either: nothing says what the posterior is",
                "at least one term, or a constraint on p_LM(z | prompt)",
            )
        if terms and all(term.weight == 0 for term in terms):
            yield Problem(row.at("terms"), "every weight is 0", "at least one weight that is not 0")
        for place, term in enumerate(terms or ()):
            where = f"terms[{place}]."
            yield from _messages_problems(row, where, "context", term.context, term.messages)
        if constraint is not None:
            if constraint.is_empty:
                yield Problem(
                    row.at("constraint"),
                    "asks for nothing",
                    "words, a pattern, a length or a classifier; or no constraint",
                )
            yield from self.constraint_problems(constraint, lambda f: row.at(f"constraint.{f}"))
        yield from _demonstration_problems(row, constraint, self.closed_text)

    def metrics(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Compute, per group, shares of samples that meet their constraint; see ``evaluation/groups.py``."""
        return per_group(samples, satisfied, label_probability)


def _messages_problems(
    row: Row,
    inside: str,
    other: str,
    text: str | None,
    messages: Sequence[MessageRecord] | None,
) -> Iterator[Problem]:
    """Yield problems of messages, or of the text (field ``other``) that may be given instead."""
    if text is not None and messages is not None:
        yield Problem(row.at(f"{inside}messages"), f"given together with {other}", "one of the two")
    elif text is None and messages is None:
        yield Problem(row.at(f"{inside}{other}"), "missing", "a text, or messages")
    elif messages is not None:
        if not messages:
            yield Problem(row.at(f"{inside}messages"), "none", "at least one user message")
        elif messages[-1].role != "user":
            yield Problem(
                row.at(f"{inside}messages[{len(messages) - 1}].role"),
                f"given {messages[-1].role!r} for the last message, which the policy answers",
                "user",
            )


def _read_by_policy(text: str | None, messages: Sequence[MessageRecord] | None) -> str:
    """Return a prompt or context: its text, or the chat of its messages."""
    if messages is None:
        return text or ""
    return Chat.of([{"role": m.role, "content": m.content} for m in messages])


def _demonstration_problems(
    row: Row, constraint: TextConstraint | None, terminator: str
) -> Iterator[Problem]:
    # An invalid constraint (e.g. an invalid pattern) is reported as a separate problem.
    judged = constraint is not None and not any(constraint.problems(str, "", _NO_BOUND))
    for place, text in enumerate(row.get("demonstrations", ())):
        where = row.at(f"demonstrations[{place}]")
        if not text.strip():
            yield Problem(where, f"given {text!r}", "a text, as the policy should write it")
        elif terminator and text.endswith(terminator):
            yield Problem(
                where,
                f"{text!r} ends in task.terminator = {terminator!r}, which is appended anyway",
                "a text without it",
            )
        elif judged and constraint is not None and not constraint.satisfied(text):
            yield Problem(where, f"{text!r} does not meet the constraint", "one that does")


def _two_posteriors(train: Sequence[Row], evaluation: Sequence[Row]) -> Iterator[Problem]:
    """Yield prompts that occur in both files with different terms or constraints."""
    known = {_prompt(row): row for row in train}
    for row in evaluation:
        other = known.get(_prompt(row))
        if other is not None and any(
            row.get(field) != other.get(field) for field in ("terms", "constraint")
        ):
            yield Problem(
                row.at("prompt" if row.get("messages") is None else "messages"),
                f"the same prompt as in {other.where}, with another posterior",
                "one posterior for each prompt",
            )


def _prompt(row: Row) -> str:
    return _read_by_policy(row.get("prompt"), row.get("messages"))


def _condition(row: Row) -> Condition:
    prompt = _prompt(row)
    terms = tuple(
        Term(_read_by_policy(t.context, t.messages), t.suffix, t.weight)
        for t in row.get("terms") or ()
    )
    facts: dict[str, Any] = {"line": row.where, "where": row.where}
    if row.get("constraint") is not None:
        facts |= {CONSTRAINT: row["constraint"], "where": row.at("constraint")}
    return Condition(
        key=str(prompt),
        prompt=prompt,
        # Without terms, the constraint restricts the language model's own continuations.
        terms=terms or (Term(prompt),),
        demonstrations=row.get("demonstrations", ()),
        facts=facts,
    )
