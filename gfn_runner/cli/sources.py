"""Where the value of a config key was set: the command line, or a file and line of ``conf``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml


class Sources:
    """Answers for one composed config.

    Args:
        conf: folder of the yaml files.
        choices: chosen file per group, as Hydra gives them.
        overridden: keys set on the command line.
    """

    def __init__(self, conf: Path, choices: Mapping[str, str], overridden: Sequence[str]):
        self.conf, self.choices, self.overridden = conf, choices, overridden

    def __call__(self, key: str) -> str:
        """``command line``, ``conf/optim/adamw.yaml:3``, or nothing if it is a default."""
        path = key.replace("[", ".").replace("]", "").split(".")
        for length in range(len(path), 0, -1):
            if ".".join(path[:length]) in self.overridden:
                return "command line"
        for file, package in self._files():
            inner = path[len(package) :]
            if path[: len(package)] == package and inner:
                line = _line_of(file, inner)
                if line:
                    return f"{file.relative_to(self.conf.parent)}:{line}"
        return ""

    def _files(self) -> Iterator[tuple[Path, list[str]]]:
        """Chosen files with the keys they stand under, those that win first."""
        experiment = self.choices.get("experiment")
        if experiment and experiment != "null":
            yield from self._with_parents(self.conf / "experiment" / f"{experiment}.yaml", [])
        yield self.conf / "config.yaml", []
        for group, choice in self.choices.items():
            if group != "experiment" and not group.startswith("hydra/") and choice:
                file = self.conf / group / f"{choice}.yaml"
                yield from self._with_parents(file, group.split("/"))

    def _with_parents(self, file: Path, package: list[str]) -> Iterator[tuple[Path, list[str]]]:
        if not file.is_file():
            return
        yield file, package
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        defaults = content.get("defaults", []) if isinstance(content, dict) else []
        for entry in defaults:
            if isinstance(entry, str) and entry != "_self_":
                yield from self._with_parents(file.parent / f"{entry}.yaml", package)


def _line_of(file: Path, path: Sequence[str]) -> int:
    """Line of a nested key, counted from 1; 0 if the file does not have it."""
    node, line = yaml.compose(file.read_text(encoding="utf-8")), 0
    for name in path:
        if not isinstance(node, yaml.MappingNode):
            # An entry of a list: the line of its key says enough.
            return line
        found = [(k, v) for k, v in node.value if k.value == name]
        if not found:
            return 0
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line
