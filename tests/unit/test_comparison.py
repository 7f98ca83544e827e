"""The account of the paper's comparison: every number in it stands in a written result, links lead on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
ACCOUNT = (DOCS / "comparison.md").read_text(encoding="utf-8").replace("−", "-")
RESULTS = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((DOCS / "results").rglob("*.md"))
)
NUMBER = re.compile(r"(?<![\w.-])-?\d+\.\d+(?: ± \d+\.\d+)?")
# Of the model and of settings, not of a result.
ELSEWHERE = {"1.2", "0.8", "0.2"}


def test_every_number_of_the_account_stands_in_a_result():
    there = set(NUMBER.findall(RESULTS)) | {n.partition(" ")[0] for n in NUMBER.findall(RESULTS)}
    cited = set(NUMBER.findall(ACCOUNT)) - ELSEWHERE
    assert len(cited) > 15
    assert not cited - there


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)", ACCOUNT))))
def test_links_lead_somewhere(target):
    assert (DOCS / target).exists()
