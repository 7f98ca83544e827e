"""Contrastive sampling: sentences specific to X, in proportion to p(Z | X)^α p(Z)^β with α > 0 > β.

A negative β lowers the reward of sentences that are likely in any context. p(Z) is the model's
probability after a neutral context that contains no information about X.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Annotated, Any, ClassVar

from pydantic import Field

from gfn_runner.data.conditions import Term
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.data.synthetic import news
from gfn_runner.errors import Problem
from gfn_runner.tasks.continuation import SentenceContinuation


class Contrastive(SentenceContinuation):
    """Contrastive sampling; takes the following arguments in addition to those of ``SentenceContinuation``.

    Attributes:
        alpha: weight of log p(Z | X), above 0.
        beta: weight of log p(Z), below 0. For strings unrelated to X, p(Z | X) equals p(Z), which leaves
            p(Z)^(α + β): with α + β below 1 the posterior is flatter than the model, and its mass moves to
            the numerous noise strings. A large negative β favors strings that the model considers
            impossible without X for no good reason; see docs/architecture.md.
        neutral_context: context of p(Z); empty for the beginning of a text.
    """

    name: ClassVar[str] = "contrastive"
    headline: ClassVar[tuple[str, ...]] = (
        "specific_share",
        "pointwise_mutual_information",
        "diversity",
        "grammatical_share",
    )

    def __init__(
        self,
        *,
        alpha: Annotated[float, Field(allow_inf_nan=False)] = 1.5,
        beta: Annotated[float, Field(allow_inf_nan=False)] = -0.5,
        neutral_context: str = news.NEWS_CONTEXT,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.alpha = alpha
        self.beta = beta
        self.neutral_context = neutral_context

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.alpha <= 0:
            yield Problem("task.alpha", f"given {self.alpha}", "above 0")
        if self.beta >= 0:
            yield Problem(
                "task.beta", f"given {self.beta}", "below 0", "task=continuation has no second term"
            )

    def _generated(self, seed: int) -> TaskData:
        """Generate one condition per topic of the grammar, used for both training and evaluation."""
        known = {
            news.topic_prompt(topic): {"grammar": True, "topic": topic} for topic in news.TOPICS
        }
        return TaskData(
            [self.condition(prompt, facts=facts) for prompt, facts in known.items()],
            [self.condition(p, group="topics", facts=facts) for p, facts in known.items()],
        )

    def terms(self, prompt: str) -> tuple[Term, ...]:
        """Return the terms p(Z ⊤ | X)^α and p(Z ⊤)^β."""
        return (
            Term(prompt, weight=self.alpha),
            Term(self.neutral_context, weight=self.beta),
        )

    def measure(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Add to the metrics of continuation: ``pointwise_mutual_information``, the mean of
        log p(Z | X) − log p(Z) in nats, and ``specific_share``, the share of samples that are topic facts.
        """
        measured = super().measure(samples)
        gains = [terms[0] - terms[1] for s in samples for terms in s.term_log_probs]
        if gains:
            measured["pointwise_mutual_information"] = fmean(gains)
        judged = [
            news.is_specific(text, s.condition.facts["topic"])
            for s in samples
            if "topic" in s.condition.facts
            for text in s.singles
        ]
        if judged:
            measured["specific_share"] = sum(judged) / len(judged)
        return measured
