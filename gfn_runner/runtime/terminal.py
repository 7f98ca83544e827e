"""Output to terminals and pipes whose encoding lacks characters."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Sequence

from gfn_runner.errors import Problem, UserError

# Of what the program itself prints; anything else (a sample's text, say) becomes an escape.
_IN_ASCII = {
    "−": "-", "–": "-", "—": "-", "…": "...", "×": "x", "±": "+-", "→": "->", "≤": "<=", "≥": ">=",
    "·": "*", "φ": "phi", "†": "+", "●": "*", "°": " deg", "⊤": "<end>",
}  # fmt: skip
_HANDLER = "gfn_runner.ascii"


def _replacement(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    text = "".join(
        _IN_ASCII.get(letter, letter.encode("ascii", "backslashreplace").decode("ascii"))
        for letter in letters
    )
    return text, error.end


def escape_unencodable_output() -> None:
    """Let stdout and stderr write characters that their encoding lacks in ASCII: ``phi`` for φ."""
    codecs.register_error(_HANDLER, _replacement)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


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
