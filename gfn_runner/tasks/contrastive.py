"""Contrastive sampling: sentences specific to X, in proportion to p(Z | X)^α p(Z)^β with α > 0 > β.

With β < 0 a sentence that is likely anywhere is worth less. p(Z) is the model's after a neutral
context that tells nothing of X.
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
    """The experiment; its arguments beside those of ``SentenceContinuation``.

    Attributes:
        alpha: weight of log p(Z | X), above 0.
        beta: weight of log p(Z), below 0. Where X tells nothing of a string, p(Z | X) is p(Z), and
            what is left is p(Z)^(α + β): with α + β below 1 the posterior is flatter than the model,
            and its mass goes to noise, of which there is much. A β far below 0 finds strings that the
            model thinks impossible without X for no good reason; see docs/architecture.md.
        neutral_context: what p(Z) is read after; empty for the model's own beginning of a text.
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
        """The few topics of the grammar are trained on and evaluated."""
        known = {
            news.topic_prompt(topic): {"grammar": True, "topic": topic} for topic in news.TOPICS
        }
        return TaskData(
            [self.condition(prompt, facts=facts) for prompt, facts in known.items()],
            [self.condition(p, group="topics", facts=facts) for p, facts in known.items()],
        )

    def terms(self, prompt: str) -> tuple[Term, ...]:
        """p(Z ⊤ | X)^α and p(Z ⊤)^β."""
        return (
            Term(prompt, weight=self.alpha),
            Term(self.neutral_context, weight=self.beta),
        )

    def measure(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Beside those of continuation: ``pointwise_mutual_information`` mean of
        log p(Z | X) − log p(Z), nats; ``specific_share`` of samples that are facts of the topic.
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
