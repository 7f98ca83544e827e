"""Optional metrics of the final evaluation: BERTScore, and ratings of a judge."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from gfn_runner.data.samples import ConditionSamples
from gfn_runner.evaluation.groups import per_group
from gfn_runner.metrics.judge import Judge, JudgeSettings
from gfn_runner.metrics.overlap import bert_scores

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptionalMetrics:
    """Metrics of one evaluation after the other.

    Attributes:
        bertscore: model of BERTScore, or ``None``.
        judge: or ``None``.
    """

    bertscore: str | None
    judge: JudgeSettings | None

    def __call__(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Metrics by evaluation set; what is missing is absent, and logged.

        Returns:
            ``bertscore_f1``, ``…_precision``, ``…_recall`` against references; ``judge_rating`` from 1 to
            5, ``judge_rated`` and ``judge_failures`` samples.
        """
        if self.bertscore is not None and not any(map(_references, samples)):
            logger.warning("BERTScore is left out: the samples have no references")
        return per_group(samples, self._bertscore, self._judged)

    def _judged(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        if self.judge is None:
            return {}
        verdict = Judge(self.judge).rate(list(map(_judged_fields, samples)))
        for reason, count in verdict.failures.items():
            logger.warning("the judge gave no rating %d times: %s", count, reason)
        return verdict.metrics()

    def _bertscore(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        pairs = [(s.singles[0], known) for s in samples if (known := _references(s))]
        if self.bertscore is None or not pairs:
            return {}
        texts, references = zip(*pairs, strict=True)
        return bert_scores(self.bertscore, texts, references)


def _references(samples: ConditionSamples) -> Sequence[str]:
    return samples.condition.facts.get("references", ())


def _judged_fields(samples: ConditionSamples) -> dict[str, str]:
    """What a judge's prompt may be filled with: the first sample of a condition."""
    condition, text = samples.condition, samples.singles[0].strip()
    ends = {name: str(condition.facts.get(name, "")) for name in ("beginning", "ending")}
    return {"prompt": condition.prompt, "sample": text, "middle": text, **ends}
