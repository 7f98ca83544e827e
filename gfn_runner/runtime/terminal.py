"""Output to terminals and pipes whose encoding lacks characters."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from gfn_runner.errors import Problem, UserError


def escape_unencodable_output() -> None:
    """Let stdout and stderr write characters that their encoding lacks as escapes: ``\\u03c6`` for φ."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_arguments_decodable(arguments: Sequence[str]) -> None:
    """Refuse arguments with bytes that the locale's encoding does not have.

    Raises:
        UserError: naming them. Python holds such bytes as surrogates, which no file takes.
    """
    problems = [
        Problem(
            f"command line: {argument.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')}",
            "characters that the encoding of this locale does not have",
            "ASCII in this locale, or any text in a UTF-8 locale",
            "PYTHONUTF8=1, or LC_ALL=C.UTF-8",
        )
        for argument in arguments
        if any("\udc80" <= letter <= "\udcff" for letter in argument)
    ]
    if problems:
        raise UserError(problems)
