"""README.md: what `auto` stands for, whichever student it is."""

from pathlib import Path

import pytest

from emodistill.configs import EMBEDDED, DPOConfig, JPOConfig, SFTConfig

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
        (
            "epochs of SFT; of JPO, A-LoL, DPO",
            [(SFTConfig, "num_epochs"), (JPOConfig, "num_epochs")],
        ),
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
        student = EMBEDDED if is_embedded else "a checkpoint"
        values = [shown(getattr(config(model=student), name)) for config, name in fields]
        line += f" {'; '.join(dict.fromkeys(values))} |"
    assert line in README
