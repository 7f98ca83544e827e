"""Nothing that is read is executed; what strangers write is text on a page; secrets stay in the environment."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
import yaml

from gfn_runner.report.__main__ import main as report
from gfn_runner.runtime import files
from gfn_runner.runtime.environment import environment
from tests.report_folders import CLOSING, SCRIPT, hostile_run, make_run, make_sweep, page_of
from tests.runs import ROOT, run_process

SOURCES = sorted(
    path
    for name in ("gfn_runner", "hydra_plugins", "scripts")
    for path in (ROOT / name).rglob("*.py")
)
# Names that execute what they are given, alone or as an attribute of a module.
EXECUTE = {"eval", "exec", "compile", "execfile", "__import__"}
UNSAFE = {
    "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads",
    "dill.load", "dill.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "yaml.unsafe_load",
    "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all", "builtins.eval", "builtins.exec", "torch.hub.load",
    "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip


def unsafe_calls(source: str) -> list[str]:
    """Calls in Python source by which data could be executed, as ``line: call``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (why := _why_unsafe(node)):
            found.append(f"{node.lineno}: {why}")
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found += [f"{node.lineno}: from … import {name}" for name in sorted(names & UNSAFE)]
    return found


def _why_unsafe(call: ast.Call) -> str:
    name = ast.unparse(call.func)
    given = {own.arg: ast.unparse(own.value) for own in call.keywords}
    if name in EXECUTE or name in UNSAFE:
        return name
    if name.endswith(("torch.load", "pl_load")) and given.get("weights_only") != "True":
        return f"{name} without weights_only=True"
    if "ckpt_path" in given and given.get("weights_only") != "True":
        return f"{name} of a checkpoint without weights_only=True"
    if name in ("yaml.load", "yaml.load_all") and given.get("Loader") not in (
        "yaml.SafeLoader", "yaml.CSafeLoader", "_LOADER",
    ):  # fmt: skip
        return f"{name} without a safe loader"
    for option in ("shell", "trust_remote_code", "allow_pickle"):
        if given.get(option, "False") != "False":
            return f"{name} with {option}"
    return ""


def test_no_source_executes_data():
    assert len(SOURCES) > 150
    for path in SOURCES:
        assert not unsafe_calls(path.read_text(encoding="utf-8")), path
    safe = (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert issubclass(files._LOADER, safe)


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)", "exec(x)", "compile(x, y, z)", "__import__(x)", "os.system(x)", "pickle.load(f)", "pickle.loads(b)",
        "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(f)", "yaml.load(f, Loader=yaml.Loader)",
        "subprocess.run(x, shell=True)", "Popen(x, shell=y)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "numpy.load(f, allow_pickle=True)", "trainer.fit(m, ckpt_path=p)", "from pickle import loads",
    ],
)  # fmt: skip
def test_the_scan_finds_what_it_looks_for(source):
    assert unsafe_calls(source)


def test_the_scan_lets_safe_calls_pass():
    source = (
        "model.eval()\nre.compile(x)\ntorch.load(f, weights_only=True)\nyaml.safe_load(f)\n"
        "yaml.load(f, Loader=_LOADER)\nsubprocess.run([x])\nf(trust_remote_code=False)\n"
    )
    assert not unsafe_calls(source)


def test_no_config_trusts_remote_code():
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert "trust_remote_code" not in path.read_text(encoding="utf-8"), path


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    """As Lightning reads it for ``trainer.fit(ckpt_path=…, weights_only=True)``."""
    from gfn_runner.callbacks.checkpoint import DurableCheckpointIO

    class Touch:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    path = tmp_path / "step-0000001.ckpt"
    torch.save({"step": 1, "x": Touch()}, path)
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        DurableCheckpointIO().load_checkpoint(path, weights_only=True)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch pwned']", "!!python/name:os.system"]
)
def test_yaml_of_a_run_makes_no_objects(tag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "r")
    for name in ("config.yaml", "overrides.yaml"):
        (folder / name).write_text(f"task: {tag}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        report([str(folder), "--pages"])
    assert "cannot be read" in capsys.readouterr().err and not (tmp_path / "pwned").exists()


# -- pages -------------------------------------------------------------------------------------------


def assert_harmless(html: str) -> None:
    for text in ("<script>alert", "<img src=x", "</script><script>alert"):
        assert text not in html
    assert "alert(" in html, "what was written is there, as text"
    assert "{{ 7 * 7 }}" in html or "7 * 7" not in html, "nothing is a template"


@pytest.mark.parametrize("name", ["run", "<script>alert('pwned')<"])
def test_a_script_in_a_run_is_text_on_its_page(name, tmp_path):
    assert_harmless(page_of(hostile_run(tmp_path / name)))


def test_a_script_in_a_run_is_text_on_the_pages_of_sweeps_and_reports(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    sweep = make_sweep(tmp_path / "sweep <img src=x>", f"a={SCRIPT}", f"b={CLOSING}")
    for number in ("0", "1"):
        hostile_run(sweep / number)
    report([str(sweep), "--pages"])
    report([str(sweep), "--out", "out", "--no-figures"])
    capsys.readouterr()
    for path in (*sweep.rglob("report.html"), tmp_path / "out/report.html"):
        assert_harmless(path.read_text(encoding="utf-8"))


# -- secrets -----------------------------------------------------------------------------------------

SECRETS = {
    "WANDB_API_KEY": "5ecre7" * 6 + "abcd",
    "HF_TOKEN": "hf_5ecre7TokenOfTheHub",
    "OPENAI_API_KEY": "sk-5ecre7KeyOfAJudge",
}


@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_a_runs_folder_or_on_the_screen(tmp_path):
    folder = tmp_path / "run"
    done = run_process(
        "experiment=tiny/smoke", "num_threads=1", "trainer.max_steps=1", "evaluation.baseline_shots=[]",
        "evaluation.final=1", "evaluation.singles=1", "task.data.n_test=4", "task.data.n_answers=20",
        "task.data.n_rationales=8", f"hydra.run.dir={folder}", env=SECRETS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "run.log", "environment.json", "report.html"} <= {p.name for p in files}
    texts = [done.stdout.encode(), done.stderr.encode(), *(path.read_bytes() for path in files)]
    for secret in SECRETS.values():
        assert not any(secret.encode() in text for text in texts)


def test_environment_json_lists_no_variable_but_those_of_threads(monkeypatch):
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    text = json.dumps(environment())
    assert not any(secret in text for secret in SECRETS.values())
    assert all(name.startswith(("OMP", "GOMP", "KMP")) for name in environment()["waiting"])
