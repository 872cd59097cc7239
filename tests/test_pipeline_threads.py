"""Stages in threads keep the order, and leave nothing behind: python -m pytest tests/test_pipeline_threads.py"""

import threading
import time

import pytest

from reid import pipeline
from reid.problem import Problem

LONG = 20  # seconds after which a test gives up, never those that it takes


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert not set(threading.enumerate()) - before


def test_the_order_is_kept_and_all_come_out():
    report = pipeline.Report()
    stages = [('double', lambda x: 2 * x), ('rest', lambda x: time.sleep(x % 3 / 1000) or x), ('text', str)]
    assert list(pipeline.run(range(50), stages, depth=2, report=report)) == [str(2 * x) for x in range(50)]
    assert [(stage.name, stage.count) for stage in report.stages] == [
        (n, 50) for n in ('read', 'double', 'rest', 'text')
    ]
    assert report.dropped == 0
    assert sum(stage.busy for stage in report.stages) > 0
    assert report.stages[2].busy >= 50 / 3 * 0.001  # what it slept at least
    assert report.stages[2].rate == 50 / report.stages[2].busy
    assert report.rate == 50 / report.seconds
    assert str(report).startswith('read ')
    seconds = report.seconds
    assert report.seconds == seconds  # it has ended


def test_without_stages_it_reads_ahead():
    assert list(pipeline.run('abc', [])) == ['a', 'b', 'c']
    assert list(pipeline.run([], [('none', str)])) == []
    assert list(pipeline.run([None, 0], [('same', lambda x: x)])) == [None, 0]


def test_stages_run_at_the_same_time():
    """The first, with its next item, and the second wait for each other: one after another, it would be for ever."""
    barrier = threading.Barrier(2, timeout=LONG)

    def meet(x):
        barrier.wait()
        return x

    def first(x):
        return meet(x) if x else x

    def second(x):
        return meet(x) if x < 9 else x

    assert list(pipeline.run(range(10), [('first', first), ('second', second)])) == list(range(10))


@pytest.mark.parametrize('depth', [1, 3])
def test_no_more_wait_than_may(depth):
    """Nobody takes results: what is read fills the queues and what each stage holds, and no more."""
    count, still = 0, threading.Event()  # count: what was asked for

    def source():
        nonlocal count
        for number in range(1, 1000):
            count = number
            yield number

    run = pipeline.run(source(), [('a', lambda x: x), ('b', lambda x: x)], depth=depth)
    next(run)
    most = 1 + 3 * depth + 3  # given, waiting, held by the two stages and by the reader
    until = time.monotonic() + LONG
    while count < most and time.monotonic() < until:
        still.wait(0.01)
    still.wait(0.1)  # time in which it could go too far
    assert count == most
    run.close()


@pytest.mark.parametrize('where', ['source', 'first', 'last'])
@pytest.mark.parametrize('kind', [Problem, KeyError, SystemExit])
def test_what_goes_wrong_is_raised_here_after_what_came_before(where, kind):
    def break_at(name):
        def function(x):
            if x == 7 and name == where:
                raise kind('at seven')
            return x

        return function

    source = map(break_at('source'), iter(range(10**9)))
    run = pipeline.run(source, [('first', break_at('first')), ('middle', abs), ('last', break_at('last'))])
    found = []
    with pytest.raises(kind, match='at seven') as raised:
        for x in run:
            found.append(x)
    assert found == list(range(7))
    assert any(entry.name == 'function' for entry in raised.traceback)  # it shows where


def test_who_leaves_early_ends_all():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    for result in pipeline.run(endless(), [('a', abs), ('b', abs)]):
        assert result == 1
        break
    assert closed.wait(LONG)


def test_an_error_in_the_loop_ends_all():
    with pytest.raises(KeyboardInterrupt):
        for _ in pipeline.run(iter(int, 1), [('a', abs)]):
            raise KeyboardInterrupt


def test_a_source_that_waits_is_told_to_end():
    class Camera:
        """It gives one frame, then falls silent."""

        def __init__(self):
            self.stop, self.given = threading.Event(), 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.given:
                self.stop.wait(LONG)
                raise StopIteration
            self.given = 1
            return 1

        def close(self):
            self.stop.set()

    camera = Camera()
    run = pipeline.run(camera, [('a', abs)])
    assert next(run) == 1
    run.close()
    assert camera.stop.is_set()


def test_what_is_live_drops_what_is_old():
    """The stage is busy with 0 until all have come: the last one is what it sees next."""
    begun, come = threading.Event(), threading.Event()

    def source():
        yield 0
        assert begun.wait(LONG)
        yield from range(1, 10)
        come.set()

    def stage(x):
        begun.set()
        assert come.wait(LONG)
        return x

    report = pipeline.Report()
    assert list(pipeline.run(source(), [('stage', stage)], drop=True, report=report)) == [0, 9]
    assert report.dropped == 8
    assert [stage.count for stage in report.stages] == [10, 2]


def test_what_is_live_drops_nothing_in_time():
    go = threading.Semaphore(1)

    def source():
        for x in range(20):
            assert go.acquire(timeout=LONG)
            yield x

    found = []
    for x in pipeline.run(source(), [('stage', lambda x: x)], drop=True):
        found.append(x)
        go.release()
    assert found == list(range(20))


def test_a_queue_holds_one_item_at_least():
    with pytest.raises(ValueError, match='not 0'):
        next(pipeline.run([], [], depth=0))
