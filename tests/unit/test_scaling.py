"""What docs/scaling.md counts, against models that exist."""

from __future__ import annotations

from pathlib import Path

import scaling
from peft import LoraConfig, get_peft_model

from ..tiny_models import random_model

ROOT = Path(__file__).resolve().parents[2]
TINY = scaling.Model("tiny", 2, 32, 16, 48, 30, rank=4)


def test_weights_and_adapter_are_those_of_a_model():
    model = random_model("llama", 30, tie_word_embeddings=False)
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    embeddings = model.get_input_embeddings().weight.numel()
    assert TINY.multiplied == model.num_parameters() - norms - embeddings
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert TINY.adapter == adapted.get_nb_trainable_parameters()[0]


def test_time_and_memory_grow_with_the_batch_as_they_must():
    one, two = scaling.Step(conditions=8), scaling.Step(conditions=16)
    device = scaling.Device()
    larger = scaling.memory(TINY, two)
    for name, value in scaling.memory(TINY, one).items():
        grows = "policy" in name or "sampling" in name
        assert larger[name] == (2 * value if grows else value) or "reward" in name
    compute = scaling.Device(bandwidth=float("inf"))
    before, after = (scaling.seconds(TINY, step, compute) for step in (one, two))
    assert all(abs(after[name] / before[name] - 2) < 1e-9 for name in before)
    # Bound by bandwidth, a token costs less than twice as much for twice as many rows.
    slow = scaling.seconds(TINY, two, device)["sampling"]
    assert slow < 2 * scaling.seconds(TINY, one, device)["sampling"]


def test_the_page_holds_what_the_script_counts():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert "\n".join(scaling.page()) in page
