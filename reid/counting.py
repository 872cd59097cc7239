"""How many gallery images stand above a good one: counted piece by piece, never sorted.

Above it stand those with a greater score, and those with the same score that come earlier in the gallery. Quick scores
(reid.product) tell nearly all of them apart; those that are too close to tell are scored again, exactly.
"""

from collections import namedtuple
from functools import partial

import numpy as np
import torch

from reid import product

BLOCK = product.BLOCK  # queries at a time: scores take BLOCK x TILE at most, never queries x gallery
TILE = 2**24  # numbers of gallery features at a time: 64 MB

FEW = 2**17  # comparisons of bars with images, from which on sorting is quicker
MANY = 2**20  # pairs of bars and images that are too close to tell, above which all are put in order

# The good images of all queries, with their exact scores: those of query i are starts[i] to starts[i + 1].
Bars = namedtuple('Bars', 'scores columns starts')


def above(query, gallery, bars, mine, sizes, grids, device):
    """How many images of the gallery, of its slice `mine`, stand above each bar; false detections do not count."""
    count = above_exactly if product.is_cuda(device) else above_quickly
    total = np.zeros(len(bars.scores), np.int64)
    with product.full_float32():
        for numbers, tile in tiles(gallery, mine):
            total += count(query.f, tile, numbers, bars, sizes, grids, device)
    return total


def tiles(gallery, mine):
    """The gallery piece by piece, false detections left out: (positions (t,), features (t, D) float32, good until the
    next piece)."""
    dim = gallery.f.shape[1]
    rows = max(1, min(TILE // dim, product.SCORES // BLOCK, mine.stop - mine.start))
    buffer = None
    for start in range(mine.start, mine.stop, rows):
        stop = min(start + rows, mine.stop)
        tile = gallery.f[start:stop]
        numbers = start + np.flatnonzero(gallery.ids[start:stop] != -1)
        if not len(numbers):
            continue
        plain = tile.dtype == np.float32 and tile.flags.c_contiguous
        if not (plain and tile.flags.writeable and len(numbers) == len(tile)):  # torch does not take what is read-only
            buffer = np.empty((rows, dim), np.float32) if buffer is None else buffer
            if plain:
                tile = np.take(tile, numbers - start, axis=0, out=buffer[: len(numbers)], mode='clip')
            else:
                buffer[: len(numbers)] = tile[numbers - start]
                tile = buffer[: len(numbers)]
        yield numbers, tile


def above_quickly(query_f, tile, numbers, bars, sizes, grids, device):
    """How many images of the tile stand above each bar. Quick scores, and exact ones where those are too close."""
    multiply = product.quick(tile)
    error = product.error(tile.shape[1]) * sizes[0] * sizes[1]
    above = np.zeros(len(bars.scores), np.int64)
    for start in range(0, len(query_f), BLOCK):
        block = np.require(query_f[start : start + BLOCK], np.float32, 'CW')
        exact = product.exactly(product.whole(block, grids[0]), tile, grids)
        for i, row in enumerate(multiply(block)):  # (t,)
            own = slice(bars.starts[start + i], bars.starts[start + i + 1])
            if own.stop > own.start:
                above[own] = places(row, bars.scores[own], bars.columns[own], numbers, error, partial(exact, i))
    return above


def places(row, bars, own, numbers, error=0.0, exact=None):
    """How many stand above each bar. row (t,): scores, off by `error` at most, of the gallery images `numbers`;
    bars (m,): exact scores of the images `own`; exact(c): exact scores of row[c], if there is an error at all."""
    under, over = ((bars + off).astype(row.dtype) for off in (-error, error))
    near = np.flatnonzero(row >= under.min())  # all others stand below all bars
    score = row[near]
    rising = np.sort(score)
    high = rising.searchsorted(over, 'right')
    above = len(rising) - high
    here = (own >= numbers[0]) & (own <= numbers[-1])
    low = rising.searchsorted(under)
    close = np.flatnonzero(high - low > here)  # not only the image that set the bar
    company = (high - low)[close]
    if company.sum() > MANY:
        return places_among_many(score, near, under, over, bars, own, numbers, exact)
    if len(close):
        if len(close) * len(score) < FEW:
            found = np.flatnonzero((score >= under[close, None]) & (score <= over[close, None]))
            bar, image = np.divmod(found, len(score))
            bar, image = close[bar], near[image]
        else:
            bar = np.repeat(close, company)
            place = np.arange(len(bar)) - np.repeat(np.cumsum(company) - company, company) + low[bar]
            image = near[np.argsort(score)[place]]
        true = row[image] if exact is None else exact(image)
        wins = (true > bars[bar]) | ((true == bars[bar]) & (numbers[image] < own[bar]))
        above += np.bincount(bar[wins], minlength=len(bars))
    return above


def places_among_many(score, near, under, over, bars, own, numbers, exact):
    """The same where many bars have company: exact scores for all that are close to any of them, in order."""
    order = np.argsort(score)
    rising = score[order]
    begin, end = rising.searchsorted(under), rising.searchsorted(over, 'right')
    depth = np.cumsum(np.bincount(begin, minlength=len(score) + 1) - np.bincount(end, minlength=len(score) + 1))
    close = order[depth[:-1] > 0]
    score = score.astype(np.float64)
    if exact is not None:
        score[close] = exact(near[close])
    order = np.lexsort((-numbers[near], score))  # the last stands above all others
    rising, image = score[order], numbers[near[order]]
    low, high = rising.searchsorted(bars), rising.searchsorted(bars, 'right')
    above = len(rising) - high
    for j in np.flatnonzero(high - low):
        above[j] += np.count_nonzero(image[low[j] : high[j]] < own[j])
    return above


def above_exactly(query_f, tile, numbers, bars, sizes, grids, device):
    """The same for a GPU, where double precision throughout is quicker than telling cases apart."""
    tile = torch.from_numpy(product.whole(tile, grids[1])).to(device)
    numbers = torch.from_numpy(numbers).to(device)
    above = []
    for start in range(0, len(query_f), BLOCK):
        block = torch.from_numpy(product.whole(query_f[start : start + BLOCK], grids[0])).to(device)
        scores, own, real = padded(bars, start, len(block), device)
        above.append(places_at_once(block @ tile.T / (grids[0] * grids[1]), scores, own, numbers)[real])
    return np.concatenate(above)


def above_in(block, bars, start):
    """How many of the scores (b, G) of queries start to start + b stand above each of their bars."""
    if product.is_cuda(block.device):
        scores, own, real = padded(bars, start, len(block), block.device)
        numbers = torch.arange(block.shape[1], device=block.device)
        return places_at_once(block, scores.to(block.dtype), own, numbers)[real]
    numbers = np.arange(block.shape[1])
    found = [np.zeros(0, np.int64)]
    for i, row in enumerate(block.numpy(), start):
        own = slice(bars.starts[i], bars.starts[i + 1])
        if own.stop > own.start:
            found.append(places(row, bars.scores[own], bars.columns[own], numbers))
    return np.concatenate(found)


def padded(bars, start, n, device):
    """The bars of queries start to start + n in rows of one length m: scores and images on the device, and which of
    them are real, (n, m) each."""
    first = bars.starts[start : start + n + 1]
    count = np.diff(first)[:, None]
    real = np.arange(max(count.max(), 1)) < count
    scores, columns = np.full(real.shape, np.inf), np.zeros(real.shape, np.int64)
    scores[real], columns[real] = bars.scores[first[0] : first[-1]], bars.columns[first[0] : first[-1]]
    return torch.from_numpy(scores).to(device), torch.from_numpy(columns).to(device), real


def places_at_once(scores, bars, own, numbers):
    """`places` for a block of exact scores (b, t) against bars (b, m), on its device -> (b, m)."""
    above = torch.empty(bars.shape, dtype=torch.int64, device=scores.device)
    for j in range(bars.shape[1]):
        bar = bars[:, j : j + 1]
        above[:, j] = ((scores > bar) | ((scores == bar) & (numbers < own[:, j : j + 1]))).sum(1)
    return above.cpu().numpy()
