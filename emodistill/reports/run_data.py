"""What a run holds, as the report reads it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pandas as pd

from emodistill.configs import DEFAULT_CELL, METHODS, ReportConfig
from emodistill.domains import DOMAINS
from emodistill.errors import InputError
from emodistill.evaluation.arms import TABLES_OF, Arm, emotion_dir, read_arms
from emodistill.jsonl import read_lines
from emodistill.offline.rewards import ENDINGS
from emodistill.offline.run_files import (
    OWN,
    SCENARIOS,
    TRAJECTORIES,
    judge_file,
    played_pairs,
)
from emodistill.offline.store import read_judgements, read_trajectories
from emodistill.offline.sweep import failures_path
from emodistill.records import Judgement, Trajectory
from emodistill.reports.curves import Curve, read_curve
from emodistill.reports.labels import DOMAIN_TITLES, PAPER_DOMAIN, in_order
from emodistill.reports.results import (
    Labelled,
    Readings,
    Resampling,
    dialogue_frame,
    method_rows,
    paired_differences,
)
from emodistill.reports.scenario_sources import source_text
from emodistill.runs import read_manifest
from emodistill.train.metrics_log import METRICS
from emodistill.untrusted import file_name, setting_of

CAVEAT = (
    "These figures come from the built-in simulator. They show the machinery at work and claim "
    "nothing about real models, people or negotiations."
)


class OwnDialogues(NamedTuple):
    """What a student has played and a refinement of it has learned from."""

    dialogues: Sequence[Trajectory]
    judgements: Sequence[Judgement]


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run holds; empty parts are left out of the report.

    What several parts of the report need is computed once.
    """

    run_dir: Path
    data_from: Path | None = None
    """The run whose sweep and scores this one reads, where it has none of its own."""
    resampling: Resampling
    readings: Readings = Readings()
    dialogues: pd.DataFrame
    """Every dialogue, one line each (`results.dialogue_frame`); a dialogue of a study's arm may be
    one of a method as well and then has a line as either."""
    judgements: Mapping[str, Sequence[Judgement]]
    """domain -> judge calls on the sweep."""
    emotion_judgements: Mapping[str, Sequence[Judgement]]
    """domain -> judge calls on the dialogues under single emotions."""
    curves: Sequence[Curve]
    """The trainings that are no arms of a study."""
    arms: Mapping[str, Sequence[Arm]]
    """study -> its arms."""
    arm_curves: Mapping[str | None, Curve]
    """path of an arm that is only trained -> its metrics."""
    against: pd.DataFrame | None = None
    """The evaluation of the run that this one is compared with."""
    unfinished: Mapping[tuple[str, str], str]
    """(domain, method) of evaluations that were cut off -> the command that goes on."""
    num_failed: int
    """Dialogues of the evaluation that never came about."""

    def played_in(self, source: str, **columns: str) -> pd.DataFrame:
        """The dialogues of one source: `sweep`, `evaluation`, `study` or `tournament`.

        Args:
          columns: values of further columns that the dialogues must have.
        """
        frame = self.dialogues
        for name, value in {"source": source, **columns}.items():
            frame = frame.loc[frame[name] == value, :]
        return frame

    def records(self, source: str, **columns: str) -> list[Trajectory]:
        """The same dialogues as records."""
        return list(self.played_in(source, **columns).dialogue)

    def files(self, name: str) -> dict[str, Path]:
        """domain -> a file in its folder, for the domains that have it."""
        run = self.data_dir if name == SCENARIOS else self.run_dir
        paths = {domain: run / domain / name for domain in DOMAINS}
        return {domain: path for domain, path in paths.items() if path.is_file()}

    @property
    def statistics(self) -> tuple[Resampling, Readings]:
        """How tables average."""
        return self.resampling, self.readings

    @property
    def data_dir(self) -> Path:
        """The run that the sweep and its scores are in."""
        return self.data_from or self.run_dir

    def own_dialogues(
        self, domain: str, stage: str, cell: str = DEFAULT_CELL
    ) -> OwnDialogues | None:
        """The student's own dialogues that a refinement learned from; None where it learned from
        the sweep's."""
        manifest = read_manifest(self.run_dir / domain / stage / cell)
        settings = {} if manifest is None else manifest.config
        if settings.get("turns") != "own" or settings.get("reference") == "base":
            return None
        home = self.run_dir / OWN / setting_of(stage, settings, "sft_cell", str) / domain
        if settings.get("signal") in ENDINGS:  # scores, if any, were not learned from
            return OwnDialogues(_read(home / TRAJECTORIES), [])
        scores = judge_file(home / "judge", setting_of(stage, settings, "judge", str | None))
        return OwnDialogues(_read(home / TRAJECTORIES), read_judgements(scores))

    def unplayed(self, study: str) -> list[str]:
        """Arms of a study without dialogues, and why, as tables name what is missing."""
        played = {*self.played_in("study", study=study).arm}
        return [
            f"{arm_block(arm)} {arm.label}" + (f" ({arm.reason.rstrip('.')})" if arm.reason else "")
            for arm in self.arms.get(study, ())
            if arm.method is not None and arm.path not in played
        ]

    @cached_property
    def method_rows(self) -> list[dict[str, Any]]:
        """The rows of Table 1."""
        return method_rows("table-1", self.played_in("evaluation"), *self.statistics)

    @cached_property
    def differences(self) -> list[dict[str, Any]]:
        """Methods against each other on the scenarios that both have played."""
        return paired_differences(self.played_in("evaluation"), self.resampling)

    @cached_property
    def scenario_sources(self) -> dict[str, str]:
        """domain -> which scenarios its dialogues are on, for every domain that has any."""
        files = self.files(SCENARIOS)
        unknown = "not known, as the run has no scenarios.jsonl"
        return {
            domain: source_text(files[domain]) if domain in files else unknown
            for domain in in_order({*files, *self.dialogues.domain})
        }

    @cached_property
    def caveat(self) -> str:
        """What every table says about where its figures come from; empty for real models."""
        models = {*self.dialogues.focal_model, *self.dialogues.counterparty_model}
        return CAVEAT if any(model.startswith("sim-") for model in models) else ""


def arm_block(arm: Arm) -> str:
    """What heads the arm's part of a table."""
    block = DOMAIN_TITLES.get(arm.block, f"{DOMAIN_TITLES[arm.domain]}: {arm.block}")
    return block if arm.split == "test" else f"{block}, {arm.split}"


def read_run(config: ReportConfig) -> RunData:
    """Everything that a run holds.

    Raises:
      InputError: methods have met several counterparties, none of which the sweep was played with;
        or several judges have scored, and none is named.
    """
    run, data_run = config.run, config.data_from or config.run
    against = None
    if config.against is not None:
        if config.against.resolve() == run.resolve():
            raise InputError(f"--against {config.against} is this run; name another one.")
        if not config.against.is_dir():
            raise InputError(f"--against {config.against}: there is no such folder.")
        other = dataclasses.replace(config, run=config.against, data_from=None, against=None)
        against = read_run(other).played_in("evaluation")
        if against.empty:
            raise InputError(f"--against {config.against} holds no dialogue of evaluate.py.")
    arms = {study: of_study for study in TABLES_OF if (of_study := read_arms(run, study))}
    finished = [
        (study, arm, run / arm.path)
        for study, of_study in arms.items()
        for arm in of_study
        if arm.status == "finished" and arm.path is not None and (run / arm.path).is_file()
    ]
    arm_paths = {path for *_, path in finished}
    evaluations = {
        (domain, method): path
        for domain in DOMAINS
        for method, path in _evaluations(config, domain, arm_paths).items()
    }
    judge_files = {
        domain: judge_file(data_run / domain / "judge", config.judge) for domain in DOMAINS
    }
    return RunData(
        run_dir=run,
        data_from=config.data_from,
        resampling=Resampling(config.num_resamples, config.seed),
        readings=Readings(config.deviation, config.outcome_interval, config.sequence_average),
        dialogues=dialogue_frame(
            [
                *_sweeps_and_tournaments(run, data_run),
                *_evaluated(evaluations),
                *_studied(arms, finished),
            ]
        ),
        judgements={d: read_judgements(path) for d, path in judge_files.items() if path.is_file()},
        emotion_judgements=_emotion_judgements(config, finished),
        curves=[
            read_curve(path)
            for domain in DOMAINS
            for path in sorted((run / domain).glob(f"*/*/{METRICS}"))
            if path not in arm_paths
        ],
        arms=arms,
        against=against,
        arm_curves={arm.path: read_curve(path) for _, arm, path in finished if arm.method is None},
        unfinished={
            name: "evaluate.py --config "
            + shlex.quote(str(path.with_name(f"{path.stem}.config.yaml")))
            for name, path in evaluations.items()
            if (manifest := read_manifest(path.parent, f"{path.stem}.manifest.json")) is not None
            and manifest.status != "finished"
        },
        num_failed=sum(
            len([*read_lines(path)])
            for path in map(failures_path, evaluations.values())
            if path.is_file()
        ),
    )


def _read(path: Path) -> list[Trajectory]:
    return sorted(read_trajectories(path), key=attrgetter("trajectory_id"))


def _sweeps_and_tournaments(run: Path, data_run: Path) -> Iterator[Labelled]:
    for domain in DOMAINS:
        path = data_run / domain / TRAJECTORIES
        if path.is_file():
            yield {"source": "sweep", "block": domain}, _read(path)
        for (focal, opponent), path in played_pairs(run / domain).items():
            labels = {"block": domain, "label": focal, "opponent": opponent}
            yield {"source": "tournament", **labels}, _read(path)


def _evaluated(evaluations: Mapping[tuple[str, str], Path]) -> Iterator[Labelled]:
    for domain in DOMAINS:
        for method in in_order((m for d, m in evaluations if d == domain), METHODS):
            dialogues = _read(evaluations[domain, method])
            for dialogue in dialogues:
                if dialogue.domain != domain:
                    raise InputError(
                        f"{dialogue.trajectory_id} is a dialogue of {dialogue.domain}, found among "
                        f"those of {domain}; evaluations must be grouped by their own domain."
                    )
            labels = {"block": domain, "label": method, "published_as": domain}
            yield {"source": "evaluation", **labels}, dialogues


def _studied(
    arms: Mapping[str, Sequence[Arm]], finished: Sequence[tuple[str, Arm, Path]]
) -> Iterator[Labelled]:
    """The dialogues of the studies' finished arms.

    Dialogues under single emotions are named as any others, whose counterparties they share; here
    the emotion goes before the name.
    """
    for study, arm, path in finished:
        if arm.method is None:
            continue
        is_by_domain = all(a.block == a.domain for a in arms[study] if a.method is not None)
        is_published = (is_by_domain or arm.domain == PAPER_DOMAIN) and arm.split == "test"
        labels = {"study": study, "arm": arm.path, "block": arm_block(arm), "label": arm.label}
        labels |= {"source": "study", "published_as": arm.block if is_published else ""}
        is_emotion = study == "emotions"
        yield labels, [_under(arm.label, t) for t in _read(path)] if is_emotion else _read(path)


def _under(emotion: str, record: Any) -> Any:
    """A dialogue or a judge call with the emotion before its name."""
    return msgspec.structs.replace(record, trajectory_id=f"{emotion}:{record.trajectory_id}")


def _emotion_judgements(
    config: ReportConfig, finished: Sequence[tuple[str, Arm, Path]]
) -> dict[str, list[Judgement]]:
    by_domain: dict[str, list[Judgement]] = {}
    for arm in (arm for study, arm, _ in finished if study == "emotions"):
        path = judge_file(emotion_dir(config.run, arm.domain, arm.label), config.judge)
        if path.is_file():
            judgements = [_under(arm.label, judgement) for judgement in read_judgements(path)]
            by_domain.setdefault(arm.domain, []).extend(judgements)
    return by_domain


def _evaluations(config: ReportConfig, domain: str, arm_paths: set[Path]) -> dict[str, Path]:
    """Method -> its dialogues; `method (cell)` for cells that are neither default nor a study's."""
    manifest = read_manifest((config.data_from or config.run) / domain / "sweep")
    usual = config.counterparty
    if usual is None and manifest is not None:
        usual = setting_of(manifest.stage, manifest.config, "counterparty", str)
    usual = usual and file_name(usual)
    by_counterparty: dict[str, dict[str, Path]] = {}
    for path in sorted((config.run / domain / "eval").glob("*/*.jsonl")):
        method, _, counterparty = path.parent.name.partition("@")
        is_default, is_usual = path.stem == "default", usual in (None, counterparty)
        is_only_an_arm = path in arm_paths and not (is_default and is_usual)
        made = read_manifest(path.parent, f"{path.stem}.manifest.json")
        if made is not None and made.config.get("split") == "train":
            continue  # played to be learned from
        if method != "fixed" and not path.stem.endswith(".failures") and not is_only_an_arm:
            label = method if is_default else f"{method} ({path.stem})"
            by_counterparty.setdefault(counterparty, {})[label] = path
    if config.counterparty is not None:
        return by_counterparty.get(str(usual), {})
    if len(by_counterparty) > 1:
        if usual not in by_counterparty:
            raise InputError(
                f"{config.run}: methods have met {', '.join(sorted(by_counterparty))} in domain "
                f"{domain}; say which to report on with --counterparty."
            )
        others = ", ".join(sorted({*by_counterparty} - {usual}))
        text = f"report: {domain} also has dialogues against {others}; --counterparty shows them."
        print(text, flush=True)
        return by_counterparty[str(usual)]
    return next(iter(by_counterparty.values()), {})
