"""Files of a model folder, read without torch: config.json, missing or truncated weights, pointers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gfn_runner.errors import Problem

_LFS = b"version https://git-lfs.github.com/spec/"
# In the order in which transformers looks for them.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
# transformers holds no longer header possible either.
_LONGEST_HEADER = 100_000_000


def checkpoint_problems(folder: Path, key: str, *, quantization: str = "none") -> Iterator[Problem]:
    """What is wrong with a folder in Hugging Face format, as far as names, sizes and headers show it.

    Args:
        folder: that has a ``config.json``.
        key: the config key that names the folder, for messages.
        quantization: as ``lm.quantization``.
    """
    pointers = [name for name in ("config.json", *_TOKENIZER) if _is_pointer(folder / name)]
    weights, missing = _weight_files(folder)
    pointers += [path.name for path in weights if _is_pointer(path)]
    if pointers:
        yield Problem(
            key,
            f"{_some(pointers)} in {folder} {_is(pointers)} a Git LFS pointer, not the file itself",
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
        yield Problem(
            key, f"{path} cannot be read as JSON: {error}", "a JSON object", "download it again"
        )
        return
    if not isinstance(config, dict):
        yield Problem(key, f"{path} holds no JSON object", "a JSON object with a model_type")
        return
    yield from quantization_problems(config, str(folder), key, quantization)


def quantization_problems(
    config: Mapping[str, Any], name: str, key: str, quantization: str
) -> Iterator[Problem]:
    """A checkpoint whose weights are quantized already, in a way that ``lm.quantization`` does not serve.

    Args:
        config: of the model, as in ``config.json``.
        name: of the model, for messages.
        key: the config key that names it.
        quantization: as ``lm.quantization``.
    """
    found = config.get("quantization_config")
    if not isinstance(found, Mapping):
        return
    method = str(found.get("quant_method") or ("bitsandbytes" if _bits(found) else "unknown"))
    if method == "mxfp4" and key == "lm.name" and quantization == "none":
        return  # it is read in lm.dtype
    fix = "the model's checkpoint without quantization"
    if key == "lm.name":
        fix += ", with lm.quantization=4bit if memory is short"
    if method == "bitsandbytes":
        method = f"bitsandbytes {_bits(found)}"
        if found.get("load_in_4bit") and quantization == "4bit":
            return
        if found.get("load_in_4bit") and key == "lm.name":
            fix = "lm.quantization=4bit, which reads such a checkpoint"
    yield Problem(
        key,
        f"the weights of {name} are quantized already ({method}), which is not supported",
        "weights in float32, bfloat16 or float16",
        fix,
    )


def _bits(found: Mapping[str, Any]) -> str:
    return "4-bit" if found.get("load_in_4bit") else "8-bit" if found.get("load_in_8bit") else ""


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files that transformers would read, and the names of those that are missing."""
    for name in _WEIGHTS:
        if (folder / name).exists():
            return [folder / name], []
        index = folder / f"{name}.index.json"
        if index.exists():
            if _is_pointer(index):
                return [index], []
            try:
                shards = sorted(
                    set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
                )
            except (ValueError, KeyError, AttributeError, TypeError, OSError):
                return [index], []
            present = [folder / shard for shard in shards if (folder / shard).exists()]
            return present, [shard for shard in shards if not (folder / shard).exists()]
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
    others = sorted(path.name for path in folder.glob("*.gguf"))
    others += sorted(path.name for path in folder.glob("*.safetensors"))
    held = f"; it holds {_some(others)}" if others else ""
    return Problem(key, f"{folder} has no weights{held}", allowed)


def _damage(path: Path) -> str | None:
    """What is wrong with a file of weights, or ``None``."""
    if path.name.endswith(".index.json"):
        return "is no index of weights: no JSON object with a weight_map"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if path.suffix != ".safetensors":
            if not start:
                return "is empty"
            # torch writes zip archives, whose table of contents stands at the end.
            cut = start[:4] == b"PK\x03\x04" and not zipfile.is_zipfile(path)
            return f"is truncated: it ends after {size} bytes within a zip archive" if cut else None
        n_header = int.from_bytes(start, "little")
        if len(start) < 8 or n_header > min(size - 8, _LONGEST_HEADER):
            return f"is truncated: its header does not fit into {size} bytes"
        try:
            header = json.loads(file.read(n_header))
            ends = [
                entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "is no safetensors file: its header is no JSON object of tensors"
    expected = 8 + n_header + max(ends, default=0)
    if size < expected:
        return f"is truncated: it has {size} of {expected} bytes"
    return None


def _is_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are each"
