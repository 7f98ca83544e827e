"""Translation: texts in proportion to p(Z | source)^(1/T), terminated by a line break.

The generated pairs are in a toy language in which most sentences have several correct translations, all
of them known: a sampler should find each of them, whereas a search for the most likely one finds one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from statistics import fmean
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.readers import DataPath, Row, read_table
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.data.splits import Files, draw_sets, file_problems
from gfn_runner.data.synthetic import velan
from gfn_runner.errors import Problem
from gfn_runner.evaluation.groups import per_group
from gfn_runner.tasks.base import GFlowNetModule


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TranslationData:
    """Where sentences come from: the toy language by default, or TSV or CSV files.

    Attributes:
        pairs: table with the columns ``source`` and ``target``, or ``hub:owner/name:split``.
            Targets are references for the metrics; training needs only sources. A source may occur on
            several lines, with a different correct translation on each.
        test: evaluation pairs in the same format; without it, part of ``pairs`` is held out.
        n_train, n_test: number of sentences of each, the first ones of a file.
    """

    pairs: DataPath | None = None
    test: DataPath | None = None
    n_train: Annotated[int, Field(ge=1)] = 3000
    n_test: Annotated[int, Field(ge=1)] = 50


class Translation(GFlowNetModule):
    """Translation of sentences.

    Attributes:
        data: the sentences.
        template: prompt of the model; ``{source}`` stands for the sentence.
    """

    name: ClassVar[str] = "translation"
    headline: ClassVar[tuple[str, ...]] = ("right_share", "found_share", "bleu", "diversity")
    writes_text: ClassVar[bool] = True

    def __init__(
        self,
        *,
        terminator: str = "\n",
        data: TranslationData | None = None,
        template: str = "Velan: {source} English:",
        **options: Any,
    ) -> None:
        super().__init__(terminator=terminator, **options)
        self.data = data or TranslationData()
        self.template = template

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if "{source}" not in self.template:
            yield Problem("task.template", f"given {self.template!r}", "a text with {source} in it")
        yield from file_problems("pairs", self.data.pairs, self.data.test)

    def load(self, seed: int) -> TaskData:
        """Load disjoint sentences for training and evaluation."""
        files = Files(
            self.data.pairs,
            self.data,
            read=_read,
            key=itemgetter("source"),
            condition=lambda row, group: self._condition(
                row["source"], row["targets"], group=group
            ),
            what="pairs",
            group="sentences",
        )
        return files.load(partial(self._generated, seed))

    def _generated(self, seed: int) -> TaskData:
        train, test = draw_sets(
            self.name,
            seed,
            lambda rng, _: velan.draw_source(rng),
            tuple,
            self.data.n_train,
            self.data.n_test,
        )
        return TaskData(
            [self._toy_condition(source) for source in train],
            [self._toy_condition(source, group="sentences") for source in test],
        )

    def _toy_condition(self, source: Sequence[str], group: str = "train") -> Condition:
        right = velan.translations(source)
        return self._condition(f"{' '.join(source)}.", right, group=group, complete=True)

    def _condition(
        self,
        source: str,
        references: Sequence[str],
        *,
        group: str = "train",
        complete: bool = False,
    ) -> Condition:
        prompt = self.template.replace("{source}", source)
        facts: dict[str, Any] = {"references": tuple(references), "complete": complete}
        return Condition(key=source, prompt=prompt, terms=(Term(prompt),), group=group, facts=facts)

    def targets(self, condition: Condition) -> Sequence[str]:
        """Return the correct translations."""
        return [f" {text}" for text in condition.facts.get("references", ())]

    def condition_for(self, prompt: str, seed: int) -> Condition | None:
        return Condition(key=prompt, prompt=prompt, terms=(Term(prompt),))

    def metrics(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Compute, where all correct translations are known: ``right_share``, the share of samples that are
        one, and ``found_share``, the share of a sentence's correct ones that were sampled; in 0..1.
        """
        known = [s for s in samples if s.condition.facts["complete"]]
        return per_group(known, _right_and_found)


def _right_and_found(samples: Sequence[ConditionSamples]) -> dict[str, float]:
    right, found = zip(*map(_judged, samples), strict=True)
    return {
        "right_share": fmean(right),
        "found_share": fmean(found),
        "all_found_share": fmean(share == 1.0 for share in found),
    }


def _judged(samples: ConditionSamples) -> tuple[float, float]:
    """Return the share of correct samples, and the share of the correct translations that were found."""
    known = set(samples.condition.facts["references"])
    texts = [text.strip().removesuffix(".") for text in samples.singles]
    right = [text for text in texts if text in known]
    return len(right) / len(texts), len(set(right)) / len(known)


def _read(path: str) -> list[Row]:
    """Read sentences, each with all its translations under ``targets``, merged from several lines."""
    pairs = read_table(
        path,
        ("source", "target"),
        key=lambda row: (row["source"], row["target"]),
        what="sentence pair",
    )
    targets: dict[str, list[str]] = {}
    first: dict[str, Row] = {}
    for row in pairs:
        first.setdefault(row["source"], row)
        targets.setdefault(row["source"], []).append(row["target"])
    return [
        Row(row.source, row.line, {"source": source, "targets": targets[source]})
        for source, row in first.items()
    ]
