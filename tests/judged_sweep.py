"""A small judged sweep, and prompts of a few words, for tests that train on one end to end."""

import shutil
from pathlib import Path

from samples import dialogue

from emodistill import prompts
from emodistill.domains import load_scenarios
from emodistill.emotions import EMOTIONS

FOCAL = """
system = "{rules}{role}{context}"
user = "{history}\\n\\n{emotion}\\n\\n{cue}"
opening = "begin "
cue = "now:"
line = "{speaker}{text}"
[crad]
focal = "C "
counterparty = "D "
rules = "bargain over the days, name a figure, stay brief; "
role = "C "
context = "want {target} "
"""
EMOTIONS_FILE = "template = '{tone} '\n[fillings]\n" + "".join(
    f"{label} = {{tone = '{label[:4]}'}}\n" for label in EMOTIONS
)
SCENARIOS = load_scenarios("crad")[:2]
TRAJECTORIES = [
    dialogue(num_turns=4, scenario=scenario, number=number)
    for scenario in SCENARIOS
    for number in range(4)
]
SCORES = {
    (trajectory.trajectory_id, turn.index): 1 + (7 * i + 3 * turn.index) % 10
    for i, trajectory in enumerate(TRAJECTORIES)
    for turn in trajectory.focal_turns
}


def short_pack(folder):
    """The built-in pack with a focal prompt of a few words, so that rows are short."""
    for name in ("counterparty.toml", "judge.toml"):
        shutil.copy(Path(prompts.__file__).with_name(name), folder)
    (folder / "focal.toml").write_text(FOCAL)
    (folder / "emotions.toml").write_text(EMOTIONS_FILE)
