"""Settings of stages 1 and 2: the sweep, its forecast, the judge, and datasets of their data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import tyro

from emodistill.configs.base import (
    DEFAULT_RUN,
    AgreementRule,
    ApiConfig,
    Config,
    DomainName,
    OfferReaderKind,
    combinable,
    configuration,
    data_from,
    require,
    setting,
)

EmotionReaderKind = Literal["model", "simulator", "none"]
GENERATED = "generated"
"""What `scenarios` says to play the built-in ones."""


@combinable
class DialogueConfig(ApiConfig):
    """What every stage shares that plays dialogues.

    A language model is named by `model`, `provider:model` or `URL#model`.
    """

    called = ("focal", "counterparty", "reader")
    num_scenarios: int | None = setting(None, ge=1, hint="leave it out for all")
    """Scenarios to play; all of them if left out."""
    focal: str | None = None
    """The language model in the focal role: MODEL, PROVIDER:MODEL or URL#MODEL."""
    counterparty: str | None = None
    """The language model in the counterparty's role: MODEL, PROVIDER:MODEL or URL#MODEL."""
    counterparty_temperature: float = setting(0.7, ge=0, le=2)
    """Sampling temperature in the counterparty's role."""
    max_reply_tokens: int = setting(160, ge=1)
    """Tokens of one utterance at most; one that is cut is asked for once more with twice as many.
    A model that thinks first needs room for its thoughts."""
    max_turns: int = setting(30, ge=2)
    """Turns of a dialogue at most, and T of the shaped return."""
    count_turns: Literal["both", "focal"] = "both"
    """Whose turns --max-turns counts: both sides' together, or the focal side's, as Appendix Q.5
    says."""
    agreement: AgreementRule = "stand"
    """When a dialogue counts as agreed; `upstream` is the |difference| <= 5 rule, to compare."""
    offer_reader: OfferReaderKind = "pattern"
    """`llm` asks a language model which figure each utterance puts forward, and whether it says
    yes, sets a condition or ends the talks."""
    reader: str | None = None
    """The language model that reads offers (--offer-reader llm) or emotions (--emotion-reader
    model) in utterances: MODEL, PROVIDER:MODEL or URL#MODEL."""
    reader_max_tokens: int = setting(48, ge=1)
    """Tokens of its answer at most; one that thinks first needs more."""
    keep_unread: bool = setting(False, operational=True)
    """Go on although most utterances carry no readable offer, or most offers lie far outside target
    and anchor."""
    prompt_pack: Path | None = None
    """A folder with your own prompt pack."""


@configuration
class SweepConfig(DialogueConfig):
    """Stage 1: dialogues under seeded random emotions (paper §3.1, Appendix E.2)."""

    stage = "sweep"
    num_seeds: int = setting(100, ge=1)
    """Dialogues per scenario."""
    scenarios: Annotated[
        Path | Mapping[DomainName, Path] | None, tyro.conf.arg(metavar=f"PATH|{GENERATED}")
    ] = setting(None, none=GENERATED)
    """A published table (.csv) or scenario lines (.jsonl); the built-in ones if left out or
    `generated`. A configuration file may name a file for each domain."""
    strict: bool = False
    """Refuse a table with unplayable rows instead of leaving those rows out."""
    focal_temperature: float = setting(0.7, ge=0, le=2)
    """Sampling temperature in the focal role."""
    num_test: int = setting(20, ge=0)
    """Scenarios held out for evaluation."""
    num_validation: int = setting(0, ge=0)
    """Scenarios taken from the training ones for choosing settings."""
    held_out: Literal["drawn", "last"] = "drawn"
    """Which scenarios are held out: some drawn by --seed, or the last of the file (the paper's
    Appendix Q suggests so)."""
    test_ids: Path | None = None
    """A text file with the ids of the scenarios to hold out, one a line."""

    def __post_init__(self) -> None:
        given = self.scenarios
        if isinstance(given, Mapping):  # one that lacks the domain stays, for the sweep to refuse
            given = given.get(self.domain, given)
        object.__setattr__(self, "scenarios", None if given == Path(GENERATED) else given)
        ApiConfig.__post_init__(self)
        require(
            self.test_ids is None or self.held_out == "drawn",
            f"--test-ids {self.test_ids} names the scenarios to hold out; leave out --held-out "
            f"{self.held_out}, or the ids.",
        )


@configuration
class ExportConfig(Config):
    """A run's sweep, scores and training turns as a Hugging Face dataset (docs/data.md)."""

    stage = "export"
    run: Path = DEFAULT_RUN
    """The folder of the experiment."""
    domain: DomainName = "crad"
    """Which of the four negotiation domains."""
    judge: str | None = None
    """The judge whose scores the turns get, where there are several."""
    prompt_pack: Path | None = None
    """The pack that the turns' prompts are rendered with; the built-in one if left out."""
    out: Path | None = None
    """The dataset's folder, which must not exist; RUN/DOMAIN/dataset if left out."""


@configuration
class ImportConfig(Config):
    """The files of a run out of a dataset's dialogues, judgements and scenarios."""

    stage = "import"
    source: str = setting("", is_path=True)
    """A Parquet file, a folder of the hub's layout or of `save_to_disk`, or a name on the hub."""
    run: Path = DEFAULT_RUN
    """The folder of the experiment."""
    domain: DomainName = "crad"
    """Which of the four negotiation domains."""
    prompt_pack: Path | None = None
    """The pack whose prompts the scenarios will fill; the built-in one if left out."""


@configuration
class ConvertConfig(Config):
    """A GGUF checkpoint as a folder that a student can be loaded from (extra `gguf`)."""

    stage = "convert"
    source: Path | None = None
    """The GGUF file of a Llama- or Qwen-type model with a chat template."""
    out: Path | None = None
    """The folder to write, which must not exist; four bytes a parameter."""


@configuration
class PlanConfig(SweepConfig):
    """A forecast of the sweep with these settings, and of its judging."""

    called = (*DialogueConfig.called, "judge")
    pilot: int = setting(160, ge=2, hint="160 is plenty", operational=True)
    """Dialogues to play and judge for the forecast; the sweep goes on from them."""
    judge: str | None = setting(None, operational=True)
    """The judging model: MODEL, PROVIDER:MODEL or URL#MODEL."""


@configuration
class JudgeConfig(ApiConfig):
    """Stage 2: a language model scores focal turns, or whole dialogues, from 1 to 10."""

    stage = "judge"
    called = ("judge",)
    judge: str | None = None
    """The judging model: MODEL, PROVIDER:MODEL or URL#MODEL."""
    judge_max_tokens: int = setting(64, ge=1)
    """Tokens of its answer at most (the paper's 64), twice as many when asked again; one that
    thinks first needs more."""
    level: Literal["turn", "dialogue"] = "turn"
    """Score every focal turn, or each dialogue as a whole."""
    data_from: Path | None = data_from()
    """With --validate: another run, whose sweep and scores are read, while the forks are this
    one's too."""
    repeats: int = setting(1, ge=1)
    """Independent scores per item."""
    repeat_share: float = setting(1.0, gt=0, le=1)
    """Share of the items that get more than the first score, drawn by the seed: with --repeats 2,
    0.5 takes one and a half times the calls. A larger share holds those of a smaller one."""
    retry_unanswered: bool = setting(False, operational=True)
    """Ask once more for the items that a server refused or never answered."""
    batch: bool = setting(False, operational=True)
    """Ask by the provider's file batches: for about half the price, within a day."""
    batch_size: int = setting(50_000, ge=1, le=50_000, operational=True)
    """Items of one batch at most; fewer where the provider limits what may wait there."""
    compare: str | None = setting(None, operational=True)
    """Ask nothing; say how far the existing scores are from those of this other judge."""
    validate: bool = setting(False, operational=True)
    """Ask nothing; say how far the existing turn scores go with what turns are worth: by forks
    (replay.py), by --labels, and by how the dialogues ended."""
    labels: Path | None = setting(None, operational=True)
    """Validate against human scores of turns, a CSV of trajectory_id, turn_index, rater, score."""
    prompt_pack: Path | None = None
    """A folder with your own prompt pack, whose rubric the judge reads."""

    def __post_init__(self) -> None:
        ApiConfig.__post_init__(self)
        require(
            not self.batch or self.record is self.replay is None,
            "--batch: leave out --record and --replay, which don't keep the answers of batches.",
        )
