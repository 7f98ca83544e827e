"""Random numbers: strings in proportion to a table of probabilities.

Hu et al. 2024, section 2: when asked for a random integer, language models are far from uniform. The
posterior contains no language model: log R of a valid number is its log-probability in the target
distribution, and all other strings get a floor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, ReferenceRow, TaskData
from gfn_runner.errors import Problem
from gfn_runner.metrics.distribution import (
    empirical,
    expected_empirical_kl,
    kl_divergence,
    total_variation,
)
from gfn_runner.rewards.factors import TableFactor
from gfn_runner.tasks.base import GFlowNetModule

Family = Literal["uniform", "binomial", "poisson", "geometric", "zipf", "normal"]


class RandomNumbers(GFlowNetModule):
    """Random numbers from a given distribution.

    Attributes:
        prompt: prompt of the policy, without a trailing space: the number brings its own (``prefix``).
        prefix: text before each number.
        low, high: smallest and largest number.
        distribution: target distribution, truncated to ``low``..``high`` and normalized: ``uniform``,
            ``binomial`` (successes in ``high − low`` trials of probability ``parameter``, from
            ``low``), ``poisson`` (mean ``parameter``, from ``low``), ``geometric`` (success
            probability ``parameter``, from ``low``), ``zipf`` (exponent ``parameter``), or ``normal``
            (rounded; ``parameter`` is the standard deviation, the mean is the midpoint).
        parameter: parameter of the distribution; unused by ``uniform``.
        penalty: negative log of the total mass of all invalid strings of the same length, in nats;
            see ``TableFactor``.
    """

    name: ClassVar[str] = "random_number"
    headline: ClassVar[tuple[str, ...]] = (
        "kl",
        "kl_floor",
        "invalid_share",
        "exact_kl",
        "exact_tv",
    )
    optimized: ClassVar[str] = (
        "exact_kl"  # kl has a noise floor, and is undefined if no number is valid
    )

    def __init__(
        self,
        *,
        prompt: str = "The following is a random integer drawn uniformly between 0 and 100:",
        prefix: str = " ",
        low: int = 0,
        high: int = 100,
        distribution: Family = "uniform",
        parameter: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5,
        penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 12.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.prompt = prompt
        self.prefix = prefix
        self.low = low
        self.high = high
        self.distribution = distribution
        self.parameter = parameter
        self.penalty = penalty

    def reference_rows(self) -> Sequence[ReferenceRow]:
        """Return the authors' PPO: 21,411 of 512,000 numbers invalid (their rng/notebooks/plots.ipynb)."""
        return [ReferenceRow("the authors' PPO", {"invalid_share/numbers": 21_411 / 512_000})]

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.high <= self.low:
            yield Problem("task.high", f"given {self.high}", f"above task.low = {self.low}")
        if not self.prompt.strip():
            yield Problem("task.prompt", "given an empty prompt", "a text")
        if self.distribution in ("binomial", "geometric") and self.parameter >= 1:
            yield Problem(
                "task.parameter",
                f"given {self.parameter} with distribution={self.distribution}",
                "a probability above 0 and below 1",
            )
        if self.distribution == "zipf" and self.parameter <= 1:
            yield Problem("task.parameter", f"given {self.parameter} with zipf", "above 1")
        if self.high > self.low and not all(self.probabilities().values()):
            yield Problem(
                "task.parameter",
                f"given {self.parameter}: some numbers from {self.low} to {self.high} would have "
                "probability 0",
                "a wider distribution, or a narrower range",
            )

    def probabilities(self) -> dict[int, float]:
        """Return the target distribution, which sums to 1; all zeros if its mass lies outside the range."""
        from scipy import stats

        count, p = self.high - self.low, self.parameter
        numbers = range(self.low, self.high + 1)
        middle = (self.low + self.high) / 2
        mass = {
            "uniform": lambda k: 1.0,
            "binomial": lambda k: stats.binom.pmf(k - self.low, count, p),
            "poisson": lambda k: stats.poisson.pmf(k - self.low, p),
            "geometric": lambda k: stats.geom.pmf(k - self.low + 1, p),
            "zipf": lambda k: (k - self.low + 1) ** -p,
            "normal": lambda k: math.exp(-(((k - middle) / p) ** 2) / 2),
        }[self.distribution]
        values = {number: float(mass(number)) for number in numbers}
        total = sum(values.values()) or 1.0
        return {number: value / total for number, value in values.items()}

    def load(self, seed: int) -> TaskData:
        """Return the single condition; ``seed`` has no effect.

        All numbers are demonstrations, so rare ones under the base model need not be discovered.
        """
        return TaskData([self._condition("train")], [self._condition("numbers")])

    def _condition(self, group: str) -> Condition:
        probabilities = self.probabilities()
        table = {f"{self.prefix}{n}": math.log(p) for n, p in probabilities.items()}
        return Condition(
            key=self.prompt,
            prompt=self.prompt,
            terms=(),
            group=group,
            demonstrations=tuple(table) if group == "train" else (),
            facts={
                "table": table,
                "target": {f"{self.prefix}{n}": p for n, p in probabilities.items()},
            },
        )

    def condition_for(self, prompt: str, seed: int) -> Condition | None:
        return self._condition("train") if prompt.rstrip() == self.prompt else None

    def constraints(self) -> Sequence[TableFactor]:
        return (TableFactor(self.penalty),)

    def support(self, condition: Condition) -> Sequence[str]:
        return list(condition.facts["table"])

    def metrics(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        """Measure how far the valid numbers are from the target, and how many samples are invalid.

        ``kl`` is KL(valid samples ‖ target) in nats, and ``tv`` the total variation; ``kl_floor`` is the
        expected ``kl`` of samples from the target, ``kl_over_floor`` the ratio; ``invalid_share`` is in 0..1.
        """
        result: dict[str, float] = {}
        for sample in samples:
            table: dict[str, float] = sample.condition.facts["table"]
            counts = Counter(sample.singles)
            valid = [counts[text] for text in table]
            n_valid, n = sum(valid), len(sample.singles)
            own = {"invalid_share": 1 - n_valid / n, "n_samples": float(n)}
            if n_valid:
                target = [math.exp(value) for value in table.values()]
                share = empirical(valid)
                own["kl"] = kl_divergence(share, target)
                own["tv"] = total_variation(share, target)
                own["kl_floor"] = expected_empirical_kl(target, n_valid)
                own["kl_over_floor"] = own["kl"] / own["kl_floor"]
            result |= {f"{name}/{sample.condition.group}": v for name, v in own.items()}
        return result
