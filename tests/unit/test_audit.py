"""make audit: exceptions have a date and a reason, packages that the index does not know do not pass."""

from __future__ import annotations

import datetime
import subprocess

import audit
import pytest

TODAY = datetime.date(2030, 6, 30)


def test_exceptions_hold_until_their_last_day():
    text = "# a comment\n\nPYSEC-1 2030-06-30 only on Windows\nCVE-2 2031-01-01 not called\n"
    assert audit.accepted(text, TODAY) == ["PYSEC-1", "CVE-2"]
    audit.accepted(audit.EXCEPTIONS.read_text("utf-8"), datetime.date.min)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("PYSEC-1 2030-06-29 only on Windows", "line 1: PYSEC-1 was accepted until 2030-06-29"),
        ("PYSEC-1 soon only on Windows", "line 1: 'soon' is not a date"),
        ("PYSEC-1", "line 1: '' is not a date"),
        ("PYSEC-1 2030-07-01", "line 1: no reason"),
    ],
)
def test_other_lines_are_refused(line, message):
    with pytest.raises(ValueError, match=message):
        audit.accepted(line, TODAY)


KNOWN = {"name": "torch", "version": "2.0", "vulns": []}
HIT = {"name": "pip", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}
SKIPPED = {"name": "peft", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "line", "passes", "passes_offline"),
    [
        ([KNOWN], "1 packages, no known vulnerabilities", True, True),
        ([KNOWN, HIT], "pip 1.0: CVE-1, fixed in 1.1", False, False),
        ([KNOWN, SKIPPED], "not audited, unknown to the index: peft", False, False),
        ([SKIPPED, SKIPPED], "not audited: the index answered for no package", False, True),
    ],
)
def test_a_report_passes_if_every_package_was_audited(packages, line, passes, passes_offline):
    report = {"dependencies": packages}
    assert audit.judged(report, offline_ok=False) == ([line], passes)
    assert audit.judged(report, offline_ok=True) == ([line], passes_offline)


CUT_OFF = "requests.exceptions.ConnectionError: no route to host"
FAULT = "TypeError: a fault of pip-audit"


@pytest.mark.parametrize(
    ("error", "offline_ok", "fails"),
    [(CUT_OFF, True, False), (CUT_OFF, False, True), (FAULT, True, True)],
)
def test_without_a_connection_it_passes_only_if_asked_to(error, offline_ok, fails, monkeypatch):
    done = subprocess.CompletedProcess([], 1, stdout="", stderr=error)
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr("sys.argv", ["audit.py", *["--offline-ok"] * offline_ok])
    with pytest.raises(SystemExit) as ended:
        audit.main()
    assert bool(ended.value.code) == fails
