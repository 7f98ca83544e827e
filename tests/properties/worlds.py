"""Random tiny language models, rules, ragged strings and posteriors."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from hypothesis import strategies as st

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.tools import Tool
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule, allowed_mask
from tests.tiny_models import ARCHITECTURES, tiny_lm

# Few and short, so that prompts, strings and tools fit into the context of 64 tokens.
ALPHABETS = ("ab.", "abc=.", "0123=+-,.", "abcdefghij=?.")
_LAYERS = {"gpt2": "n_layer", "gptj": "n_layer"}


@functools.lru_cache(maxsize=64)
def _lm(architecture: str, characters: str, layers: int, adapter: str, seed: int) -> LanguageModel:
    config = {_LAYERS.get(architecture, "num_hidden_layers"): layers}
    if architecture == "qwen2":
        config["max_window_layers"] = layers
    return tiny_lm(architecture, characters, adapter=adapter, seed=seed, config=config)


@dataclass(frozen=True)
class World:
    """A model with its characters, a rule for strings, and some strings of it."""

    name: str
    lm: LanguageModel
    characters: str
    rule: StringRule
    contexts: tuple[tuple[int, ...], ...]
    suffixes: tuple[tuple[int, ...], ...]
    rows: Trajectories

    def __repr__(self) -> str:
        return (
            f"World({self.name}, {self.characters!r}, {self.rule}, {self.contexts}, "
            f"{self.suffixes}, {self.rows.strings()}, {self.rows.is_action_BT.tolist()}, "
            f"{self.rows.condition_B.tolist()})"
        )


@st.composite
def worlds(draw, with_tool: bool = True) -> World:
    architecture = draw(st.sampled_from(sorted(ARCHITECTURES)))
    characters = draw(st.sampled_from(ALPHABETS))
    layers, adapter = draw(st.integers(1, 2)), draw(st.sampled_from(["none", "random"]))
    seed = draw(st.integers(0, 2))
    lm = _lm(architecture, characters, layers, adapter, seed)
    token = st.integers(0, len(characters) - 1)
    n_conditions = draw(st.integers(1, 3))
    contexts = tuple(
        tuple(draw(st.lists(token, min_size=1, max_size=6))) for _ in range(n_conditions)
    )
    dot = characters.index(".")
    suffixes = tuple(
        ((dot,) if draw(st.booleans()) else (draw(token),))
        + tuple(draw(st.lists(token, max_size=3)))
        for _ in range(n_conditions)
    )
    strings = draw(st.lists(st.lists(token, max_size=6), min_size=1, max_size=5))
    actions = [[not with_tool or draw(st.integers(0, 3)) > 0 for _ in string] for string in strings]
    conditions = [draw(st.integers(0, n_conditions - 1)) for _ in strings]
    rows = Trajectories.from_rows(strings, actions, conditions)
    max_len = max([1, *map(sum, actions)]) + draw(st.integers(0, 1))
    rule = draw(rules(characters, max_len))
    name = f"{architecture} of {layers} layers, adapter {adapter}, seed {seed}"
    return World(name, lm, characters, rule, contexts, suffixes, rows)


@st.composite
def rules(draw, characters: str, max_len: int) -> StringRule:
    dot = characters.index(".")
    forbidden = draw(st.lists(st.integers(0, len(characters) - 1), max_size=2))
    left = set(range(len(characters))) - set(forbidden) - {dot}
    allowed_V = allowed_mask(len(characters), forbidden if left else [], dot)
    return StringRule(dot, draw(st.integers(0, min(2, max_len))), max_len, allowed_V)


def texts(characters: str, least: int = 0, most: int = 5):
    return st.text(alphabet=characters, min_size=least, max_size=most)


@st.composite
def conditions(draw, characters: str) -> Condition:
    """A posterior of one to three terms: weights of both signs, rivals, suffixes of all lengths."""
    terms = tuple(
        Term(
            draw(texts(characters, 1)),
            draw(texts(characters, 0, 3)),
            draw(st.sampled_from([1.0, 0.5, 2.0, 0.0, -1.0])),
            tuple(draw(st.lists(texts(characters, 1, 3), max_size=2))),
            draw(st.sampled_from([0.0, 4.0])),
        )
        for _ in range(draw(st.integers(1, 3)))
    )
    return Condition(str(draw(st.integers())), draw(texts(characters, 1)), terms)


class UnreliableTool(Tool):
    """Answers ``=`` with nothing, an empty text, or characters, triggers and terminators among them."""

    trigger = "="

    def __init__(self, answers: tuple[str | None, ...]):
        self.answers = answers

    def answer(self, text: str) -> str | None:
        return self.answers[len(text) % len(self.answers)]


@st.composite
def tools(draw, characters: str) -> UnreliableTool | None:
    answer = st.one_of(st.none(), texts(characters, 0, 3))
    return draw(
        st.one_of(
            st.none(), st.lists(answer, min_size=1, max_size=3).map(tuple).map(UnreliableTool)
        )
    )
