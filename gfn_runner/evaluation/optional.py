"""Optional metrics of the final evaluation: BERTScore, and ratings by a judge."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gfn_runner.data.samples import ConditionSamples
from gfn_runner.evaluation.groups import per_group
from gfn_runner.metrics.judge import Judge, JudgeSettings
from gfn_runner.metrics.overlap import bert_scores

logger = logging.getLogger(__name__)


class OptionalMetrics:
    """Optional metrics for several evaluations, which load each model only once.

    Args:
        bertscore: model for BERTScore, or ``None``.
        judge: settings of the judge, or ``None``.
    """

    def __init__(self, bertscore: str | None, judge: JudgeSettings | None):
        self.bertscore, self.judge = bertscore, judge

    def __call__(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Compute the metrics per evaluation set; unavailable ones are absent, and logged once.

        Returns:
            ``bertscore_f1``, ``…_precision``, ``…_recall`` against references; ``judge_rating`` from 1 to
            5, ``judge_rated`` and ``judge_failures`` in samples.
        """
        return per_group(samples, self._bertscore, self._judged)

    def _judged(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        if self.judge is None:
            return {}
        verdict = Judge(self.judge).rate(list(map(_judged_fields, samples)))
        for reason, count in verdict.failures.items():
            logger.warning("the judge gave no rating %d times: %s", count, reason)
        return verdict.metrics()

    def _bertscore(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        pairs = [
            (s.singles[0], s.condition.facts["references"])
            for s in samples
            if s.condition.facts.get("references")
        ]
        if self.bertscore is None or not pairs:
            return {}
        texts, references = zip(*pairs, strict=True)
        try:
            return bert_scores(texts, references, self.bertscore)
        except Exception as error:  # from the package or the model; must not end the run
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            logger.warning(
                "BERTScore is left out (%s); it needs 'gfn-runner[bertscore]' and a model with a baseline",
                reason,
            )
            self.bertscore = None  # another attempt would take as long
            return {}


def _judged_fields(samples: ConditionSamples) -> dict[str, str]:
    """Return the fields for a judge's prompt, from the first sample of a condition."""
    condition, text = samples.condition, samples.singles[0].strip()
    ends = {name: str(condition.facts.get(name, "")) for name in ("beginning", "ending")}
    return {"prompt": condition.prompt, "sample": text, "middle": text, **ends}
