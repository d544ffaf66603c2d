"""What a stage reads of a run's files beside the dialogues."""

import pytest

from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.offline.run_files import validity_file, validity_line


def test_a_validity_of_other_scores_is_not_shown(tmp_path):
    path = tmp_path / "sim-judge.jsonl"
    scores = {("crad/0", 0): 5, ("crad/0", 2): 6, ("crad/0", None): 7}
    assert validity_line(path, scores) is None
    write_json(validity_file(path), {"line": "validity 0.4", "num_scores": 2, "worths": []})
    assert validity_line(path, scores) == "validity 0.4"
    line = validity_line(path, scores | {("crad/0", 4): 8})
    assert line.startswith("validated on other scores (2 turns, where ") and "has 3)" in line
    assert line.endswith("; run judge.py --validate")
    write_json(validity_file(path), {"line": "validity 0.4"})
    with pytest.raises(InputError, match=r"num_scores.*run judge\.py --validate"):
        validity_line(path, scores)
