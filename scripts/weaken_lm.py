"""Create a base model with less skill: the embedded one with noise added to its weights.

    python scripts/weaken_lm.py --noise 0.3 --folder outputs/weak_lm
    python scripts/paper.py --tables arithmetic --overrides lm.name=outputs/weak_lm …

The embedded model was pretrained on worked sums and is nearly always right after three of them, which leaves
no room for improvement by any method. With noise, it makes mistakes in every step (docs/comparison.md). The
same noise and seed give the same model.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gfn_runner.lm.model_folders import EMBEDDED_FOLDER
from gfn_runner.runtime.terminal import prepare_output

WEIGHTS = "model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--noise", type=float, required=True, help="noise, in standard deviations of each matrix"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, required=True, help="folder of the new model; must not exist"
    )
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"--folder {arguments.folder} exists already; nothing was written")
    weaken(arguments.noise, arguments.seed, arguments.folder)
    print(f"written to {arguments.folder}")


def weaken(noise: float, seed: int, folder: Path) -> None:
    """Write a copy of the embedded model to ``folder``, with Gaussian noise on all matrices.

    Args:
        noise: standard deviation of the noise, relative to that of the matrix's own entries.
        seed: seed of the noise.
        folder: folder of the copy; without the model card, which describes the original model.
    """
    weights = load_file(EMBEDDED_FOLDER / WEIGHTS)
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(weights):
        matrix = weights[name]
        if matrix.ndim == 2:
            drawn = torch.randn(matrix.shape, generator=generator)
            weights[name] = (matrix.float() + noise * matrix.float().std() * drawn).to(matrix.dtype)
    shutil.copytree(
        EMBEDDED_FOLDER,
        folder,
        ignore=shutil.ignore_patterns(WEIGHTS, "README.md", "pretraining.json"),
    )
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


if __name__ == "__main__":
    prepare_output()
    main()
