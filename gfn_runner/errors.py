"""User errors: where, what is wrong, what is allowed, and how to fix it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz import fuzz, process

_LONGEST = 600  # characters; messages may quote long user texts


@dataclass(frozen=True)
class Problem:
    """One user error.

    Attributes:
        where: a config key (``objective.lam``) or a location in a file (``questions.json, entry 3``).
        what: what is wrong, including the given value.
        allowed: valid values; empty if ``what`` states them.
        fix: a suggestion; empty if there is none.
    """

    where: str
    what: str
    allowed: str = ""
    fix: str = ""

    def __str__(self) -> str:
        lines = [f"{_shortened(self.where)}: {_shortened(self.what)}"]
        labelled = (("allowed", self.allowed), ("fix", self.fix))
        lines += [f"    {label}: {text}" for label, text in labelled if text]
        return "\n".join(lines)


def _shortened(text: str) -> str:
    """Keep the beginning and the end, which says what is wrong with the text in the middle."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} … {text[-half:]}"


class UserError(Exception):
    """One or more :class:`Problem`; printed on one screen, without a traceback."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))

    @classmethod
    def one(cls, where: str, what: str, allowed: str = "", fix: str = "") -> UserError:
        return cls([Problem(where, what, allowed, fix)])


class NotBegun(UserError):
    """User errors that refuse a run before it has modified its folder."""


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Suggest the closest known name, after ``prefix``; return an empty string if none is close."""
    near = process.extractOne(name, known, scorer=fuzz.ratio, score_cutoff=60)
    return f"did you mean {prefix}{near[0]}?" if near else ""


def show(
    problems: Sequence[Problem], effect: str = "nothing was started, nothing was written"
) -> None:
    """Print one or more problems to stderr; ``effect`` states their consequence."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    many = f"{len(problems)} user errors" if len(problems) > 1 else "user error"
    console.print(f"gfn_runner: {many}; {effect}", style="bold red", markup=False)
    for problem in problems:
        console.print(str(problem), markup=False)
