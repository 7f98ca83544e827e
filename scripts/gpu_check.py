"""Run everything that needs a CUDA device, in at most 8 minutes: tests, benchmark, a training of SmolLM2.

    python3 scripts/gpu_check.py                    # a Python with torch for CUDA is enough
    python3 scripts/gpu_check.py --wheels FOLDER    # without a network: packages from wheels
    python3 scripts/gpu_check.py --parts tests

Writes docs/benchmarks_gpu.md and outputs/gpu_check/result.json after every part. Exits with status 1 if a
part failed, and with status 2, before anything is run or written, if there is no CUDA device.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "outputs" / "gpu_check"
PAGE = ROOT / "docs" / "benchmarks_gpu.md"
SMOLLM2 = ROOT / "outputs" / "models" / "smollm2"
MOST_S = 480
INSTALL_S = 240  # in addition; no time if the packages are there
TAIL = 25  # last lines of a part's output to keep


@dataclass(frozen=True)
class Part:
    """A command with a time limit in seconds; it is skipped if the folder ``needs`` does not exist."""

    name: str
    limit: int
    command: tuple[str, ...]
    needs: Path | None = None


def benchmark(*options: str) -> tuple[str, ...]:
    return ("scripts/benchmark.py", "--device", "cuda", *options)


PARTS = (
    Part("tests", 100, ("-m", "pytest", "-q", "-m", "gpu", "tests/parity/test_gpu.py")),
    Part(
        "embedded",
        80,
        benchmark("--sections", "steps", "--models", "embedded", "--shapes", "arithmetic"),
    ),
    Part(
        "gpt2",
        90,
        benchmark(
            "--sections", "steps", "--models", "gpt2", "--shapes", "arithmetic", "--repeats", "3"
        ),
    ),
    Part(
        "sections",
        100,
        benchmark("--sections", "precision", "buffer", "scoring", "recompute", "--repeats", "3"),
    ),
    Part(
        "smollm2",
        100,
        (
            "-m", "gfn_runner", "task=random_number", f"lm.name={SMOLLM2}", "lm.device=cuda",
            "trainer.max_steps=60", "logger=local", "callbacks.evaluation.every_n_steps=0",
            f"hydra.run.dir={FOLDER}/smollm2/{int(time.time())}",
        ),
        SMOLLM2,
    ),
)  # fmt: skip


@dataclass
class Result:
    """Result of a part: ``ok``, ``failed``, ``over its limit`` or ``left out``, and its last lines."""

    name: str
    command: str
    limit: int
    state: str
    seconds: float = 0.0
    tail: str = ""


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install packages from")
    arguments = parser.parse_args(words)
    reason = refusal()
    if reason:
        print(f"gpu_check: {reason}; nothing was run, nothing was written", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    python = with_packages(arguments.wheels)
    machine, results, began = described(python), list[Result](), time.monotonic()
    for part in PARTS:
        if part.name in arguments.parts:
            results.append(run(part, python, MOST_S - (time.monotonic() - began)))
            print(f"{part.name}: {results[-1].state}, {results[-1].seconds:.0f} s", flush=True)
            write(machine, results)
    print(f"written to {PAGE} and {FOLDER / 'result.json'}")
    return int(any(result.state in ("failed", "over its limit") for result in results))


def refusal() -> str | None:
    """Return why nothing can be run here, or ``None``."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch; name a Python that has torch for CUDA"
    import torch

    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} sees no CUDA device (built for CUDA {torch.version.cuda}); "
            "`nvidia-smi` shows whether the machine has one"
        )
    return None


def with_packages(wheels: Path | None) -> str:
    """Return a Python with this project's packages: this one, or a venv that uses its torch."""
    modules = ("transformers", "peft", "lightning", "hydra", "pydantic", "wandb", "rapidfuzz")
    modules += ("scipy", "matplotlib", "plotly", "jinja2", "filelock", "nltk", "sklearn", "regex")
    modules += ("rich", "pytest")
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if not missing:
        return sys.executable
    print(f"installs what is missing: {', '.join(missing)}", flush=True)
    venv = FOLDER / "venv"
    python = venv / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", venv], check=True)
    # Keep the machine's torch and the packages that belong to it.
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in pins if not re.match(r"(torch|triton|nvidia|cuda)", line)]
    (FOLDER / "constraints.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(r'"([^"]+)"', project.split("\ndependencies = [")[1].split("]")[0])
    sources = ["--no-index", "--find-links", str(wheels)] if wheels else []
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        FOLDER / "constraints.txt",
        *sources,
    ]
    packages = [name for name in needed if not name.startswith("torch")] + ["pytest>=8,<10"]
    subprocess.run([*command, *packages], check=True, timeout=INSTALL_S)
    return str(python)


def described(python: str) -> dict[str, str]:
    """Describe the machine."""
    import torch

    index = torch.cuda.current_device()
    gib = torch.cuda.get_device_properties(index).total_memory / 2**30
    git = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True
    )
    return {
        "device": f"{torch.cuda.get_device_name(index)}, {gib:.0f} GiB",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": python,
        "commit": git.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def run(part: Part, python: str, left_s: float) -> Result:
    """Run a part in its own process group, killed at its limit or at the end of the total time."""
    limit = int(min(part.limit, left_s))
    result = Result(part.name, " ".join(("python", *part.command)), part.limit, "left out")
    if part.needs is not None and not part.needs.is_dir():
        result.tail = f"{part.needs} is not there: make smollm2"
        return result
    if limit < 1:
        result.tail = f"the {MOST_S} s of the whole check are over"
        return result
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    began = time.monotonic()
    process = subprocess.Popen(
        [python, *part.command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
        result.state = "ok" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        result.state = "over its limit"
    result.seconds = round(time.monotonic() - began, 1)
    result.tail = "\n".join(output.splitlines()[-TAIL:])
    return result


def write(machine: dict[str, str], results: Sequence[Result]) -> None:
    """Write both files with the results so far."""
    values = {"machine": machine, "parts": [asdict(result) for result in results]}
    (FOLDER / "result.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    lines = [
        "## Check",
        "",
        f"{machine['device']}; torch {machine['torch']}, CUDA {machine['cuda']}; "
        f"commit {machine['commit']}, {machine['date']}.",
        "",
        "| part | result | seconds | limit, s |",
        "|---|---|---|---|",
        *(f"| {r.name} | {r.state} | {r.seconds:.0f} | {r.limit} |" for r in results),
    ]
    for result in results:
        # Benchmark results are in their own sections; for failed parts, show the last lines here.
        if result.tail and (result.state != "ok" or result.name in ("tests", "smollm2")):
            lines += ["", f"{result.name}: `{result.command}`", "", "```", result.tail, "```"]
    text = PAGE.read_text(encoding="utf-8")
    block = "\n".join(lines) + "\n\n"
    marked = re.compile(r"(<!-- cuda check -->\n).*?(<!-- /cuda check -->)", re.DOTALL)
    PAGE.write_text(marked.sub(lambda m: m[1] + block + m[2], text), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
