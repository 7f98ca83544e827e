"""Printing where the encoding of the output does not have every character."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gfn_runner

ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def called(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    known = {**os.environ, "PYTHONPATH": str(Path(gfn_runner.__file__).parent.parent)}
    return subprocess.run(
        [sys.executable, *arguments], env=known | environment, capture_output=True, check=False
    )


@pytest.mark.parametrize("environment", ENCODINGS.values(), ids=ENCODINGS)
def test_every_character_can_be_printed(environment):
    code = (
        "import sys; from gfn_runner.runtime import terminal; terminal.escape_unencodable_output()\n"
        "print('\\u03c6 \\u22121.5 \\u8a9e \\udcff'); print('\\u03c6', file=sys.stderr)"
    )
    done = called("-c", code, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [b"\\u03c6", b"\\u22121.5", b"\\u8a9e", b"\\udcff"]
    assert done.stderr.split() == [b"\\u03c6"]


def test_a_user_error_is_shown_in_any_encoding():
    for program in ("gfn_runner", "gfn_runner.report"):
        done = called("-m", program, "\u03c6\u8a9e", PYTHONIOENCODING="ascii")
        assert done.returncode == 2 and b"Traceback" not in done.stderr
        assert b"\\u03c6\\u8a9e" in done.stdout + done.stderr


def test_arguments_that_the_locale_cannot_read_are_refused_once():
    done = called("-m", "gfn_runner", "lm.name=\u03c6", **ENCODINGS["C locale"])
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert b"PYTHONUTF8=1" in done.stderr and b"nothing was written" in done.stderr
