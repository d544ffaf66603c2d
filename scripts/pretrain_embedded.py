"""Make the student that ships in the package: tokenizer and weights, from simulated dialogues.

    python scripts/pretrain_embedded.py --out /tmp/student

A run takes about forty minutes on two cores; docs/notes.md says how the shipped files came about.
"""

from emodistill import cli


def main() -> None:
    from emodistill.configs import PretrainConfig

    config = cli.parse(PretrainConfig, "pretrain", description=__doc__)
    from emodistill.train.pretrain import make_embedded

    print(f"the student is in {make_embedded(config)}")


if __name__ == "__main__":
    cli.run(main)
