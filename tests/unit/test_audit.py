"""Exceptions of make audit: each has a date and a reason."""

from __future__ import annotations

import datetime

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
        ("PYSEC-1 soon only on Windows", "line 1: 'soon' is no date"),
        ("PYSEC-1", "line 1: '' is no date"),
        ("PYSEC-1 2030-07-01", "line 1: no reason"),
    ],
)
def test_other_lines_are_refused(line, message):
    with pytest.raises(ValueError, match=message):
        audit.accepted(line, TODAY)
