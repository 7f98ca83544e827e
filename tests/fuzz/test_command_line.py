"""Random command lines, nothing started: exit code 0 or 2, one screen, never a traceback, nothing written."""

from __future__ import annotations

import functools
import random
import sys
from typing import Any

import pytest
import yaml

from gfn_runner.cli.main import main
from gfn_runner.config.compose import CONF
from tests.budget import cases
from tests.command_line import questions_made_once
from tests.fuzz.bounded import at_most

GROUPS = {
    "task": ("arithmetic", "random_number", "constrained", "posterior", "no_such"),
    "objective": ("joint", "tb", "subtb", "vargrad", "db"),
    "baseline": ("ppo", "sft", "decoding", "resampling", "exact", "null"),
    "trainer": ("smoke", "long", "short"),
    "recipe": ("none", "infilling"),
    "callbacks/replay_buffer": ("off", "priority", "of"),
    "evaluation": ("quick", "texts"),
    "hydra/launcher": ("local", "slurm", "basic"),
    "hydra/job_logging": ("default", "none"),
    "experiment": ("tiny/smoke", "tiny", "paper/arithmetic", "../x"),
}
VALUES = (
    "1", "0", "-1", "1e308", "1e-400", "nan", "inf", "true", "null", "x", "", "''", '""', "[]", "{}", "[1,2]",
    "{a:1}",
    "1,2", "range(1,4)", "choice(1,2)", "interval(0,1)", "glob(*)", "${seed}", "${x}", "${oc.env:NO_SUCH}", "${",
    "}", "[", "{",
    "(", "'", '"', "\\", "a b", "a=b", "=", "模型", "🙂", "\n", "\t", "\0", "\ud800", "/", "..", "~", "-", "--",
    "!!python/name:os.system",
    "9" * 400, "x" * 3_000, "[" * 300, "{a:" * 60, "1__0", "0x10", "1_000", "@", "#", "%", "*", "?", "|", ">", "&",
)  # fmt: skip
WORDS = (
    "-m", "--multirun", "--help", "--hydra-help", "--version", "--cfg", "job", "hydra", "all", "--resolve",
    "--package", "optimizer",
    "--info", "defaults", "config", "--config-name", "--config-dir", "--config-path", "--run", "-h", "-c",
    "--no-such",
    "task", "=", "==", "~", "+", "++", "@", "task@x=arithmetic", "~task", "~optimizer.lr", "+optimizer.lr=1",
    "resume=x", "run=x",
    "resume=auto", "mode=sample", "mode=predict", "mode=evaluate", "mode=x", "prompt=a", "n=0", "answers=[a,b]",
    "-m resume=x",
    "hydra.run.dir=x", "hydra.sweep.dir=x", "hydra.job.chdir=true", "hydra.verbose=true", "hydra.job.name=a/b",
    "output=/proc/x",
    "hydra.searchpath=[file://x]", "hydra.mode=MULTIRUN", "hydra=null",
)  # fmt: skip
# Would take minutes, or a network: what is asked for is then done.
SLOW = ("task.data.", "task.n_", "lm.name", "evaluation.judge")


@functools.cache
def keys() -> tuple[str, ...]:
    """Of the main config and of what the groups hold."""
    found = set()

    def walk(tree: Any, key: str) -> None:
        for name, value in tree.items() if isinstance(tree, dict) else ():
            inner = f"{key}.{name}" if key else str(name)
            if name != "defaults" and not inner.startswith("hydra"):
                found.add(inner)
                walk(value, inner)

    for path in sorted(CONF.glob("*/*.yaml")):
        if path.parent.name not in ("experiment", "sweep", "recipe", "hydra"):
            walk(yaml.safe_load(path.read_text(encoding="utf-8")), path.parent.name)
    walk(yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8")), "")
    return tuple(sorted(key for key in found if not key.startswith(SLOW)))


def word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(WORDS)
    if kind < 0.45:
        group = rng.choice(sorted(GROUPS))
        return f"{group}={rng.choice(GROUPS[group])}"
    key = rng.choice(keys())
    if rng.random() < 0.15:
        at = rng.randrange(len(key))
        key = key[:at] + key[at + 1 :]
    return f"{rng.choice(('', '', '', '', '+', '++', '~'))}{key}={rng.choice(VALUES)}"


@pytest.fixture
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gfn_runner"])
    monkeypatch.setattr("gfn_runner.train.train_and_evaluate", lambda *_: pytest.fail("it trains"))
    yield tmp_path


def code_of(words: list[str]) -> Any:
    try:
        # Twice: of two overrides of one key the last one counts, and a flag may take the one after it.
        with questions_made_once():
            main([*words, "dry_run=true", "dry_run=true"])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def tried(words: list[str], capfd, folder) -> int:
    with at_most(60.0):
        code = code_of(words)
    out, err = capfd.readouterr()
    assert code in (0, 2), (words, code, err)
    assert "Traceback" not in out + err, (words, err)
    assert code == 0 or len(err.splitlines()) < 200, words
    assert not list(folder.iterdir()), words
    return code


@pytest.mark.parametrize("value", VALUES[::7], ids=lambda value: ascii(value)[:20])
def test_hostile_values(value, alone, capfd):
    assert tried([f"objective.between={value}", f"trainer={value}"], capfd, alone) == 2


@pytest.mark.parametrize(
    "words",
    [["seeed=1", "hydra.run.dir=x"], ["experiment=../x", "hydra.sweep.dir=x"]],
    ids=" ".join,
)
def test_beside_a_mistyped_word_a_folder_is_named_and_not_made(words, alone, capfd):
    assert tried(words, capfd, alone) == 2


def test_random_command_lines(alone, capfd):
    rng = random.Random(cases(1))
    codes = [
        tried([word(rng) for _ in range(rng.randint(1, 3))], capfd, alone) for _ in range(cases(12))
    ]
    assert 2 in codes
    assert tried(["task=random_number", "seed=1"], capfd, alone) == 0
