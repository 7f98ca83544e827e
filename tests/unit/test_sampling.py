"""Sampled strings against the law of the policy, written out over every string there is."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from gfn_runner.data.tools import Calculator
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.cache import reserve_capacity
from gfn_runner.lm.sampling import sample, with_tool
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.vocabulary import StringRule, allowed_mask

from ..tiny_models import all_strings, as_trajectories, at_end, tiny_lm

LETTERS = "abc."
DOT = LETTERS.index(".")
N = 6_000
PROMPTS = ((0, 1, 2, 2, 1), (2,), (1, 0, 0))


def rule(min_len: int = 0, max_len: int = 3, forbidden: tuple[int, ...] = ()) -> StringRule:
    return StringRule(DOT, min_len, max_len, allowed_mask(len(LETTERS), list(forbidden), DOT))


RULES = {
    "plain": rule(),
    "min_len": rule(min_len=2),
    "some_tokens": rule(forbidden=(1,)),
    "short": rule(max_len=1),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request):
    return tiny_lm(request.param, LETTERS, adapter="random", seed=0)


@torch.no_grad()
def law_by_hand(lm, prompt, strings_rule, temperature: float = 1.0) -> dict[tuple, float]:
    """Probability of every string: the tree walked with plain forwards, one for each prefix."""
    law, reached = {}, {(): 1.0}
    while reached:
        string, mass = reached.popitem()
        if len(string) == strings_rule.max_len:
            law[string] = mass
            continue
        logits_V = lm.whole_logits([[*prompt, *string]])[0, -1].double() / temperature
        open_V = strings_rule.allowed_V.clone()
        open_V[DOT] = len(string) >= strings_rule.min_len
        p_V = logits_V.masked_fill(~open_V, float("-inf")).softmax(0)
        if p_V[DOT] > 0:
            law[string] = mass * p_V[DOT].item()
        for token in range(len(p_V)):
            if token != DOT and p_V[token] > 0:
                reached[(*string, token)] = mass * p_V[token].item()
    return law


def counted(rows: Trajectories, condition: int = 0) -> Counter:
    chosen = (rows.condition_B == condition).nonzero()[:, 0].tolist()
    return Counter(tuple(rows.ids(row)) for row in chosen)


def assert_law(counts: Counter, law: dict[tuple, float]) -> None:
    """A chi-square test; strings expected fewer than 5 times count as one."""
    assert counts.keys() <= law.keys()
    total = counts.total()
    rare = {string for string, p in law.items() if p * total < 5}
    seen = [counts[string] for string in law if string not in rare]
    wanted = [total * p for string, p in law.items() if string not in rare]
    if rare:
        seen.append(sum(counts[string] for string in rare))
        wanted.append(total * sum(law[string] for string in rare))
    scale = total / sum(wanted)  # the law sums to 1 up to rounding
    assert len(wanted) > 1 and chisquare(seen, [scale * w for w in wanted]).pvalue > 1e-3


@pytest.mark.parametrize("case", RULES)
@torch.no_grad()
def test_samples_have_the_law_that_score_policy_states(lm, case):
    strings = all_strings(len(LETTERS), RULES[case])
    scores = score_policy(lm, PROMPTS[:1], as_trajectories(strings), RULES[case])
    end_B = at_end(scores.log_pf_stop_BS, as_trajectories(strings))
    p_B = (scores.log_pf_BT.sum(1) + end_B).exp().tolist()
    by_hand = law_by_hand(lm, PROMPTS[0], RULES[case])
    assert sum(p_B) == pytest.approx(1, abs=1e-5)
    assert dict(zip(strings, p_B, strict=True)) == pytest.approx(by_hand, abs=1e-5)
    rows = sample(lm, PROMPTS[:1], N, RULES[case], seeded())
    assert_law(counted(rows), dict(zip(strings, p_B, strict=True)))


def greedy_by_hand(lm, prompt, strings_rule) -> tuple[int, ...]:
    law = law_by_hand(lm, prompt, strings_rule, temperature=1e-6)
    return max(law, key=law.__getitem__)


@torch.no_grad()
def test_temperature_0_is_greedy(lm):
    for strings_rule in RULES.values():
        rows = sample(lm, PROMPTS, 3, strings_rule, seeded(), temperature=0)
        for place, prompt in enumerate(PROMPTS):
            expected = greedy_by_hand(lm, prompt, strings_rule)
            assert counted(rows, place) == {expected: 3}


def test_each_row_has_its_own_temperature(lm):
    temperatures = (0.0, 0.5, 1.0, 2.0)
    temperature_B = torch.tensor(temperatures).repeat_interleave(N // 2)
    rows = sample(lm, PROMPTS[:1], 2 * N, rule(), seeded(), temperature=temperature_B)
    for place, temperature in enumerate(temperatures):
        counts = counted(rows.rows(slice(place * N // 2, (place + 1) * N // 2)))
        if temperature == 0:
            assert counts == {greedy_by_hand(lm, PROMPTS[0], rule()): N // 2}
        else:
            assert_law(counts, law_by_hand(lm, PROMPTS[0], rule(), temperature))


def test_prompts_of_different_length_keep_their_laws(lm):
    rows = sample(lm, PROMPTS, N // 2, rule(), seeded())
    assert rows.condition_B.tolist() == [c for c in range(len(PROMPTS)) for _ in range(N // 2)]
    laws = [law_by_hand(lm, prompt, rule()) for prompt in PROMPTS]
    for place, law in enumerate(laws):
        assert_law(counted(rows, place), law)
    assert 0.5 * sum(abs(laws[0][string] - laws[1][string]) for string in laws[0]) > 0.05


def test_the_generator_alone_decides(lm):
    def drawn(seed: int) -> list[list[int]]:
        torch.seed()  # the global state has no say
        rows = sample(lm, PROMPTS, 50, rule(), seeded(seed))
        return [rows.ids(row) for row in range(len(rows))]

    assert drawn(1) == drawn(1) != drawn(2)


def test_rows_that_have_ended_leave_and_the_others_go_on(lm, monkeypatch):
    sizes = []
    extend = lm.extend

    def counting(prompt, token_NQ, *rest):
        sizes.append(len(token_NQ))
        return extend(prompt, token_NQ, *rest)

    monkeypatch.setattr(lm, "extend", counting)
    rows = sample(lm, PROMPTS, 300, rule(max_len=6), seeded())
    for step, size in enumerate(sizes):
        n_open = int((rows.length_B > step).sum())
        assert n_open <= size and 4 * (size - n_open) < size  # all that are open, and few others


@torch.no_grad()
def test_max_len_0_gives_empty_strings_of_probability_1(lm):
    rows = sample(lm, PROMPTS, 2, rule(max_len=0), seeded())
    assert rows.token_BT.shape == (6, 0) and rows.length_B.tolist() == [0] * 6
    scores = score_policy(lm, PROMPTS, rows, rule(max_len=0))
    assert scores.log_pf_stop_BS.tolist() == [[0.0]] * 6


SUMS = "12+=, -3456789."
TOOL = Calculator("expression")
STOP = SUMS.index(".")


def sum_rule(max_len: int, letters: str = "12+=,") -> StringRule:
    """Space and minus may not be written: only the calculator can put them there."""
    forbidden = [i for i, character in enumerate(SUMS) if character not in letters]
    return StringRule(STOP, 0, max_len, allowed_mask(len(SUMS), forbidden, STOP))


@pytest.fixture(scope="module")
def adding_lm():
    return tiny_lm("llama", SUMS, adapter="random", seed=1)


def test_a_tools_answer_is_an_observation(adding_lm):
    arguments = (adding_lm, [(0, 1)], 2000, sum_rule(6), seeded())
    rows = sample(*arguments, temperature=3.0, tool=TOOL)
    answered, at_the_bound, texts = 0, 0, set()
    for row in range(len(rows)):
        ids, length = rows.ids(row), int(rows.length_B[row])
        chosen = rows.is_action_BT[row, :length].tolist()
        written = adding_lm.decode([t for t, c in zip(ids, chosen, strict=True) if c])
        assert sum(chosen) <= 6 and set(written) <= set("12+=,")
        # What the tool said stands where it would have stood in a string by somebody else.
        assert with_tool(adding_lm, written, TOOL) == (tuple(ids), tuple(chosen))
        answered += not all(chosen)
        at_the_bound += sum(chosen) == 6 and not chosen[-1]
        texts.add(adding_lm.decode(ids))
    assert answered > 100 and any("1+2= 3" in text for text in texts)
    # The policy has no action left when it asks: the answer comes all the same.
    assert at_the_bound > 10


@torch.no_grad()
def test_with_a_tool_the_law_over_what_was_written_still_sums_to_1(adding_lm):
    strings_rule = sum_rule(4, "1+=")
    written = all_strings(len(SUMS), strings_rule)
    pairs = [with_tool(adding_lm, adding_lm.decode(s), TOOL) for s in written]
    rows = Trajectories.from_rows(*zip(*pairs, strict=True), [0] * len(pairs))
    assert not rows.is_action_BT[rows.token_mask_BT].all()
    scores = score_policy(adding_lm, [(0, 1)], rows, strings_rule)
    p_B = (scores.log_pf_BT.sum(1) + at_end(scores.log_pf_stop_BS, rows)).exp()
    assert p_B.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = sample(adding_lm, [(0, 1)], N, strings_rule, seeded(), tool=TOOL)
    law = {tokens: p for (tokens, _), p in zip(pairs, p_B.tolist(), strict=True)}
    assert_law(counted(drawn), law)


def test_the_tools_tokens_do_not_make_a_string_end(adding_lm):
    """An observation that holds the terminator is no end: the policy did not write it."""

    class Dots(Calculator):
        def answer(self, text: str) -> str | None:
            return ".." if text.count("=") == 1 else None

    rows = sample(adding_lm, [(0, 1)], 500, sum_rule(3), seeded(), tool=Dots())
    texts = Counter(adding_lm.decode(rows.ids(row)) for row in range(len(rows)))
    assert all("=.." in text for text in texts if "=" in text)
    assert any(len(text.split("=..")[-1]) > 0 for text in texts if "=.." in text)


def test_a_growing_cache_gives_the_logits_of_a_plain_one(lm):
    """Beyond its first capacity, and after a selection of rows, which must not write into the old one."""
    steps = torch.randint(1, 3, (40, 3), generator=seeded())

    def read(*, growing: bool) -> list[torch.Tensor]:
        prompt = lm.prefill(PROMPTS)
        if growing:
            reserve_capacity(prompt.cache)
        found, mask, index = [], prompt.mask_NP, torch.arange(3)
        for step, token_N in enumerate(steps):
            if step == 10:
                index = torch.tensor([2, 0])
                older, prompt, mask = prompt, prompt.select(index), mask[index]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            position_N = prompt.length_N + step
            found.append(lm.extend(prompt, token_N[index][:, None], mask, position_N[:, None]))
        assert older.cache.get_seq_length() == prompt.cache.get_seq_length() - 30
        return found

    with torch.no_grad():
        for plain, growing in zip(read(growing=False), read(growing=True), strict=True):
            torch.testing.assert_close(growing, plain, atol=1e-5, rtol=0)
