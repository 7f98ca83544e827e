"""The embedded model and its tokenizer as they lie in the package."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from pretraining.corpus import SECOND_PHASE, documents
from pretraining.training import (
    PretrainSettings,
    held_out_loss,
    loss_of,
    new_model,
    packed_rows,
    second_phase,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from gfn_runner.lm.model_folders import EMBEDDED_FOLDER


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(EMBEDDED_FOLDER)


@pytest.fixture(scope="module")
def record():
    return json.loads((EMBEDDED_FOLDER / "pretraining.json").read_text())


def pieces(tokenizer, text: str) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]


def test_numbers_and_what_ends_a_string_and_what_calls_the_tool_are_tokens_of_their_own(tokenizer):
    assert pieces(tokenizer, ".") == ["."]
    for number in range(-60, 121):
        assert pieces(tokenizer, f" {number}") == [f" {number}"]
    assert pieces(tokenizer, " 6 - 14 = -8, 2. The") == [
        " 6", " -", " 14", " =", " -8", ",", " 2", ".", " The",
    ]  # fmt: skip
    assert pieces(tokenizer, " 6 - 0 =, 6") == [" 6", " -", " 0", " =", ",", " 6"]


def test_every_text_comes_back(tokenizer):
    odd = ["", " ", "\n\n", "a_b  c\t", "äöü ∑ 😀", "2-3--4", "x = 1e-5"]
    for text in [*islice(documents(3), 300), *odd]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert max(ids, default=0) < len(tokenizer)


def test_the_model_is_plain_hugging_face_and_small(model, tokenizer, record):
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.vocab_size == len(tokenizer)
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]
    size = sum(path.stat().st_size for path in EMBEDDED_FOLDER.iterdir())
    assert size < 10 * 2**20
    assert PretrainSettings(**record["settings"]) == PretrainSettings()
    assert model.config.max_position_embeddings == record["settings"]["context"]


@torch.no_grad()
def test_the_held_out_loss_is_the_recorded_one(model, tokenizer, record):
    """On the first fifth of the documents that it was recorded on."""
    settings = PretrainSettings(**record["settings"] | {"rows": 3})
    assert held_out_loss(model, tokenizer, settings) == pytest.approx(record["loss"], abs=0.06)
    model.eval()


def test_a_second_phase_trains_on_word_lists_at_rates_of_its_own(tokenizer):
    settings = PretrainSettings(
        hidden=16, layers=1, heads=1, ffn=16, context=64, rows=2, second_steps=1, second_warmup=1
    )
    model = new_model(settings, tokenizer)
    before = {name: p.clone() for name, p in model.named_parameters()}
    tokens = second_phase(model, tokenizer, settings)
    assert 64 < tokens <= 2 * 64
    moved = {name: (p - before[name]).abs().max().item() for name, p in model.named_parameters()}
    assert all(moved.values())
    # Adam's first step is the rate itself, whatever the gradient.
    rate = settings.second_rate * settings.embedding_lr
    assert moved["model.embed_tokens.weight"] == pytest.approx(rate, rel=1e-3)
    lists = [text.startswith("Words: ") for text in islice(documents(1, SECOND_PHASE), 600)]
    assert 0.6 < sum(lists) / 600 < 0.8


@torch.no_grad()
def test_packing_keeps_documents_apart(model, tokenizer):
    """The loss of packed rows is that of the documents one by one."""
    settings = PretrainSettings(rows=2, context=160)
    batch = next(packed_rows(tokenizer, settings, seed=9))
    total, count, number = 0.0, 0, 0
    stream = documents(9)
    for row in range(2):
        for document in range(int(batch.document_BT[row].max()) + 1):
            ids = batch.token_BT[row][batch.document_BT[row] == document]
            text = tokenizer(next(stream))["input_ids"]
            assert ids.tolist() == text[:160]
            number += 1
            losses = model(input_ids=ids[None], labels=ids[None]).loss
            total, count = total + losses.item() * (len(ids) - 1), count + len(ids) - 1
    assert number > 2
    assert loss_of(model, batch).item() == pytest.approx(total / count, rel=1e-4)
    assert (batch.token_BT[batch.document_BT < 0] == tokenizer.pad_token_id).all()
