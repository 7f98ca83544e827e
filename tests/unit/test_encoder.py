"""Sentence models: mean pooling by hand, both libraries alike, and what cannot be loaded."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
from transformers import T5Config, T5Model

from gfn_runner.errors import UserError
from gfn_runner.metrics.encoders import load_encoder

from ..tiny_encoders import random_bert, word_tokenizer

KEY = "callbacks.evaluation.encoder"
TEXTS = ["the cat sat on the mat .", "a dog", "", "dog ran"]
needs_sentence_transformers = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="an optional package"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("bert")
    random_bert().save_pretrained(where)
    word_tokenizer().save_pretrained(where)
    return where


@pytest.fixture
def plain(monkeypatch):
    """As if sentence-transformers were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "sentence_transformers" else find(name, *rest),
    )


def by_hand(texts: list[str]) -> torch.Tensor:
    """One text at a time, so without padding."""
    model, tokenizer = random_bert(), word_tokenizer()
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in texts]
    return torch.stack([state[0].mean(dim=0) for state in states])


def test_the_mean_leaves_padding_out(folder, plain):
    encoder = load_encoder(str(folder), device="cpu")
    encoder.batch_size = 3
    found = encoder.encode(TEXTS)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found, by_hand(TEXTS), atol=1e-5, rtol=1e-5)


@needs_sentence_transformers
def test_sentence_transformers_gives_the_same_vectors(folder):
    encoder = load_encoder(str(folder), device="cpu")
    assert type(encoder).__name__ == "SentenceTransformerEncoder"
    torch.testing.assert_close(encoder.encode(TEXTS), by_hand(TEXTS), atol=1e-5, rtol=1e-5)


def test_long_texts_are_cut_at_what_the_model_can_read(folder, plain):
    encoder = load_encoder(str(folder), device="cpu")
    long, cut = " ".join(["cat"] * 50), " ".join(["cat"] * 10)
    found = encoder.encode([long, cut])
    torch.testing.assert_close(found[0], found[1])


def test_a_text_without_tokens_is_the_zero_vector(tmp_path, plain):
    random_bert().save_pretrained(tmp_path)
    word_tokenizer(special=False).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), device="cpu")
    found = encoder.encode(["", "cat", " "])
    assert not found[[0, 2]].any()
    torch.testing.assert_close(found[1:2], encoder.encode(["cat"]))
    assert encoder.encode([""]).shape == (1, 16)


def test_of_an_encoder_and_a_decoder_the_encoder_is_taken(tmp_path, plain):
    config = T5Config(vocab_size=13, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path), device="cpu").encode(TEXTS).shape == (4, 8)


@needs_sentence_transformers
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_another_pooling_than_the_mean_needs_the_optional_package(
    folder, tmp_path, pooling, request
):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    model.save(str(tmp_path))
    file = tmp_path / "1_Pooling" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pooling_mode": pooling}))
    with_package = load_encoder(str(tmp_path), device="cpu").encode(TEXTS)
    request.getfixturevalue("plain")
    if pooling == "mean":
        found = load_encoder(str(tmp_path), device="cpu").encode(TEXTS)
        torch.testing.assert_close(found, with_package, atol=1e-5, rtol=1e-5)
    else:
        with pytest.raises(UserError, match="not pooled by the mean, but has cls"):
            load_encoder(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("pooling", "modules", "refused"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, [], None),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, [], "cls_token"),
        ({"pooling_mode_mean_tokens": True}, ["models.Transformer", "models.Dense"], "Dense"),
        ({"pooling_mode_mean_tokens": True}, ["models.Transformer", "models.Normalize"], None),
    ],
)
def test_older_files_of_sentence_transformers(folder, tmp_path, plain, pooling, modules, refused):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    named = [{"type": f"sentence_transformers.{module}"} for module in modules]
    (tmp_path / "modules.json").write_text(json.dumps(named))
    if refused is None:
        load_encoder(str(tmp_path), device="cpu")
    else:
        with pytest.raises(UserError, match=refused) as caught:
            load_encoder(str(tmp_path), device="cpu")
        assert "pip install" in caught.value.problems[0].fix


def test_what_is_not_there_is_said_with_key_and_choice(tmp_path, plain, monkeypatch):
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "nowhere"), str(tmp_path / "empty"), "./nowhere"):
        with pytest.raises(UserError) as caught:
            load_encoder(name, device="cpu")
        (problem,) = caught.value.problems
        assert problem.where == KEY
        assert "words" in problem.allowed


@needs_sentence_transformers
def test_sentence_transformers_finds_nothing_either(tmp_path):
    with pytest.raises(UserError, match=KEY):
        load_encoder(str(tmp_path), device="cpu")
