"""Translation: texts in proportion to p(Z | source)^(1/T), ended by a line break.

The generated pairs are of a toy language in which most sentences have several right translations, all
of them known: a sampler should find each, where a search for the best finds one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.errors import Problem
from gfn_runner.lm.tiny import velan
from gfn_runner.randomness import rng_for
from gfn_runner.tasks.base import ConditionSamples, Task, TaskData
from gfn_runner.textdata import Row, held_out, path_problems, read_table
from gfn_runner.types import Condition, Term

_N_SENTENCES = len(velan.VERBS) * len(velan.NOUNS) * len(velan.ADJECTIVES) * (len(velan.NOUNS) - 1)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TranslationData:
    """Where sentences come from: the toy language by default, else TSV or CSV files.

    Attributes:
        pairs: a table with the columns ``source`` and ``target``, or ``hub:owner/name:split``.
            Targets are references for the metrics; training needs sources only.
        test: the same to evaluate on; without it some of ``pairs`` are kept out.
        n_train, n_test: how many of each, the first ones of a file.
    """

    pairs: str | None = None
    test: str | None = None
    n_train: Annotated[int, Field(ge=1)] = 400
    n_test: Annotated[int, Field(ge=1)] = 50


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Translation(Task):
    """Settings of the task.

    Attributes:
        data: the sentences.
        template: what the model reads; ``{source}`` stands for the sentence.
    """

    terminator: str = "\n"
    max_len: Annotated[int, Field(ge=1)] = 16
    eval_max_len: Annotated[int, Field(ge=1)] = 16
    data: TranslationData = Field(default_factory=TranslationData)
    template: str = "Velan: {source} English:"

    name: ClassVar[str] = "translation"
    headline: ClassVar[tuple[str, ...]] = ("right_share", "found_share", "bleu", "diversity")
    writes_text: ClassVar[bool] = True

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if "{source}" not in self.template:
            yield Problem("task.template", f"given {self.template!r}", "a text with {source} in it")
        for key in ("pairs", "test"):
            path = getattr(self.data, key)
            if path is not None:
                yield from path_problems(f"task.data.{key}", path)
        if self.data.test is not None and self.data.pairs is None:
            yield Problem("task.data.test", "given without task.data.pairs", "both, or neither")
        wanted = self.data.n_train + self.data.n_test
        if self.data.pairs is None and wanted > _N_SENTENCES:
            yield Problem(
                "task.data.n_train",
                f"given {self.data.n_train}, beside {self.data.n_test} to evaluate on, but the toy "
                f"language has {_N_SENTENCES} sentences",
                f"at most {_N_SENTENCES} together",
            )

    def load(self, seed: int) -> TaskData:
        """Sentences to train on and, none of them among those, to evaluate on."""
        if self.data.pairs is None:
            return self._generated(seed)
        rows = _read(self.data.pairs)
        notes: tuple[str, ...] = ()
        if self.data.test is None:
            share = min(0.5, self.data.n_test / len(rows))
            rows, test = held_out(rows, share, rng_for(self.name, "held out"))
        else:
            test = _read(self.data.test)
            taken = {row["source"] for row in test}
            kept = [row for row in rows if row["source"] not in taken]
            if len(kept) < len(rows):
                notes = (f"{len(rows) - len(kept)} training pairs dropped: in the test file",)
            rows = kept
        train = [self._condition(r["source"], [r["target"]]) for r in rows[: self.data.n_train]]
        evaluation = [
            self._condition(r["source"], [r["target"]], group="sentences")
            for r in test[: self.data.n_test]
        ]
        return TaskData(train, evaluation, notes)

    def _generated(self, seed: int) -> TaskData:
        test: dict[tuple[str, ...], None] = {}
        rng = rng_for(self.name, "test")
        while len(test) < self.data.n_test:
            test.setdefault(velan.draw_source(rng))
        train: dict[tuple[str, ...], None] = {}
        rng = rng_for(self.name, "train", seed)
        while len(train) < self.data.n_train:
            source = velan.draw_source(rng)
            if source not in test:
                train.setdefault(source)
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

    def condition_for(self, prompt: str, seed: int) -> Condition | None:
        return Condition(key=prompt, prompt=prompt, terms=(Term(prompt),))

    def metrics(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Where all right translations are known: ``right_share`` of samples that are one, and
        ``found_share`` of the right ones that some sample of the sentence is; in 0..1.
        """
        result: dict[str, float] = {}
        for group in sorted({sample.condition.group for sample in samples}):
            members = [
                s for s in samples if s.condition.group == group and s.condition.facts["complete"]
            ]
            if members:
                right, found = zip(*map(_judged, members), strict=True)
                result |= {
                    f"right_share/{group}": fmean(right),
                    f"found_share/{group}": fmean(found),
                    f"all_found_share/{group}": fmean(share == 1.0 for share in found),
                }
        return result


def _judged(samples: ConditionSamples) -> tuple[float, float]:
    """Share of right samples, and share of the right translations that were found."""
    known = set(samples.condition.facts["references"])
    texts = [text.strip().removesuffix(".") for text in samples.singles]
    right = [text for text in texts if text in known]
    return len(right) / len(texts), len(set(right)) / len(known)


def _read(path: str) -> list[Row]:
    return read_table(
        path, ("source", "target"), key=lambda row: row["source"], what="sentence pair"
    )
