"""The paper's tables on SmolLM2-135M: runs of each, rows, columns, and the paper's own numbers.

Steps, lengths and evaluation sizes are in ``conf/experiment/smollm2``; what a method overrides, its seeds and
its minutes are here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paper_real_data import STORY_MODEL, TEST
from seed_tables import Job

from gfn_runner.runtime.overrides import quoted


@dataclass(frozen=True)
class Method:
    """Runs of a table, one per seed.

    Attributes:
        minutes: estimated time of a run on two idle cores: about half its CPU minutes where measured.
        overrides: ``{runs}`` is replaced by the table's folder, ``{seed}`` by the seed.
        seeds: number of seeds.
    """

    minutes: int
    overrides: tuple[str, ...] = ()
    seeds: int = 3


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        title: label of the row.
        method: method whose runs it shows.
        row: row prefix in ``metrics.json``: ``final``, or a row without training.
        paper: the paper's numbers, one per column; empty if it has none.
    """

    title: str
    method: str
    row: str = "final"
    paper: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        title: includes the paper's number of the table.
        experiment: name in ``conf/experiment/smollm2``.
        data: config keys to files of ``paper_real_data``.
        columns: titles to metrics, without a row prefix.
        note: what a reader should know about the table.
        common: overrides of all methods.
    """

    title: str
    experiment: str
    data: Mapping[str, str]
    methods: Mapping[str, Method]
    rows: Sequence[Row]
    columns: Mapping[str, str]
    note: str = ""
    common: tuple[str, ...] = field(default=())


def jobs_of(name: str, folder: Path) -> list[Job]:
    """Return the runs of a table; runs that learn from another run of the same seed come after it.

    Args:
        name: name of the table.
        folder: absolute path of the folder of all runs and of the data.
    """
    table, runs = TABLES[name], folder / name
    common = [f"experiment=smollm2/{table.experiment}", *table.common]
    for key, file in table.data.items():
        path = quoted(str(folder / "data" / file))
        # Arithmetic takes a list of test files.
        common.append(f"{key}=[{path}]" if file == TEST else f"{key}={path}")
    return [
        Job(method, [*common, *(o.format(runs=runs, seed=seed) for o in own.overrides)], seed)
        for method, own in table.methods.items()
        for seed in range(own.seeds)
    ]


# Experiments set a replay buffer and EM, and are composed after the baseline.
_NO_BUFFER = "callbacks.replay_buffer.probability=0"
_NO_EM = "em.rounds=0"
_GROUPS = (_NO_BUFFER, "sampling.n_conditions=4", "sampling.n_samples=8", "trainer.max_steps=120")
_PPO = ("baseline=ppo", *_GROUPS)
_GRPO = ("baseline=grpo", *_GROUPS)
# Each string belongs to a different condition.
_SFT = ("baseline=sft", _NO_BUFFER, "sampling.n_conditions=8")
_ACCURACY = {f"vote, {n} operands": f"vote_accuracy/{n}_operands" for n in (3, 4, 5)}
_SINGLE = {f"single sample, {n}": f"single_accuracy/{n}_operands" for n in (3, 4, 5)}
_ARITHMETIC_DATA = {
    "task.data.rationales": "rationales.json",
    "task.data.answers": "answers.json",
    "task.data.test": TEST,
}
_SHOTS = {
    0: ("10.2", "6.4", "3.2"),
    3: ("15.8", "11.0", "5.4"),
    5: ("20.4", "17.6", "6.6"),
    10: ("26.5", "15.2", "8.9"),
}
_FEW_SHOT = [Row(f"{k}-shot", "prompting", f"base_{k}_shot", paper) for k, paper in _SHOTS.items()]
_PAPER_SFT = ("72.1 ± 1.3", "19.6 ± 2.2", "12.8 ± 5.7")
_PAPER_PPO = ("30.6 ± 4.1", "13.7 ± 4.1", "5.6 ± 3.1")
_PAPER_GFLOWNET = ("95.2 ± 1.3", "75.4 ± 2.9", "40.7 ± 9.1")
_SFT_ROW = Row("supervised, 50 rationales", "sft", paper=_PAPER_SFT)
_LEARNS = "baseline.samples_of={runs}/gflownet/seed{seed}"


# E-steps that learn from whole strings by a robust loss, on-policy, with strings of the buffer beside the fresh ones:
# demonstrations, or samples of the posterior itself.
_ROBUST = (
    "objective=vargrad",
    "objective.regression.kind=huber",
    "sampling=on_policy",
    "callbacks/replay_buffer=beside_fresh",
)
_POSTERIOR = (
    "callbacks.replay_buffer.seed_demonstrations=false",
    "callbacks.replay_buffer.posterior_draws=128",
    "callbacks.replay_buffer.beside_fresh=4",
    "sampling.n_samples=4",
    "trainer.max_steps=150",
    "optimizer.lr=1e-3",
)
_OTHER_E_STEPS = {
    "gflownet_huber": Method(10, (*_ROBUST, _NO_EM), seeds=1),
    "gflownet_posterior": Method(10, (*_ROBUST, *_POSTERIOR, _NO_EM), seeds=1),
}
_OTHER_E_STEP_ROWS = (
    Row("E-step by VarGrad with a Huber loss", "gflownet_huber"),
    Row("the same, replaying posterior samples", "gflownet_posterior"),
)


def _subjectivity(n: int, paper: Sequence[str]) -> Table:
    shots = [0, 10] if n == 10 else [0, 10, 20]
    few = [Row(f"{k}-shot", "prompting", f"direct_{k}_shot") for k in shots[1:]]
    if n == 10:
        few = [Row("10-shot", "prompting", "direct_10_shot", (paper[1],))]
    return Table(
        f"Subjectivity with {n} labelled reviews (Table 3)",
        "subjectivity",
        {"task.data.train": f"subjectivity_{n}.jsonl", "task.data.test": "subjectivity_test.jsonl"},
        {
            "prompting": Method(
                12,
                (
                    "baseline=prompting",
                    f"baseline.shots=[{','.join(map(str, shots))}]",
                    _NO_BUFFER,
                    _NO_EM,
                ),
            ),
            "sft": Method(4, (*_SFT, _NO_EM, "trainer.max_steps=80", "optimizer.lr=1e-3")),
            "gflownet": Method(15),
            "gflownet_m": Method(20, ("em.m_steps=200", "em.m_lr=1e-3"), seeds=1),
            **(_OTHER_E_STEPS if n == 10 else {}),
        },
        [
            Row("zero-shot", "prompting", "direct_0_shot", (paper[0],)),
            *few,
            Row("supervised", "sft", paper=(paper[2],)),
            Row("GFlowNet, E-step", "gflownet", "e_step", (paper[3],)),
            Row("GFlowNet, E-step and M-step", "gflownet", paper=(paper[4],)),
            Row("GFlowNet, four times the M-step", "gflownet_m"),
            *(_OTHER_E_STEP_ROWS if n == 10 else ()),
        ],
        {"vote": "vote_accuracy/test", "posterior predictive": "predictive_accuracy/test"},
        "The paper's few-shot prompt shows all labelled reviews; 50 of them would take half an hour a run here. "
        "Its numbers are recalled: check them before quoting.",
        (f"task.data.n_train={n}",),
    )


def _infilling(which: str, base: str, data: Mapping[str, str]) -> Table:
    return Table(
        f"Story infilling{which} (Table 2)",
        "infilling",
        {"task.data.stories": "stories.csv", **data},
        {
            "prompting": Method(6, ("baseline=prompting", "baseline.shots=[0]"), seeds=2),
            "sft": Method(13, (*_SFT, "trainer.max_steps=100"), seeds=2),
            "gflownet": Method(16, seeds=2),
            # As many given strings as sft learns from, then as many steps as gflownet has.
            "gflownet_sft": Method(
                20, ("sampling.sft_share=0.667", "trainer.max_steps=300"), seeds=2
            ),
            # The settings that bring the embedded model closest to its posterior, docs/recipes.md.
            "gflownet_recipe": Method(
                18,
                (
                    'task.template="{{ending}}\\n{{beginning}}"',
                    "callbacks/replay_buffer=beside_fresh",
                    "objective.regression.kind=huber",
                ),
                seeds=1,
            ),
        },
        [
            Row(
                "prompting",
                "prompting",
                "base_0_shot",
                ("0.013 ± 0.005", "0.032 ± 0.001", "", "", "0.081 ± 0.009"),
            ),
            Row(
                "supervised",
                "sft",
                paper=("0.016 ± 0.008", "0.037 ± 0.004", "", "", "0.094 ± 0.007"),
            ),
            Row(
                "GFlowNet",
                "gflownet",
                paper=("0.021 ± 0.002", "0.042 ± 0.007", "", "", "0.184 ± 0.004"),
            ),
            Row("GFlowNet after SFT", "gflownet_sft"),
            Row("GFlowNet, as task=infilling", "gflownet_recipe"),
        ],
        {
            "BLEU-4": "bleu/stories",
            "GLEU-4": "gleu/stories",
            "cosine with the reference": "reference_similarity/stories",
            "log p(ending)": "ending_log_prob/stories",
            "BERTScore": "bertscore_f1/stories",
            "log R": "log_reward/stories",
        },
        f"The base model of policy and reward is {base}. The last row has the prompt, the loss and the true middles "
        "beside fresh strings of docs/recipes.md. The cosine is of all-MiniLM-L6-v2. BERTScore needs its model: "
        "evaluation.bertscore.",
        ("evaluation.encoder=minilm",),
    )


TABLES: dict[str, Table] = {
    "arithmetic_tool": Table(
        "Arithmetic with the calculator (Table 4)",
        "arithmetic_tool",
        _ARITHMETIC_DATA,
        {
            "gflownet": Method(28),
            "gflownet_sft": Method(
                23, ("sampling.sft_share=0.5", "trainer.max_steps=160"), seeds=1
            ),
            "sft": Method(7, _SFT),
            # As many steps as gflownet_sft.
            "sft_160": Method(11, (*_SFT, "trainer.max_steps=160"), seeds=1),
            "prompting": Method(
                45, ("baseline=prompting", _NO_BUFFER, "baseline.shots=[0,3,5,10]")
            ),
            "sft_on_gflownet": Method(
                9, (*_SFT, _LEARNS, "baseline.right_only=true", "baseline.n_samples=2")
            ),
            "ppo": Method(16, _PPO, seeds=2),
            "grpo": Method(10, _GRPO, seeds=2),
        },
        [
            *_FEW_SHOT,
            _SFT_ROW,
            Row("supervised, 160 steps", "sft_160"),
            Row("PPO", "ppo", paper=_PAPER_PPO),
            Row("GRPO", "grpo"),
            Row("GFlowNet", "gflownet", paper=_PAPER_GFLOWNET),
            Row("GFlowNet, 80 steps after 80 of SFT", "gflownet_sft"),
            Row("supervised, right samples of GFlowNet", "sft_on_gflownet"),
        ],
        {**_ACCURACY, **_SINGLE},
        "The vote is of 10 samples at temperature 0.1, as in the paper.",
    ),
    "random_number": Table(
        "Random numbers from 0 to 100 (section 2)",
        "random_number",
        {},
        {
            "prompting": Method(3, ("baseline=prompting", "baseline.shots=[0]")),
            "sft": Method(3, ("baseline=sft", "baseline.n_strings=32")),
            "ppo": Method(6, ("baseline=ppo", "trainer.max_steps=100")),
            "gflownet": Method(10, ("trainer.max_steps=100",)),
        },
        [
            Row("base model", "prompting", "base_0_shot"),
            Row("supervised", "sft"),
            Row("PPO", "ppo", paper=("4.2",)),
            Row("GFlowNet", "gflownet"),
        ],
        {
            "invalid, %": "invalid_share/numbers",
            "exact TV": "exact_tv/numbers",
            "exact KL, nats": "exact_kl/numbers",
            "KL of valid samples, nats": "kl/numbers",
            "as many true samples": "kl_floor/numbers",
        },
    ),
    "subjectivity_10": _subjectivity(10, ("51.7", "61.3", "64.3", "71.4", "75.2")),
    "subjectivity_50": _subjectivity(50, ("51.7", "65.8", "89.7", "87.7", "89.9")),
    "continuation": Table(
        "Continuation: likelihood against diversity (Figure 3)",
        "continuation",
        {"task.data.prompts": "prompts.txt"},
        {
            "decoding": Method(
                35,
                (
                    "baseline=decoding",
                    "baseline.decoders=[greedy,beam,diverse_beam,sampling,tempered,nucleus]",
                ),
                seeds=2,
            ),
            "gflownet_0_8": Method(12, seeds=2),
            "gflownet_0_95": Method(12, ("callbacks.reward_tempering.end=0.95",), seeds=2),
        },
        [
            *(
                Row(name.replace("_", " ") + more.replace("_x5", ", 5x"), "decoding", name + more)
                for name in ("greedy", "beam", "diverse_beam", "sampling", "tempered", "nucleus")
                for more in ("", "_x5")
                if name + more != "greedy_x5"
            ),
            Row("GFlowNet, T = 0.8", "gflownet_0_8"),
            Row("GFlowNet, T = 0.95", "gflownet_0_95"),
        ],
        {
            "log-likelihood, mean": "log_likelihood/prompts",
            "best of a prompt": "log_likelihood_max/prompts",
            "diversity": "diversity/prompts",
            "unique": "unique/prompts",
            "log R": "log_reward/prompts",
        },
        "Nats under the base model. Diversity is of all-MiniLM-L6-v2 (the paper: all-mpnet-base-v2). The paper "
        "has a figure and no numbers.",
        ("evaluation.encoder=minilm",),
    ),
    "infilling": _infilling("", "SmolLM2; the paper's is fine-tuned on stories first", {}),
    "infilling_stories": _infilling(
        ", on SmolLM2 fine-tuned on stories",
        "SmolLM2 with all weights fine-tuned for an epoch on the stories that are not evaluated "
        "(scripts/story_model.py)",
        {"lm.name": STORY_MODEL},
    ),
    "arithmetic": Table(
        "Arithmetic without a calculator",
        "arithmetic",
        _ARITHMETIC_DATA,
        {
            "prompting": Method(
                35, ("baseline=prompting", _NO_BUFFER, "baseline.shots=[0,3,5]"), seeds=1
            ),
            "sft": Method(15, _SFT, seeds=1),
            # As many steps as gflownet_sft.
            "sft_160": Method(18, (*_SFT, "trainer.max_steps=160"), seeds=1),
            "gflownet": Method(17, seeds=1),
            "gflownet_sft": Method(
                22, ("sampling.sft_share=0.5", "trainer.max_steps=160"), seeds=1
            ),
            # Three of four questions have a rationale, instead of one of five.
            "gflownet_rationales": Method(17, ("task.answers_weight=0.017",), seeds=1),
            "ppo": Method(18, _PPO, seeds=1),
        },
        [
            *(Row(row.title, row.method, row.row) for row in _FEW_SHOT[:3]),
            Row(_SFT_ROW.title, "sft"),
            Row("supervised, 160 steps", "sft_160"),
            Row("GFlowNet", "gflownet"),
            Row("GFlowNet, 80 steps after 80 of SFT", "gflownet_sft"),
            Row("GFlowNet, mostly questions with a rationale", "gflownet_rationales"),
            Row("PPO, for Table E.4", "ppo"),
        ],
        {**_ACCURACY, **_SINGLE, "log R, 3 operands": "log_reward/3_operands"},
        "The paper has these methods with the calculator alone.",
    ),
}
