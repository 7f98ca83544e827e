"""A further process of a run; rank 0 starts `python -m gfn_runner.distributed.worker <config.yaml>`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from gfn_runner.config.validation import check
from gfn_runner.distributed.ranks import end_with_parent
from gfn_runner.errors import UserError
from gfn_runner.runtime.terminal import print_everywhere


def main(file: Path) -> None:
    """Train as the config of the run says, beside the process that has written it."""
    from gfn_runner.app import show, train_and_evaluate

    end_with_parent()
    print_everywhere()
    values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        train_and_evaluate(check(values), file.parent)
    except UserError as error:
        show(error.problems, file.parent)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
