"""Results made ahead of time, by a thread."""

import threading

import pytest

from emodistill.train.prefetch import prefetched


def test_results_come_in_order_and_ahead_of_time():
    begun, may_go = [], threading.Event()

    def make(number):
        begun.append(number)
        if number == 2:
            may_go.set()
        return number * number

    found = prefetched(make, range(6), ahead=2)
    assert next(found) == 0
    assert may_go.wait(10)  # 1 and 2 are made although nobody has asked
    assert list(found) == [1, 4, 9, 16, 25]
    assert begun == list(range(6))


def test_an_error_comes_where_its_result_would_have():
    def make(number):
        if number == 2:
            raise ValueError("row 2")
        return number

    found = prefetched(make, range(4), ahead=3)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="row 2"):
        next(found)


def test_leaving_early_leaves_no_thread():
    before = threading.active_count()
    found = prefetched(lambda number: number, range(100), ahead=2)
    next(found)
    found.close()
    assert threading.active_count() == before
