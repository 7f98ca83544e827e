"""Sections on whole training steps: Markdown lines, the title first."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from argparse import Namespace
from collections.abc import Sequence

import torch
from seed_tables import markdown

from bench.floor import Floor
from bench.measure import alternating, memory_of, peak_memory, ratio, slope, with_range
from bench.ours import PHASES, OurStep
from bench.plain import PlainStep
from bench.work import SHAPES, Shape, make_lm
from gfn_runner.lm.output_layer import keep_fp32_logits
from gfn_runner.lm.policy import LanguageModel

# Larger models are measured on one condition, since the plain way takes one at a time anyway. On a CPU, the
# number of samples is limited too: the plain way would take a quarter of an hour.
ONE_CONDITION = ("gpt2", "gpt2-xl", "gpt-j")
MOST_SAMPLES_ON_CPU = 20


def shape_of(name: str, model: str, arguments: Namespace) -> Shape:
    shape, conditions = SHAPES[name], arguments.conditions
    if model in ONE_CONDITION:
        conditions = conditions or 1
        if arguments.device == "cpu":
            shape = dataclasses.replace(shape, samples=min(shape.samples, MOST_SAMPLES_ON_CPU))
    return shape if conditions is None else dataclasses.replace(shape, conditions=conditions)


def steps_section(model: str, arguments: Namespace) -> list[str]:
    """Measure our step over the floor, the plain way over ours, the time of our phases, and peak memory."""
    lm = make_lm(model, arguments.device)
    warm = arguments.device == "cuda" or model not in ONE_CONDITION
    shapes = {name: shape_of(name, model, arguments) for name in arguments.shapes}
    times = [step_line(lm, name, own, arguments.repeats, warm) for name, own in shapes.items()]
    columns = ["shape", "conditions × samples", "step, s", "step / floor"]
    columns += ["plain / step", "careful plain / step", *(f"{phase}, %" for phase in PHASES)]
    peaks = [memory_line(model, name, own, arguments.device) for name, own in shapes.items()]
    gib = ["shape", "conditions × samples", "plain", "ours", "plain / ours"]
    return [
        f"### {model}",
        *markdown(columns, times),
        "",
        "Peak memory of a step beyond the model, GiB; the last two columns with `lm.recompute_above` at",
        "a quarter of the tokens of all strings.",
        "",
        *markdown([*gib, "ours, again", "plain / that"], peaks),
    ]


def step_line(lm: LanguageModel, name: str, shape: Shape, repeats: int, warm: bool) -> list[str]:
    """Return the row of one shape; ``warm`` gives the plain ways a round that is not counted."""
    ours, floor = OurStep(lm, shape), Floor(lm, shape)
    plain, careful = PlainStep(lm, shape), PlainStep(lm, shape, careful=True)
    phases: list[dict[str, float]] = []

    def our_step(number: int) -> None:
        ours(number)
        if number:
            phases.append(dict(ours.seconds))

    def bare(number: int) -> None:
        assert ours.trajectories is not None  # it ran before
        floor(ours.trajectories)

    seconds = alternating({"ours": our_step, "floor": bare}, repeats)
    # The plain ways are so much slower that fewer rounds suffice.
    contestants = {"ours": ours, "plain": lambda _: plain(), "careful": lambda _: careful()}
    beside = alternating(contestants, max(1, repeats // 3), warm=warm)
    step = statistics.median(seconds["ours"])
    shares = [100 * statistics.median(p.get(phase, 0.0) for p in phases) / step for phase in PHASES]
    return [
        name,
        shape.size,
        f"{step:.2f}",
        with_range(ratio(seconds["ours"], seconds["floor"])),
        with_range(ratio(beside["plain"], beside["ours"])),
        with_range(ratio(beside["careful"], beside["ours"])),
        *(f"{share:.1f}" for share in shares),
    ]


def memory_line(model: str, name: str, shape: Shape, device: str) -> list[str]:
    """Return peak memory of a step: the plain way, ours, and ours with recomputed activations."""
    options = ["--models", model, "--shapes", name, "--conditions", str(shape.conditions)]
    options += ["--device", device, "--memory"]
    above = max(1, shape.conditions * shape.samples * shape.longest // 4)
    plain, ours = peak_memory(*options, "plain"), peak_memory(*options, "ours")
    again = peak_memory(*options, "ours", "--recompute-above", str(above))
    cells = [name, shape.size, f"{plain:.2f}"]
    for gib in (ours, again):
        cells += [f"{gib:.2f}", f"{plain / max(gib, 1e-3):.1f}"]
    return cells


def recompute_section(arguments: Namespace) -> list[str]:
    """Measure time and memory with recomputed activations."""
    model, name, conditions, above = "gpt2", "continuation", 2, 300
    shape = dataclasses.replace(SHAPES[name], conditions=conditions)
    kept, again = make_lm(model, arguments.device), make_lm(model, arguments.device)
    again.recompute_above = above
    steps = {"kept": OurStep(kept, shape), "again": OurStep(again, shape)}
    seconds = alternating(steps, max(1, arguments.repeats // 2))
    del kept, again, steps
    options = ["--models", model, "--shapes", name, "--conditions", str(conditions)]
    options += ["--device", arguments.device, "--memory", "ours"]
    gib = [peak_memory(*options), peak_memory(*options, "--recompute-above", str(above))]
    return [
        "### Activations computed again",
        f"`lm.recompute_above={above}`, {model}, {name} ({shape.size}): ",
        f"{with_range(ratio(seconds['again'], seconds['kept']))} times the step, peak memory beyond",
        f"the model {gib[1]:.2f} in place of {gib[0]:.2f} GiB.",
    ]


GROWN: dict[str, Sequence[int]] = {
    "conditions": (2, 4, 8, 16),
    "samples": (8, 16, 32, 64),
    "tokens of a string": (8, 16, 32, 64),
    "vocabulary": (2000, 8000, 32000),
    "width of the model": (128, 256, 512),
}
_CONFIG = {"n_embd": 128, "n_layer": 4, "n_head": 4, "vocab_size": 2000}


def grown(name: str, size: int, device: str) -> tuple[LanguageModel, Shape]:
    """Return model and shape with one size changed, the others as in arithmetic with 4 × 8 strings."""
    shape = dataclasses.replace(SHAPES["arithmetic"], conditions=4, samples=8)
    if name in ("vocabulary", "width of the model"):
        key = "vocab_size" if name == "vocabulary" else "n_embd"
        return make_lm("gpt2", device, **(_CONFIG | {key: size})), shape
    changed = {name: size}
    if name == "tokens of a string":
        changed = {"shortest": size, "longest": size}
    return make_lm("embedded", device), dataclasses.replace(shape, **changed)


def growth_section(arguments: Namespace) -> list[str]:
    """Measure how step time and peak memory grow with sizes, as exponents."""
    rows = []
    for name, sizes in GROWN.items():
        steps = {str(size): OurStep(*grown(name, size, arguments.device)) for size in sizes}
        seconds = alternating(steps, arguments.repeats)
        medians = [statistics.median(seconds[str(size)]) for size in sizes]
        options = ["--device", arguments.device, "--memory", "ours", "--grown", name]
        gib = [peak_memory(*options, str(size)) for size in sizes]
        cells = [name, ", ".join(map(str, sizes))]
        for values in (medians, gib):
            cells += [", ".join(f"{value:.2f}" for value in values), f"{slope(sizes, values):.2f}"]
        rows.append(cells)
    return [
        "### Growth",
        "Step time, and peak memory of a step beyond the model, against one size; the others as in",
        "arithmetic (4 × 8). Slopes are of log to log size: 1 is proportional.",
        "",
        *markdown(["size", "values", "seconds", "slope", "GiB", "slope"], rows),
    ]


def logits_section(arguments: Namespace) -> list[str]:
    """Measure time and memory of a step with bfloat16 weights and float32 logits."""
    model, name = "gpt2", "continuation"
    shape = dataclasses.replace(SHAPES[name], conditions=1, samples=8)
    steps = {}
    for kind in ("float32", "bfloat16"):
        lm = make_lm(model, arguments.device)
        lm.model.to(torch.bfloat16)
        keep_fp32_logits(lm.model)
        if kind == "bfloat16":
            del lm.model.get_output_embeddings().forward
        steps[kind] = OurStep(lm, shape)
    seconds = alternating(steps, arguments.repeats)
    device = torch.device(arguments.device)
    gib = {kind: memory_of(functools.partial(step, 0), device) for kind, step in steps.items()}
    return [
        "### Logits of bfloat16 weights",
        f"{model}, {name} ({shape.size}), float32 logits against bfloat16:",
        f"{with_range(ratio(seconds['float32'], seconds['bfloat16']))} times the step, peak memory",
        f"{gib['float32']:.2f} in place of {gib['bfloat16']:.2f} GiB.",
    ]
