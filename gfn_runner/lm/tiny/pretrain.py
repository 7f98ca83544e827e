"""Pretraining of the embedded base model: packed documents, AdamW, one cosine.

Documents are packed whole into rows of ``context`` tokens. A block-diagonal mask and positions that
start again at 0 keep them apart, so that the model's habits at the start of a document are learnt
from starts of documents only.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gfn_runner.lm.tiny.corpus import documents
from gfn_runner.lm.tiny.tokenizer import train_tokenizer


@dataclass(frozen=True)
class PretrainSettings:
    """Everything the embedded model depends on; the same settings give the same model.

    Attributes:
        hidden, layers, heads, ffn: sizes of the Llama.
        vocab_size: upper bound of the tokenizer's entries.
        context: longest sequence in tokens, in training and in use.
        rows: packed rows per optimizer step.
        steps: optimizer steps.
        lr: peak learning rate; warm-up over ``warmup`` steps, then a cosine down to a twentieth.
    """

    hidden: int = 128
    layers: int = 5
    heads: int = 4
    ffn: int = 352
    vocab_size: int = 1536
    context: int = 512
    rows: int = 16
    steps: int = 3400
    lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1
    seed: int = 0


@dataclass
class PackedRows:
    """Whole documents side by side. B rows, T tokens.

    Attributes:
        token_BT: token ids, padded at the right.
        document_BT: number of the document within its row; −1 at padding.
        position_BT: position within the document.
    """

    token_BT: torch.Tensor
    document_BT: torch.Tensor
    position_BT: torch.Tensor


def packed_rows(
    tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings, seed: int
) -> Iterator[PackedRows]:
    """Endless batches of ``rows`` rows; a document longer than the context is cut."""
    stream = documents(seed)
    waiting: list[int] = []
    while True:
        shape = (settings.rows, settings.context)
        token_BT = torch.full(shape, tokenizer.pad_token_id)
        document_BT = torch.full(shape, -1)
        position_BT = torch.zeros(shape, dtype=torch.long)
        for row in range(settings.rows):
            start, number = 0, 0
            while True:
                ids = waiting or tokenizer(next(stream))["input_ids"]
                ids = ids[: settings.context]
                if start + len(ids) > settings.context:
                    waiting = ids
                    break
                waiting = []
                end = start + len(ids)
                token_BT[row, start:end] = torch.tensor(ids)
                document_BT[row, start:end] = number
                position_BT[row, start:end] = torch.arange(len(ids))
                start, number = end, number + 1
        yield PackedRows(token_BT, document_BT, position_BT)


def loss_of(model: LlamaForCausalLM, batch: PackedRows) -> torch.Tensor:
    """Mean next-token loss in nats per token, within documents only."""
    document_BT = batch.document_BT
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    causal_TT = torch.ones(same_BTT.shape[1:], dtype=torch.bool).tril()
    logits_BTV = model(
        input_ids=batch.token_BT,
        attention_mask=(same_BTT & causal_TT)[:, None],
        position_ids=batch.position_BT,
        use_cache=False,
    ).logits
    follows_BT = (document_BT[:, 1:] == document_BT[:, :-1]) & (document_BT[:, 1:] >= 0)
    return F.cross_entropy(logits_BTV[:, :-1][follows_BT], batch.token_BT[:, 1:][follows_BT])


def learning_rate(step: int, settings: PretrainSettings) -> float:
    """Linear warm-up, then a cosine to a twentieth of the peak; ``step`` counts from 0."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def new_model(settings: PretrainSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(config)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer, settings: PretrainSettings) -> float:
    """Loss in nats per token on 8 batches of a stream that training never sees."""
    model.eval()
    stream = packed_rows(tokenizer, settings, seed=settings.seed + 1_000_000)
    total = sum(loss_of(model, next(stream)).item() for _ in range(8))
    model.train()
    return total / 8


def pretrain(settings: PretrainSettings, folder: Path) -> dict[str, float]:
    """Train tokenizer and model, write both to ``folder`` in Hugging Face format.

    Returns:
        ``loss`` (held out, nats per token), ``parameters``, ``tokens`` and ``minutes``.
    """
    tokenizer = train_tokenizer(settings.vocab_size, settings.seed)
    model = new_model(settings, tokenizer)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    stream, start, tokens = packed_rows(tokenizer, settings, settings.seed), time.time(), 0
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        batch = next(stream)
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += int((batch.document_BT >= 0).sum())
        if step % 50 == 0 or step == settings.steps - 1:
            rate = tokens / (time.time() - start)
            print(f"step {step:5d}  loss {loss.item():.4f}  {rate:,.0f} tokens/s", flush=True)
        if step % 400 == 399:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {
        "loss": held_out_loss(model, tokenizer, settings),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens,
        "minutes": (time.time() - start) / 60,
    }
    record = {"settings": asdict(settings), **facts}
    (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    return facts
