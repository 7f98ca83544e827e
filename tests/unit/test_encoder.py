"""Sentence models: the mean over tokens by hand, pooling as saved, and what cannot be loaded."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from gfn_runner.errors import UserError
from gfn_runner.lm.encoder import load_encoder

from ..tiny_encoders import random_bert, word_tokenizer

KEY = "evaluation.encoder"
TEXTS = ["the cat sat on the mat .", "a dog", "", "dog ran"]
installed = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="an optional package"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("bert")
    random_bert().save_pretrained(where)
    word_tokenizer().save_pretrained(where)
    return where


@torch.no_grad()
def by_hand(texts: list[str], pooling: str = "mean") -> torch.Tensor:
    """One text at a time, so without padding."""
    model, tokenizer = random_bert(), word_tokenizer()
    states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in texts]
    return torch.stack([s[0].mean(dim=0) if pooling == "mean" else s[0, 0] for s in states])


@installed
def test_a_plain_transformer_is_pooled_by_the_mean_without_padding(folder):
    encoder = load_encoder(str(folder))
    found = encoder.encode(TEXTS)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, by_hand(TEXTS), atol=1e-5, rtol=1e-5)
    # Long texts are cut at what the model can read.
    long, cut = encoder.encode([" ".join(["cat"] * n) for n in (50, 10)])
    torch.testing.assert_close(long, cut)


@installed
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_saved_model_is_pooled_as_it_says(folder, tmp_path, pooling):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(folder), device="cpu").save(str(tmp_path))
    file = tmp_path / "1_Pooling" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pooling_mode": pooling}))
    found = load_encoder(str(tmp_path)).encode(TEXTS)
    torch.testing.assert_close(found, by_hand(TEXTS, pooling), atol=1e-5, rtol=1e-5)


def test_without_the_package_there_is_one_problem(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(UserError, match=KEY) as caught:
        load_encoder(str(folder))
    (problem,) = caught.value.problems
    assert problem.fix == "pip install 'gfn-runner[embeddings]'"


@installed
@pytest.mark.parametrize("name", ["{}/nowhere", "{}", "./nowhere"])
def test_a_model_that_is_not_there(name, tmp_path):
    with pytest.raises(UserError) as caught:
        load_encoder(name.format(tmp_path))
    assert {problem.where for problem in caught.value.problems} == {KEY}
