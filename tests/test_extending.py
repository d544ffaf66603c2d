"""The examples of docs/extending.md, run as they stand there."""

import csv
import re
import subprocess
import sys
from pathlib import Path

from report_runs import make_dialogue, write_dialogues

GUIDE = Path(__file__).parents[1] / "docs" / "extending.md"


def example(section: str) -> str:
    """The Python file of a section."""
    text = GUIDE.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    return code


def test_a_new_table_is_one_file(tmp_path):
    script = tmp_path / "words_table.py"
    script.write_text(example("A new table"))
    run = tmp_path / "run"
    played = {
        method: [make_dialogue(number=n, share=0.5, method=method, turns=4) for n in (1, 2)]
        for method in ("vanilla-slm", "iql")
    }
    for method, dialogues in played.items():
        write_dialogues(run / f"crad/eval/{method}@sim-counterparty/default.jsonl", dialogues)
    command = [sys.executable, script, "--run", run, "--num-resamples", "10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = list(csv.DictReader((run / "report/words.csv").open(newline="")))
    assert [line["method"] for line in lines] == ["vanilla-slm", "iql"]
    for line in lines:
        turns = [turn for t in played[line["method"]] for turn in t.focal_turns]
        words = sum(len(turn.text.split()) for turn in turns)
        assert int(line["num_turns"]) == len(turns)
        assert float(line["words"]) == words / len(turns)
    assert "Words of an utterance" in (run / "report/index.html").read_text()
    assert "nothing about real models" in (run / "report/words.md").read_text()
