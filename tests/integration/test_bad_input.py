"""Input that only shows when the model's files are read: one screen, before weights load."""

from __future__ import annotations

import shutil

import pytest

from gfn_runner.errors import UserError
from gfn_runner.lm.model_folders import EMBEDDED_FOLDER
from gfn_runner.report.runs import read_runs
from tests.runs import SMALL, exit_code, run
from tests.tiny_models import save_model_that_ignores_padding


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["lm.name={no_tokenizer}"], ["cannot read the tokenizer"]),
        (["lm.name={no_weights}"], ["lm.name"]),
        (
            ["task.data.n_rationales=60", "evaluation.baseline_shots=[40]"],
            ["40-shot prompt", "context of 512"],
        ),
        (['task.terminator="the end"'], ["task.terminator", "exactly one token"]),
        (["lm.lora.targets=[c_attn]"], ["lm.lora.targets", "q_proj"]),
        (["lm.lora.targets=[norm]"], ["lm.lora.targets", "can be adapted"]),
    ],
)
def test_what_only_the_models_files_show_is_refused(lines, said, tmp_path, monkeypatch):
    folders = {}
    for name, files in (("no_tokenizer", "token*"), ("no_weights", "model.safetensors")):
        folders[name] = shutil.copytree(
            EMBEDDED_FOLDER, tmp_path / name, ignore=shutil.ignore_patterns(files)
        )
    if "shot" in said[0]:
        monkeypatch.setattr("gfn_runner.train.load", lambda *_, **__: pytest.fail("weights load"))
    folder = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        run(folder, *(line.format(**folders) for line in lines))
    assert not (folder / "metrics.json").exists() and not (folder / "checkpoints").exists()
    assert len(str(caught.value).splitlines()) < 24
    assert all(text in str(caught.value) for text in said)


def test_a_run_that_fails_says_why_in_its_log_and_a_report_repeats_it(tmp_path, finished, capsys):
    """Whoever looks through the folders of a sweep has no terminal of it."""
    model = tmp_path / "model"
    save_model_that_ignores_padding(model)
    folder = tmp_path / "run"
    code = exit_code(*SMALL, f"lm.name={model}", f"hydra.run.dir={folder}")
    assert code == 2 and "lm.name" in capsys.readouterr().err
    log = (folder / "run.log").read_text(encoding="utf-8")
    assert "ERROR" in log and "the run has failed: lm.name" in log
    failed, _ = read_runs([folder, finished])
    assert failed.state.name == "failed" and any("lm.name" in line for line in failed.log)
