"""The direction of imports between rooms, as docs/architecture.md says: a room knows those before it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gfn_runner

PACKAGE = Path(gfn_runner.__file__).parent

# From left to right; the rooms of one line do not know each other. A folder may know itself.
ORDER = (
    {"errors", "types", "randomness", "paths"},
    {"files", "output"},
    {
        "expressions",
        "json_lines",
        "overrides",
        "tools",
        "schedules",
        "hubdata",
        "jsondata",
        "trajectories",
        "phases",
        "ranks",
    },
    {"phi", "replay", "textdata"},
    {"objectives"},
    {"lm"},
    {"posterior", "metrics"},
    {"tasks"},
    {"settings", "status_lines"},
    {"evaluation", "wandb_run"},
    {"baselines", "em", "measures", "optional_measures"},
    {"data", "module"},
    {"finetuning"},
    {"callbacks"},
    {"loggers"},
    {"report"},
    {"config", "sources"},
    {"sweeps"},
    {"commandline"},
    {"build", "checks", "environment", "inference"},
    {"rounds", "use"},
    {"resuming"},
    {"launching", "search"},
    {"app"},
    {"__main__", "rank"},
)

# What a file's own first line promises not to know, put as all that it does know of the package.
ONLY = {
    "errors": set(),
    "types": set(),
    "randomness": set(),
    "paths": set(),
    "expressions": set(),
    "files": {"errors"},
    "output": {"errors"},
    "json_lines": {"files"},
    "overrides": {"paths"},
    "tools": set(),
    "schedules": set(),
    "hubdata": {"errors"},
    "jsondata": {"errors"},
    "textdata": {"errors", "hubdata", "jsondata", "paths"},
    "trajectories": {"types"},
    "phi": {"trajectories"},
    "objectives": {"phi"},
    "replay": {"errors"},
    "settings": {"errors", "lm.settings", "metrics.judge", "paths", "ranks", "tasks.base", "types"},
    "metrics.accuracy": set(),
    "metrics.words": set(),
    "metrics.diversity": {"metrics.encoders", "metrics.words"},
    "metrics.encoders": {"lm.encoder", "lm.settings"},
    "metrics.overlap": {"metrics.words"},
    "metrics.judge": {"errors", "paths"},
    "metrics.distribution": set(),
    "metrics.predictive": set(),
    "lm.checkpoint_files": {"errors"},
    "lm.settings": {"errors", "lm.checkpoint_files", "paths"},
    "lm.architecture": {"errors"},
    "lm.gguf": {"errors"},
    "lm.pretrained": {"errors", "lm", "lm.architecture", "lm.gguf"},
    "lm.encoder": {"errors", "lm.checkpoint_files", "lm.pretrained", "lm.settings"},
    "lm.encoding": {"errors"},
    "lm.limits": {"lm.architecture"},
    "lm.output_layer": set(),
    "lm.chat": {"errors", "lm.encoding", "lm.settings", "types"},
    "lm.policy": {
        "errors", "lm.adapters", "lm.cache", "lm.chat", "lm.encoding", "lm.limits", "lm.output_layer",
        "lm.settings", "types",
    },
    "lm.adapters": {"errors", "lm.architecture", "lm.settings"},
    "lm.forward_check": {"errors", "lm.architecture", "lm.policy"},
    "lm.loading": {
        "lm.adapters", "lm.architecture", "lm.chat", "lm.forward_check", "lm.policy",
        "lm.pretrained", "lm.settings",
    },
    "lm.vocabulary": {"trajectories"},
    "lm.cache": set(),
    "lm.memory": set(),
    "lm.merging": set(),
    "lm.log_probs": {"lm.vocabulary", "trajectories"},
    "lm.decoding": {
        "lm.merging", "lm.policy", "lm.vocabulary", "trajectories",
    },
    "baselines.methods": {
        "errors", "lm.policy", "lm.vocabulary", "paths", "randomness", "settings", "tasks.base", "types",
    },
    "lm.sharding": {"lm.policy", "ranks"},
    "lm.sampling": {
        "lm.cache", "lm.decoding", "lm.encoding", "lm.merging", "lm.policy", "lm.vocabulary", "tools",
        "trajectories",
    },
    "lm.pieces": {"trajectories"},
    "lm.prefixes": {"lm.log_probs", "lm.pieces", "lm.policy", "lm.vocabulary", "trajectories"},
    "lm.scoring": {
        "lm.log_probs", "lm.merging", "lm.pieces", "lm.policy", "lm.prefixes", "lm.vocabulary",
        "trajectories", "types",
    },
    "lm.packing": {
        "errors", "lm.limits", "lm.pieces", "lm.policy", "lm.prefixes", "lm.scoring", "lm.vocabulary",
        "trajectories",
    },
    "lm.tiny.sums": {"expressions", "lm.tiny.sentences"},
    "lm.tiny.sentences": set(),
    "lm.tiny.stories": set(),
    "lm.tiny.news": set(),
    "lm.tiny.velan": set(),
    "lm.tiny.reviews": set(),
    "lm.tiny.numbers": set(),
    "lm.tiny.judge": {"lm.tiny", "lm.tiny.news", "lm.tiny.sentences", "lm.tiny.stories"},
    "lm.classifier": {
        "errors", "lm.checkpoint_files", "lm.checks", "lm.pretrained", "lm.settings",
    },
    "posterior.demands": {"errors", "paths"},
    "posterior.constraints": {"lm.classifier", "lm.policy", "posterior.demands", "types"},
    "posterior.reward": {
        "lm.packing", "lm.policy", "lm.scoring", "lm.vocabulary", "trajectories", "types",
    },
    "tasks.base": {"errors", "tools", "types"},
    "em": {
        "errors", "lm.policy", "lm.sampling", "lm.scoring", "lm.vocabulary", "randomness", "ranks",
        "settings", "status_lines", "tools", "trajectories", "types",
    },
    "phases": {"errors"},
    "status_lines": {"ranks"},
    "ranks": {"errors"},
    "report.runs": {"errors", "json_lines", "schedules"},
    "report.methods": {"report.runs", "report.table"},
    "report.pages": set(),
    "report.web": {"report.pages"},
    "report.charts": set(),
    "report.history": set(),
    "report.names": set(),
    "report.panels": {"report.charts", "report.history", "report.names", "report.pages"},
    "report.states": {"report.history", "report.pages", "report.runs"},
    "callbacks.live_report": {
        "callbacks.evaluation", "module", "ranks", "settings", "tasks.base",
    },
    "wandb_run": {"files", "randomness", "settings"},
    "report.headline": {"errors", "report.table"},
    "sweeps.record": {"errors", "files"},
    "sweeps.slurm": {"sweeps.record"},
    "sweeps.settings": {"errors", "ranks"},
    "sweeps.table": {"files", "report.table", "sweeps.record"},
    "search": set(),
    "sources": set(),
    "environment": set(),
}  # fmt: skip

MODEL_LIBRARIES = {"transformers", "peft", "tokenizers", "sentence_transformers"}
# Outside lm/, these silence transformers' log and take nothing else from there.
EXCEPTIONS = {"build", "use"}

LIGHTNING_ROOMS = {"module", "data", "callbacks", "loggers", "build", "ranks"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def imports(name: str, *, lazy: bool = True) -> set[str]:
    """Full names that a module imports; without ``lazy`` those that its own import needs."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not lazy:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are written out in full"
            found.add(node.module)
            # ``from gfn_runner import types`` and ``from gfn_runner.lm import policy``.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(TREES[name])
    return found


def own(name: str, *, lazy: bool = True) -> set[str]:
    """Modules of the package that a module imports."""
    found = {i.removeprefix("gfn_runner.") for i in imports(name, lazy=lazy) if "gfn_runner." in i}
    return (found & MODULES.keys()) - {"__init__"}


def libraries(name: str, *, lazy: bool = True) -> set[str]:
    return {i.split(".")[0] for i in imports(name, lazy=lazy)} - {"gfn_runner"}


def room(name: str) -> str:
    return name.split(".")[0]


PLACE = {name: number for number, rooms in enumerate(ORDER) for name in rooms}


def test_every_module_has_its_room():
    assert {room(name) for name in MODULES} - {"__init__"} == PLACE.keys()
    assert ONLY.keys() <= MODULES.keys()


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_a_room_knows_only_those_before_it(name):
    wrong = {
        other
        for other in own(name)
        if room(other) != room(name) and PLACE[room(other)] >= PLACE[room(name)]
    }
    assert not wrong, f"{name} imports {sorted(wrong)}"


@pytest.mark.parametrize("name", ONLY)
def test_what_a_module_promises_not_to_know(name):
    assert own(name) <= ONLY[name], f"{name} imports {sorted(own(name) - ONLY[name])}"


def test_no_circle_within_a_room_either():
    # static_order raises CycleError, with the circle, where there is one.
    order = list(TopologicalSorter({name: own(name) for name in MODULES}).static_order())
    assert MODULES.keys() <= set(order)


def test_no_task_knows_how_it_is_trained():
    training = {
        "objectives",
        "replay",
        "settings",
        "posterior",
    }  # what is to the right is out anyway
    # What a posterior demands is a task's to say; how it is rewarded is not.
    said_by_tasks = {other for other in MODULES if room(other) == "posterior"}
    said_by_tasks -= {"posterior.reward"}
    for name in MODULES:
        if room(name) == "tasks":
            assert not {room(other) for other in own(name) - said_by_tasks} & training, name
            assert not libraries(name) & {"torch", "lightning"}, name


def test_rooms_do_not_name_a_task():
    """Only the report on the embedded model's skill speaks of arithmetic."""
    named = {name for name in MODULES if "tasks.arithmetic" in own(name)}
    assert named == {"report.skill"}


def test_only_lm_knows_transformers_and_peft():
    for name in MODULES:
        used = {i for i in imports(name) if i.split(".")[0] in MODEL_LIBRARIES}
        if name in EXCEPTIONS:
            assert used <= {"transformers.utils", "transformers.utils.logging"}, name
        else:
            assert not used or room(name) == "lm", f"{name} imports {sorted(used)}"
    lm = {name for name in MODULES if room(name) == "lm" and libraries(name) & MODEL_LIBRARIES}
    assert lm == {
        "lm.adapters", "lm.cache", "lm.decoding", "lm.loading", "lm.merging", "lm.policy",
        "lm.architecture", "lm.checks", "lm.classifier", "lm.encoder", "lm.gguf", "lm.pretrained",
        "lm.tiny.pretrain", "lm.tiny.tokenizer",
    }  # fmt: skip


def test_only_the_training_rooms_know_lightning():
    assert {room(n) for n in MODULES if "lightning" in libraries(n)} == LIGHTNING_ROOMS


def reached_from(names: set[str]) -> set[str]:
    """Modules that importing these imports, all the way down."""
    waiting = list(names)
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += own(name, lazy=False)
    return reached


def test_a_config_is_checked_without_anything_heavy():
    """What importing the command line and every task imports, all the way down."""
    tasks = {name for name in MODULES if room(name) == "tasks" and name != "tasks.rule"}
    reached = reached_from({"commandline"} | tasks)
    assert {"config", "lm.settings", "objectives", "tasks.base", "tasks.posterior"} <= reached
    heavy = {"lightning", "wandb", "matplotlib", "scipy", "sklearn", "nltk", "openai", "bert_score"}
    heavy |= MODEL_LIBRARIES
    metrics = {name for name in MODULES if room(name) == "metrics"}
    for name in reached:
        assert "torch" not in libraries(name, lazy=False), name
    for name in reached | metrics:
        assert not libraries(name, lazy=False) & heavy, name


def test_finished_runs_are_reported_without_torch():
    reached = reached_from({"report.__main__", "report.across"})
    assert {"report.runs", "report.table", "json_lines", "tasks.base"} <= reached
    for name in reached:
        assert not libraries(name, lazy=False) & {"torch", "lightning", "scipy"}, name


def test_no_drawer_for_odds_and_ends():
    odds = {"utils", "util", "helpers", "misc", "common"}
    assert not {part for name in MODULES for part in name.split(".")} & odds


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name):
    if TREES[name].body:
        text = ast.get_docstring(TREES[name])
        assert text and text.splitlines()[0].endswith((".", ":")), name
