"""Sections on parts of a step, and on the process around it: Markdown lines, the title first."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch
from seed_tables import ROOT, markdown

from bench.measure import alternating, ratio, with_range
from bench.ours import OurStep
from bench.threads import measured
from bench.work import SHAPES, TERMINATOR, Shape, make_conditions, make_lm
from gfn_runner.data.expressions import draw_expression, question
from gfn_runner.data.replay_buffer import Entry, ReplayBuffer
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.loading import load
from gfn_runner.lm.log_probs import chosen_log_probs
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.prefixes import packed_prefixes, plain_prefixes
from gfn_runner.lm.vocabulary import StringRule


def scoring_section(arguments: Namespace) -> list[str]:
    """Compare packed scoring of prefixes with one forward pass per prefix."""
    lm, suffixes, rows = make_lm("embedded", arguments.device), (1, 4, 12), []
    for n_rows in (8, 32):
        for n_tokens in (8, 16, 32):
            ratios = [scoring_ratio(lm, n_rows, n_tokens, n, arguments.repeats) for n in suffixes]
            rows.append([str(n_rows), str(n_tokens + 1), *(f"{value:.1f}" for value in ratios)])
    return [
        "### Packed scoring of prefixes",
        "Time of one forward a prefix over that of one packed forward, 130 context tokens.",
        "",
        *markdown(["rows", "prefixes", *(f"suffix {n}" for n in suffixes)], rows),
    ]


def scoring_ratio(
    lm: LanguageModel, rows: int, n_tokens: int, n_suffix: int, repeats: int
) -> float:
    shape = Shape(1, rows, n_tokens, n_tokens, 130, 1, n_suffix)
    (condition,) = make_conditions(shape, lm.vocab_size)
    term = condition.terms[0]
    rng = random.Random(0)
    strings = [[rng.randrange(2, lm.vocab_size) for _ in range(n_tokens)] for _ in range(rows)]
    trajectories = Trajectories.from_rows(
        strings, [[True] * n_tokens for _ in strings], [0] * rows, lm.device
    )
    rule = StringRule(TERMINATOR, 0, n_tokens)
    suffix = lm.encode(term.suffix) or (TERMINATOR,)
    given = GivenStrings([lm.encode_prompt(term.context)], [suffix], trajectories, rule)

    def scored(how: Callable[..., object]) -> Callable[[int], None]:
        @torch.no_grad()
        def run(number: int) -> None:
            with lm.base():
                how(lm, given)

        return run

    seconds = alternating(
        {"packed": scored(packed_prefixes), "plain": scored(plain_prefixes)}, max(1, repeats // 2)
    )
    return ratio(seconds["plain"], seconds["packed"])[0]


def precision_section(arguments: Namespace) -> list[str]:
    """Measure the error of log-probabilities with bfloat16 weights, summed in fp32 and in bfloat16."""
    settings = {
        dtype: LMSettings(device=arguments.device, dtype=dtype)  # type: ignore[arg-type]
        for dtype in ("float32", "bfloat16")
    }
    lms = {dtype: load(options, adapter=False, seed=0) for dtype, options in settings.items()}
    rng = random.Random(0)
    expressions = [draw_expression(rng, rng.randint(3, 5)) for _ in range(64)]
    texts = [f"{question(e)} {e.steps()}." for e in expressions]
    rows = [lms["float32"].encode_prompt(text) for text in texts]
    with torch.no_grad():
        exact_B, _ = summed(lms["float32"], rows)
        found_B, careless_B = summed(lms["bfloat16"], rows)
    errors = [((own_B - exact_B).abs()) for own_B in (found_B, careless_B)]
    shown = [f"{error.median():.3f} (at most {error.max():.2f})" for error in errors]
    return [
        "### Precision",
        f"log p of {len(rows)} worked sums of {min(map(len, rows))} to {max(map(len, rows))} tokens under the "
        "embedded model,",
        "error of bfloat16 weights against float32, nats a string, median: summed in",
        f"float32, as the program does, {shown[0]}; logits normalised and summed in bfloat16 {shown[1]}.",
    ]


def summed(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p of whole rows, in fp32 by the package's function, and entirely in the logits' dtype."""
    logits_NTV = lm.whole_logits(rows)[:, :-1]
    width = max(map(len, rows))
    padded = [[*ids, *[-1] * (width - len(ids))] for ids in rows]
    next_NT = torch.tensor(padded, device=lm.device)[:, 1:]
    careful_NT = chosen_log_probs(logits_NTV, next_NT)
    careless_NT = logits_NTV.log_softmax(dim=-1).gather(2, next_NT.clamp(min=0)[..., None])[..., 0]
    real_NT = next_NT >= 0
    return (careful_NT * real_NT).sum(dim=1), (careless_NT * real_NT).sum(dim=1).float()


def buffer_section(arguments: Namespace) -> list[str]:
    """Measure the share of a step spent on a full buffer: 1000 conditions of 50 strings."""
    lm = make_lm("embedded", arguments.device)
    shape, rng = SHAPES["arithmetic"], random.Random(0)

    def entry() -> Entry:
        n = rng.randint(shape.shortest, shape.longest)
        tokens = tuple(rng.randrange(2, lm.vocab_size) for _ in range(n))
        return Entry(tokens, (True,) * n, tuple(-rng.random() * 30 for _ in range(n + 1)))

    buffer = ReplayBuffer()
    for number in range(1000):
        while len(buffer.entries(str(number))) < 50:
            buffer.add(str(number), entry())

    fresh = [entry() for _ in range(64 * shape.conditions * shape.samples)]

    def use(number: int) -> None:
        for _ in range(shape.conditions):
            key = str(rng.randrange(1000))
            for _ in range(shape.samples):
                buffer.add(key, fresh.pop())
            buffer.sample(key, shape.samples, rng)

    seconds = alternating({"buffer": use, "step": OurStep(lm, shape)}, arguments.repeats)
    share = 100 * ratio(seconds["buffer"], seconds["step"])[0]
    return [
        "### Replay buffer",
        "Adding and drawing 8 × 16 strings at 1000 conditions of 50 strings: ",
        f"{share:.2f} % of a step of the arithmetic shape.",
    ]


def start_section(arguments: Namespace) -> list[str]:
    """Measure the seconds until a config is validated."""
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        command = [sys.executable, "-m", "gfn_runner", "dry_run=true"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[1:])
    return ["### Start", f"`python -m gfn_runner dry_run=true`: {median:.1f} s."]


def threads_section(arguments: Namespace, conditions: int = 2) -> list[str]:
    """Compare how torch's threads wait, alone and next to one busy process."""
    seconds, rows = measured(arguments.repeats, conditions), []
    own = next(iter(seconds["quiet"]))
    for name in seconds["quiet"]:
        cells = [name]
        for case in ("quiet", "busy"):
            cells.append(f"{statistics.median(seconds[case][name]):.2f}")
            cells.append(with_range(ratio(seconds[case][name], seconds[case][own])))
        rows.append(cells)
    columns = ["quiet, s", "quiet, ratio", "busy, s", "busy, ratio"]
    samples = SHAPES["arithmetic"].samples
    return [
        "### Threads",
        f"A step of the arithmetic shape ({conditions} × {samples}), embedded model: each way in a",
        "process of its own, by turns, with the machine to itself (quiet) and beside one other process",
        "that keeps a core busy. Ratios of seconds to those of the program's way; above 1 is slower.",
        "",
        *markdown(["threads that wait are", *columns], rows),
    ]
