"""Requests of several, done together: python -m pytest tests/test_batching.py"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from reid.batching import Batcher, Full
from reid.problem import Problem

LONG = 30  # seconds, after which something hangs


class Gate:
    """Work that stands still until it is opened, and remembers what it was given."""

    def __init__(self):
        self.open, self.begun, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, items):
        self.batches.append(items)
        self.begun.set()
        assert self.open.wait(LONG)
        return [item * 10 for item in items]


def results(futures):
    return [future.result(LONG) for future in futures]


def held(gate, **how):
    """A batcher of which the thread is inside the gate with one item, 0."""
    batcher = Batcher(gate, **how)
    first = batcher.submit(0)
    assert gate.begun.wait(LONG)
    return batcher, first


def test_each_of_many_threads_gets_its_own():
    together = []
    project = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    batcher = Batcher(lambda x: np.stack(x).reshape(-1, 6) @ project, 8, wait=0.001, most=1000, seen=together.append)
    pictures = np.random.default_rng(1).random((400, 2, 3), np.float32)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda x: batcher.submit(x).result(LONG), pictures))
    batcher.close()
    np.testing.assert_allclose(found, [x.reshape(6) @ project for x in pictures], rtol=1e-4, atol=1e-6)
    assert sum(together) == 400
    assert 1 < max(together) <= 8


def test_what_comes_while_it_works_is_the_next_batch():
    gate = Gate()
    batcher, first = held(gate, size=4)
    others = [batcher.submit(i) for i in range(1, 10)]
    gate.open.set()
    assert results([first, *others]) == [i * 10 for i in range(10)]
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    batcher.close()


def test_it_waits_for_others_until_the_batch_is_full():
    sizes = []
    batcher = Batcher(list, 3, wait=10 * LONG, seen=sizes.append)
    assert results([batcher.submit(i) for i in range(3)]) == [0, 1, 2]  # within LONG
    assert sizes == [3]
    batcher.submit(3)
    batcher.close()  # nobody will come any more: it need not wait
    assert sizes == [3, 1]


def test_one_alone_does_not_wait_for_ever_and_the_next_time_not_at_all():
    sizes = []
    batcher = Batcher(list, 3, wait=0.01, seen=sizes.append)
    assert batcher.submit(7).result(LONG) == 7
    batcher.wait = 10 * LONG
    assert [batcher.submit(i).result(LONG) for i in range(5)] == [0, 1, 2, 3, 4]
    assert sizes == [1] * 6
    batcher.close()


def test_who_came_while_it_worked_on_one_is_company():
    gate, sizes = Gate(), []
    batcher, first = held(gate, size=2, wait=0.01, seen=sizes.append)
    batcher.wait = 10 * LONG
    second = batcher.submit(1)
    gate.open.set()
    assert first.result(LONG) == 0
    assert results([batcher.submit(2), second]) == [20, 10]
    assert sizes == [1, 2]
    batcher.close()


def test_as_many_wait_as_may():
    gate = Gate()
    batcher, first = held(gate, size=2, most=3)
    others = [batcher.submit(i) for i in range(1, 4)]
    with pytest.raises(Full):
        batcher.submit(4)
    gate.open.set()
    assert results([first, *others]) == [0, 10, 20, 30]
    assert batcher.submit(5).result(LONG) == 50
    batcher.close()


def test_a_bad_one_spoils_no_other():
    calls = []

    def work(items):
        calls.append(items)
        return [1 / item for item in items]

    batcher = Batcher(work, 3, wait=10 * LONG)
    good, bad, also = (batcher.submit(item) for item in (2, 0, 4))
    assert results([good, also]) == [0.5, 0.25]
    with pytest.raises(ZeroDivisionError):
        bad.result(LONG)
    assert calls == [[2, 0, 4], [2], [0], [4]]
    batcher.close()


def test_what_is_wrong_with_none_of_them_is_asked_for_once():
    calls = []

    def work(items):
        calls.append(items)
        raise Problem('the index is away')

    batcher = Batcher(work, 3, wait=10 * LONG)
    for future in [batcher.submit(i) for i in range(3)]:
        with pytest.raises(Problem, match='away'):
            future.result(LONG)
    assert calls == [[0, 1, 2]]
    batcher.close()


def test_another_number_of_results_is_an_error_not_somebody_elses_result():
    batcher = Batcher(lambda items: items[1:], 2, wait=10 * LONG)
    for future in [batcher.submit(i) for i in range(2)]:
        with pytest.raises(ValueError, match='1 results are expected, found 0'):
            future.result(LONG)
    batcher.close()


def test_closing_finishes_what_was_taken_in_and_takes_in_no_more():
    gate = Gate()
    batcher, first = held(gate, size=2, most=3)
    others = [batcher.submit(i) for i in range(1, 4)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher.closed:
        pass
    with pytest.raises(RuntimeError, match='closed'):
        batcher.submit(9)
    assert not first.done()
    gate.open.set()
    closing.join(LONG)
    assert [future.result(0) for future in [first, *others]] == [0, 10, 20, 30]
    batcher.close()  # a second time does no harm


def test_one_that_was_given_up_is_not_done_and_harms_nobody():
    gate = Gate()
    batcher, first = held(gate, size=4)
    gone, other = batcher.submit(1), batcher.submit(2)
    assert gone.cancel()
    assert not first.cancel()  # it is being done
    gate.open.set()
    assert results([first, other]) == [0, 20]
    assert gate.batches == [[0], [2]]
    batcher.close()
