"""A run's data as a Hugging Face dataset, and a run out of a dataset (docs/data.md).

python scripts/dataset.py export --run runs/paper --domain crad --out datasets/crad
python scripts/dataset.py import --source datasets/crad --run runs/again
python scripts/dataset.py import --source somebody/negotiations --run runs/theirs
"""

from emodistill import cli
from emodistill.configs import ExportConfig, ImportConfig
from emodistill.settings import Cell


def dataset(cell: Cell) -> None:
    from emodistill.offline import hub_datasets  # --help must not wait for `datasets`

    if isinstance(cell.config, ExportConfig):
        out = hub_datasets.export_run(cell.config)
        print(f'dataset: {out}; read it with datasets.load_dataset("{out}")')
    else:
        print("dataset:", *hub_datasets.import_dataset(cell.config))


if __name__ == "__main__":
    cli.main({"export": ExportConfig, "import": ImportConfig}, __doc__, dataset)
