"""Sections on large inputs and on long runs: Markdown lines, the title first.

Each size is measured in a separate process: CPU seconds, which other processes on the machine hardly affect,
and peak memory in addition to what was allocated before.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy import stats
from seed_tables import ROOT, markdown

from bench.measure import memory_of
from bench.ours import OurStep
from bench.work import Shape, make_lm
from gfn_runner.data.datamodule import TrainBatches
from gfn_runner.data.replay_buffer import Entry, ReplayBuffer
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.packing import score_prefixes
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.objectives.losses import JointBalance

_CPU = torch.device("cpu")
# Work to measure, in a temporary folder.
Work = Callable[[], object]


def posterior_file(size: int, folder: Path) -> Work:
    """Prepare a user's JSONL file of posteriors: read and validate it, then draw a hundred batches."""
    from gfn_runner.lm.model_config import LMSettings
    from gfn_runner.lm.text_checks import text_problems
    from gfn_runner.tasks.user_posterior import PosteriorData, UserPosterior

    file, rng = folder / "own.jsonl", random.Random(0)
    words = [f"w{number:03}" for number in range(500)]
    lines = [
        {
            "prompt": f"Sentence {number}: The {rng.choice(words)}",
            "terms": [{"context": f"The {rng.choice(words)}", "suffix": f" the {number}."}],
            "demonstrations": [" ".join(["", *rng.sample(words, 6)])],
        }
        for number in range(size)
    ]
    for line in lines:
        line["constraint"] = {"words": line["demonstrations"][0].split()[:2], "max_words": 12}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def work() -> None:
        own = PosteriorData(train=str(file))
        data = UserPosterior(data=own, forbidden=("\n",)).load(0)
        strings = [(c.key, t.context, t.suffix) for c in data.train for t in c.terms]
        list(text_problems(LMSettings(), ".", strings, 20))
        batches = TrainBatches(data.train, 8, 0)
        for number in range(100):
            batches.batch(number)

    return work


def arithmetic_file(size: int, folder: Path) -> Work:
    """Prepare a file of arithmetic questions, each with a rationale."""
    from gfn_runner.data.expressions import Expression
    from gfn_runner.tasks.arithmetic import ArithmeticData, IntegerArithmetic

    file, rng = folder / "questions.json", random.Random(0)
    found: dict[str, Expression] = {}
    while len(found) < size:
        operands = tuple(rng.randrange(10) for _ in range(6))
        expression = Expression(operands, tuple(rng.choice("+-") for _ in range(5)))
        found[str(expression)] = expression
    rows = [
        {
            "str_query": f"Question: {text} = ? Answer:",
            "num_sol": e.value,
            "str_rationale": e.steps(),
        }
        for text, e in found.items()
    ]
    file.write_text(json.dumps(rows), encoding="utf-8")
    data = ArithmeticData(rationales=str(file), n_rationales=size, n_answers=0, n_test=100)
    return lambda: IntegerArithmetic(data=data).load(0)


def buffer_state(size: int, folder: Path) -> Work:
    """Prepare a buffer of 50 strings of 30 tokens per condition: save, load, then 100 steps of 8 × 16."""
    rng, numbers, conditions = random.Random(0), np.random.default_rng(0), size // 50
    buffer = ReplayBuffer()

    def entry() -> Entry:
        tokens = tuple(numbers.integers(2, 50_000, 30).tolist())
        return Entry(tokens, (True,) * 30, tuple((-30 * numbers.random(31)).tolist()))

    for number in range(conditions):
        own = sorted((entry() for _ in range(50)), key=lambda e: -e.score)
        buffer._entries[str(number)] = own  # the result of 50 calls of add()
    fresh = [entry() for _ in range(100 * 8 * 16)]

    def work() -> None:
        torch.save(buffer.state_dict(), folder / "buffer.pt")
        buffer.load_state_dict(torch.load(folder / "buffer.pt", weights_only=True))
        for step in range(100):
            known = set(buffer.keys(at_least=2))
            for place in range(8):
                key = str(rng.randrange(conditions))
                assert key in known
                buffer.sample(key, 16, rng)
                for entry in fresh[(step * 8 + place) * 16 :][:16]:
                    buffer.add(key, entry)

    return work


def wide_step(size: int, folder: Path) -> Work:
    """Prepare a step with a vocabulary of this size: a model of width 64, 4 × 8 strings of 16 tokens."""
    config = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": size}
    step = OurStep(make_lm("gpt2", "cpu", **config), Shape(4, 8, 16, 16, 30, 14, 4))
    return lambda: step(0)


def wide_tokenizer(size: int, folder: Path) -> Work:
    """Prepare the string rule of a byte-level vocabulary of this size, with forbidden texts and a tool."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from gfn_runner.lm.encoding import continuation_ids, ids_holding, special_ids, token_texts
    from gfn_runner.lm.vocabulary import allowed_mask

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [f"Ġ{number:x}" for number in range(size - len(alphabet))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer)

    def work() -> None:
        closed = special_ids(whole) | ids_holding(whole, ("\n", '"', "http"))
        sum(text.rstrip().endswith("=") for text in token_texts(whole))
        allowed_mask(len(whole), sorted(closed), continuation_ids(whole, ".")[0])

    return work


def long_step(size: int, folder: Path) -> Work:
    """Prepare a step of 1 × 2 strings of exactly this many tokens."""
    config = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 500, "n_positions": size + 64}
    step = OurStep(make_lm("gpt2", "cpu", **config), Shape(1, 2, size, size, 30, 14, 1))
    return lambda: step(0)


def long_prefixes(size: int, folder: Path) -> Work:
    """Prepare the reward of every prefix of a string of this many tokens, with a suffix of four tokens."""
    config = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 500, "n_positions": size + 64}
    lm, rng = make_lm("gpt2", "cpu", **config), random.Random(0)
    string = [rng.randrange(2, 500) for _ in range(size)]
    rows = Trajectories.from_rows([string], [[True] * size], [0])
    given = GivenStrings([string[:30]], [(1, 5, 6, 7)], rows, StringRule(1, 0, size))
    return lambda: score_prefixes(lm, given)


def long_objective(size: int, folder: Path) -> Work:
    """Prepare the joint objective on 1 × 2 strings of this many tokens, with every prefix a state."""
    states = size + 1
    phi_BS = torch.randn(2, states, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ends_BS = torch.ones(2, states, dtype=torch.bool)
    lengths_B, conditions_B = torch.tensor([size, size]), torch.tensor([0, 0])
    return lambda: JointBalance()(phi_BS, ends_BS, lengths_B, conditions_B, None).backward()


def _sweep(size: int, folder: Path) -> Path:
    """Create a finished sweep: a tenth as many learning rates as runs, ten seeds each; 150 logged steps."""
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        config = OmegaConf.to_yaml(compose("config", overrides=["task=arithmetic"]))
    sweep, jobs, rng = folder / "sweep", [], random.Random(0)
    groups = [f"{n}_operands" for n in (3, 4, 5)]
    for number in range(size):
        run, rate, seed = sweep / str(number), 1e-4 * (1 + number // 10), number % 10
        run.mkdir(parents=True)
        own = config.replace("\nseed: 0\n", f"\nseed: {seed}\n")
        own = own.replace("\n  lr: 0.0003\n", f"\n  lr: {rate:g}\n")
        (run / "config.yaml").write_text(own, encoding="utf-8")
        overrides = [f"optimizer.lr={rate:g}", f"seed={seed}"]
        (run / "overrides.yaml").write_text(json.dumps(overrides), encoding="utf-8")
        records = [
            {
                "step": s,
                "time": 1e9 + s,
                "train/loss": rng.random(),
                "train/log_reward": -rng.random(),
            }
            for s in range(1, 151)
        ]
        final = {f"vote_accuracy/{group}": rng.random() for group in groups}
        for kind, step in (("eval", 75), ("final", 150)):
            named = {f"{kind}/{name}": value for name, value in final.items()}
            records.append({"step": step, "time": 1e9 + step} | named)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (run / "metrics.jsonl").write_text(lines, encoding="utf-8")
        facts = {"run/seed": seed, "run/steps": 150, "run/minutes": 2.0}
        facts |= {f"final/{name}": value for name, value in final.items()}
        (run / "metrics.json").write_text(json.dumps(facts), encoding="utf-8")
        samples = [
            {
                "group": groups[0], "condition": str(n), "prompt": f"Question: {n}", "answer": n,
                "votes": [], "singles": ["1", "2"], "log_reward": [-1.0, -2.0], "log_pf": [-1.0, -2.0],
            }
            for n in range(20)
        ]  # fmt: skip
        text = "".join(json.dumps(sample) + "\n" for sample in samples)
        (run / "samples.jsonl").write_text(text, encoding="utf-8")
        jobs.append(
            {"number": number, "folder": str(number), "overrides": overrides, "state": "ok"}
        )
    (sweep / "sweep.json").write_text(
        json.dumps({"overrides": ["seed=0,1"], "searches": False, "jobs": jobs}), encoding="utf-8"
    )
    return sweep


def sweep_table(size: int, folder: Path) -> Work:
    """Prepare the table at the end of a sweep."""
    from gfn_runner.runtime.sweep_record import Sweep
    from gfn_runner.sweeps.table import show_sweep

    sweep = _sweep(size, folder)
    return lambda: show_sweep(Sweep.read(sweep))


def sweep_page(size: int, folder: Path) -> Work:
    """Prepare the page of a finished sweep."""
    from gfn_runner.report.sweep_page import write_sweep_page

    sweep = _sweep(size, folder)
    return lambda: write_sweep_page(sweep)


def sweep_report(size: int, folder: Path) -> Work:
    """Prepare the report on all runs of a sweep, without figures."""
    from gfn_runner.report.__main__ import main

    sweep = _sweep(size, folder)
    return lambda: main([str(sweep), "--out", str(folder / "report"), "--no-figures"])


# Cases and their sizes; the last is what a run must be able to handle, the first a quarter of it.
CASES: dict[str, tuple[Sequence[int], Callable[[int, Path], Work]]] = {
    "conditions of task=posterior": ((2_500, 10_000), posterior_file),
    "arithmetic questions": ((2_500, 10_000), arithmetic_file),
    "buffer entries": ((125_000, 500_000), buffer_state),
    "vocabulary, a step": ((64_000, 256_000), wide_step),
    "vocabulary, its texts": ((64_000, 256_000), wide_tokenizer),
    "tokens of a string, a step": ((512, 2_048), long_step),
    "tokens of a string, prefixes": ((512, 2_048), long_prefixes),
    "tokens of a string, objective": ((512, 2_048), long_objective),
    "runs of a sweep, table": ((250, 1_000), sweep_table),
    "runs of a sweep, page": ((250, 1_000), sweep_page),
    "runs of a sweep, report": ((250, 1_000), sweep_report),
}


def one_load(case: str, size: int) -> tuple[float, float]:
    """Return CPU seconds and GiB of a case; its output is discarded."""
    seconds = 0.0
    quiet = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory(prefix="gfn-runner-load-") as folder, quiet:
        work = CASES[case][1](size, Path(folder))

        def timed() -> None:
            nonlocal seconds
            began = time.process_time()
            work()
            seconds = time.process_time() - began

        gib = memory_of(timed, _CPU)
    return seconds, max(0.0, gib)  # memory may have been freed meanwhile


def in_a_process(case: str, size: int) -> tuple[float, float]:
    """Run :func:`one_load` in a forked process, which inherits what this one has imported."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: sender.send(one_load(case, size)))
    process.start()
    sender.close()  # so that recv() ends if the process fails
    found = receiver.recv()
    process.join()
    return found


def load_section(arguments: Namespace) -> list[str]:
    """Measure time and memory of large inputs at a quarter of their size and at full size."""
    torch.set_num_threads(1)  # forked processes lose other threads
    rows = []
    for case, (sizes, _) in CASES.items():
        if arguments.cases and not any(case.startswith(own) for own in arguments.cases):
            continue
        found = [in_a_process(case, size) for size in sizes]
        (seconds, _), (last_seconds, last_gib) = found[0], found[-1]
        cells = [case, " → ".join(f"{size:,}".replace(",", " ") for size in sizes)]
        cells += [" → ".join(f"{s:.2f}" for s, _ in found), f"{last_seconds / seconds:.1f}"]
        cells += [" → ".join(f"{gib:.2f}" for _, gib in found), f"{last_gib / found[0][1]:.1f}"]
        rows.append(cells)
        print(*cells, sep=" | ", flush=True)
    return [
        "### Load",
        "Large inputs at a quarter of a size and at the size: processor seconds on one core and peak memory",
        "beyond the process's own. A ratio of 4 is proportional, 16 quadratic.",
        "",
        *markdown(["what", "size", "seconds", "ratio", "GiB", "ratio"], rows),
    ]


# A run whose buffer fills quickly: few questions, small batches; evaluations and pages as usual.
_LONG = (
    "task=arithmetic task.data.n_rationales=10 task.data.n_answers=10 task.data.n_test=20 evaluation.during=10 "
    "sampling.n_conditions=2 sampling.n_samples=4 callbacks.evaluation.every_n_steps=200 trainer.max_steps=1000000"
)
_WARM, _BLOCKS = 0.2, 10


def _seen(process: int, folder: Path) -> tuple[float, float, float] | None:
    """Return step, MiB and open files of a run; ``None`` before its first step."""
    file = folder / "metrics.jsonl"
    lines = file.read_bytes()[-4096:].splitlines() if file.is_file() else []
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    held = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    files = len(os.listdir(f"/proc/{process}/fd"))
    return (json.loads(lines[-1])["step"], held / 1024, files) if lines else None


def slope_with_interval(steps: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return the least-squares slope per 1000 steps on the means of ten blocks, and half its 95 % interval.

    Neighboring readings are correlated; means of blocks are nearly independent.
    """
    blocks = np.array_split(np.array([steps, values]), _BLOCKS, axis=1)
    x, y = np.array([block.mean(axis=1) for block in blocks]).T
    fit = stats.linregress(x / 1000, y)
    return float(fit.slope), float(stats.t.ppf(0.975, _BLOCKS - 2) * fit.stderr)


def long_section(arguments: Namespace) -> list[str]:
    """Measure memory, open files and logs of a run of some minutes."""
    rows: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="gfn-runner-load-") as parent:
        folder = Path(parent) / "run"
        command = [sys.executable, "-m", "gfn_runner", *_LONG.split(), f"hydra.run.dir={folder}"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as run:
            until = time.monotonic() + 60 * arguments.minutes
            while time.monotonic() < until and run.poll() is None:
                time.sleep(1)
                rows += filter(None, [_seen(run.pid, folder)])
            run.terminate()
        log = (folder / "run.log").stat().st_size / 1024
    steps, mib, files = (
        list(column) for column in zip(*rows[int(_WARM * len(rows)) :], strict=True)
    )
    slope, half = slope_with_interval(steps, mib)
    return [
        "### A long run",
        f"`python -m gfn_runner {_LONG}`, {arguments.minutes:g} minutes, {rows[-1][0]:,.0f} steps. After the first",
        f"fifth: resident memory {mib[0]:.0f} MiB, at the end {mib[-1]:.0f} MiB; slope {slope:.2f} ± {half:.2f} MiB",
        f"per 1000 steps (95 %); open files {min(files):.0f} to {max(files):.0f}; run.log {log:.0f} KiB in all.",
        "Two hours: `scripts/benchmark.py --sections long --minutes 120`.",
    ]
