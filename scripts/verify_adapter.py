"""Whether a running server answers with an adapter: asks it for the adapter's canaries.

python scripts/verify_adapter.py --url http://127.0.0.1:8000/v1 --model crad --adapter exports/crad

Exit codes: 0 in use; 3 not in use, the base answers; 4 another scale or other weights;
5 can't tell; 2 nothing could be asked (flags, files, address, model name).
"""

from emodistill import cli, evaluation
from emodistill.configs import VerifyConfig
from emodistill.settings import Cell

EXIT_CODES = {"in use": 0, "not in use": 3, "other": 4, "unknown": 5}
TEXTS = {
    "in use": "in use",
    "not in use": "not in use (the base answers)",
    "other": "other scale or other weights",
    "unknown": "can't tell",
}


def verify(cell: Cell) -> None:
    verdict = evaluation.verify_adapter(cell.config)
    print(verdict.reason)
    print(f"adapter: {TEXTS[verdict.kind]}")
    raise SystemExit(EXIT_CODES[verdict.kind])


if __name__ == "__main__":
    cli.main(VerifyConfig, __doc__, verify)
