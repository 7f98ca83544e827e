"""Conditions and the terms of their posteriors.

Shape letters: B rows (trajectories), T tokens, S = T + 1 states, C conditions, V vocabulary size.
State ``i`` of a trajectory is its prefix of ``i`` tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Chat(str):
    """A conversation used in place of a text; the model's chat template renders it.

    The string value is a JSON list of objects with ``role`` and ``content``, so a chat can be shown, stored
    and compared like any other prompt.
    """

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, str]]) -> Chat:
        """Build a chat from messages in chronological order."""
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        return cls(json.dumps(plain, ensure_ascii=False))

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages, each with ``role`` and ``content``."""
        return json.loads(self)


@dataclass(frozen=True)
class Term:
    """One factor of a posterior: ``p_LM(z suffix | context) ** weight``.

    Attributes:
        context: text before the sampled string, or a :class:`Chat`.
        suffix: text after the sampled string. An empty suffix stands for the terminator.
        weight: exponent of the factor.
        rivals: alternative suffixes that should be less likely than ``suffix``.
        rival_penalty: nats subtracted from the log-reward, once and regardless of ``weight``, if any rival
            is more likely after ``z`` than ``suffix``.
    """

    context: str
    suffix: str = ""
    weight: float = 1.0
    rivals: tuple[str, ...] = ()
    rival_penalty: float = 0.0


@dataclass(frozen=True)
class Condition:
    """One posterior to sample from.

    Attributes:
        key: unique name, stable between runs; the replay buffer is indexed by it.
        prompt: input of the policy: a text, or a :class:`Chat`.
        terms: language-model factors of the reward.
        demonstrations: strings known to be good; they seed the replay buffer.
        answer: the correct answer, in the task's own form; ``None`` if unknown.
        weight: relative probability of being drawn for a training step.
        group: name of the evaluation set that the condition belongs to.
        facts: any other data the task needs to judge a sample.
    """

    key: str
    prompt: str
    terms: tuple[Term, ...]
    demonstrations: tuple[str, ...] = ()
    answer: object = None
    weight: float = 1.0
    group: str = "train"
    facts: Mapping[str, Any] = field(default_factory=dict)
