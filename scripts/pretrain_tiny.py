"""Pretrain the embedded base model, measure its skills, and write it with its model card.

    python scripts/pretrain_tiny.py                    # all of it, about 70 minutes on two cores
    python scripts/pretrain_tiny.py --measure-only     # only measure what is in the folder
    python scripts/pretrain_tiny.py --folder /tmp/x --steps 20 --questions 10

The old model is replaced only when the new one is complete.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from pretraining.card import model_card
from pretraining.skill import measure_skill, measure_tasks
from pretraining.training import PretrainSettings, pretrain

from gfn_runner.lm.model_folders import EMBEDDED_FOLDER
from gfn_runner.runtime.terminal import prepare_output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=EMBEDDED_FOLDER)
    parser.add_argument("--steps", type=int, default=PretrainSettings.steps)
    parser.add_argument(
        "--second-steps", type=int, help="steps of the second phase; by default at most --steps"
    )
    parser.add_argument("--seed", type=int, default=PretrainSettings.seed)
    parser.add_argument(
        "--questions", type=int, default=500, help="questions per number of operands"
    )
    parser.add_argument("--measure-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.measure_only:
        finish(arguments.folder, arguments.questions)
        return
    settings = PretrainSettings(
        steps=arguments.steps,
        second_steps=min(arguments.steps, PretrainSettings.second_steps)
        if arguments.second_steps is None
        else arguments.second_steps,
        seed=arguments.seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        pretrain(settings, made)
        finish(made, arguments.questions)
        shutil.rmtree(arguments.folder, ignore_errors=True)
        shutil.copytree(made, arguments.folder)
    print(f"written to {arguments.folder}")


def finish(folder: Path, n_questions: int) -> None:
    """Measure the model and write ``pretraining.json`` and the model card."""
    record_file = folder / "pretraining.json"
    record = json.loads(record_file.read_text(encoding="utf-8"))
    record["skill"] = measure_skill(str(folder), n_questions)
    record["tasks"] = measure_tasks(str(folder))
    record_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(record), encoding="utf-8")


if __name__ == "__main__":
    prepare_output()
    main()
