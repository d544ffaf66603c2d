"""Dialogues, judge calls and runs for the tests of reports."""

import json
import math

import builders
import numpy as np
from builders import trajectory

from emodistill.configs import METHODS, JPOConfig
from emodistill.domains import format_value, get_domain
from emodistill.emotions import EMOTIONS
from emodistill.jsonl import JsonlAppender
from emodistill.records import CounterpartyPlayer, FocalPlayer, Judgement
from emodistill.reports import RunData
from emodistill.reports.curves import read_curve
from emodistill.reports.results import Resampling, dialogue_frame
from emodistill.reports.run_data import arm_block
from emodistill.runs import MANIFEST, Job, begin_stage
from emodistill.seeding import stream
from emodistill.settings import Cell

SKILL = dict(zip(METHODS, (0.3, 0.35, 0.35, 0.5, 0.6, 0.55, 0.7), strict=True))
POSITIONS = {"crad": (20.0, 110.0), "disaster": (90.0, 25.0), "hospital": (21.0, 3.0)}
POSITIONS["student"] = (0.5, 4.0)
SAY = (
    "I have read your file closely, and {value} is what this case can carry.",
    "Let us be plain with each other: {value} serves both of us.",
    "I hear what you say, and I am moving. Can we meet at {value}?",
    "This matters to me. {value} would let us close it today.",
)
ANSWER = (
    "That is a lot to ask of me right now. I could manage {value}.",
    "I would need {value}; anything else breaks my week.",
    "You are pressing hard, but fine, {value} is possible.",
)


def make_dialogue(domain="crad", number=1, seed=0, method="vanilla-slm", *, share=None, turns=None):
    """A dialogue as the stages write it; `share` of the gap is won, None ends it unfinished."""
    target, anchor = POSITIONS[domain]
    gap = target - anchor
    final_value = None if share is None else round((anchor + gap * share) * 4) / 4
    unit = get_domain(domain)
    scenario_id = unit.scenario_id(number)
    rng = stream(seed, "test-reports", domain, scenario_id, method)
    num_turns = turns or int(rng.integers(2, 5)) * 2
    offers, texts, emotions = [], [], []
    for index in range(num_turns):
        is_focal = index % 2 == 0
        progress = index / max(1, num_turns - 1)
        end = 0.5 if share is None else share
        position = 1 - (1 - end) * progress if is_focal else end * progress
        offers.append(round((anchor + gap * position) * 4) / 4)
        phrases = SAY if is_focal else ANSWER
        shown = format_value(domain, offers[-1])
        texts.append(phrases[index // 2 % len(phrases)].format(value=shown))
        if is_focal:
            emotions.append(EMOTIONS[int(rng.integers(28))])
    if share is not None:
        offers[-1], texts[-1] = None, "Agreed, let us put that in writing."
    return trajectory(
        f"{domain}/{scenario_id}/seed_{seed:04d}",
        builders.turns(*offers, emotions=emotions, texts=texts),
        domain=domain,
        scenario_id=scenario_id,
        seed=seed,
        focal_target=target,
        counterparty_anchor=anchor,
        unit=unit.unit,
        focal=FocalPlayer(method=method, model="embedded", temperature=0.7),
        counterparty=CounterpartyPlayer(model="sim-counterparty", temperature=0.7),
        prompt_pack_sha256="0" * 64,
        outcome="ongoing" if share is None else "accepted",
        final_value=final_value,
    )


def make_evaluations(domains=("crad",), num_scenarios=6, num_seeds=2, methods=METHODS):
    """Better methods win more and fail less."""
    evaluations = {}
    for domain in domains:
        for method in methods:
            for number in range(1, num_scenarios + 1):
                for seed in range(num_seeds):
                    rng = stream(seed, "test-share", domain, number, method)
                    share = min(1.0, max(0.0, SKILL[method] + 0.2 * rng.standard_normal()))
                    fails = rng.random() > 0.6 + 0.4 * SKILL[method]
                    dialogue = make_dialogue(
                        domain, number, seed, method, share=None if fails else share
                    )
                    evaluations.setdefault(domain, {}).setdefault(method, []).append(dialogue)
    return evaluations


def make_sweep(domain="crad", num_dialogues=40):
    """A sweep and its judgements; every hundredth turn can't be scored."""
    sweep, judgements = [], []
    for i in range(num_dialogues):
        dialogue = make_dialogue(domain, 1 + i % 8, i, "random", share=0.5)
        sweep.append(dialogue)
        for turn in dialogue.focal_turns:
            rank = EMOTIONS.index(turn.emotion)
            noise = stream(i, "test-score", turn.index).standard_normal()
            score = int(min(10, max(1, round(3 + 5 * rank / 27 + noise))))
            failed = len(judgements) % 100 == 99
            judgements.append(
                Judgement(
                    trajectory_id=dialogue.trajectory_id,
                    turn_index=turn.index,
                    judge="sim-judge",
                    repeat=0,
                    attempt=int(failed),
                    rubric_sha256="1" * 64,
                    raw="hm" if failed else f"SCORE: {score}",
                    status="failed" if failed else "scored",
                    score=None if failed else score,
                )
            )
    return sweep, judgements


def write_metrics(run, domain="crad", num_steps=60):
    paths = []
    for stage, metrics in {
        "iql": ("value/loss", "critic/loss", "actor/loss", "policy/entropy"),
        "sft": ("sft/loss",),
        "jpo": ("policy/surrogate", "policy/kl_k3", "policy/ratio_mean"),
    }.items():
        path = run / domain / stage / "default" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        rng = stream(0, "test-metrics", domain, stage)
        lines = []
        for step in range(1, num_steps + 1):
            values = {m: math.exp(-step / 20) + 0.05 * rng.standard_normal() for m in metrics}
            lines.append(json.dumps({"step": step, **values}) + "\n")
        path.write_text("".join(lines))
        paths.append(path)
    return paths


def make_support():
    """Two clusters; in the second the policy leaves the data for `joy` (.3 of 40 turns)."""
    data, policy = np.full((2, 28), 10), np.full((2, 28), 10.0)
    joy = EMOTIONS.index("joy")
    data[1] = [0 if i == joy else 2 for i in range(28)]
    policy[1] = [12 if i == joy else 28 / 27 for i in range(28)]
    return {
        "emotions": list(EMOTIONS),
        "data": data.tolist(),
        "policy": policy.tolist(),
        "min_support": 1,
        "unsupported": 12 / 320,
    }


def run_data(run_dir, *, evaluations=None, sweep=(), arms=None, tournament=None, **parts):
    """A run in memory.

    Args:
      evaluations: domain -> method -> dialogues.
      sweep: dialogues.
      arms: study -> (arm, dialogues) of each of its arms.
      tournament: domain -> (focal, counterparty) -> dialogues.
      parts: the others, as `RunData` takes them.
    """
    labelled = [({"source": "sweep", "block": d.domain}, [d]) for d in sweep]
    for domain, by_method in (evaluations or {}).items():
        for method, dialogues in by_method.items():
            labels = {"block": domain, "label": method, "published_as": domain}
            labelled.append(({"source": "evaluation", **labels}, dialogues))
    for study, of_study in (arms or {}).items():
        for arm, dialogues in of_study:
            published_as = arm.block if arm.domain == "crad" else ""
            labels = {"study": study, "arm": arm.path, "block": arm_block(arm), "label": arm.label}
            labels |= {"source": "study", "published_as": published_as}
            labelled.append((labels, dialogues))
    for domain, pairs in (tournament or {}).items():
        for (focal, opponent), dialogues in pairs.items():
            labels = {"block": domain, "label": focal, "opponent": opponent}
            labelled.append(({"source": "tournament", **labels}, dialogues))
    nothing = {"judgements": {}, "emotion_judgements": {}, "curves": (), "arm_curves": {}}
    nothing |= {"unfinished": {}, "num_failed": 0}
    return RunData(
        run_dir=run_dir,
        dialogues=dialogue_frame(labelled),
        arms={study: [arm for arm, _ in of_study] for study, of_study in (arms or {}).items()},
        **nothing | {"resampling": Resampling(200)} | parts,
    )


def write_support(run):
    path = run / "crad" / "iql" / "default" / "support.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(make_support()))


def whole_run(run, **changes):
    """A run of one domain with an evaluation, a sweep, judge calls and what `run` holds."""
    sweep, judgements = make_sweep()
    parts = {
        "evaluations": make_evaluations(),
        "sweep": sweep,
        "judgements": {"crad": judgements},
        "curves": [read_curve(path) for path in sorted(run.rglob("metrics.jsonl"))],
    }
    return run_data(run, **parts | changes)


def write_dialogues(path, dialogues):
    """A file of dialogues as the stages leave it."""
    with JsonlAppender(path) as file:
        for dialogue in dialogues:
            file.append(dialogue)


def begin(directory, *, identity=None, manifest=MANIFEST):
    """Leave a stage's manifest as a stage that was cut off does."""
    output = directory / "output"
    job = Job(
        cell=Cell(JPOConfig()),
        name="",
        directory=directory,
        output=output,
        path=output,
        inputs={},
        identity=identity or {},
        manifest=manifest,
    )
    begin_stage(job)
