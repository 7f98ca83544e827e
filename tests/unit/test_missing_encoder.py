"""An encoder that cannot be had costs its metric and one line in the log, not the run."""

from __future__ import annotations

import pytest

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.errors import UserError
from gfn_runner.evaluation import measure as measures
from gfn_runner.evaluation.measure import measure
from gfn_runner.tasks.continuation import SentenceContinuation


@pytest.fixture(autouse=True)
def fresh():
    measures._encoder.cache_clear()
    yield
    measures._encoder.cache_clear()


def samples() -> list[ConditionSamples]:
    condition = Condition("a", "It was", (Term("It was", ""),), group="news")
    texts = (" late and dark", " a red ball")
    numbers = (-1.0, -2.0)
    return [ConditionSamples(condition, (), texts, numbers, numbers, log_likelihood=numbers)]


def test_the_rest_is_measured_and_it_is_said_once(monkeypatch, caplog):
    asked = []

    def cannot(name: str) -> None:
        asked.append(name)
        raise UserError.one("evaluation.encoder", "cannot load 'a/b': no network")

    monkeypatch.setattr(measures, "load_encoder", cannot)
    for _ in range(3):
        found = measure(SentenceContinuation(), samples(), encoder="a/b")
    assert "diversity/news" not in found
    assert found["unique/news"] == 1.0 and found["log_pf/news"] == -1.5
    assert asked == ["a/b"] and caplog.text.count("no network") == 1
    assert "its metrics are left out" in caplog.text
    # Another one is asked for anew.
    monkeypatch.undo()
    assert "diversity/news" in measure(SentenceContinuation(), samples(), encoder="words")
