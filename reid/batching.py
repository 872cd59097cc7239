"""What several threads want done one by one, done together.

    batcher = Batcher(work, size=32)         # work(items) -> results, one for each and in order
    future = batcher.submit(item)            # from any thread
    result = future.result()
    batcher.close()                          # whatever was taken in is done first

A thread takes what has been submitted, up to `size` items. While it works on them, the next batch gathers by itself.
After the first of a batch it waits for others, `wait` seconds at most: those who were just answered ask again. Who has
been alone lately is not held up for that.
"""

import queue
import threading
import time
from concurrent.futures import Future

from reid.problem import Problem


class Full(Exception):
    """As many items wait as may."""


class Batcher:
    def __init__(self, work, size=32, wait=0.0, most=256, seen=lambda count: None):
        """most: items that may wait. seen(count) is told of each batch."""
        self.work, self.size, self.wait, self.seen = work, size, wait, seen
        self.most, self.waiting, self.closed, self.lock = most, queue.SimpleQueue(), False, threading.Lock()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def submit(self, item):
        future = Future()
        with self.lock:  # nothing comes in behind what close() puts last
            if self.closed:
                raise RuntimeError('it is closed')
            if self.waiting.qsize() >= self.most:
                raise Full
            self.waiting.put((item, future))
        return future

    def close(self):
        with self.lock:
            if not self.closed:
                self.closed = True
                self.waiting.put(None)
        self.thread.join()

    def run(self):
        company = True
        while (first := self.waiting.get()) is not None:
            company = self.batch(first, self.wait if company else 0)

    def batch(self, first, wait):
        """One of them -> has there been company, for which it is worth while to wait the next time?"""
        batch = [first, *self.others(wait)]
        # From here on nobody can cancel it, and a future takes its result.
        batch = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
        if not batch:
            return False
        self.seen(len(batch))
        done = self.done(batch)
        company = len(batch) > 1 or not self.waiting.empty()  # before those who are answered now ask again
        for deliver, result in done:
            deliver(result)
        return company

    def others(self, wait):
        until = time.monotonic() + wait
        for _ in range(self.size - 1):
            try:
                following = self.waiting.get(timeout=max(0, until - time.monotonic()))
            except queue.Empty:
                return
            if following is None:
                self.waiting.put(None)  # this batch is the last one
                return
            yield following

    def done(self, batch):
        """[(whom to tell, what)]. If they fail together, each is tried alone: one that is bad spoils no other. But a
        Problem is none of theirs: it is of an index that is away, for example, and would be waited for each time."""
        try:
            results = self.work([item for item, _ in batch])
            if len(results) != len(batch):
                raise ValueError(f'{len(batch)} results are expected, found {len(results)}')
            return [(future.set_result, result) for (_, future), result in zip(batch, results, strict=True)]
        except Exception as error:
            if len(batch) == 1 or isinstance(error, Problem):
                return [(future.set_exception, error) for _, future in batch]
            return [told for one in batch for told in self.done([one])]
