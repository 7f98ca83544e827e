"""Pretraining of the embedded base model in two phases, on packed documents with Muon and AdamW.

Documents are packed whole into rows of ``context`` tokens. A block-diagonal mask and positions that
restart at 0 keep them apart, so that the model learns its habits at the start of a document only from
starts of documents.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.corpus import SECOND_PHASE, documents, named_documents
from pretraining.tokenizer import train_tokenizer

_SECOND_SEED = 77  # added to the seed: other documents than in the first phase


@dataclass(frozen=True)
class PretrainSettings:
    """Everything the embedded model depends on; the same settings give the same model.

    Attributes:
        hidden, layers, heads, ffn: sizes of the Llama.
        vocab_size: upper bound of the tokenizer's entries.
        context: maximum sequence length in tokens, in training and in use.
        rows: packed rows per optimizer step.
        steps: optimizer steps.
        lr: peak learning rate of Muon, for the matrices in the blocks; warm-up over ``warmup`` steps, then
            cosine decay to a twentieth.
        embedding_lr: the same for all other parameters, with AdamW.
        second_steps: steps of the second phase, on another mixture of documents (``SECOND_PHASE`` of
            the corpus), with fresh optimizers.
        second_rate: its peak learning rates, relative to the first phase.
        second_warmup: warm-up steps of the second phase.
    """

    hidden: int = 128
    layers: int = 5
    heads: int = 4
    ffn: int = 352
    vocab_size: int = 1536
    context: int = 512
    rows: int = 16
    steps: int = 2200
    lr: float = 5e-3
    embedding_lr: float = 3e-3
    warmup: int = 60
    weight_decay: float = 0.1
    second_steps: int = 700
    second_rate: float = 0.6
    second_warmup: int = 20
    seed: int = 0


@dataclass
class PackedRows:
    """Whole documents packed into rows; B rows, T tokens.

    Attributes:
        token_BT: token ids, padded on the right.
        document_BT: index of the document within its row; −1 for padding.
        position_BT: position within the document.
    """

    token_BT: torch.Tensor
    document_BT: torch.Tensor
    position_BT: torch.Tensor


def packed_rows(
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainSettings,
    seed: int,
    shares: Mapping[str, float] | None = None,
) -> Iterator[PackedRows]:
    """Yield endless batches of ``rows`` rows; documents longer than the context are truncated."""
    stream = documents(seed, shares)
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
    """Return the mean next-token loss in nats per token, within documents only."""
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


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Return the factor of linear warm-up to 1, then cosine decay to a twentieth; ``step`` starts at 0."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def optimizers(
    model: LlamaForCausalLM, settings: PretrainSettings
) -> dict[torch.optim.Optimizer, float]:
    """Create Muon for the blocks' matrices and AdamW for embeddings and norms, with their peak rates."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        in_block = parameter.ndim == 2 and "embed" not in name
        (matrices if in_block else rest).append(parameter)
    muon = torch.optim.Muon(
        matrices,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(rest, lr=settings.embedding_lr, betas=(0.9, 0.98), weight_decay=0.0)
    return {muon: settings.lr, adamw: settings.embedding_lr}


def new_model(settings: PretrainSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Create a Llama with random weights."""
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
    """Return the loss in nats per token on 8 batches of a stream that is never trained on."""
    model.eval()
    stream = packed_rows(tokenizer, settings, seed=settings.seed + 1_000_000)
    total = sum(loss_of(model, next(stream)).item() for _ in range(8))
    model.train()
    return total / 8


def token_shares(
    tokenizer: PreTrainedTokenizerFast, seed: int, shares: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the share of tokens of each kind of document, over the first 4000 documents of the corpus."""
    counts: Counter[str] = Counter()
    for name, text in islice(named_documents(seed, shares), 4000):
        counts[name] += len(tokenizer(text)["input_ids"])
    return {name: round(n / counts.total(), 4) for name, n in sorted(counts.items())}


def pretrain(settings: PretrainSettings, folder: Path) -> dict[str, Any]:
    """Train tokenizer and model, and write both to ``folder`` in Hugging Face format.

    Returns:
        ``first_loss`` and ``loss`` after each phase (held out, nats per token of the first phase's
        mixture), ``token_shares`` and ``second_token_shares``, ``parameters``, ``tokens``,
        ``second_tokens`` (those of the second phase) and ``minutes``.
    """
    tokenizer = train_tokenizer(settings.vocab_size, settings.seed)
    model = new_model(settings, tokenizer)
    tokenizer.save_pretrained(folder)
    start = time.time()
    tokens = first_phase(model, tokenizer, settings)
    model.save_pretrained(folder)
    first_loss = held_out_loss(model, tokenizer, settings)
    second_tokens = second_phase(model, tokenizer, settings)
    model.save_pretrained(folder)
    facts = {
        "first_loss": first_loss,
        "loss": held_out_loss(model, tokenizer, settings),
        "token_shares": token_shares(tokenizer, settings.seed),
        "second_token_shares": token_shares(tokenizer, settings.seed, SECOND_PHASE),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens + second_tokens,
        "second_tokens": second_tokens,
        "minutes": (time.time() - start) / 60,
    }
    record = {"settings": asdict(settings), **facts}
    (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return facts


def first_phase(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings
) -> int:
    """Train on the first mixture; return its number of tokens."""
    stream = packed_rows(tokenizer, settings, settings.seed)
    return _train(model, stream, settings, settings.steps, settings.warmup)


def second_phase(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings
) -> int:
    """Train on the second mixture; return its number of tokens."""
    stream = packed_rows(tokenizer, settings, settings.seed + _SECOND_SEED, SECOND_PHASE)
    steps, warmup, rate = settings.second_steps, settings.second_warmup, settings.second_rate
    return _train(model, stream, settings, steps, warmup, rate)


def _train(
    model: LlamaForCausalLM,
    stream: Iterator[PackedRows],
    settings: PretrainSettings,
    steps: int,
    warmup: int,
    share: float = 1.0,
) -> int:
    """Train one phase at a share of the peak learning rates; return its number of tokens."""
    peak_rates = {o: share * rate for o, rate in optimizers(model, settings).items()}
    start, tokens = time.time(), 0
    for step in range(steps):
        factor = learning_rate_factor(step, steps, warmup)
        for optimizer, peak in peak_rates.items():
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.zero_grad()
        batch = next(stream)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in peak_rates:
            optimizer.step()
        tokens += int((batch.document_BT >= 0).sum())
        if step % 50 == 0 or step == steps - 1:
            rate = tokens / (time.time() - start)
            print(f"step {step:5d}  loss {loss.item():.4f}  {rate:,.0f} tokens/s", flush=True)
    return tokens
