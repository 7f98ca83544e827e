"""Continuation, contrastive, translation and infilling: their conditions, posteriors and metrics."""

from __future__ import annotations

import pytest

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.synthetic import news, stories, velan
from gfn_runner.data.synthetic.judge import is_sentence
from gfn_runner.tasks.continuation import SentenceContinuation
from gfn_runner.tasks.contrastive import Contrastive
from gfn_runner.tasks.infilling import StoryInfilling
from gfn_runner.tasks.translation import Translation

from .test_text_tasks import KINDS, STORY_HEADER, keys, made, refused

PLOT = stories.Plot("Mia", "kite", "ask", "uncle", "barn", "drum", "got", "bell")


def samples(condition: Condition, *singles: str, terms=()) -> ConditionSamples:
    n = len(singles)
    return ConditionSamples(condition, (), singles, (0.0,) * n, (0.0,) * n, terms)


def test_shares_of_legal_and_of_grammatical_samples():
    task = SentenceContinuation(illegal=("|", "www"))
    story = stories.middles(PLOT)
    assert is_sentence(story[0])
    known = Condition("k", "k", (), group="a", facts={"grammar": True})
    unknown = Condition("u", "u", (), group="a")
    drawn = [
        samples(known, f" {story[0]}", "Mia the a", "b|c", "see www.x"),
        samples(unknown, story[1], "|", "fine"),
        samples(Condition("o", "o", (), group="b"), "fine"),
    ]
    assert task.metrics(drawn) == {
        "legal_share/a": pytest.approx(4 / 7),
        "grammatical_share/a": pytest.approx(1 / 4),
        "legal_share/b": 1.0,
    }


def test_every_topic_is_trained_on_and_evaluated():
    data = Contrastive(beta=-0.25).load(0)
    assert keys(data.train) == keys(data.evaluation) == [news.topic_prompt(t) for t in news.TOPICS]
    assert {c.group for c in data.evaluation} == {"topics"}
    for condition, topic in zip(data.evaluation, news.TOPICS, strict=True):
        assert condition.facts == {"grammar": True, "topic": topic}
        assert condition.terms == (
            Term(condition.prompt, weight=1.5), Term(news.NEWS_CONTEXT, weight=-0.25),
        )  # fmt: skip


def test_facts_of_the_topic_are_specific_and_information_is_of_both_terms():
    flood, fire = (
        Condition(t, t, (), group="topics", facts={"grammar": True, "topic": t})
        for t in ("flood", "fire")
    )
    fact, bland = news.FACTS["flood"][0], "The mayor of the town told the reporters"
    drawn = [
        samples(flood, f" {fact}", bland, terms=((-1.0, -4.0), (-2.0, -1.0))),
        samples(fire, fact, "no sentence", terms=((-6.0, -5.0), (-3.0, -9.0))),
        samples(Condition("file", "file", (), group="topics"), bland, terms=((-1.0, -2.0),)),
    ]
    measured = Contrastive().metrics(drawn)
    assert measured["specific_share/topics"] == pytest.approx(1 / 4)
    assert measured["pointwise_mutual_information/topics"] == pytest.approx((3 - 1 - 1 + 6 + 1) / 5)
    assert measured["grammatical_share/topics"] == pytest.approx(3 / 4)
    assert measured["legal_share/topics"] == 1.0
    bare = Contrastive().metrics([samples(Condition("f", "f", (), group="prompts"), bland)])
    assert bare == {"legal_share/prompts": 1.0}


def test_pairs_of_a_file_become_conditions(written):
    path = written("pairs.tsv", 'target\tnote\tsource\nthe "sea"\t\tmaro\nfox\tx\t vulo \n')
    test = written("t.csv", 'source,target\n"a, b",c\n')
    data = made(Translation, data={"pairs": path, "test": test}).load(0)
    assert keys(data.train) == ["maro", "vulo"] and keys(data.evaluation) == ["a, b"]
    prompt = "Velan: maro English:"
    facts = {"references": ('the "sea"',), "complete": False}
    assert data.train[0] == Condition("maro", prompt, (Term(prompt),), facts=facts)


def test_generated_sentences_know_all_their_translations():
    data = made(Translation, data={"n_train": 20, "n_test": 5}).load(0)
    for condition in (*data.train, *data.evaluation):
        words = condition.key[:-1].split()
        assert condition.facts["references"] == tuple(velan.translations(words))
        assert condition.facts["complete"]
        assert condition.prompt == f"Velan: {condition.key} English:" == velan.prompt(words)


def test_shares_of_right_translations_and_of_those_that_were_found():
    def condition(key: str, *references: str, complete: bool = True) -> Condition:
        facts = {"references": references, "complete": complete}
        return Condition(key, key, (), group="sentences", facts=facts)

    drawn = [
        samples(condition("a", "x y", "x z"), " x y.", "x y", "w", "x z ."),
        samples(condition("b", "v"), " v.", "v.", "v.", "u."),
        samples(condition("c", "u", complete=False), "u", "u", "u", "u"),
    ]
    assert Translation().metrics(drawn) == {
        "right_share/sentences": pytest.approx((2 / 4 + 3 / 4) / 2),
        "found_share/sentences": pytest.approx((1 / 2 + 1) / 2),
        "all_found_share/sentences": pytest.approx(1 / 2),
    }
    assert Translation().metrics(drawn[2:]) == {}


def test_a_story_is_cut_into_its_ends_and_its_middle(written):
    path = written("s.csv", STORY_HEADER + 'A b.,"C, d.",E!,F g.,H.\n')
    files = {"stories": path, "test": written("t.csv", KINDS["infilling"].text([0]))}
    (condition,) = made(StoryInfilling, data=files).load(0).train
    assert condition.key == "A b. C, d. E! … H."
    assert condition.prompt == "H.\nA b. C, d. E!"
    # The terminator begins the suffix: it is the middle's own full stop.
    assert condition.terms == (Term("A b. C, d. E!", ". H."),)
    assert condition.demonstrations == (" F g",) and condition.facts["references"] == ("F g",)
    assert condition.facts["beginning"] == "A b. C, d. E!" and condition.facts["ending"] == "H."
    assert "plot" not in condition.facts
    plain = made(StoryInfilling, data=files, demonstrate=False).load(0)
    assert not any(c.demonstrations for c in (*plain.train, *plain.evaluation))


def test_stories_with_the_same_ends_are_the_same(written):
    """Their middles may differ: the posterior is of the ends."""
    path = written("s.csv", STORY_HEADER + "a,b,c,one,e\na,b,c,two,e\n")
    task = made(StoryInfilling, data={"stories": path})
    assert "the same story as line 2" in refused(task)


def test_generated_stories_carry_their_plot():
    data = made(StoryInfilling, data={"n_train": 20, "n_test": 5}).load(0)
    assert {c.group for c in data.evaluation} == {"stories"}
    for condition in (*data.train, *data.evaluation):
        facts = condition.facts
        assert facts["references"][0] in stories.middles(facts["plot"])
        assert condition.prompt == f"{facts['ending']}\n{facts['beginning']}"
        assert condition.terms == (Term(facts["beginning"], f". {facts['ending']}"),)


def test_shares_of_samples_that_fit_each_end():
    known = Condition("k", "k", (), group="stories", facts={"plot": PLOT})
    both, beginning = "The uncle gave her a kite", "The uncle could not help her"
    drawn = [
        samples(
            known, f" {both}", beginning, "She found the kite there", "The uncle only had a bell"
        ),
        samples(Condition("f", "f", (), group="stories"), both),
        samples(Condition("g", "g", (), group="file"), "x"),
    ]
    assert StoryInfilling().metrics(drawn) == {
        "fits_both_share/stories": pytest.approx(1 / 4),
        "fits_beginning_share/stories": pytest.approx(3 / 4),
        "fits_ending_share/stories": pytest.approx(2 / 4),
    }


def test_lines_of_one_source_are_translations_of_it(written):
    path = written("p.tsv", "source\ttarget\na\tone\nb\ttwo\na\tuno\n")
    data = made(Translation, data={"pairs": path, "test": path}).load(0)  # all of it is tested
    references = {c.key: c.facts["references"] for c in data.evaluation}
    assert references == {"a": ("one", "uno"), "b": ("two",)}
    twice = written("q.tsv", "source\ttarget\na\tx\na\tx\n")
    assert "line 3" in refused(made(Translation, data={"pairs": twice}))


@pytest.mark.parametrize("template", ["{ending}|{beginning}|", "{beginning}: {ending} {beginning}"])
def test_the_posterior_of_a_story_that_was_typed(template):
    task = StoryInfilling(template=template)
    known = task._condition("A b. C.", "D.", "E (f).")
    typed = task.condition_for(known.prompt, 0)
    assert typed is not None and typed.prompt == known.prompt and typed.terms == known.terms
    assert typed.terms[0].suffix == task.answer_suffix("E (f).")
    assert task.condition_for("something else", 0) is None
