"""Which architectures of transformers are computed correctly: measured on tiny random models.

Run ``.venv/bin/python scripts/model_support.py --write docs/models.md`` (two minutes on one core).
Every model has a random LoRA adapter. Its cached, left-padded and packed log-probabilities are compared
with plain forward passes of the fp32 weights, one string at a time.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from seed_tables import ROOT, write_block

sys.path.insert(0, str(ROOT))

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.cache import reserve_capacity
from gfn_runner.lm.limits import attention_window
from gfn_runner.lm.packing import packs, score_prefixes
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.prefixes import plain_prefixes
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.vocabulary import StringRule
from tests.tiny_models import ALIBI, CHARACTERS, WINDOW, WINDOWED, tiny_lm

WRONG = 1e-3  # nats
DOT, V = CHARACTERS.index("."), len(CHARACTERS)
RULE = StringRule(DOT, 0, 8)
SUFFIXES = ((DOT, 3, 14, 6), (7, 8))

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_HEADS = _SMALL | {"head_dim": 8}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
_EXPERTS = _HEADS | {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {name: value for name, value in _EXPERTS.items() if name != "head_dim"} | {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_OTHER = {"d_model": 32, "n_layers": 2, "n_heads": 4, "ffn_dim": 48, "attention_heads": 4}


def _each(names: str, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: dict(options) for name in names.split()}


# Architectures with attention without a window.
FULL: dict[str, dict[str, Any]] = {
    **_each(
        "apertus arcee biogpt bitnet diffllama doge ernie4_5 gemma glm glm4 gpt_neox "
        "gpt_neox_japanese granite helium hunyuan_v1_dense hyperclovax internlm3 iquestcoder jais2 "
        "llama nanochat nemotron olmo olmo2 persimmon phi qwen2 qwen3 seed_oss smollm3 stablelm "
        "starcoder2 ministral3 fuyu",
        _HEADS,
    ),
    **_each(
        "ernie4_5_moe flex_olmo glm4_moe granitemoe granitemoeshared hunyuan_v1_moe hy_v3 jetmoe "
        "minimax_m2 mixtral olmoe phimoe qwen2_moe qwen3_moe solar_open aria_text "
        "minimax_m3_vl_text",
        _EXPERTS,
    ),
    **_each("deepseek_v2 deepseek_v3 glm4_moe_lite minicpm3 youtu", _LATENT),
    **_each("codegen gptj gpt2 gpt_bigcode", _GPT),
    "cohere": _HEADS | {"logit_scale": 1.0},
    "ctrl": _GPT | {"dff": 48},
    "falcon": _SMALL,
    # Effectively deep due to its loops: with large random weights, rounding errors would reach 0.05 nats.
    "hrm_text": _HEADS | {"num_layers_per_stack": 1, "H_cycles": 1, "L_cycles": 1},
    "longcat_flash": _LATENT | {"head_dim": 8, "num_layers": 2, "ffn_hidden_size": 48},
    "opt": _SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
    "xglm": _OTHER | {"num_layers": 2, "max_position_embeddings": 64},
}
BIASED = {
    f"{name} (ALiBi)" if name == "falcon" else name: options for name, options in ALIBI.items()
}
_WINDOWS: dict[str, Any] = {"sliding_window": WINDOW}
_MIXED: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": V + 3}
_GLOBAL = {"global_head_dim": 8, "num_global_key_value_heads": 2}
# The last two layers share the keys of earlier layers.
_SHARED: dict[str, Any] = {
    "laurel_rank": 4,
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.0] * 6,
    "intermediate_size": [48] * 6,
}
SLIDING: dict[str, dict[str, Any]] = {
    **WINDOWED,
    **_each("cwm exaone4 granite_swa ministral starcoder2 vaultgemma", _HEADS | _WINDOWS),
    **_each(
        "afmoe beam dots1 exaone_moe flint granitemoe_swa kolibri1 laguna mellum mimo_v2_flash mixtral "
        "phimoe",
        _EXPERTS | _WINDOWS,
    ),
    **_each("gemma4_unified_text smollm3", _HEADS | _WINDOWS | _MIXED),
    "cohere2_moe": _EXPERTS | _WINDOWS | {"logit_scale": 1.0},
    "qwen3": _HEADS | _WINDOWS | {"use_sliding_window": True, "max_window_layers": 1},
    "gemma4_text": _HEADS | _WINDOWS | _MIXED | _PER_LAYER | _GLOBAL | {"num_kv_shared_layers": 0},
    "gemma3n_text": _HEADS | _WINDOWS | _PER_LAYER | _SHARED,
    "modernbert-decoder": _HEADS | {"local_attention": 2 * WINDOW, "pad_token_id": 0},
}


@dataclass(frozen=True)
class Found:
    """Largest differences from plain forward passes in nats, and how prefixes were scored; or the error."""

    name: str
    tokens: int = 0
    policy: float = float("nan")
    prefixes: float = float("nan")
    packed: bool = False
    error: str = ""
    windowed: bool = False

    @property
    def right(self) -> bool:
        return not self.error and max(self.policy, self.prefixes) < WRONG


@torch.no_grad()
def measured(name: str, lm: LanguageModel, n_context: int) -> Found:
    """Compare a model's log-probabilities after contexts of ``n_context`` and of 3 tokens."""
    generator = torch.Generator().manual_seed(n_context)

    def ids(n: int) -> list[int]:
        return torch.randint(1, V, (n,), generator=generator).tolist()

    contexts, strings = [ids(n_context), ids(3)], [ids(8), ids(2), ids(5), ids(8)]
    rows = Trajectories.from_rows(strings, [[True] * len(s) for s in strings], [0, 0, 1, 1])
    plain_BS = plain_prefixes(lm, GivenStrings(contexts, SUFFIXES, rows, RULE))
    found_BS = score_prefixes(lm, GivenStrings(contexts, SUFFIXES, rows, RULE))
    closed_BS = ~plain_BS.isfinite()
    prefixes = (found_BS - plain_BS).masked_fill(closed_BS, 0).abs().max().item()
    return Found(
        name,
        n_context + 8 + 3,
        policy=max(policy_gap(lm, contexts, rows), sampling_gap(lm, contexts, strings)),
        prefixes=prefixes,
        packed=packs(lm, GivenStrings(contexts, SUFFIXES, rows, RULE)),
        windowed=attention_window(lm.model.config) == WINDOW,
    )


def plain_log_probs(lm: LanguageModel, context: list[int], string: list[int]) -> torch.Tensor:
    """Return log p of every token and of the terminator, (S,): one forward pass, no padding, no cache."""
    ids = torch.tensor([[*context, *string]])
    logits_SV = lm.model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 :]
    return logits_SV.log_softmax(-1).gather(1, torch.tensor([*string, DOT])[:, None])[:, 0]


def policy_gap(lm: LanguageModel, contexts: list[list[int]], rows: Trajectories) -> float:
    scores = score_policy(lm, contexts, rows, RULE)
    gaps = []
    for row in range(len(rows)):
        string = rows.ids(row)
        plain_S = plain_log_probs(lm, contexts[int(rows.condition_B[row])], string)
        gaps.append((scores.log_pf_BT[row, : len(string)] - plain_S[:-1]).abs().max().item())
    return max(gaps)


def sampling_gap(
    lm: LanguageModel, contexts: list[list[int]], strings: Sequence[list[int]]
) -> float:
    """Return the gap of token-by-token scoring with the cache that sampling uses."""
    first, gaps = [strings[0], strings[3]], []
    prompt = lm.prefill(contexts).select(torch.tensor([0, 1]))
    reserve_capacity(prompt.cache)
    logits_BV, mask_BK, position_B = prompt.last_logits_NV, prompt.mask_NP, prompt.length_N
    plain = [plain_log_probs(lm, c, s) for c, s in zip(contexts, first, strict=True)]
    for step in range(len(first[0])):
        token_B = torch.tensor([string[step] for string in first])
        log_p_B = logits_BV.log_softmax(-1).gather(1, token_B[:, None])[:, 0]
        gaps += [abs(log_p_B[row].item() - plain[row][step].item()) for row in (0, 1)]
        mask_BK = torch.nn.functional.pad(mask_BK, (0, 1), value=True)
        logits_BV = lm.extend(prompt, token_B[:, None], mask_BK, position_B[:, None])[:, -1]
        position_B = position_B + 1
    return max(gaps)


def all_found(only: Sequence[str]) -> Iterator[Found]:
    for group in (FULL, BIASED, SLIDING):
        for name, options in group.items():
            if only and name not in only:
                continue
            try:
                lm = tiny_lm(
                    name.split()[0], config=options, adapter="random", packed_rewards="auto"
                )
            except Exception as error:
                yield Found(
                    name, error=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                )
                continue
            windowed = group is SLIDING
            if windowed and attention_window(lm.model.config) != WINDOW:
                yield Found(name, error=f"window {attention_window(lm.model.config)}")
            for n_context in (4, 12, 37) if windowed else (20,):
                try:
                    yield measured(name, lm, n_context)
                except Exception as error:
                    reason = (str(error).splitlines() or [""])[0][:200]
                    yield Found(name, n_context, error=f"{type(error).__name__}: {reason}")


def table(found: Sequence[Found]) -> Iterator[str]:
    plain = [one for one in found if not one.windowed]
    windowed = [one for one in found if one.windowed]
    yield "| architecture | prefixes | policy and sampler, nats | prefixes, nats |"
    yield "|---|---|---|---|"
    for one in sorted(plain, key=lambda one: one.name):
        yield f"| {one.name} | {way(one)} | {one.policy:.0e} | {one.prefixes:.0e} |"
    yield ""
    yield f"With a window or chunks of {WINDOW} tokens, in all layers or in some, at sequences of"
    yield "15, 23 and 48 tokens:"
    yield ""
    yield "| architecture | prefixes | policy and sampler, nats | prefixes, nats |"
    yield "|---|---|---|---|"
    for name in sorted({one.name for one in windowed}):
        own = [one for one in windowed if one.name == name]
        ways = ", ".join(way(one) for one in own)
        policy = ", ".join(f"{one.policy:.0e}" for one in own)
        yield f"| {name} | {ways} | {policy} | {', '.join(f'{one.prefixes:.0e}' for one in own)} |"


def way(one: Found) -> str:
    return "packed" if one.packed else "rows"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="page whose tables are replaced")
    parser.add_argument("--only", nargs="*", default=(), help="architectures")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found = []
    for one in all_found(arguments.only):
        print(one, flush=True)
        found.append(one)
    lines = list(table([one for one in found if one.right]))
    wrong = [one for one in found if not one.right]
    for one in wrong:
        print(
            "not right:", one.name, one.tokens, one.error or f"{one.policy:.2g} {one.prefixes:.2g}"
        )
    if arguments.write:
        write_block(arguments.write, "measured", lines)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
