"""Measure a training step against its floor and against the plain way; writes docs/benchmarks.md.

    python scripts/benchmark.py                          # embedded model and GPT-2 small (random weights)
    python scripts/benchmark.py --models gpt-j --device cuda
    python scripts/benchmark.py --models embedded --shapes arithmetic --repeats 9

All is measured in one run, by turns, and reported as ratios: machines differ, and so does one machine from
minute to minute. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from bench.floor import Floor
from bench.measure import alternating, memory_of, peak_memory, ratio, slope
from bench.ours import PHASES, OurStep
from bench.plain import PlainStep
from bench.threads import measured
from bench.work import SHAPES, TERMINATOR, Shape, make_conditions, make_lm
from seed_tables import ROOT, write_block

from gfn_runner.data.expressions import draw_expression, question
from gfn_runner.data.replay_buffer import Entry, ReplayBuffer, ReplaySettings
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.loading import load
from gfn_runner.lm.log_probs import chosen_log_probs
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.lm.output_layer import keep_fp32_logits
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.prefixes import packed_prefixes, plain_prefixes
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.runtime.environment import cores
from gfn_runner.runtime.terminal import escape_unencodable_output

SECTIONS = ["steps", "recompute", "scoring", "growth", "precision", "logits", "buffer", "start"]
SECTIONS += ["threads"]
# The larger models are measured on one condition: the plain way takes one at a time anyway. On a CPU
# they have fewer samples of it where the shape has many: the plain way would take a quarter of an hour.
ONE_CONDITION = ("gpt2", "gpt2-xl", "gpt-j")
MOST_SAMPLES_ON_CPU = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["embedded", "gpt2"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--sections", nargs="+", default=SECTIONS, choices=SECTIONS)
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--write", type=Path, help="in place of the device's page in docs/")
    parser.add_argument("--conditions", type=int, help="in place of the shape's")
    parser.add_argument(
        "--memory", choices=["ours", "plain"], help="print GiB of one step and stop"
    )
    parser.add_argument("--recompute-above", type=int, help="tokens, of that step")
    parser.add_argument("--grown", nargs=2, metavar=("SIZE", "VALUE"), help="of that step")
    arguments = parser.parse_args()
    arguments.write = arguments.write or default_page(arguments.device)
    if arguments.memory:
        print(one_memory(arguments))
        return
    # A block a section, written as soon as it is measured: a later run may measure the others.
    if "steps" in arguments.sections:
        for model in arguments.models:
            write(arguments, model, steps_section(model, arguments))
    lm = make_lm("embedded", arguments.device)
    sections: dict[str, Callable[[], Iterator[str]]] = {
        "recompute": lambda: recompute_section(arguments),
        "scoring": lambda: scoring_section(lm, arguments.repeats),
        "growth": lambda: growth_section(arguments),
        "precision": lambda: precision_section(arguments),
        "logits": lambda: logits_section(arguments),
        "buffer": lambda: buffer_section(lm, arguments),
        "start": start_section,
        "threads": lambda: threads_section(arguments.repeats),
    }
    for name, section in sections.items():
        if name in arguments.sections and not (name == "threads" and arguments.device == "cuda"):
            write(arguments, name, section())


def default_page(device: str) -> Path:
    """Where a device's sections are."""
    return ROOT / "docs" / ("benchmarks.md" if device == "cpu" else "benchmarks_gpu.md")


def write(arguments: argparse.Namespace, name: str, lines: Iterator[str]) -> None:
    """Put a section between its marks."""
    title, *rest = lines
    block = [title, "", *head(arguments), *rest]
    write_block(arguments.write, f"{arguments.device} {name}", block)


def head(arguments: argparse.Namespace) -> Iterator[str]:
    machine = f"{cores()} CPU cores ({platform.machine()}), {torch.get_num_threads()} torch threads"
    if arguments.device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, bfloat16"
    yield f"Machine: {machine}; torch {torch.__version__}. Medians of {arguments.repeats} rounds by"
    yield "turns; in brackets the smallest and the largest."


def shape_of(name: str, model: str, arguments: argparse.Namespace) -> Shape:
    shape, conditions = SHAPES[name], arguments.conditions
    if model in ONE_CONDITION:
        conditions = conditions or 1
        if arguments.device == "cpu":
            shape = dataclasses.replace(shape, samples=min(shape.samples, MOST_SAMPLES_ON_CPU))
    return shape if conditions is None else dataclasses.replace(shape, conditions=conditions)


def one_memory(arguments: argparse.Namespace) -> float:
    if arguments.grown:
        size, value = arguments.grown
        lm, shape = grown(size, int(value), arguments.device)
    else:
        (model,), (name,) = arguments.models, arguments.shapes
        lm = make_lm(model, arguments.device)
        shape = shape_of(name, model, arguments)
    lm.recompute_above = arguments.recompute_above
    if arguments.memory == "ours":
        ours = OurStep(lm, shape)
        return memory_of(lambda: ours(0), lm.device)
    return memory_of(PlainStep(lm, shape), lm.device)


# -- steps ------------------------------------------------------------------------------------


def steps_section(model: str, arguments: argparse.Namespace) -> Iterator[str]:
    """Our step over the floor, the plain way over ours, and where our time goes."""
    yield f"### {model}"
    yield ""
    columns = ["shape", "conditions × samples", "step, s", "step / floor"]
    columns += ["plain / step", "careful plain / step"]
    yield f"| {' | '.join([*columns, *(f'{phase}, %' for phase in PHASES)])} |"
    yield "|---" * (6 + len(PHASES)) + "|"
    lm = make_lm(model, arguments.device)
    warm = arguments.device == "cuda" or model not in ONE_CONDITION
    for name in arguments.shapes:
        yield step_line(lm, name, shape_of(name, model, arguments), arguments.repeats, warm)
    yield ""
    yield from memory_table(model, arguments)


def memory_table(model: str, arguments: argparse.Namespace) -> Iterator[str]:
    """Peak memory of a step: the plain way, ours, and ours with activations computed again."""
    yield "Peak memory of a step beyond the model, GiB; the last two columns with `lm.recompute_above` at"
    yield "a quarter of the tokens of all strings."
    yield ""
    yield "| shape | conditions × samples | plain | ours | plain / ours | ours, again | plain / that |"
    yield "|---" * 7 + "|"
    for name in arguments.shapes:
        shape = shape_of(name, model, arguments)
        options = ["--models", model, "--shapes", name, "--conditions", str(shape.conditions)]
        options += ["--device", arguments.device, "--memory"]
        above = max(1, shape.conditions * shape.samples * shape.longest // 4)
        plain, ours = peak_memory(*options, "plain"), peak_memory(*options, "ours")
        again = peak_memory(*options, "ours", "--recompute-above", str(above))
        cells = [name, f"{shape.conditions} × {shape.samples}", f"{plain:.2f}"]
        for gib in (ours, again):
            cells += [f"{gib:.2f}", f"{plain / max(gib, 1e-3):.1f}"]
        yield f"| {' | '.join(cells)} |"
    yield ""


def step_line(lm: LanguageModel, name: str, shape: Shape, repeats: int, warm: bool) -> str:
    """One shape's row; ``warm`` gives the plain ways a round that does not count."""
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
    # The plain ways are so much slower that fewer rounds are enough.
    contestants = {"ours": ours, "plain": lambda _: plain(), "careful": lambda _: careful()}
    beside = alternating(contestants, max(1, repeats // 3), warm=warm)
    step = statistics.median(seconds["ours"])
    shares = [100 * statistics.median(p.get(phase, 0.0) for p in phases) / step for phase in PHASES]
    cells = [
        name,
        f"{shape.conditions} × {shape.samples}",
        f"{step:.2f}",
        _with_range(ratio(seconds["ours"], seconds["floor"])),
        _with_range(ratio(beside["plain"], beside["ours"])),
        _with_range(ratio(beside["careful"], beside["ours"])),
        *(f"{share:.1f}" for share in shares),
    ]
    return f"| {' | '.join(cells)} |"


def _with_range(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f}–{values[2]:.2f})"


# -- recomputing ------------------------------------------------------------------------------


def recompute_section(arguments: argparse.Namespace) -> Iterator[str]:
    """Time and memory where activations are computed again."""
    model, name, conditions, above = "gpt2", "continuation", 2, 300
    shape = dataclasses.replace(SHAPES[name], conditions=conditions)
    kept, again = make_lm(model, arguments.device), make_lm(model, arguments.device)
    again.recompute_above = above
    seconds = alternating(
        {"kept": OurStep(kept, shape), "again": OurStep(again, shape)},
        max(1, arguments.repeats // 2),
    )
    del kept, again
    options = ["--models", model, "--shapes", name, "--conditions", str(conditions)]
    options += ["--device", arguments.device, "--memory", "ours"]
    gib = [peak_memory(*options), peak_memory(*options, "--recompute-above", str(above))]
    yield "### Activations computed again"
    yield ""
    yield f"`lm.recompute_above={above}`, {model}, {name} ({shape.conditions} × {shape.samples}): "
    yield f"{_with_range(ratio(seconds['again'], seconds['kept']))} times the step, peak memory beyond"
    yield f"the model {gib[1]:.2f} in place of {gib[0]:.2f} GiB."
    yield ""


# -- scoring ----------------------------------------------------------------------------------


def scoring_section(lm: LanguageModel, repeats: int) -> Iterator[str]:
    """Packed scoring of prefixes against one forward a prefix."""
    yield "### Packed scoring of prefixes"
    yield ""
    yield "Time of one forward a prefix over that of one packed forward, 130 context tokens."
    yield ""
    yield "| rows | prefixes | suffix 1 | suffix 4 | suffix 12 |"
    yield "|---|---|---|---|---|"
    for rows in (8, 32):
        for n_tokens in (8, 16, 32):
            cells = [
                f"{scoring_ratio(lm, rows, n_tokens, n_suffix, repeats):.1f}"
                for n_suffix in (1, 4, 12)
            ]
            yield f"| {rows} | {n_tokens + 1} | {' | '.join(cells)} |"
    yield ""


def scoring_ratio(
    lm: LanguageModel, rows: int, n_tokens: int, n_suffix: int, repeats: int
) -> float:
    shape = Shape(1, rows, n_tokens, n_tokens, 130, 1, n_suffix)
    (condition,) = make_conditions(shape, lm.vocab_size)
    term = condition.terms[0]
    rng = random.Random(0)
    strings = [[rng.randrange(2, lm.vocab_size) for _ in range(n_tokens)] for _ in range(rows)]
    trajectories = Trajectories.from_rows(
        strings, [[True] * n_tokens for _ in strings], [0] * rows, lm.device
    )
    rule = StringRule(TERMINATOR, 0, n_tokens)
    suffix = lm.encode(term.suffix) or (TERMINATOR,)
    inputs = ([lm.encode_prompt(term.context)], [suffix], trajectories, rule)

    def scored(how: Callable[..., object]) -> Callable[[int], None]:
        @torch.no_grad()
        def run(number: int) -> None:
            with lm.base():
                how(lm, *inputs)

        return run

    seconds = alternating(
        {"packed": scored(packed_prefixes), "plain": scored(plain_prefixes)}, max(1, repeats // 2)
    )
    return ratio(seconds["plain"], seconds["packed"])[0]


# -- growth -----------------------------------------------------------------------------------


GROWN: dict[str, Sequence[int]] = {
    "conditions": (2, 4, 8, 16),
    "samples": (8, 16, 32, 64),
    "tokens of a string": (8, 16, 32, 64),
    "vocabulary": (2000, 8000, 32000),
    "width of the model": (128, 256, 512),
}
_CONFIG = {"n_embd": 128, "n_layer": 4, "n_head": 4, "vocab_size": 2000}


def grown(name: str, size: int, device: str) -> tuple[LanguageModel, Shape]:
    """Model and shape with one size changed, the others as in arithmetic with 4 × 8 strings."""
    shape = dataclasses.replace(SHAPES["arithmetic"], conditions=4, samples=8)
    if name in ("vocabulary", "width of the model"):
        key = "vocab_size" if name == "vocabulary" else "n_embd"
        return make_lm("gpt2", device, **(_CONFIG | {key: size})), shape
    changed = {name: size}
    if name == "tokens of a string":
        changed = {"shortest": size, "longest": size}
    return make_lm("embedded", device), dataclasses.replace(shape, **changed)


def growth_section(arguments: argparse.Namespace) -> Iterator[str]:
    """Step time and peak memory against sizes, as exponents."""
    yield "### Growth"
    yield ""
    yield "Step time, and peak memory of a step beyond the model, against one size; the others as in"
    yield "arithmetic (4 × 8). Slopes are of log to log size: 1 is proportional."
    yield ""
    yield "| size | values | seconds | slope | GiB | slope |"
    yield "|---|---|---|---|---|---|"
    for name, sizes in GROWN.items():
        steps = {str(size): OurStep(*grown(name, size, arguments.device)) for size in sizes}
        seconds = alternating(steps, arguments.repeats)
        medians = [statistics.median(seconds[str(size)]) for size in sizes]
        options = ["--device", arguments.device, "--memory", "ours", "--grown", name]
        gib = [peak_memory(*options, str(size)) for size in sizes]
        cells = [name, ", ".join(map(str, sizes))]
        for values in (medians, gib):
            cells += [", ".join(f"{value:.2f}" for value in values), f"{slope(sizes, values):.2f}"]
        yield f"| {' | '.join(cells)} |"
    yield ""


# -- precision --------------------------------------------------------------------------------


def precision_section(arguments: argparse.Namespace) -> Iterator[str]:
    """Error of log-probabilities of bfloat16 weights, summed in fp32 and in bfloat16."""
    settings = {
        dtype: LMSettings(device=arguments.device, dtype=dtype)  # type: ignore[arg-type]
        for dtype in ("float32", "bfloat16")
    }
    lms = {dtype: load(options, adapter=False, seed=0) for dtype, options in settings.items()}
    rng = random.Random(0)
    expressions = [draw_expression(rng, rng.randint(3, 5)) for _ in range(64)]
    texts = [f"{question(e)} {e.steps()}." for e in expressions]
    rows = [lms["float32"].encode_prompt(text) for text in texts]
    with torch.no_grad():
        exact_B, _ = summed(lms["float32"], rows)
        found_B, careless_B = summed(lms["bfloat16"], rows)
    errors = [((own_B - exact_B).abs()) for own_B in (found_B, careless_B)]
    shown = [f"{error.median():.3f} (at most {error.max():.2f})" for error in errors]
    yield "### Precision"
    yield ""
    lengths = f"{min(map(len, rows))} to {max(map(len, rows))} tokens"
    yield f"log p of {len(rows)} worked sums of {lengths} under the embedded model,"
    yield "error of bfloat16 weights against float32, nats a string, median: summed in"
    yield f"float32, as the program does, {shown[0]}; logits normalised and summed in bfloat16 {shown[1]}."
    yield ""


def logits_section(arguments: argparse.Namespace) -> Iterator[str]:
    """Time and memory of a step whose bfloat16 weights give logits in float32."""
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
    yield "### Logits of bfloat16 weights"
    yield ""
    yield f"{model}, {name} ({shape.conditions} × {shape.samples}), float32 logits against bfloat16:"
    yield f"{_with_range(ratio(seconds['float32'], seconds['bfloat16']))} times the step, peak memory"
    yield f"{gib['float32']:.2f} in place of {gib['bfloat16']:.2f} GiB."
    yield ""


def summed(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of whole rows: in fp32 by the program's own function, and all in the logits' own type."""
    logits_NTV = lm.whole_logits(rows)[:, :-1]
    width = max(map(len, rows))
    padded = [[*ids, *[-1] * (width - len(ids))] for ids in rows]
    next_NT = torch.tensor(padded, device=lm.device)[:, 1:]
    careful_NT = chosen_log_probs(logits_NTV, next_NT)
    careless_NT = logits_NTV.log_softmax(dim=-1).gather(2, next_NT.clamp(min=0)[..., None])[..., 0]
    real_NT = next_NT >= 0
    return (careful_NT * real_NT).sum(dim=1), (careless_NT * real_NT).sum(dim=1).float()


# -- buffer and start -------------------------------------------------------------------------


def buffer_section(lm: LanguageModel, arguments: argparse.Namespace) -> Iterator[str]:
    """A full buffer's share of a step: 1000 conditions of 50 strings."""
    shape, rng = SHAPES["arithmetic"], random.Random(0)

    def entry() -> Entry:
        n = rng.randint(shape.shortest, shape.longest)
        tokens = tuple(rng.randrange(2, lm.vocab_size) for _ in range(n))
        return Entry(tokens, (True,) * n, tuple(-rng.random() * 30 for _ in range(n + 1)))

    buffer = ReplayBuffer(ReplaySettings())
    for number in range(1000):
        while len(buffer.entries(str(number))) < 50:
            buffer.add(str(number), entry())

    fresh = [entry() for _ in range(64 * shape.conditions * shape.samples)]

    def use(number: int) -> None:
        for _ in range(shape.conditions):
            key = str(rng.randrange(1000))
            for _ in range(shape.samples):
                buffer.add(key, fresh.pop())
            buffer.sample(key, shape.samples, rng)

    seconds = alternating({"buffer": use, "step": OurStep(lm, shape)}, arguments.repeats)
    share = 100 * ratio(seconds["buffer"], seconds["step"])[0]
    yield "### Replay buffer"
    yield ""
    yield "Adding and drawing 8 × 16 strings at 1000 conditions of 50 strings: "
    yield f"{share:.2f} % of a step of the arithmetic shape."
    yield ""


def start_section() -> Iterator[str]:
    """Seconds until a config is checked."""
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        command = [sys.executable, "-m", "gfn_runner", "dry_run=true"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    yield "### Start"
    yield ""
    yield f"`python -m gfn_runner dry_run=true`: {statistics.median(seconds[1:]):.1f} s."
    yield ""


def threads_section(repeats: int, conditions: int = 2) -> Iterator[str]:
    """Ways for torch's threads to wait, alone and beside one busy process."""
    seconds = measured(repeats, conditions)
    yield "### Threads"
    yield ""
    samples = SHAPES["arithmetic"].samples
    yield f"A step of the arithmetic shape ({conditions} × {samples}), embedded model: each way in a"
    yield "process of its own, by turns, with the machine to itself (quiet) and beside one other process"
    yield "that keeps a core busy. Ratios of seconds to those of the program's way; above 1 is slower."
    yield ""
    yield "| threads that wait are | quiet, s | quiet, ratio | busy, s | busy, ratio |"
    yield "|---|---|---|---|---|"
    own = next(iter(seconds["quiet"]))
    for name in seconds["quiet"]:
        cells = [name]
        for case in ("quiet", "busy"):
            cells.append(f"{statistics.median(seconds[case][name]):.2f}")
            cells.append(_with_range(ratio(seconds[case][name], seconds[case][own])))
        yield f"| {' | '.join(cells)} |"
    yield ""


if __name__ == "__main__":
    escape_unencodable_output()
    main()
