"""GGUF files by ``lm.gguf_file``: what transformers reads of them, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.loading import load
from gfn_runner.lm.model_config import LMSettings, LoraSettings
from gfn_runner.lm.model_folders import SMOLLM2, SMOLLM2_HUB, model_folder
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.lm.text_checks import text_problems
from gfn_runner.tasks.random_number import RandomNumbers

from ..tiny_gguf import SPECIAL, write_gguf

FILE = "tiny.gguf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a GGUF file and nothing else."""
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / FILE)
    return folder


def settings(folder: Path | str, file: str | None = FILE, **more: object) -> LMSettings:
    options = {"device": "cpu", "lora": LoraSettings(rank=2, alpha=2)} | more
    return LMSettings(name=str(folder), gguf_file=file, **options)


def checked(options: LMSettings) -> list[Problem]:
    """What both checks say: without torch, and with config and tokenizer."""
    try:
        texts = [("prompt", "in 7", "")]
        return list(options.problems()) or list(text_problems(options, ".", texts, 5))
    except UserError as error:
        return list(error.problems)


def refusal(options: LMSettings) -> Problem:
    (problem,) = checked(options)
    return problem


def test_the_model_is_the_one_that_transformers_reads(folder):
    assert checked(settings(folder)) == []
    lm = load(settings(folder), adapter=False)
    same = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    ids = list(lm.encode_prompt("in 7 in 12"))
    with torch.no_grad():
        expected = same(torch.tensor([ids])).logits
        torch.testing.assert_close(lm.whole_logits([ids]), expected, atol=1e-6, rtol=0)
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.float32}
    assert lm.decode(lm.encode(" 7")) == " 7" and len(lm.encode(" 7")) == 1


def test_the_adapter_is_trained_saved_and_read_by_plain_peft(folder, tmp_path):
    lm = load(settings(folder))
    ids = [list(lm.encode_prompt("in 7 in 12"))]
    lm.whole_logits(ids).logsumexp(dim=-1).sum().backward()
    assert all(parameter.grad is not None for parameter in lm.trainable().values())
    with torch.no_grad():
        for name, parameter in lm.trainable().items():
            if "lora_B" in name:
                parameter.fill_(0.1)
        expected = lm.whole_logits(ids)
    lm.save_adapter(tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    again = load(settings(folder), adapter=tmp_path / "adapter")
    with torch.no_grad():
        for found in (plain(torch.tensor(ids)).logits, again.whole_logits(ids)):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_architecture_that_transformers_does_not_read_is_refused(tmp_path):
    write_gguf(tmp_path / FILE, architecture="rwkv6")
    problem = refusal(settings(tmp_path))
    assert problem.where == "lm.name" and "rwkv6 is not supported" in problem.what


@pytest.mark.parametrize("kept", [0, 20, -1_000, "an LFS pointer"])
def test_a_file_that_is_cut_off_or_no_gguf_is_one_problem(folder, tmp_path, kept):
    whole = b"version https://git-lfs.github.com/spec/v1"
    if isinstance(kept, int):
        whole = (folder / FILE).read_bytes()[:kept]
    (tmp_path / FILE).write_bytes(whole)
    problem = refusal(settings(tmp_path))
    assert problem.where == "lm.gguf_file"
    assert "is not a GGUF file" in problem.what or "truncated or damaged" in problem.what


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({"rope_freqs": True}, True),
        ({"rope__scaling__type": "yarn"}, True),
        ({"rope__scaling__factor": 8.0}, True),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 1.0}, False),
    ],
)
def test_scaled_rope_which_transformers_leaves_out_is_refused(tmp_path, more, refused):
    write_gguf(tmp_path / FILE, **more)
    problems = checked(settings(tmp_path))
    assert [p.where for p in problems] == ["lm.gguf_file"] * refused
    assert all("scales RoPE" in p.what for p in problems)


def test_a_weight_that_is_missing_is_not_drawn_at_random(tmp_path):
    write_gguf(tmp_path / FILE, lacks="blk.1.ffn_up.weight")
    with pytest.raises(UserError, match=r"lm\.name: .* lack .*layers\.1\.mlp\.up_proj"):
        load(settings(tmp_path))


def test_a_special_token_without_an_embedding_is_no_token_of_the_rule(tmp_path):
    """transformers adds one to byte-level tokenizers of files that do not have it."""
    write_gguf(tmp_path / FILE, special=SPECIAL[:3])
    lm = load(settings(tmp_path), adapter=False)
    assert len(lm.tokenizer) > lm.vocab_size
    rule = string_rule(lm, RandomNumbers(), 5)
    assert rule.allowed_V is not None and len(rule.allowed_V) == lm.vocab_size


def test_without_the_package_the_command_that_installs_it_is_said(folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "gguf" else find(name, *rest),
    )
    problem = refusal(settings(folder))
    assert problem.fix == "pip install 'gfn-runner[gguf]'"


def test_a_name_that_is_wrong_is_refused_before_anything_is_read(folder, tmp_path):
    problem = refusal(settings(folder, "other.gguf"))
    assert problem.where == "lm.gguf_file" and problem.allowed == FILE
    assert refusal(settings(tmp_path / "nowhere")).where == "lm.name"
    found = {p.where: p for p in settings(folder, quantization="4bit").problems()}
    assert "dequantized" in found["lm.quantization"].what
    # The file by itself, and a folder of nothing else: how to name it is in the message.
    assert refusal(settings(folder / FILE, None)).fix == f"lm.name={folder} lm.gguf_file={FILE}"
    assert refusal(settings(folder, None)).fix.startswith(f"lm.gguf_file={FILE}")


def test_a_hub_id_is_asked_for_the_file(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda name, file: asked.append((name, file))
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    class Hub:
        def model_info(self, name: str, **_: object) -> None:
            raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert "no network" in str(refusal(settings("somebody/model-GGUF")))
    assert asked == [("somebody/model-GGUF", FILE)]


def test_smollm2_that_was_not_made_is_one_problem_with_the_command(tmp_path, monkeypatch):
    folder = tmp_path / "smollm2"
    monkeypatch.setattr("gfn_runner.lm.model_folders.SMOLLM2_FOLDER", folder)
    options = LMSettings(name=SMOLLM2)
    (problem,) = options.problems()
    assert problem.where == "lm.name" and "make smollm2" in problem.fix
    assert SMOLLM2_HUB in problem.allowed
    # From any working directory.
    monkeypatch.chdir(tmp_path)
    assert model_folder(SMOLLM2) == folder
    assert list(dataclasses.replace(options, name="embedded").problems()) == []
