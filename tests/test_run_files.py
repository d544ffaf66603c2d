"""What a stage reads of a run's files beside the dialogues."""

import pytest

from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.offline.run_files import scores_sha256, validity_file, validity_line


def test_a_validity_of_other_scores_is_not_shown(tmp_path):
    path = tmp_path / "sim-judge.jsonl"
    scores = {("crad/0", 0): 5, ("crad/0", 2): 6, ("crad/0", None): 7}
    assert validity_line(path, scores) is None
    known = {"line": "validity 0.4", "scores_sha256": scores_sha256(scores), "worths": []}
    write_json(validity_file(path), known)
    assert validity_line(path, dict(reversed(scores.items()))) == "validity 0.4"
    assert validity_line(path, scores | {("crad/0", None): 1}) == "validity 0.4"  # of no turn
    for other in ({("crad/0", 4): 8}, {("crad/0", 2): 7}):  # one more, and another one
        line = validity_line(path, scores | other)
        assert line.startswith("validated on other scores than ")
        assert line.endswith("; run judge.py --validate")
    write_json(validity_file(path), {"line": 0.4})
    with pytest.raises(InputError, match=r"line.*run judge\.py --validate"):
        validity_line(path, scores)
