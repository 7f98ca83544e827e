"""The weakened base model: noise of the size that was asked for, and the same one each time."""

from __future__ import annotations

import sys

import pytest
import torch
import weaken_lm
from safetensors.torch import load_file

from gfn_runner.lm.loading import load
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.lm.model_folders import EMBEDDED_FOLDER


def test_the_noise_is_as_large_as_was_asked_for(tmp_path):
    for name in ("a", "b"):
        weaken_lm.weaken(0.3, 7, tmp_path / name)
    weaken_lm.weaken(0.3, 8, tmp_path / "c")
    old = load_file(EMBEDDED_FOLDER / "model.safetensors")
    new, same, other = (load_file(tmp_path / n / "model.safetensors") for n in "abc")
    assert old.keys() == new.keys()
    for name, weight in old.items():
        assert torch.equal(new[name], same[name])
        added = (new[name].float() - weight.float()).std().item()
        if weight.ndim == 2:
            assert added == pytest.approx(0.3 * weight.float().std().item(), rel=0.05)
            assert not torch.equal(new[name], other[name])
        else:
            assert added == 0


def test_it_loads_like_any_other_and_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "weak"
    monkeypatch.setattr(sys, "argv", ["weaken_lm.py", "--noise", "0.1", "--folder", str(folder)])
    weaken_lm.main()
    lm = load(LMSettings(name=str(folder)), adapter=False)
    assert len(lm.encode_prompt("1 + 2 = ")) > 1
    assert not (folder / "README.md").exists()
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        weaken_lm.main()
    assert "exists already" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before
