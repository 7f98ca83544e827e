"""Estimate memory and time of a training step for models too large to test; writes docs/scaling.md.

    python scripts/scaling.py

Everything is computed from sizes: bytes stored, multiplications, bytes read. Nothing is measured;
measurements are in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from seed_tables import ROOT, write_block

from gfn_runner.runtime.terminal import prepare_output

GIB = 2**30


@dataclass(frozen=True)
class Model:
    """Sizes of a Llama-like policy: grouped-query attention, gated feed-forward, no biases.

    Attributes:
        width, key_width, hidden: of the residual stream, of all keys together, of the feed-forward layer.
        rank: of the adapter on every linear layer of the blocks.
    """

    name: str
    layers: int
    width: int
    key_width: int
    hidden: int
    vocabulary: int
    rank: int = 64

    @property
    def per_layer(self) -> int:
        """Weights per block that multiply each token."""
        attention = 2 * self.width**2 + 2 * self.width * self.key_width
        return attention + 3 * self.width * self.hidden

    @property
    def multiplied(self) -> int:
        """Weights that multiply each token, including the output layer."""
        return self.layers * self.per_layer + self.vocabulary * self.width

    @property
    def adapter(self) -> int:
        """Number of trained parameters: rank × (inputs + outputs) of each linear layer."""
        both = 2 * (2 * self.width) + 2 * (self.width + self.key_width)
        both += 3 * (self.width + self.hidden)
        return self.layers * self.rank * both

    @property
    def cached(self) -> int:
        """Bytes of a token's keys and values."""
        return 2 * self.layers * self.key_width * 2

    @property
    def kept(self) -> int:
        """Bytes of a token's activations that the backward pass through the blocks needs.

        Inputs and outputs of norms, queries, keys, values, attention's output, four activations of the
        feed-forward layer and seven of the adapter's rank; attention itself is recomputed (flash attention).
        """
        numbers = 7 * self.width + 2 * self.key_width + 4 * self.hidden + 7 * self.rank
        return 2 * self.layers * numbers

    @property
    def logits(self) -> int:
        """Bytes of a position's logits: bfloat16, their fp32 copy and its gradient."""
        return (2 + 4 + 4) * self.vocabulary


@dataclass(frozen=True)
class Step:
    """A batch; all but the first two in tokens. The reward reads its own context, not the policy's prompt."""

    conditions: int = 32
    samples: int = 16
    prompt: int = 150
    length: int = 30
    context: int = 150
    suffix: int = 12

    @property
    def rows(self) -> int:
        return self.conditions * self.samples


@dataclass(frozen=True)
class Device:
    """A device and its achieved throughput per second: FLOPs, and bytes from memory and over links."""

    name: str = "H100, 80 GB"
    flops: float = 400e12
    bandwidth: float = 2.3e12
    link: float = 350e9
    memory: float = 80e9


MODELS = (
    Model("1 B (Llama 3.2's sizes)", 16, 2048, 512, 8192, 128256),
    Model("7 B (Llama 2's sizes)", 32, 4096, 4096, 11008, 32000),
    Model("70 B (Llama 2's sizes)", 80, 8192, 1024, 28672, 32000),
)
BUDGET = 32768  # lm.max_tokens_per_forward


def memory(model: Model, step: Step) -> dict[str, float]:
    """Return GiB on one device, unsharded, by use; the last three are not needed at the same time."""
    trained_tokens = step.conditions * step.prompt + step.rows * step.length
    states = step.rows * (step.length + 1)
    read = min(BUDGET, step.rows * (step.length + (step.length + 1) * (step.suffix - 1)))
    rows_at_once = max(1, read // (step.length + (step.length + 1) * (step.suffix - 1)))
    weights = 2 * (model.layers * model.per_layer + 2 * model.vocabulary * model.width)
    table = {
        "weights, bf16": weights,
        # fp32 weight and gradient, and two moments of Adam.
        "adapter and its optimizer": 16 * model.adapter,
        "sampling: cache": step.rows * (step.prompt + step.length) * model.cached,
        "reward: cache and logits": rows_at_once * step.context * model.cached
        + read * (model.cached + 6 * model.vocabulary),
        "policy: activations": trained_tokens * model.kept,
        "policy: logits": states * model.logits,
    }
    return {name: size / GIB for name, size in table.items()}


def seconds(model: Model, step: Step, device: Device) -> dict[str, float]:
    """Return the seconds of each phase on one device that holds the whole model."""

    def forward(tokens: float) -> float:
        return 2 * model.multiplied * tokens / device.flops

    weights = 2 * model.multiplied
    tokens = 0.0
    for done in range(step.length):
        cached = step.rows * (step.prompt + done) * model.cached
        tokens += max(forward(step.rows), (weights + cached) / device.bandwidth)
    branches = step.rows * (step.length + (step.length + 1) * (step.suffix - 1))
    policy = step.conditions * step.prompt + step.rows * step.length
    return {
        "sampling": forward(step.conditions * step.prompt) + tokens,
        "reward": forward(step.conditions * step.context + branches),
        "policy, forward": forward(policy),
        # One pass through the frozen weights; the adapter's own gradients are negligible.
        "policy, backward": forward(policy),
    }


def sharded_sampling(model: Model, step: Step, device: Device) -> float:
    """Return the seconds of sampling if all weights are gathered over the links for every token (FSDP)."""
    return step.length * 2 * model.multiplied / device.link


def page() -> Iterator[str]:
    """Yield the tables as Markdown lines."""
    step, device = Step(), Device()
    yield (
        f"A batch of {step.conditions} conditions × {step.samples} samples of {step.length} tokens, "
        f"prompts and contexts of {step.prompt}, suffixes of {step.suffix}; adapters of rank "
        f"{MODELS[0].rank} on every linear layer. {device.name}: {device.flops / 1e12:.0f} TFLOP/s and "
        f"{device.bandwidth / 1e12:.1f} TB/s reached, {device.link / 1e9:.0f} GB/s between devices."
    )
    for title, unit, columns in (
        ("Memory", "GiB", [memory(model, step) for model in MODELS]),
        ("Time", "s", [seconds(model, step, device) for model in MODELS]),
    ):
        yield ""
        yield f"| {title}, {unit} | {' | '.join(model.name for model in MODELS)} |"
        yield f"|---|{'---|' * len(MODELS)}"
        for name in columns[0]:
            yield f"| {name} | {' | '.join(f'{column[name]:.2f}' for column in columns)} |"
        if title == "Time":
            totals = [f"{sum(column.values()):.2f}" for column in columns]
            yield f"| step | {' | '.join(totals)} |"
            gathered = [f"{sharded_sampling(model, step, device):.2f}" for model in MODELS]
            yield f"| sampling with weights gathered for every token | {' | '.join(gathered)} |"


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    write_block(ROOT / "docs" / "scaling.md", "counted", list(page()))


if __name__ == "__main__":
    prepare_output()
    main()
