"""Fine-tune SmolLM2 on stories, for the reward of infilling as in the paper.

    python scripts/story_model.py --stories stories.csv --folder outputs/models/stories
    python -m gfn_runner experiment=smollm2/infilling task.data.stories=stories.csv lm.name=outputs/models/stories

All weights are trained on whole stories (Hu et al. 2024, section 4.2: GPT-2 large on ROCStories). Stories
that ``task=infilling`` holds out of the same file are held out here too, and measured before and after.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

from gfn_runner.data.conditions import Condition
from gfn_runner.errors import UserError
from gfn_runner.lm.model_folders import SMOLLM2_FOLDER
from gfn_runner.runtime.terminal import prepare_output
from gfn_runner.tasks.infilling import StoryData, StoryInfilling

RECORD = "stories.json"
BATCH = 16  # stories per step
_ALL = 10**6  # more than the stories of any file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", required=True, help="stories, as for task.data.stories")
    parser.add_argument("--base", type=Path, default=SMOLLM2_FOLDER)
    parser.add_argument(
        "--folder", type=Path, required=True, help="folder of the new model; must not exist"
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"--folder {arguments.folder} exists already; nothing was written")
    if not arguments.base.is_dir():
        parser.error(f"--base {arguments.base} is not a folder; make smollm2 makes the default")
    try:
        tune(**vars(arguments))
    except UserError as error:
        parser.error(f"--stories: {error.problems[0]}")
    print(f"written to {arguments.folder}")


def tune(
    stories: str,
    folder: Path,
    base: Path = SMOLLM2_FOLDER,
    *,
    epochs: int = 1,
    lr: float = 5e-5,
    seed: int = 0,
) -> None:
    """Fine-tune the model and write it, completely or not at all.

    Args:
        stories: path of the file.
        folder: folder of the new model, with its measurements in ``stories.json``.
        base: folder of the model to start from.
        epochs: passes over the stories.
        lr: peak learning rate of AdamW; linear warm-up over a tenth of the steps, then linear decay.
        seed: seed of the order of the stories.

    Raises:
        UserError: if the file is missing or malformed.
    """
    data = StoryInfilling(data=StoryData(stories=stories, n_train=_ALL)).load(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    train, test = ([_tokens(tokenizer, c) for c in own] for own in (data.train, data.evaluation))
    record = {"stories": len(train), "epochs": epochs, "lr": lr, "batch": BATCH, "seed": seed}
    record["held_out_nats_per_token_before"] = nats_per_token(model, test)
    batches = [
        batch for n in range(epochs) for batch in _batches(train, random.Random(f"{seed} {n}"))
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, len(batches) // 10, len(batches))
    model.train()
    for step, batch in enumerate(batches, 1):
        loss = _loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0 or step == len(batches):
            print(f"step {step} of {len(batches)}: {loss.item():.3f} nats a token", flush=True)
    record["held_out_nats_per_token"] = nats_per_token(model, test)
    print(json.dumps(record), flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        shutil.move(made, folder)


def nats_per_token(model: torch.nn.Module, stories: Sequence[Tensor]) -> float:
    """Return the mean cross-entropy over all tokens except the first of each story, which has no context."""
    model.eval()
    with torch.no_grad():
        sums = [_loss(model, [story]).item() * (len(story) - 1) for story in stories]
    return sum(sums) / sum(len(story) - 1 for story in stories)


def _tokens(tokenizer, condition: Condition) -> Tensor:
    """Tokenize a story, [T], as the reward does: nothing before its beginning or after its ending."""
    (term,) = condition.terms
    (middle,) = condition.facts["references"]
    return tokenizer(f"{term.context} {middle}{term.suffix}", return_tensors="pt").input_ids[0]


def _batches(stories: Sequence[Tensor], rng: random.Random) -> list[list[Tensor]]:
    """Batch stories of similar length, to minimize padding, in random order within and between batches."""
    order = sorted(stories, key=lambda story: (len(story), rng.random()))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    rng.shuffle(batches)
    return batches


def _loss(model: torch.nn.Module, stories: Sequence[Tensor]) -> Tensor:
    ids = torch.nn.utils.rnn.pad_sequence(stories, batch_first=True)  # [B, T]
    lengths = torch.tensor([len(story) for story in stories])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    labels = ids.masked_fill(~mask, -100)
    return model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss


if __name__ == "__main__":
    prepare_output()
    main()
