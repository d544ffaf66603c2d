"""Settings of stage 5 and what follows it: evaluation, tournament, report, and the servers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from emodistill.configs.base import (
    AUTO,
    DEFAULT_RUN,
    EMBEDDED,
    SIMULATED,
    AnySplit,
    Config,
    DomainName,
    Quantization,
    configuration,
    data_from,
    require,
    require_student_server,
    setting,
)
from emodistill.configs.data import DialogueConfig, EmotionReaderKind
from emodistill.emotions import EMOTION_INDEX

Deviation = Literal["population", "sample"]
OutcomeInterval = Literal["bootstrap", "normal", "student"]
SequenceAverage = Literal["mean", "median"]
METHODS = ("vanilla-slm", "vanilla-llm", "random", "iql", "iql+sft", "iql+jpo", "iql+sft+jpo")
"""The methods of Table 1, in its order."""
DEFAULT_METHOD = "iql+sft+jpo"
DEFAULT_CELL = "default"
TEMPERATURE, EMBEDDED_TEMPERATURE = 0.7, 0.4
"""Sampling temperatures where none is asked for: of a checkpoint, and the embedded student's."""


@configuration
class MatchConfig(DialogueConfig):
    """What the stages share that play held-out scenarios."""

    student_field = "student"
    outside_cell = Config.outside_cell | {
        *("student", "method", "opponent", "counterparty"),  # the folder's name says who plays whom
        "focal",  # manifests refuse another one
        *("num_scenarios", "num_seeds"),  # more dialogues go into the same file
        "student_model",  # who plays the student, as `student` itself
    }
    data_from: Path | None = data_from()
    """Another run, whose sweep and scores are read in place of this one's, where they are."""
    num_seeds: int = setting(1, ge=1)
    """Dialogues per scenario."""
    focal_temperature: float | None = setting(None, ge=0, le=2)
    """Sampling temperature in the focal role. If left out, 0.7, and 0.4 for the embedded student,
    whose unlikely tokens are mostly noise, where it is played here."""
    split: AnySplit = "test"
    """`validation` (sweep with --num-validation) is for choosing settings, `train` for dialogues to
    learn from."""
    student: str = setting(EMBEDDED, is_path=True)
    """`embedded`, or the folder of the student's base checkpoint."""
    quantize: Quantization | None = None
    """Hold the student's frozen projections in 8 or 4 bits, for small cards (extra `quantize`)."""
    student_url: str | None = setting(None, operational=True)
    """A server that plays the student, e.g. http://127.0.0.1:8000/v1 (vLLM, SGLang, llama.cpp,
    serve.py). Before the first dialogue its adapter is looked for by the canaries that
    export_adapter.py has written."""
    student_model: str | None = None
    """The name under which that server has it; `{adapter}` in it stands for student, sft, jpo or
    jpo:CELL, and `{domain}` for the domain that it was trained in."""
    allow_unverified: bool = setting(False, operational=True)
    """Play it although the canaries can't tell whether its adapter is in use; records say so."""
    cells: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """STAGE CELL pairs, such as `jpo kappa=0.5-e21b`: the cells to play; `default` if left out."""
    policy: Literal["network", "closed-form"] = "network"
    """The regressed policy network, or exp(β(Q−V)) itself."""
    greedy: bool = False
    """Take the most probable emotion instead of sampling."""
    in_process: bool = setting(False, operational=True)
    """Play the simulated models in this process, without a server between: the same dialogues, in
    less time."""
    emotion_reader: EmotionReaderKind | None = None
    """Who hears the other side's emotion, for the methods that look at it (eq-negotiator, emomas):
    a language model (`--reader`), the simulator's ear, or nobody (`none`). If left out, the model,
    and on the simulator its ear."""

    def __post_init__(self) -> None:
        DialogueConfig.__post_init__(self)
        named = {stage: cell for stage, cell in self.cells.items() if cell != DEFAULT_CELL}
        object.__setattr__(self, "cells", named)
        require_student_server(self)
        require(
            not self.in_process or (self.is_simulated and self.record is self.replay is None),
            "--in-process plays simulated models, whose calls nobody records or replays; leave it "
            "out.",
        )
        require(
            self.student_url is None or self.quantize is None,
            f"--quantize {self.quantize}: the server at --student-url holds the student.",
        )

    def cell(self, stage: str) -> str:
        """The cell of `stage` that is played."""
        return self.cells.get(stage, DEFAULT_CELL)

    def identity(self) -> dict[str, Any]:
        rest = DialogueConfig.identity(self)
        return rest | {f"{stage}_cell": cell for stage, cell in rest.pop("cells").items()}


@configuration
class EvaluateConfig(MatchConfig):
    """Stage 5: a method negotiates on the held-out scenarios (Appendix E.3-E.7)."""

    stage = "evaluate"
    method: str = DEFAULT_METHOD
    """vanilla-llm, vanilla-slm, neutral, random, random-7, fixed, oracle; iql, and its controls
    iql-7, cloning, cql, dqn, bandit, best-fixed; iql+sft, iql+jpo, iql+sft+jpo,
    iql+sft+jpo-stripped, iql+sft+alol, iql+sft+dpo, iql+sft+grpo, iql+sft+ppo, vanilla-slm-free,
    free-sft, free-jpo, free-sft+jpo; evoemo, emodebt, eq-negotiator, emomas, each also with
    -shipped. Every selector that was trained also leaves the writing to a student, as in
    cql+sft+jpo or evoemo+sft+jpo."""
    emotion: str | None = None
    """What `--method fixed` expresses at every turn."""
    trained_on: DomainName | None = None
    """The domain that selector and adapter come from, where it is another one."""
    selector: Literal["source", "target"] = "source"
    """With --trained-on: the selector of that domain, or of the one that is played."""
    as_sweep: Path | None = setting(None, operational=True)
    """With --split train: make the dialogues the sweep of this run too, to be scored there
    (judge.py --run) and learned from (--data-from)."""

    def __post_init__(self) -> None:
        MatchConfig.__post_init__(self)
        require(
            self.emotion is None or self.emotion in EMOTION_INDEX,
            f"emotion={self.emotion!r} is none of the 28 labels: {', '.join(EMOTION_INDEX)}.",
        )
        require(
            (self.emotion is not None) == (self.method == "fixed"),
            "--method fixed and --emotion LABEL go together.",
        )


@configuration
class PairConfig(EvaluateConfig):
    """A pair of a tournament: a method in either role."""

    stage = "tournament"
    opponent: str
    """The method in the counterparty's role."""


@configuration
class ReplayConfig(EvaluateConfig):
    """Recorded turns played on from again: what a turn, or another emotion there, is worth."""

    stage = "replay"
    outside_cell = EvaluateConfig.outside_cell | {"num_turns", "continuations"}
    method: str = AUTO
    """Whose turns they become with --continue student, such as iql+sft. auto: iql+sft+jpo, and
    without --continue student `random`, as the sweep was played."""
    turn: str | None = None
    """TRAJECTORY_ID#INDEX, a focal turn of the sweep; a sample of --num-turns without it."""
    num_turns: int = setting(100, ge=1)
    """Focal turns of the training scenarios to fork, drawn by the seed."""
    continuations: int = setting(16, ge=1, le=999)
    """Forks of a turn in each arm."""
    continued_by: Annotated[
        Literal["recorded", "student"], tyro.conf.arg(name="continue", prefix_name=False)
    ] = "recorded"
    """Who plays on: the recorded language model under random emotions, as in the sweep, or the
    student of --method."""
    emotions: str | None = None
    """Speak the turn anew under each of these emotions (`all`, or `anger,caring`) in place of
    asking what the recorded utterance is worth."""
    scores: str | None = setting(None, operational=True)
    """Also write the worths as the scores of a judge of this name, to train on."""

    def __post_init__(self) -> None:
        is_recorded = self.continued_by == "recorded"
        if self.method == AUTO:
            object.__setattr__(self, "method", "random" if is_recorded else DEFAULT_METHOD)
        require(
            not is_recorded or self.method == "random",
            f"--method {self.method} needs --continue student; without it the recorded language "
            "model plays on.",
        )
        EvaluateConfig.__post_init__(self)
        require(
            self.scores is None or self.emotions is None,
            "--scores are worths of what was said; leave out --emotions.",
        )
        require(
            self.scores is None or self.turn is None,
            "--scores are worths of many turns to train on; leave out --turn.",
        )
        require(
            self.scores is None or self.scores not in SIMULATED,
            f"--scores {self.scores} is the name of a simulated judge; take another, such as "
            "`truth`.",
        )


@configuration
class TournamentConfig(MatchConfig):
    """Methods play each other, each in both roles, on the held-out scenarios (Table 13)."""

    stage = "tournament"
    methods: tuple[str, ...] = ("vanilla-llm", "iql", "iql+sft+jpo", "free-sft+jpo")
    """V, I, E and E0 of Table 13; any others (see `evaluate.py --method`), but not `oracle`."""

    def __post_init__(self) -> None:
        MatchConfig.__post_init__(self)
        require(len(self.methods) > 0, "methods is empty; name one at least.")
        for name in self.methods:
            require(self.methods.count(name) == 1, f"methods names {name} twice.")

    def pair(self, focal: str, counterparty: str) -> PairConfig:
        """The settings with which two of the methods play each other."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(MatchConfig)}
        return PairConfig(method=focal, opponent=counterparty, **shared)


@configuration
class ReportConfig(Config):
    """Tables, figures and the page of a run."""

    stage = "report"
    run: Path = DEFAULT_RUN
    """The folder of the experiment."""
    data_from: Path | None = data_from()
    """Another run, whose sweep and scores are read in place of this one's, where they are."""
    against: Path | None = None
    """Another run, with whose methods those of this one are compared (table `against`)."""
    only: str | None = None
    """One table or figure, e.g. table-1."""
    counterparty: str | None = None
    """The counterparty whose dialogues to report on, where methods have met several."""
    judge: str | None = None
    """The judge whose scores rank the emotions, where there are several."""
    num_resamples: int = setting(10_000, ge=1)
    """Bootstrap resamples."""
    deviation: Deviation = "population"
    """What stands behind ±: most of the paper's tables have the one, the trained rows of Tables 3
    and 12 the other."""
    outcome_interval: OutcomeInterval = "bootstrap"
    """The intervals of Tables 9 to 11. The paper's call themselves bootstrap; most of Table 9's are
    `normal`, most of Tables 10 and 11's `student` (Student's t)."""
    sequence_average: SequenceAverage = "mean"
    """What the sequences of Table 16 are ranked by."""
    seed: int = 0
    """Names the random streams of the bootstrap."""


@configuration
class SimulatorConfig(Config):
    """Where the simulated models are served."""

    stage = "simulator"
    host: str = "127.0.0.1"
    """The address to listen at; only this machine reaches the default."""
    port: int = setting(8000, ge=0, le=65535)
    """The port to listen at; 0 takes a free one."""
    faults: tuple[str, ...] | None = None
    """What goes wrong, as shares of the calls: `429=0.1 cut hang=0.01`; without any, everything."""
    log: Path | None = None
    """A file that gets a line for every call."""
    seed: int = 0
    """Names the random stream of the faults."""


@configuration
class QuickstartConfig(Config):
    """All stages in order; their sizes come from the configuration file."""

    stage = "quickstart"
    run: Path = Path("runs/quickstart")
    """The folder of the experiment; started again, finished stages are kept."""
    domains: tuple[DomainName, ...] = ("crad",)
    """Domains to go through, one after the other."""
    methods: tuple[str, ...] = METHODS
    """Methods to evaluate."""
    studies: tuple[str, ...] = ()
    """signal, kappa, kl, rank, iql, transfer, counterparty, emotion-free, refinement, emotions,
    leaderboard, tournament; those that take one domain run in the first one."""
    seed: int = 0
    """Names every random stream."""
    fast: bool = False
    """About two minutes, too small for conclusions (configs/fast.yaml)."""
