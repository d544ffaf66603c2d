"""Every stage as one record, in one table, run by one function.

`run(Cell(SFTConfig(...)))` makes what the stage lacks, compares its manifest, and goes on where
it was.
"""

from emodistill.stages.adapter_export import export_adapter
from emodistill.stages.device_memory import plan_memory
from emodistill.stages.evaluation import EVALUATE, PAIR
from emodistill.stages.judge import JUDGE, compare_judges, judge_matches
from emodistill.stages.judge_validation import validate_judge
from emodistill.stages.on_policy import GRPO, PPO
from emodistill.stages.replay import REPLAY
from emodistill.stages.runner import STAGES, prepare, required_cell, run, run_together
from emodistill.stages.selector_training import SELECTOR
from emodistill.stages.stage import Output, Requirement, Stage
from emodistill.stages.sweep import SWEEP
from emodistill.stages.sweep_pilot import plan
from emodistill.stages.tournament import tournament
from emodistill.stages.training import ALOL, DPO, IQL, JPO, SFT, train_adapter_stage

STAGES |= {
    s.config.stage: s
    for s in (SWEEP, JUDGE, IQL, SELECTOR, SFT, JPO, ALOL, DPO, GRPO, PPO, EVALUATE, PAIR, REPLAY)
}

__all__ = [
    "SFT",
    "STAGES",
    "Output",
    "Requirement",
    "Stage",
    "compare_judges",
    "export_adapter",
    "judge_matches",
    "plan",
    "plan_memory",
    "prepare",
    "required_cell",
    "run",
    "run_together",
    "tournament",
    "train_adapter_stage",
    "validate_judge",
]
