"""Metrics of the final evaluation that need what may be missing: BERTScore's model, a judge."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from gfn_runner.config.schemas import EvaluationSettings
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.metrics.judge import Judge
from gfn_runner.metrics.overlap import BertScorer

logger = logging.getLogger(__name__)


class OptionalMeasures:
    """What the settings ask for, of one evaluation after the other.

    A model is loaded once for all of them, and what is missing is said once.
    """

    def __init__(self, options: EvaluationSettings):
        self.options = options
        self._bert = None if options.bertscore is None else BertScorer(options.bertscore)
        self._told: set[str] = set()

    def __call__(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Metrics by evaluation set; what cannot be had is absent, and logged.

        Returns:
            ``bertscore_f1``, ``…_precision``, ``…_recall`` against references; ``judge_rating`` from 1 to
            5, ``judge_rated`` and ``judge_failures`` samples.
        """
        result: dict[str, float] = {}
        for group in sorted({sample.condition.group for sample in samples}):
            members = [sample for sample in samples if sample.condition.group == group]
            own: dict[str, float] = {}
            if self._bert is not None:
                own |= self._bertscore(members, self._bert)
            if self.options.judge is not None:
                verdict = Judge(self.options.judge).rate(list(_asked(members)))
                for reason, count in verdict.failures.items():
                    logger.warning("the judge gave no rating %d times: %s", count, reason)
                own |= verdict.metrics()
            result |= {f"{name}/{group}": value for name, value in own.items()}
        return result

    def _bertscore(self, samples: Sequence[ConditionSamples], bert: BertScorer) -> dict[str, float]:
        pairs = [
            (s.singles[0], s.condition.facts["references"])
            for s in samples
            if s.condition.facts.get("references")
        ]
        if not pairs:
            self._tell("BERTScore is left out: the samples have no references")
            return {}
        texts, references = zip(*pairs, strict=True)
        scores, why = bert.scores(texts, references)
        if scores is None:
            self._tell(why)
            return {}
        return {
            "bertscore_f1": scores.f1,
            "bertscore_precision": scores.precision,
            "bertscore_recall": scores.recall,
        }

    def _tell(self, why: str) -> None:
        if why not in self._told:
            self._told.add(why)
            logger.warning("%s", why)


def _asked(samples: Sequence[ConditionSamples]) -> Iterator[dict[str, str]]:
    """What a judge's prompt may speak of: the first sample of each condition."""
    for s in samples:
        text = s.singles[0].strip()
        ends = {name: str(s.condition.facts.get(name, "")) for name in ("beginning", "ending")}
        yield {"prompt": s.condition.prompt, "sample": text, "middle": text, **ends}
