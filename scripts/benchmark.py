"""Measure a training step against its floor and against a plain implementation; writes docs/benchmarks.md.

    python scripts/benchmark.py                          # embedded model and GPT-2 small (random weights)
    python scripts/benchmark.py --models gpt-j --device cuda
    python scripts/benchmark.py --models embedded --shapes arithmetic --repeats 9

All variants are measured alternately in one run and reported as ratios, since speed differs between machines
and over time. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bench import load, parts, steps
from bench.measure import memory_of
from bench.ours import OurStep
from bench.plain import PlainStep
from bench.work import SHAPES, make_lm
from seed_tables import ROOT, write_block

from gfn_runner.runtime.environment import cores
from gfn_runner.runtime.terminal import prepare_output

# In addition to the section on steps, of which there is one per model.
SECTIONS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "recompute": steps.recompute_section,
    "scoring": parts.scoring_section,
    "growth": steps.growth_section,
    "precision": parts.precision_section,
    "logits": steps.logits_section,
    "buffer": parts.buffer_section,
    "start": parts.start_section,
    "threads": parts.threads_section,
    "load": load.load_section,
    "long": load.long_section,
}
ON_CPU_ALONE = ("threads", "load", "long")
MEASURED_ONCE = ("load", "long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["steps", *SECTIONS]
    parser.add_argument("--models", nargs="+", default=["embedded", "gpt2"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--sections", nargs="+", default=names, choices=names)
    parser.add_argument("--repeats", type=int, default=5, help="rounds that are measured")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--write", type=Path, help="page to write; default: the device's page in docs/"
    )
    parser.add_argument("--conditions", type=int, help="conditions, instead of the shape's")
    parser.add_argument(
        "--memory", choices=["ours", "plain"], help="print GiB of one step and stop"
    )
    parser.add_argument(
        "--recompute-above", type=int, help="lm.recompute_above of the --memory step"
    )
    parser.add_argument("--cases", nargs="+", help="cases of section load whose names begin so")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of section long")
    parser.add_argument(
        "--grown", nargs=2, metavar=("SIZE", "VALUE"), help="a size of the --memory step"
    )
    arguments = parser.parse_args()
    arguments.write = arguments.write or default_page(arguments.device)
    if arguments.memory:
        print(one_memory(arguments))
        return
    # Each section is a block that is written as soon as it is measured; later runs may measure others.
    for model in arguments.models if "steps" in arguments.sections else ():
        write(arguments, model, steps.steps_section(model, arguments))
    for name, section in SECTIONS.items():
        there = arguments.device == "cpu" or name not in ON_CPU_ALONE
        if name in arguments.sections and there:
            write(arguments, name, section(arguments))


def default_page(device: str) -> Path:
    """Return the page with a device's sections."""
    return ROOT / "docs" / ("benchmarks.md" if device == "cpu" else "benchmarks_gpu.md")


def write(arguments: argparse.Namespace, name: str, lines: Sequence[str]) -> None:
    """Write a section between its markers, with the machine below its title."""
    machine = f"{cores()} CPU cores ({platform.machine()}), {torch.get_num_threads()} torch threads"
    if arguments.device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, bfloat16"
    title, *rest = lines
    head = [f"Machine: {machine}; torch {torch.__version__}."]
    if name not in MEASURED_ONCE:
        head = [f"{head[0]} Medians of {arguments.repeats} rounds by"]
        head.append("turns; in brackets the smallest and the largest.")
    block = [title, "", *head, "", *rest, ""]
    write_block(arguments.write, f"{arguments.device} {name}", block)


def one_memory(arguments: argparse.Namespace) -> float:
    if arguments.grown:
        size, value = arguments.grown
        lm, shape = steps.grown(size, int(value), arguments.device)
    else:
        (model,), (name,) = arguments.models, arguments.shapes
        lm = make_lm(model, arguments.device)
        shape = steps.shape_of(name, model, arguments)
    lm.recompute_above = arguments.recompute_above
    if arguments.memory == "ours":
        ours = OurStep(lm, shape)
        return memory_of(lambda: ours(0), lm.device)
    return memory_of(PlainStep(lm, shape), lm.device)


if __name__ == "__main__":
    prepare_output()
    main()
