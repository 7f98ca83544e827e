"""Validation of a composed config, and the resolver that creates a run's folder."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gfn_runner.errors import UserError

if TYPE_CHECKING:
    from gfn_runner.config.run_config import RunConfig
    from gfn_runner.data.samples import TaskData

_PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout, conf is next to the package; in a wheel, inside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"


def new_folder(wanted: Path) -> Path:
    """Create a folder, appending a number if the name is taken.

    Two processes that request the same folder get different ones.
    """
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count never ends")


# Cached by OmegaConf, so that the folder is the same wherever the config is resolved.
OmegaConf.register_new_resolver(
    "new_folder", lambda path: str(new_folder(Path(str(path)))), use_cache=True, replace=True
)


def check_config(composed: DictConfig, loaded: dict[str, TaskData] | None = None) -> RunConfig:
    """Validate a config composed by Hydra, ignoring Hydra's own node.

    Raises:
        UserError: lists all problems.
    """
    # Imports torch and Lightning, which reporting a mistyped key doesn't need.
    from gfn_runner.config.validation import check

    plain = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        values: Any = OmegaConf.to_container(plain, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError.one(str(error.full_key or "config"), str(error).splitlines()[0]) from error
    return check(values, loaded=loaded)
