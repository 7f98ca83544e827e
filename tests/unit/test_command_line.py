"""Words of the shell: prompts, paths and flags as they are meant; folders; Hydra's own commands."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from gfn_runner.config.compose import CONF
from gfn_runner.runtime.overrides import as_meant, flags_and_words, parsed, verbatim
from gfn_runner.runtime.sweep_record import Job, Sweep

from ..command_line import configs, problems
from ..slow import mostly_slow

SPECIAL = "\\'\"${}[]()=,:#~ \n\tA1é語"


def value_of(line: str) -> object:
    """What a config has after an override."""
    (override,) = parsed([line])
    return OmegaConf.create({"x": override.value()}).x


def test_any_text_is_itself():
    generator = random.Random(0)
    for _ in range(500):
        text = "".join(generator.choices(SPECIAL, k=generator.randint(0, 12)))
        assert value_of(f"x={verbatim(text)}") == text
        assert value_of(as_meant(f"prompt={text}")) == text


TEXTS = [
    "", "null", "1,2", '"quoted', "'a' or 'b'", "a\\", "\\'", "${seed}", "\\${seed}", "{a: [1",
    "a=b\nc",
]  # fmt: skip
FOLDERS = ["a=b", "(a", "~a", "a#b", "it's", "[a", "a,b", "語", "1", "a b", "${a}"]
FILES = ["a=b", "(a", "a~", "a#b", "it's", "[a", "語", "a b"]


@pytest.mark.parametrize("text", mostly_slow(TEXTS, ["null", "\\${seed}", "a=b\nc"]))
def test_what_follows_prompt_is_the_prompt(text, tmp_path):
    (tmp_path / "overrides.yaml").write_text("[task=arithmetic]")
    (config,) = configs(f"run={tmp_path}", "mode=sample", f"prompt={text}")
    assert config.prompt == text


@pytest.mark.parametrize("name", mostly_slow(FOLDERS, ["a=b"]))
def test_folders_may_have_any_name(name, tmp_path, monkeypatch):
    """Those that a run is in, and those that are to be made."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    Path(name, "overrides.yaml").write_text("[task=arithmetic, seed=3]")
    for word in (f"resume={name}", f"resume={tmp_path / name}"):
        assert configs(word)[0].seed == 3
    for word in (f"run={name}", f'run="{name}"' if "$" not in name else f"run={name}"):
        assert configs(word, "mode=sample", "prompt=a")[0].run == name
    if "$" not in name:  # an interpolation counts in a folder that is not there
        Path(name, "overrides.yaml").unlink()
        Path(name).rmdir()
        assert configs(f"output={name}")[0].output == name


@pytest.mark.parametrize("name", mostly_slow(FILES, ["(a", "it's"]))
def test_paths_that_exist_are_meant_and_of_others_the_word_to_type_is_printed(name, tmp_path):
    file = tmp_path / name
    file.write_text('{"prompt": "a", "terms": [{"context": "a"}]}')
    (config,) = configs("task=posterior", f"task.data.train={file}")
    assert config.task.data.train == str(file)
    file.unlink()
    found = problems("task=posterior", f"task.data.train={file}")
    if "task.data.train" not in found:
        (problem,) = found.values()
        (typed,) = shlex.split(problem.fix.partition(": ")[2])
        found = problems("task=posterior", typed)
    assert str(file) in found["task.data.train"].what


def test_flags_may_stand_between_overrides():
    argv = ["a=1", "-m", "--config-dir", "c", "b=2", "--info", "d=3", "-i", "config", "--cfg=job"]
    flags = ["-m", "--config-dir", "c", "--info=all", "--info=config", "--cfg=job"]
    assert flags_and_words(argv) == (flags, ["a=1", "b=2", "d=3"])
    assert [config.seed for config in configs("seed=0,1", "-m", "trainer.max_steps=2")] == [0, 1]


def test_another_config_of_a_users(tmp_path):
    mine = {"defaults": ["config", "_self_"], "seed": 7}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    given = ["--config-dir", str(tmp_path), "--config-name=mine"]
    assert configs(*given)[0].seed == 7
    assert problems(*given, "optimizer.lrr=1")["optimizer.lrr"].fix == "did you mean optimizer.lr?"
    assert "optimizer.lr" in problems(*given, "optimizer.lr=-1")
    (tmp_path / "mine.yaml").write_text("seed: [")
    assert "mine" in str(problems(*given))


def started(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command that succeeds and leaves no file."""
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    assert not list(cwd.iterdir())
    return done


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--cfg", "job", "seed=3"], "seed: 3"),
        (["--info", "defaults-tree"], "objective: vargrad"),
        (["--shell-completion", "install=bash"], "complete"),
    ],
)
def test_what_is_hydras_own_works(argv, said, tmp_path):
    assert said in started([sys.executable, "-m", "gfn_runner", *argv], tmp_path).stdout


@pytest.mark.parametrize(("flags", "file"), [([], ".hydra/hydra.yaml"), (["-m"], "multirun.yaml")])
def test_what_was_begun_with_configs_of_the_users_goes_on_without_naming_them(
    flags, file, tmp_path
):
    folder = tmp_path / "folder"
    mine = yaml.safe_dump({"defaults": ["config", "_self_"], "n": 7})
    (tmp_path / "mine.yaml").write_text(mine)
    hydra = folder / file
    hydra.parent.mkdir(parents=True)
    places = {"main": str(CONF), "command-line": str(tmp_path)}
    sources = [{"provider": name, "path": path} for name, path in places.items()]
    saved = {"job": {"config_name": "mine"}, "runtime": {"config_sources": sources}}
    hydra.write_text(yaml.safe_dump({"hydra": saved}))
    lines = ["task=arithmetic", "seed=3"]
    if flags:
        Sweep(folder, lines, [Job(0, lines, "0")]).write()
    else:
        (folder / "overrides.yaml").write_text(yaml.safe_dump(lines))
    (config,) = configs(*flags, f"resume={folder}")
    assert config.n == 7 and config.seed == 3
    assert configs(*flags, f"resume={folder}", "--config-name=config")[0].n == 10


def test_a_pipe_that_is_closed_early_is_no_error(tmp_path):
    piped = f"{shlex.quote(sys.executable)} -m gfn_runner --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = started(["bash", "-c", piped], tmp_path)
    assert done.stderr == "" and "Fine-tunes" in done.stdout


def test_a_folder_of_configs_leaves_the_suggestions(tmp_path):
    (tmp_path / "task").mkdir()
    target = "gfn_runner.tasks.arithmetic.IntegerArithmetic"
    (tmp_path / "task" / "mine.yaml").write_text(f"_target_: {target}\nmax_len: 22\n")
    given = ["--config-dir", str(tmp_path)]
    found = problems(*given, "task=mine", "task.min_len=1", "task.mx_len=3")
    assert found["task.min_len"].fix == "+task.min_len=1"
    assert found["task.mx_len"].fix == "did you mean task.max_len?"
    found = problems(*given, "sampling.n_sample=4", "task=arithmetc")
    assert found["sampling.n_sample"].fix == "did you mean sampling.n_samples?"
    assert found["task"].fix == "did you mean task=arithmetic?" and "mine" in found["task"].allowed
