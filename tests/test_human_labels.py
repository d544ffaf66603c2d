"""What is said of labels that can't be read or compared."""

import csv

import pytest
from simulated_talks import dialogues

from emodistill.errors import InputError
from emodistill.evaluation.human_labels import (
    COLUMNS,
    Label,
    human_agreement,
    read_labels,
    too_few_scored,
)

TALKS = {one.trajectory_id: one for one in dialogues("crad", num=3)}
NAME = next(iter(TALKS))


def test_a_line_that_is_no_csv_is_named(tmp_path):
    path = tmp_path / "labels.csv"
    unclosed = f'{NAME},2,"ann,7\n' + "x" * 200_000
    path.write_text(f"{','.join(COLUMNS)}\n{NAME},0,ann,7\n{unclosed}\n", encoding="utf-8")
    limit = csv.field_size_limit(131_072)  # csv's own; other packages raise it
    try:
        with pytest.raises(InputError, match=r"labels\.csv:4: .*can't be read as CSV.*quote"):
            read_labels(path, TALKS)
    finally:
        csv.field_size_limit(limit)
    path.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="the first line must name"):
        read_labels(path, TALKS)


def test_a_long_file_is_read_to_its_end(tmp_path):
    path = tmp_path / "labels.csv"
    lines = [f"{NAME},0,rater {number},10" for number in range(8_000)]
    path.write_text("\n".join([",".join(COLUMNS), *lines]), encoding="utf-8")
    assert path.stat().st_size > 1 << 17
    assert read_labels(path, TALKS)[-1] == Label(NAME, 0, "rater 7999", 10)


def test_raters_whose_turns_the_judge_has_not_scored_are_told():
    labels = [Label(NAME, 0, "ann", 5), Label(NAME, 2, "ann", 8), Label(NAME, 0, "bob", 3)]
    assert too_few_scored(labels[:2], {(NAME, 0): 5, (NAME, 2): 6}) == []
    found = too_few_scored(labels, {(NAME, 0): 5, (NAME, None): 6})
    assert human_agreement(labels, {(NAME, 0): 5}, TALKS) == []
    assert [text.split(";")[0] for text in found] == [
        "the judge has scored 1 of the 2 labelled turns of rater ann",
        "the judge has scored 1 of the 1 labelled turns of rater bob",
    ]
