"""Stages of work, each in its own thread, joined by short queues: while one frame is read, another is looked at.

    report = pipeline.Report()
    for result in pipeline.run(source, [('detect', detect), ('track', track)], report=report):
        ...
    print(report)

Threads help where the work is done without Python's lock, as by OpenCV, ONNX Runtime, torch and numpy.
"""

import threading
import time
from collections import deque
from contextlib import suppress


def run(source, stages, depth=4, drop=False, report=None):
    """Each item of an iterable goes through stages [(name, function)] -> what the last one returns, in order.

    depth: how many items may wait behind each stage, which bounds the memory. drop: for what is live. The first stage
    gets the newest item; those that came while it was busy are left out, and counted. No queue is deeper than 1 then,
    to keep the delay short. report: a Report to fill in.

    If the source or a stage raises, what was ahead still comes out, then that is raised here. Whoever leaves the loop
    early ends all threads, after what each of them is just doing. At the end the source's close() is called, if it has
    one, from this thread: it may end waiting in there.

    A function is called by one thread, always the same one. What holds for a thread only, such as torch's
    inference_mode, has to be set inside of it.
    """
    if depth < 1:
        raise ValueError(f'at least one item has to fit into a queue, and not {depth}')
    queues = [Queue(1 if drop else depth) for _ in range(len(stages) + 1)]
    tallies = [Tally(name) for name in ('read', *(name for name, _ in stages))]
    work = [(read, (source, queues[0], tallies[0], drop))]
    for i, (_, function) in enumerate(stages, 1):
        work.append((apply, (function, queues[i - 1], queues[i], tallies[i])))
    threads = [threading.Thread(target=target, args=args, daemon=True) for target, args in work]
    report = Report() if report is None else report
    report.begin(tallies)
    for thread in threads:
        thread.start()
    try:
        yield from queues[-1]
    finally:
        for queue in queues:
            queue.stop()
        if hasattr(source, 'close'):
            with suppress(ValueError):  # a generator that its thread is in: it ends with that
                source.close()
        for thread in threads:
            thread.join()
        report.end()


def read(source, given, tally, drop):
    """The first thread."""
    error = None
    try:
        items = iter(source)
        while True:
            with tally:
                item = next(items)
            tally.count += 1
            if not given.put(item, tally if drop else None):
                break
    except StopIteration:
        pass
    except BaseException as problem:
        error = problem
    given.end(error)


def apply(function, taken, given, tally):
    """The thread of a stage. An error that comes down the queue is passed on like an item."""
    error = None
    try:
        for item in taken:
            with tally:
                item = function(item)
            tally.count += 1
            if not given.put(item):
                break
    except BaseException as problem:
        error = problem
    given.end(error)


class Queue:
    """Between two threads, either of which may end it: end() is said by the one that puts in, stop() by the other."""

    def __init__(self, depth):
        self.items, self.depth, self.changed = deque(), depth, threading.Condition()
        self.ended = self.stopped = False
        self.error = None

    def put(self, item, tally=None):
        """Waits for a place; with a tally, puts out the oldest and counts it. False: nothing is taken any more."""
        with self.changed:
            if tally and len(self.items) == self.depth:
                self.items.popleft()
                tally.dropped += 1
            self.changed.wait_for(lambda: self.stopped or len(self.items) < self.depth)
            self.items.append(item)
            self.changed.notify_all()
            return not self.stopped

    def __iter__(self):
        """Items until the end, then the error, if that is why."""
        while True:
            with self.changed:
                while not (self.items or self.ended or self.stopped):
                    self.changed.wait(0.2)  # Windows hears Ctrl-C between waits only
                if self.stopped or not self.items:
                    break
                item = self.items.popleft()
                self.changed.notify_all()
            yield item
        if self.error and not self.stopped:
            raise self.error

    def end(self, error=None):
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()

    def stop(self):
        with self.changed:
            self.stopped = True
            self.items.clear()
            self.changed.notify_all()


class Tally:
    """Of a stage: items done, seconds at work, items dropped behind it. `with tally:` is at work."""

    def __init__(self, name):
        self.name, self.count, self.busy, self.dropped = name, 0, 0.0, 0

    def __enter__(self):
        self.began = time.perf_counter()

    def __exit__(self, *error):
        self.busy += time.perf_counter() - self.began

    @property
    def rate(self):
        """Items a second that the stage could do, if none had to be waited for. A camera is at work while it waits."""
        return self.count / self.busy if self.busy else 0.0


class Report:
    """What a run has done up to now: stages, a Tally each, 'read' first; seconds since it began. May be read from any
    thread."""

    def __init__(self):
        self.stages, self.began, self.ended = [], None, None

    def begin(self, stages):
        self.stages, self.began, self.ended = stages, time.perf_counter(), None

    def end(self):
        self.ended = time.perf_counter()

    @property
    def seconds(self):
        return 0.0 if self.began is None else (self.ended or time.perf_counter()) - self.began

    @property
    def dropped(self):
        return sum(stage.dropped for stage in self.stages)

    @property
    def rate(self):
        """Items that came out, a second."""
        return self.stages[-1].count / self.seconds if self.seconds else 0.0

    def __str__(self):
        """read 310.2, detect 48.1, track 912.0 frames/s alone; 47.3 together, 0 dropped"""
        alone = ', '.join(f'{stage.name} {stage.rate:.1f}' for stage in self.stages)
        return f'{alone} frames/s alone; {self.rate:.1f} together, {self.dropped} dropped'
