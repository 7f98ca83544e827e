"""The index of the paper's figures and tables, and the account of its comparison: what they name exists, what
they call ours was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gfn_runner.config.compose import CONF

DOCS = Path(__file__).resolve().parents[2] / "docs"
INDEX = (DOCS / "paper_index.md").read_text(encoding="utf-8")
ACCOUNT = (DOCS / "comparison.md").read_text(encoding="utf-8").replace("−", "-")
LINK = re.compile(r"\[[^\]]*\]\(([^)]*)\)")
NUMBER = re.compile(r"(?<![\w.-])-?\d+\.\d+(?: ± \d+\.\d+)?")


def anchor(heading: str) -> str:
    """What a heading is linked by, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def sections(text: str) -> dict[str, str]:
    """The text below each heading, up to the next, by anchor."""
    parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {anchor(heading): body for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


RESULTS = sections((DOCS / "results.md").read_text(encoding="utf-8"))


def cited() -> Iterator[tuple[str, str]]:
    """Numbers cited as ours, and the section of the results that their row or cell links."""
    header: list[str] = []
    for line in INDEX.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not header:
            header = cells
            continue
        whole_row = cells[0].startswith("ours")
        place = ""
        for name, cell in zip(header, cells, strict=True):
            if not (whole_row or name == "ours"):
                continue
            linked = [a for target in LINK.findall(cell) for a in target.split("results.md#")[1:]]
            place = linked[0] if linked else place
            for number in NUMBER.findall(LINK.sub("", cell)):
                yield number, place


def test_every_number_cited_as_ours_stands_in_the_section_that_is_linked():
    numbers = list(cited())
    assert len(numbers) > 30
    wrong = [(n, place) for n, place in numbers if n not in NUMBER.findall(RESULTS.get(place, ""))]
    assert not wrong


def test_every_experiment_of_the_paper_is_named_and_every_one_named_exists():
    there = {path.stem for path in (CONF / "experiment" / "paper").glob("*.yaml")}
    assert set(re.findall(r"experiment=paper/(\w+)", INDEX)) == there


def test_every_number_of_the_account_stands_in_a_result():
    results = sorted((DOCS / "results").rglob("*.md"))
    there = set(NUMBER.findall("\n".join(path.read_text(encoding="utf-8") for path in results)))
    there |= {number.partition(" ")[0] for number in there}
    # Of the model and of settings, not of a result.
    cited = set(NUMBER.findall(ACCOUNT)) - {"1.2", "0.8", "0.2"}
    assert len(cited) > 15
    assert not cited - there


@pytest.mark.parametrize("target", sorted({*LINK.findall(INDEX), *LINK.findall(ACCOUNT)}))
def test_links_lead_somewhere(target):
    if "://" in target:
        return
    name, _, place = target.partition("#")
    path = DOCS / name if name else DOCS / "paper_index.md"
    assert path.exists()
    assert not place or place in sections(path.read_text(encoding="utf-8"))
