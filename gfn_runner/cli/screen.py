"""User errors on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gfn_runner.errors import Problem


def show(problems: Sequence[Problem], folder: Path | None = None, effect: str = "") -> None:
    """Problems on one screen.

    Args:
        folder: of the run, if one has begun.
        effect: what comes of them, where neither folder nor its absence says it.
    """
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    many = f"{len(problems)} user errors" if len(problems) > 1 else "user error"
    if folder is not None:
        effect = f"the run stops; its folder is {folder}"
    effect = effect or "nothing was started, nothing was written"
    console.print(f"gfn_runner: {many}; {effect}", style="bold red")
    for problem in problems:
        console.print(str(problem), markup=False)
