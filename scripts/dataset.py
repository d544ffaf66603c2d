"""A run's data as a Hugging Face dataset, and a run out of a dataset (docs/data.md).

python scripts/dataset.py export --run runs/paper --domain crad --out datasets/crad
python scripts/dataset.py import --source datasets/crad --run runs/again
python scripts/dataset.py import --source somebody/negotiations --run runs/theirs
"""

import sys

from emodistill import cli, stages
from emodistill.configs import ExportConfig, ImportConfig
from emodistill.errors import InputError


def main() -> None:
    name, *args = sys.argv[1:] or ["export"]
    if name.startswith("-"):
        name, args = "export", sys.argv[1:]
    if name == "export":
        stages.export_dataset(cli.parse(ExportConfig, name, description=__doc__, args=args))
    elif name == "import":
        stages.import_dataset(cli.parse(ImportConfig, name, description=__doc__, args=args))
    else:
        raise InputError(f"dataset.py {name}: a dataset is made by `export`, read by `import`.")


if __name__ == "__main__":
    cli.run(main)
