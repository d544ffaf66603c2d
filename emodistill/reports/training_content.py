"""What training has logged: how quietly it ended (Table 15), and what one of its steps takes.

    T_onpol = b (negotiation + turns × judging) / c   (Eq. 33)

with b samples a step and c negotiations at once. The turns are those that are judged: the focal
role's (P.3). The paper's estimate multiplies by the 18 turns that its dialogues have on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from emodistill.domains import DOMAINS
from emodistill.errors import InputError
from emodistill.evaluation.checkpoint_looks import LOOKS, read_looks
from emodistill.evaluation.stability import stability_row
from emodistill.llm.usage import Usage
from emodistill.offline.budget import read_usage
from emodistill.offline.judging import judge_path
from emodistill.offline.run_files import sweep_concurrency
from emodistill.records import Trajectory
from emodistill.reports import paper
from emodistill.reports.curves import Curve
from emodistill.reports.labels import DOMAIN_TITLES
from emodistill.reports.recipe import TableContent
from emodistill.reports.results import by_domain
from emodistill.reports.run_data import RunData
from emodistill.runs import read_manifest
from emodistill.untrusted import setting_of

STAGE_TITLES = {"iql": "IQL", "sft": "LoRA-SFT", "jpo": "JPO"}
STEP_S = "time/step_s"


def stability(data: RunData) -> TableContent:
    """Table 15: signal and controls at the end of each training."""
    rows, missing = [], []
    for label, curve in _trainings(data):
        stage, title = curve.stage, DOMAIN_TITLES[curve.domain]
        name = title if label == stage else f"{title}, {label}"
        try:
            row = stability_row(stage, curve.metrics)
        except InputError:
            missing.append(f"{stage} of {name}, which has logged nothing yet")
            continue
        published = paper.numbers("table-15", curve.domain, label)
        rows.append({"block": STAGE_TITLES[stage], "run": name, "published": published} | row)
    return TableContent(rows, missing=missing)


def _trainings(data: RunData) -> list[tuple[str, Curve]]:
    """(what the paper calls it, curve) of the usual trainings and the emotion-free ones."""
    trainings = [(curve.stage, curve) for curve in data.curves if curve.cell == "default"]
    trainings += [
        (arm.label, data.arm_curves[arm.path])
        for arm in data.arms.get("emotion-free", ())
        if arm.path in data.arm_curves
    ]
    return [
        (label, curve)
        for stage in STAGE_TITLES
        for domain in DOMAINS
        for label, curve in trainings
        if (curve.stage, curve.domain) == (stage, domain)
    ]


def step_times(data: RunData) -> TableContent:
    """An offline step of JPO beside one that would negotiate and judge anew (Appendix G)."""
    step_s = {
        c.domain: c.metrics[STEP_S][1]
        for c in data.curves
        if c.stage == "jpo" and c.cell == "default" and STEP_S in c.metrics
    }
    frame = data.played_in("sweep")
    published = paper.numbers("policy-cost", "all", "jpo")
    rows, missing, judges, students = [], [], set(), set()
    for domain, swept in by_domain(frame):
        if domain not in step_s:
            missing.append(f"JPO of {DOMAIN_TITLES[domain]}")
            continue
        manifest = read_manifest(data.run_dir / domain / "jpo/default")
        batch_size = math.nan
        if manifest is not None:
            batch_size = setting_of(manifest.stage, manifest.config, "batch_size", int)
            students.add(setting_of(manifest.stage, manifest.config, "model", str))
        row = _step_time(data, list(swept.dialogue), step_s[domain], batch_size)
        rows.append({"domain": DOMAIN_TITLES[domain], "published": published} | row)
        judges |= {j.judge for j in data.judgements.get(domain, ())}
    named = [
        f"{role}: {', '.join(sorted(names))}."
        for role, names in (("Judge", judges), ("Student", students))
        if names
    ]
    return TableContent(
        rows,
        players_of=frame.loc[frame.domain.isin(step_s), :],
        missing=missing,
        notes=[" ".join(named)] if named else [],
    )


def watched_checkpoints(data: RunData) -> TableContent:
    """What the checkpoints of JPO have done on validation scenarios, by domain."""
    rows = []
    for domain, path in data.files(f"jpo/default/{LOOKS}").items():
        for look in read_looks(path):
            row = {name: getattr(look, name) for name in ("step", "num_dialogues", "success")}
            growth = look.utility_growth
            row |= {"block": domain, "utility": look.utility}
            row["score"] = math.nan if look.score is None else look.score
            row["alarms"] = "; ".join(look.alarms) or "none" if look.step else ""
            if growth.mean is not None:
                row |= {"gain": growth.mean, "gain_ci_low": growth.low, "gain_ci_high": growth.high}
            rows.append(row)
    return TableContent(rows)


def on_policy_step_s(
    *,
    batch_size: float,
    negotiation_s: float,
    num_judged_turns: float,
    judging_s: float,
    concurrency: float,
) -> float:
    """Seconds of a step that negotiates and judges anew (Eq. 33)."""
    return batch_size * (negotiation_s + num_judged_turns * judging_s) / concurrency


def _step_time(
    data: RunData, dialogues: Sequence[Trajectory], step_s: np.ndarray, batch_size: float
) -> dict[str, float]:
    """What Eq. 33 is made from, NaN where it is not known; seconds are means but for the step's."""
    domain = dialogues[0].domain
    talk_s = sum(turn.latency_s for t in dialogues for turn in t.turns)
    judging = Usage()
    if judgements := data.judgements.get(domain):
        judging = read_usage(judge_path(data.data_dir / domain / "judge", judgements[0].judge))
    num_answers = judging.num_calls - judging.num_retries
    row = {
        "offline_step_s": np.median(step_s),
        "negotiation_s": talk_s / len(dialogues) if talk_s else math.nan,
        "judging_s": judging.latency_s / num_answers if judging.latency_s else math.nan,
        "num_turns": np.mean([len(t.turns) for t in dialogues]),
        "num_judged_turns": np.mean([len(t.focal_turns) for t in dialogues]),
        "batch_size": batch_size,
        "concurrency": sweep_concurrency(data.data_dir, domain) or math.nan,
    }
    names = ("batch_size", "negotiation_s", "num_judged_turns", "judging_s", "concurrency")
    step = on_policy_step_s(**{name: row[name] for name in names})
    return row | {"on_policy_step_s": step, "ratio": step / row["offline_step_s"]}
