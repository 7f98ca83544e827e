"""Output to terminals and pipes that lack characters, or whose reader is gone."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence

from gfn_runner.errors import Problem, UserError

# Characters that the program prints; any other (in a sample, say) is backslash-escaped.
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


class _Output(io.TextIOWrapper):
    """Output stream that drops data once its reader is gone, so that ``| head`` does not end a run."""

    def write(self, text: str) -> int:
        with self._dropping():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            super().flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)


def prepare_output() -> None:
    """Make stdout and stderr accept everything that a run writes.

    Characters missing in their encoding become ASCII (``phi`` for φ). Output without a reader is dropped: the
    reader of a pipe is gone, or the stream was closed (``>&-``) before the program started.
    """
    codecs.register_error(_HANDLER, _replacement)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif type(stream) is io.TextIOWrapper:
            encoding, by_line = stream.encoding, stream.line_buffering
            setattr(sys, name, _Output(stream.detach(), encoding, _HANDLER, line_buffering=by_line))
        elif isinstance(stream, io.TextIOWrapper):  # prepared before, or replaced by a test
            stream.reconfigure(errors=_HANDLER)


def check_arguments_decodable(arguments: Sequence[str]) -> None:
    """Refuse arguments with bytes that are invalid in the locale's encoding.

    Raises:
        UserError: lists them. Python represents such bytes as surrogates, which no file accepts.
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
