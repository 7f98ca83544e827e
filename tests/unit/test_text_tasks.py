"""Numbers, continuation, contrastive, translation, infilling: their data, user errors and metrics."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.synthetic import news, stories, velan
from gfn_runner.data.synthetic.judge import is_sentence
from gfn_runner.errors import UserError
from gfn_runner.metrics.distribution import expected_empirical_kl
from gfn_runner.runtime.targets import instantiate
from gfn_runner.tasks.base import GFlowNetModule
from gfn_runner.tasks.continuation import SentenceContinuation
from gfn_runner.tasks.contrastive import Contrastive
from gfn_runner.tasks.infilling import StoryInfilling
from gfn_runner.tasks.random_number import RandomNumbers
from gfn_runner.tasks.translation import Translation

COLUMNS = [f"sentence{number}" for number in range(1, 6)]


@pytest.fixture
def written(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return str(path)

    return write


def prompts(n: int, first: int = 0) -> str:
    return "".join(f"prompt {number}\n" for number in range(first, first + n))


def pairs(n: int, first: int = 0) -> str:
    rows = "".join(f"s{number}\tt{number}\n" for number in range(first, first + n))
    return f"source\ttarget\n{rows}"


def story_rows(n: int, first: int = 0) -> str:
    rows = "".join(
        ",".join(f"{part}{number}." for part in "abcde") + "\n"
        for number in range(first, first + n)
    )
    return ",".join(COLUMNS) + "\n" + rows


# Task, its setting for a file, rows of a file, name of the evaluation set.
KINDS = {
    "continuation": (SentenceContinuation, "prompts", prompts, "prompts", ".txt"),
    "contrastive": (Contrastive, "prompts", prompts, "prompts", ".txt"),
    "translation": (Translation, "pairs", pairs, "sentences", ".tsv"),
    "infilling": (StoryInfilling, "stories", story_rows, "stories", ".csv"),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def made(Kind: type[GFlowNetModule], **options) -> GFlowNetModule:
    """A task of a config's values, as a run makes it."""
    node = {"_target_": f"{Kind.__module__}.{Kind.__qualname__}", **options}
    return instantiate("task", node, GFlowNetModule)


def keys(conditions) -> list[str]:
    return [condition.key for condition in conditions]


def problems_of(task) -> dict[str, str]:
    return {problem.where: str(problem) for problem in task.problems()}


def refused(task) -> str:
    with pytest.raises(UserError) as caught:
        task.load(0)
    return str(caught.value)


# -- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("Kind", "options", "where"),
    [
        (SentenceContinuation, {"validator": "nowhere.at_all.judge"}, "task.validator"),
        (SentenceContinuation, {"validator": "keyword.nothing"}, "task.validator"),
        (SentenceContinuation, {"validator": "nodots"}, "task.validator"),
        (SentenceContinuation, {"validator": "keyword.kwlist"}, "task.validator"),
        (Contrastive, {"alpha": 0.0}, "task.alpha"),
        (Contrastive, {"alpha": -1.0}, "task.alpha"),
        (Contrastive, {"beta": 0.0}, "task.beta"),
        (Contrastive, {"beta": 0.5}, "task.beta"),
        (Translation, {"template": "Velan: English:"}, "task.template"),
        (StoryInfilling, {"template": "Story: {ending}"}, "task.template"),
        (StoryInfilling, {"template": "Story: {beginning}"}, "task.template"),
        (RandomNumbers, {"low": 5, "high": 5}, "task.high"),
        (RandomNumbers, {"prompt": " "}, "task.prompt"),
        (RandomNumbers, {"distribution": "binomial", "parameter": 1.0}, "task.parameter"),
        (RandomNumbers, {"distribution": "geometric", "parameter": 1.5}, "task.parameter"),
        (RandomNumbers, {"distribution": "zipf", "parameter": 1.0}, "task.parameter"),
        # Some numbers would have probability 0, …
        (RandomNumbers, {"distribution": "normal", "parameter": 0.5}, "task.parameter"),
        (RandomNumbers, {"distribution": "binomial", "parameter": 1e-9}, "task.parameter"),
        # … or all of them.
        (RandomNumbers, {"distribution": "normal", "parameter": 0.01, "high": 101}, "task.parameter"),
        (RandomNumbers, {"distribution": "poisson", "parameter": 1e6}, "task.parameter"),
        (RandomNumbers, {"min_len": 9, "eval_max_len": 9}, "task.min_len"),
        (RandomNumbers, {"min_len": 4, "max_len": 9, "eval_max_len": 3}, "task.eval_max_len"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(Kind, options, where):
    if Kind is RandomNumbers:
        options = {"max_len": 5} | options
    assert problems_of(Kind(**options)).keys() == {where}


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("Kind", "name"),
    [(Contrastive, "alpha"), (Contrastive, "beta"), (RandomNumbers, "parameter"),
     (RandomNumbers, "penalty")],
)  # fmt: skip
def test_numbers_of_the_settings_are_finite_and_some_positive(Kind, name, value):
    if Kind is Contrastive and value == -1.0:
        return
    options = {"distribution": "poisson"} if Kind is RandomNumbers else {}
    with pytest.raises(UserError) as caught:
        made(Kind, **options, **{name: value})
    assert [problem.where for problem in caught.value.problems] == [f"task.{name}"]


@pytest.mark.parametrize(
    ("Kind", "options"),
    [
        *((Kind, {"data": {n: 0}}) for Kind, *_ in KINDS.values() for n in ("n_train", "n_test")),
        (RandomNumbers, {"distribution": "poisson", "parameter": 0.0}),
        (RandomNumbers, {"penalty": 0.0}),
        (SentenceContinuation, {"illegal": ("",)}),
    ],
)
def test_settings_out_of_bounds(Kind, options):
    with pytest.raises(UserError) as caught:
        made(Kind, **options)
    (problem,) = caught.value.problems
    assert problem.where.startswith("task.")


# -- files, whatever the task ----------------------------------------------------------------------


def test_some_rows_are_kept_out_where_there_is_no_test_file(kind, written):
    Kind, key, rows, group, suffix = kind
    path = written("data" + suffix, rows(20))
    data = made(Kind, data={key: path, "n_test": 5}).load(0)
    assert len(data.train) == 15 and len(data.evaluation) == 5
    assert len({*keys(data.train), *keys(data.evaluation)}) == 20
    assert {c.group for c in data.evaluation} == {group} and {c.group for c in data.train} == {
        "train"
    }
    # Not simply the first or the last ones, and the same for every seed.
    everything = keys(
        made(Kind, data={key: path, "test": written("x" + suffix, rows(1, 99))}).load(0).train
    )
    assert keys(data.evaluation) not in (everything[:5], everything[-5:])
    again = made(Kind, data={key: path, "n_test": 5}).load(7)
    assert keys(again.evaluation) == keys(data.evaluation) and keys(again.train) == keys(data.train)


def test_at_most_half_of_a_small_file_is_kept_out(kind, written):
    Kind, key, rows, _, suffix = kind
    data = made(Kind, data={key: written("data" + suffix, rows(6)), "n_test": 50}).load(0)
    assert (len(data.train), len(data.evaluation)) == (3, 3)
    assert "two or more" in refused(made(Kind, data={key: written("one" + suffix, rows(1))}))


def test_what_is_in_the_test_file_is_not_trained_on_and_counted(kind, written):
    Kind, key, rows, group, suffix = kind
    files = {key: written("data" + suffix, rows(10)), "test": written("test" + suffix, rows(6, 7))}
    data = made(Kind, data=files).load(0)
    assert len(data.train) == 7 and len(data.evaluation) == 6
    assert not {*keys(data.train)} & {*keys(data.evaluation)}
    assert {c.group for c in data.evaluation} == {group}
    (note,) = data.notes
    assert note.startswith("3 training ") and note.endswith("dropped: in the test file")
    apart = files | {"test": written("apart" + suffix, rows(3, 50))}
    assert made(Kind, data=apart).load(0).notes == ()


def test_a_row_twice_is_named_with_both_lines(kind, written):
    Kind, key, rows, _, suffix = kind
    text = rows(3)
    text += text.splitlines()[-1] + "\n"
    last = len(text.splitlines())
    if Kind in (SentenceContinuation, Contrastive):
        # Web text repeats itself.
        path = written("data" + suffix, text)
        data = made(Kind, data={key: path, "n_test": 1}).load(0)
        assert len(data.train) + len(data.evaluation) == 3
        assert data.notes == (f"1 repeated prompts of {path} dropped",)
        return
    message = refused(made(Kind, data={key: written("data" + suffix, text)}))
    assert f"data{suffix}, line {last}: the same " in message and f"as line {last - 1}" in message


def test_files_that_are_not_there_are_named_before_anything_is_read(kind, tmp_path, written):
    Kind, key, rows, _, suffix = kind
    found = problems_of(made(Kind, data={key: str(tmp_path / "none"), "test": str(tmp_path)}))
    assert "no such file" in found[f"task.data.{key}"] and "a folder" in found["task.data.test"]
    assert not problems_of(made(Kind, data={key: written("d" + suffix, rows(2))}))
    assert not problems_of(Kind())


def test_generated_data_are_evaluated_on_a_file(kind, written):
    Kind, _, rows, _, suffix = kind
    data = made(Kind, data={"test": written("t" + suffix, rows(5)), "n_test": 3, "n_train": 20})
    assert not problems_of(data)
    data, drawn = data.load(0), made(Kind, data={"n_train": 20, "n_test": 3}).load(0)
    assert keys(data.train) == keys(drawn.train)
    assert len(data.evaluation) == 3 and not set(keys(data.evaluation)) & set(
        keys(drawn.evaluation)
    )


def test_what_is_tested_leaves_generated_training_data(written):
    numbers = {"n_train": 20, "n_test": 3}
    drawn = made(SentenceContinuation, data=numbers).load(0)
    path = written("t.txt", f"{drawn.train[4].prompt}\nanother one\n")
    data = made(SentenceContinuation, data=numbers | {"test": path}).load(0)
    assert keys(data.train) == [key for key in keys(drawn.train) if key != drawn.train[4].key]
    assert keys(data.evaluation) == [drawn.train[4].key, "another one"]


# -- generated data, whatever the task -------------------------------------------------------------


@pytest.mark.parametrize("Kind", [SentenceContinuation, Translation, StoryInfilling])
def test_generated_data_are_as_many_as_asked_for_and_disjoint(Kind):
    task = made(Kind, data={"n_train": 30, "n_test": 8})
    data, other = task.load(0), task.load(1)
    groups = [c.group for c in data.evaluation]
    assert len(data.train) == 30 and {groups.count(group) for group in groups} == {8}
    for each in (data, other):
        assert len({*keys(each.train), *keys(each.evaluation)}) == 30 + len(groups)
    # The seed changes what is trained on and leaves what is evaluated.
    assert keys(other.evaluation) == keys(data.evaluation)
    assert keys(other.train) != keys(data.train) == keys(task.load(0).train)


def test_more_sentences_than_the_toy_language_has_are_refused():
    """They are drawn until there are enough."""
    n = math.prod(map(len, (velan.VERBS, velan.NOUNS, velan.ADJECTIVES))) * (len(velan.NOUNS) - 1)
    found = problems_of(made(Translation, data={"n_train": n, "n_test": 1}))
    assert str(n) in found["task.data.n_train"]
    assert not problems_of(made(Translation, data={"n_train": n - 1, "n_test": 1}))


# -- continuation ----------------------------------------------------------------------------------


def samples(condition: Condition, *singles: str, terms=()) -> ConditionSamples:
    n = len(singles)
    return ConditionSamples(condition, (), singles, (0.0,) * n, (0.0,) * n, terms)


def test_shares_of_legal_and_of_grammatical_samples():
    task = SentenceContinuation(illegal=("|", "www"))
    story = stories.middles(
        stories.Plot("Mia", "kite", "ask", "uncle", "barn", "drum", "got", "bell")
    )
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


# -- contrastive -----------------------------------------------------------------------------------


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


# -- translation -----------------------------------------------------------------------------------


def test_pairs_of_a_file_become_conditions(written):
    path = written("pairs.tsv", 'target\tnote\tsource\nthe "sea"\t\tmaro\nfox\tx\t vulo \n')
    task = made(
        Translation, data={"pairs": path, "test": written("t.csv", 'source,target\n"a, b",c\n')}
    )
    data = task.load(0)
    assert keys(data.train) == ["maro", "vulo"] and keys(data.evaluation) == ["a, b"]
    prompt = "Velan: maro English:"
    facts = {"references": ('the "sea"',), "complete": False}
    assert data.train[0] == Condition("maro", prompt, (Term(prompt),), facts=facts)


def test_generated_sentences_know_all_their_translations():
    data = made(Translation, data={"n_train": 20, "n_test": 5}).load(0)
    for condition in (*data.train, *data.evaluation):
        assert condition.facts["references"] == tuple(
            velan.translations(condition.key[:-1].split())
        )
        assert (
            condition.facts["complete"] and condition.prompt == f"Velan: {condition.key} English:"
        )
        assert condition.prompt == velan.prompt(condition.key[:-1].split())


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


# -- infilling -------------------------------------------------------------------------------------


def test_a_story_is_cut_into_its_ends_and_its_middle(written):
    path = written("s.csv", ",".join(COLUMNS) + '\nA b.,"C, d.",E!,F g.,H.\n')
    files = {"stories": path, "test": written("t.csv", story_rows(1))}
    (condition,) = made(StoryInfilling, data=files, demonstrate=True).load(0).train
    assert condition.key == "A b. C, d. E! … H."
    assert condition.prompt == "Beginning: A b. C, d. E!\nEnding: H.\nMiddle:"
    # The terminator begins the suffix: it is the middle's own full stop.
    assert condition.terms == (Term("A b. C, d. E!", ". H."),)
    assert condition.demonstrations == (" F g",) and condition.facts["references"] == ("F g",)
    assert condition.facts["beginning"] == "A b. C, d. E!" and condition.facts["ending"] == "H."
    assert "plot" not in condition.facts
    plain = made(StoryInfilling, data=files).load(0)
    assert not any(c.demonstrations for c in (*plain.train, *plain.evaluation))


def test_the_columns_of_the_story_cloze_test(written):
    header = (
        "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
        "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
    )
    path = written("s.csv", header + "i,A.,B.,C.,D.,E.,F.,2\nj,a.,b.,c.,d.,e.,f.,1\n")
    files = {"stories": path, "test": written("t.csv", story_rows(1))}
    first, second = made(StoryInfilling, data=files).load(0).train
    assert first.terms == (Term("A. B. C.", ". F."),) and first.facts["references"] == ("D",)
    assert second.facts["ending"] == "e."
    path = written("s.csv", header + "i,A.,B.,C.,D.,E.,F.,0\nj,a.,b.,,d.,e.,f.,1\n")
    message = refused(made(StoryInfilling, data={"stories": path}))
    assert "line 2, field AnswerRightEnding: given '0'" in message
    assert "line 3, field InputSentence3: empty" in message


def test_stories_with_the_same_ends_are_the_same(written):
    """Their middles may differ: the posterior is of the ends."""
    text = ",".join(COLUMNS) + "\na,b,c,one,e\na,b,c,two,e\n"
    assert "the same story as line 2" in refused(
        made(StoryInfilling, data={"stories": written("s.csv", text)})
    )


def test_generated_stories_carry_their_plot():
    data = made(StoryInfilling, data={"n_train": 20, "n_test": 5}).load(0)
    assert {c.group for c in data.evaluation} == {"stories"}
    for condition in (*data.train, *data.evaluation):
        facts = condition.facts
        assert facts["references"][0] in stories.middles(facts["plot"])
        assert condition.prompt == stories.infill_prompt(facts["beginning"], facts["ending"])
        assert condition.terms == (Term(facts["beginning"], f". {facts['ending']}"),)


def test_shares_of_samples_that_fit_each_end():
    plot = stories.Plot("Mia", "kite", "ask", "uncle", "barn", "drum", "got", "bell")
    known = Condition("k", "k", (), group="stories", facts={"plot": plot})
    drawn = [
        samples(
            known,
            " The uncle gave her a kite",
            "The uncle could not help her",
            "She found the kite there",
            "The uncle only had a bell",
        ),
        samples(Condition("f", "f", (), group="stories"), "The uncle gave her a kite"),
        samples(Condition("g", "g", (), group="file"), "x"),
    ]
    assert StoryInfilling().metrics(drawn) == {
        "fits_both_share/stories": pytest.approx(1 / 4),
        "fits_beginning_share/stories": pytest.approx(3 / 4),
        "fits_ending_share/stories": pytest.approx(2 / 4),
    }


# -- random numbers --------------------------------------------------------------------------------

LOW, HIGH = 3, 12
FAMILIES = {
    "uniform": (0.5, lambda k: stats.randint(LOW, HIGH + 1).pmf(k)),
    "binomial": (0.3, lambda k: stats.binom(HIGH - LOW, 0.3, loc=LOW).pmf(k)),
    "poisson": (2.5, lambda k: stats.poisson(2.5, loc=LOW).pmf(k)),
    "geometric": (0.2, lambda k: stats.geom(0.2, loc=LOW - 1).pmf(k)),
    "zipf": (1.5, lambda k: stats.zipf(1.5, loc=LOW - 1).pmf(k)),
    "normal": (2.0, lambda k: stats.norm((LOW + HIGH) / 2, 2.0).pdf(k)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_distribution_is_scipys_cut_to_its_range(name):
    parameter, mass = FAMILIES[name]
    task = RandomNumbers(low=LOW, high=HIGH, distribution=name, parameter=parameter)
    found = task.probabilities()
    known = [mass(k) for k in range(LOW, HIGH + 1)]
    assert list(found) == list(range(LOW, HIGH + 1)) and not problems_of(task)
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    assert list(found.values()) == pytest.approx([value / sum(known) for value in known])


def test_the_condition_is_the_same_in_training_and_evaluation():
    task = RandomNumbers(low=0, high=2, distribution="binomial", parameter=0.7, penalty=2.0)
    data = task.load(0)
    (train,), (evaluation,) = data.train, data.evaluation
    assert evaluation.group == "numbers" and train.group == "train" and train.terms == ()
    assert train.prompt == task.prompt and train.facts == evaluation.facts
    values = [math.log(0.09), math.log(0.42), math.log(0.49)]
    assert list(train.facts["table"]) == [" 0", " 1", " 2"]
    assert list(train.facts["table"].values()) == pytest.approx(values)
    (factor,) = task.constraints()
    assert factor.penalty == 2.0
    assert factor.satisfied(train, " 2") and not factor.satisfied(train, "2")
    assert task.condition_for(task.prompt + " ", 0) == train
    assert task.condition_for("another", 0) is None


def test_distances_are_of_the_valid_numbers():
    task = RandomNumbers(low=0, high=2, distribution="binomial", parameter=0.7)
    (condition,) = task.load(0).evaluation
    drawn = samples(condition, " 2", " 2", " 1", "2", " 3", " 2", " 1", "", " 1", " 2")
    measured = task.metrics([drawn])
    target, share = [0.09, 0.42, 0.49], [0.0, 3 / 7, 4 / 7]
    kl = sum(p * math.log(p / q) for p, q in zip(share, target, strict=True) if p)
    floor = expected_empirical_kl(target, 7)
    assert measured == {
        "invalid_share/numbers": pytest.approx(0.3),
        "n_samples/numbers": 10.0,
        "kl/numbers": pytest.approx(kl),
        "tv/numbers": pytest.approx(0.09),
        "kl_floor/numbers": pytest.approx(floor),
        "kl_over_floor/numbers": pytest.approx(kl / floor),
    }
    assert task.metrics([samples(condition, "x", "2")]) == {
        "invalid_share/numbers": 1.0, "n_samples/numbers": 2.0,
    }  # fmt: skip


def test_lines_of_one_source_are_translations_of_it(written):
    path = written("p.tsv", "source\ttarget\na\tone\nb\ttwo\na\tuno\n")
    data = made(Translation, data={"pairs": path, "test": path}).load  # all of it is tested
    with pytest.raises(UserError):
        made(Translation, data={"pairs": written("q.tsv", "source\ttarget\na\tx\na\tx\n")}).load(0)
    conditions = {c.key: c.facts["references"] for c in data(0).evaluation}
    assert conditions == {"a": ("one", "uno"), "b": ("two",)}


@pytest.mark.parametrize("template", ["{ending}|{beginning}|", "{beginning}: {ending} {beginning}"])
def test_the_posterior_of_a_story_that_was_typed(template):
    task = StoryInfilling(template=template)
    known = task._condition("A b. C.", "D.", "E (f).")
    typed = task.condition_for(known.prompt, 0)
    assert typed is not None and typed.prompt == known.prompt and typed.terms == known.terms
    assert typed.terms[0].suffix == task.answer_suffix("E (f).")
    assert task.condition_for("something else", 0) is None
