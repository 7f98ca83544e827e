"""Entry point of ranks above 0: rank 0 starts `python -m gfn_runner.cli.worker <config.yaml>`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from gfn_runner.config.validation import check
from gfn_runner.distributed.launch import exit_with_parent
from gfn_runner.errors import UserError, show
from gfn_runner.runtime.terminal import prepare_output


def main(file: Path) -> None:
    """Train with the run's config, alongside the process that wrote it."""
    from gfn_runner.train import train_and_evaluate

    exit_with_parent()
    prepare_output()
    values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        train_and_evaluate(check(values), file.parent)
    except UserError as error:
        show(error.problems, f"the run stops; its folder is {file.parent}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
