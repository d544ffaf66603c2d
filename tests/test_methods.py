"""What a method's name stands for."""

import re

import pytest

from emodistill.errors import InputError
from emodistill.evaluation.methods import METHODS, Method, get_method


def test_the_stages_that_a_method_needs_in_order():
    assert get_method("iql+sft+jpo").stages == ("iql", "sft", "jpo")
    assert get_method("iql+jpo").stages == ("iql", "jpo")
    assert get_method("vanilla-slm-free").stages == ()
    assert get_method("free-jpo").stages == ("jpo",)
    assert get_method("free-sft+jpo").stages == ("sft", "jpo")
    assert get_method("iql+sft+jpo-stripped").stages == ("sft", "jpo")
    assert get_method("random").stages == ()


def test_an_adapter_of_any_further_stage_has_a_method():
    mine = get_method("iql+sft+mine")
    assert mine == Method(writer="student", selector="iql", adapter="mine")
    assert mine.stages == ("iql", "sft", "mine")


@pytest.mark.parametrize("name", ["iql+mine", "free-mine", "iql+sft+", "iql+sft+../x", "Random"])
def test_unknown_names_are_refused_with_the_list(name):
    message = f"--method {name} is not known; use one of {', '.join(METHODS)}."
    with pytest.raises(InputError, match=re.escape(message)):
        get_method(name)
