"""Draw the packages and a training step for docs/architecture.md.

    python scripts/draw_architecture.py     # writes docs/images/packages.png and docs/images/step.png

The layers are those of the import contract in pyproject.toml; a package's purpose is its docstring.
"""

from __future__ import annotations

import argparse
import ast
import textwrap
import tomllib
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
INK, EDGE, FILL, ACCENT = "#1f2430", "#8a93a6", "#f4f6fa", "#dfe9f7"
# Boxes of a step: text, position (column, row), and what happens there.
STEP = {
    "data": ("data\nConditionData", 0, 1, "conditions of a batch"),
    "replay": ("callbacks\nreplay buffer", 1, 0, "a draw from the buffer,\non some batches"),
    "sample": ("lm.sampling\nsample", 1, 1, "trajectories of the policy\n(no gradients)"),
    "reward": ("rewards\nlog_reward", 2, 1, "log R of the prefixes\n(adapter off, no gradients)"),
    "policy": ("lm.scoring\nscore_policy", 3, 1, "log q with gradients,\none forward"),
    "phi": ("objectives\nphi", 4, 1, "φ = log R/T − log q;\nT by RewardTempering"),
    "loss": ("objectives\nObjective", 5, 1, "a loss on pairs of φ"),
    "step": ("tasks\nGFlowNetModule", 5, 2, "backward, optimizer, scheduler"),
    "log": ("callbacks, loggers", 3, 2, "StepOutput: buffer, scalars,\nhistograms, checks"),
}
ARROWS = [
    ("data", "sample"), ("data", "replay"), ("sample", "reward"), ("reward", "policy"), ("policy", "phi"),
    ("phi", "loss"), ("loss", "step"), ("step", "log"), ("replay", "policy"),
]  # fmt: skip


def layers() -> list[list[str]]:
    """Return packages and modules from top to bottom, as in the import contract."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = config["tool"]["importlinter"]["contracts"][0]
    return [[name.strip() for name in line.split("|")] for line in contract["layers"]]


def purpose(name: str) -> str:
    """Return the first paragraph of a module's docstring."""
    path = ROOT / name.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "")


def box(axes: Axes, x: float, y: float, width: float, height: float, fill: str) -> None:
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.06", fc=fill, ec=EDGE, lw=0.8
    )
    axes.add_patch(shape)


def draw_packages(path: Path) -> None:
    rows = layers()
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(rows)))
    for number, names in enumerate(rows):
        y, width = -number, 9.0 / len(names)
        for place, name in enumerate(names):
            box(axes, place * width, y, width - 0.1, 0.8, ACCENT if number < 3 else FILL)
            short = name.removeprefix("gfn_runner.")
            label = short + ("/" if (ROOT / name.replace(".", "/")).is_dir() else ".py")
            axes.text(
                place * width + 0.12, y + 0.4, label, va="center", weight="bold", color=INK, size=9
            )
            room = int((width - 1.7) * 11)
            words = textwrap.shorten(purpose(name), room, placeholder=" …") if room > 12 else ""
            axes.text(place * width + 1.5, y + 0.4, words, va="center", color=INK, size=7.5)
    axes.set_xlim(-0.1, 9.1)
    axes.set_ylim(-len(rows) + 0.9, 1.0)
    axes.axis("off")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def draw_step(path: Path) -> None:
    figure, axes = plt.subplots(figsize=(12, 4.6))
    for text, column, row, note in STEP.values():
        x, y = 2.3 * column, -1.5 * row
        box(axes, x, y, 1.9, 0.75, ACCENT if column and row == 1 else FILL)
        axes.text(
            x + 0.95, y + 0.38, text, ha="center", va="center", size=8.5, color=INK, weight="bold"
        )
        axes.text(x + 0.95, y - 0.07, note, ha="center", va="top", size=7.5, color=INK)
    for start, end in ARROWS:
        (_, a, b, _), (_, c, d, _) = STEP[start], STEP[end]
        x0, y0, x1, y1 = 2.3 * a, -1.5 * b + 0.38, 2.3 * c, -1.5 * d + 0.38
        if c > a:
            points = ((x0 + 1.9, y0), (x1, y1))
        elif c < a:
            points = ((x0, y0), (x1 + 1.9, y1))
        else:
            points = ((x0 + 0.3, y0 - 0.38), (x1 + 0.3, y1 + 0.38))
        axes.add_patch(
            FancyArrowPatch(*points, arrowstyle="-|>", mutation_scale=11, color=EDGE, lw=1.1)
        )
    axes.set_xlim(-0.1, 13.5)
    axes.set_ylim(-3.6, 1.0)
    axes.axis("off")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_packages(IMAGES / "packages.png")
    draw_step(IMAGES / "step.png")
    print(f"written to {IMAGES}")
