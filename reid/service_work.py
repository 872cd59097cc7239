"""The work of the service (reid.service), in threads: the loop that answers only awaits it."""

import asyncio
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from reid import data
from reid.batching import Batcher
from reid.index_entries import unit
from reid.machine import cores
from reid.problem import Problem
from reid.service_door import Refused

DECODERS = 4  # pictures that are decoded at a time: each may take as much memory as limits.pixels allow
ADDED, SEARCHED = 256, 64  # at a time


class Work:
    """What many ask for at once is done together: pictures described, entries written, queries answered."""

    def __init__(self, embedder, index, limits, metrics):
        self.embedder, self.index, self.limits = embedder, index, limits
        self.decoders, self.keepers = ThreadPoolExecutor(min(DECODERS, cores())), ThreadPoolExecutor(2)

        def batcher(name, work, size, wait=0):
            return Batcher(work, size, wait, limits.queue, lambda n: metrics.observe('reid_batch_size', n, work=name))

        describe = batcher('describe', lambda some: embedder.describe(np.stack(some)), limits.batchsize, limits.wait)
        self.batchers = {'describe': describe}
        if index is not None:  # these need not wait for others, who gather while the disk or the processor works
            self.batchers['add'] = batcher('add', lambda some: added(index, some), ADDED)
            self.batchers['search'] = batcher('search', lambda some: nearest(index, some), SEARCHED)

    def close(self):
        """After all that was asked for has been done."""
        self.decoders.shutdown()
        for batcher in self.batchers.values():
            batcher.close()
        self.keepers.shutdown()

    def waiting(self):
        return sum(batcher.waiting.qsize() for batcher in self.batchers.values())

    async def together(self, name, item):
        return await asyncio.wrap_future(self.batchers[name].submit(item))

    async def alone(self, f, *args):
        return await asyncio.get_running_loop().run_in_executor(self.keepers, f, *args)

    async def describe(self, bodies):
        """{name: bytes of a picture} -> the descriptor (D,) of each."""
        loop = asyncio.get_running_loop()
        decoding = [loop.run_in_executor(self.decoders, self.decoded, *item) for item in bodies.items()]
        bodies.clear()
        pictures = await asyncio.gather(*decoding)
        return await asyncio.gather(*map(self.vector, pictures))

    async def vector(self, picture):
        """What the network is shown -> (D,). One that no index would take goes no further, where it is among others."""
        f = await self.together('describe', picture)
        return unit(f[None], self.embedder.dim)[0]

    def decoded(self, name, body):
        return data.sized(self.read(body, name), self.embedder.size)

    def read(self, body, name):
        try:
            return data.read(body, name, self.limits.pixels)
        except data.TooLarge as problem:
            raise Refused(413, str(problem)) from None
        except Problem as problem:
            raise Refused(400, str(problem)) from None


def added(index, some):
    """[(entry, descriptor)] -> their ids. The disk is waited for once."""
    entries, vectors = zip(*some, strict=True)
    return index.add(entries, np.stack(vectors))


def nearest(index, asked):
    """[(descriptor, top, filters)] -> the hits of each. Those with the same filters are searched for together."""
    alike, found = defaultdict(list), [None] * len(asked)
    for place, (_, _, filters) in enumerate(asked):
        alike[tuple(filters.items())].append(place)
    for filters, places in alike.items():
        vectors, tops, _ = zip(*(asked[place] for place in places), strict=True)
        hits = index.query(np.stack(vectors), max(tops), **dict(filters))
        for place, top, own in zip(places, tops, hits, strict=True):
            found[place] = own[:top]
    return found


def remove_name(index, name):
    return index.remove([entry.id for entry in index.find(name=name)])
