"""README.md: what `auto` stands for, whichever student it is."""

import dataclasses
from pathlib import Path

import pytest

from emodistill.configs import DPOConfig, JPOConfig, SFTConfig

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def shown(value):
    if isinstance(value, float):
        return f"{value:.0e}".replace("e-0", "e-")
    return "all" if value is None else f"{value:,}"


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        (
            "learning rate of SFT; of JPO, A-LoL, DPO",
            [(SFTConfig, "learning_rate"), (JPOConfig, "learning_rate")],
        ),
        ("epochs", [(SFTConfig, "num_epochs"), (JPOConfig, "num_epochs")]),
        (
            "samples: SFT; JPO, A-LoL; DPO's pairs",
            [(config, "max_samples") for config in (SFTConfig, JPOConfig, DPOConfig)],
        ),
        ("tokens of prompt and reply", [(SFTConfig, "max_tokens"), (JPOConfig, "max_tokens")]),
    ],
    ids=("rates", "epochs", "samples", "tokens"),
)
def test_the_defaults_of_either_student(title, fields):
    line = f"| {title} |"
    for is_embedded in (False, True):
        rules = [
            {field.name: field.metadata for field in dataclasses.fields(config)}[name]
            for config, name in fields
        ]
        values = [shown(rule["by_student"][is_embedded]) for rule in rules]
        line += f" {'; '.join(dict.fromkeys(values))} |"
    assert line in README
