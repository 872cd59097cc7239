"""Scores of many pairs: quickly with a bounded error, and exactly for the pairs that need it.

A ranking asks which of two scores is greater, and a quick product answers that for nearly all pairs, since its rounding
error has a bound. Only where two scores lie closer than that are they computed again, exactly:

    features are rounded to whole multiples of a grid, 2^-26 of their length. A product of two such numbers and every
    partial sum of such products then fits the 53 bits of a double, so no addition ever rounds, and neither the order
    of summation nor the size of a block, the library, the device or the number of processes can change a score.
"""

import contextlib
import math
import time
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

from reid.problem import Problem

BITS = 26  # of the grid: 2^26 * 2^26 = 2^52, and a sum over features of that length stays below 2^53
STEP = 2**14  # rows at a time wherever all features are passed through
BLOCK = 256  # queries at a time
SCORES = 2**23  # numbers of a block of scores: 32 MB in float32
PIECE = 4096  # gallery rows at a time: scores that are still in the cache when they are copied


def is_cuda(device):
    """Only these GPUs are ranked on; for any other device the CPU does it. Apple's know no float64, in which scores are
    compared."""
    return torch.device(device).type == 'cuda'


def longest(f, what):
    """The length of the longest feature. One that no ranking can use is a sentence."""
    return max((float(length.max()) for _, length in lengths(f, what)), default=0.0)


def lengths(f, what):
    """Piece by piece (start, lengths (n,)) of all features."""
    for start in range(0, len(f), STEP):
        rows = np.asarray(f[start : start + STEP], np.float32)
        length = np.sqrt(np.einsum('ij,ij->i', rows, rows))
        odd = np.flatnonzero(~(np.isfinite(length) & (length > 1e-10)))  # squares have a smaller range than numbers
        length = length.astype(np.float64)
        length[odd] = np.linalg.norm(rows[odd].astype(np.float64), axis=1)
        for row in odd:
            if not np.isfinite(length[row]):
                raise Problem(
                    f'{what}: feature {start + row} holds nan or inf: the network that made it did not learn '
                    '(try a lower --lr)'
                )
            if length[row] == 0:
                raise Problem(f'{what}: feature {start + row} is all zeros, which points nowhere')
        yield start, length


# ---------------------------------------------------------------------------------------------------------------------
# 1. exact scores


def grid(length):
    """The factor that makes features of at most this length whole numbers of at most 26 bits, a power of two.

    A length of 1 may come out as a bit more: up to 1.32 it counts as 1, and 1.32^2 * 2^52 is still below 2^53.
    """
    return 2.0 ** (BITS - math.ceil(math.log2(length) - 0.4))


def whole(f, factor):
    """Features, as float32 has them, in steps of the grid: float64, whose products and sums are exact here."""
    f = np.multiply(np.asarray(f, np.float32), factor, dtype=np.float64)
    return np.rint(f, out=f)


def exactly(block, tile, grids):
    """block (b, D), whole, and tile (t, D) -> a function (i, c): the exact scores of row i of the one and rows c of the
    other.

    Where a network says nearly the same of everyone, hardly a score can be told from the next without: then the whole
    block is computed, once.
    """
    unit = 1 / (grids[0] * grids[1])
    dense = None

    def of(i, c):
        nonlocal dense
        if dense is None and len(c) < len(tile) / 16:
            return whole(tile[c], grids[1]) @ block[i] * unit
        if dense is None:
            dense = dense_scores(block, tile, grids)
        return dense[i, c]

    return of


def dense_scores(block, tile, grids, device='cpu'):
    """All exact scores (b, t) of a block that is whole."""
    scores = np.empty((len(block), len(tile)))
    on_gpu = is_cuda(device)
    block = torch.from_numpy(block).to(device) if on_gpu else block
    for start in range(0, len(tile), PIECE):
        piece = whole(tile[start : start + PIECE], grids[1])
        part = (block @ torch.from_numpy(piece).to(device).T).cpu().numpy() if on_gpu else block @ piece.T
        scores[:, start : start + PIECE] = part
    scores /= grids[0] * grids[1]
    return scores


def exact_scores(query_f, gallery_f, grids, device='cpu'):
    """Blocks of exact scores of all pairs, (start, (b, G) float64), made on the device and handed over on the CPU."""
    rows = max(1, min(BLOCK, SCORES // len(gallery_f)))
    for start in range(0, len(query_f), rows):
        yield start, dense_scores(whole(query_f[start : start + rows], grids[0]), gallery_f, grids, device)


# ---------------------------------------------------------------------------------------------------------------------
# 2. quick scores. PRODUCTS[name](gallery, rows) -> a function of up to so many queries: (b, G), good until called again

LARGE = 2**26  # multiplications, below which it does not matter


def by_numpy(gallery, rows):
    out = np.empty((rows, len(gallery)), np.float32)
    return lambda query: np.matmul(query, gallery.T, out=out[: len(query)])


def by_onednn(gallery, rows):
    """The library that torch convolves with on CPUs, twice as fast as the matrix products of some."""
    gallery = torch.from_numpy(gallery)
    out = torch.empty(rows, len(gallery))

    def multiply(query):
        query = torch.from_numpy(query).to_mkldnn()
        for start in range(0, len(gallery), PIECE):
            piece = slice(start, start + PIECE)
            out[: len(query), piece] = F.linear(query, gallery[piece]).to_dense()
        return out[: len(query)].numpy()

    return multiply


# oneDNN is not there on Apple's processors, where numpy does well. It goes first: numpy's threads spin on for a while.
PRODUCTS = {**({'onednn': by_onednn} if torch.backends.mkldnn.is_available() else {}), 'numpy': by_numpy}
speeds = {name: [] for name in PRODUCTS}  # in multiplications a second, as seen on the work itself


def quick(gallery, rows=BLOCK):
    """(G, D) float32 -> a function of up to `rows` queries that gives their scores (b, G), good until its next call.

    The first large blocks of a process are computed by each library in turn, twice, and the others by the faster one.
    """
    ready = {}

    def multiply(query):
        untried = [name for name in PRODUCTS if len(speeds[name]) < 2]
        name = untried[0] if untried else max(PRODUCTS, key=lambda name: max(speeds[name]))
        if name not in ready:
            ready[name] = PRODUCTS[name](gallery, rows)
        began = time.perf_counter()
        scores = ready[name](query)
        work = query.size * len(gallery)
        if untried and work >= LARGE:
            speeds[name].append(work / (time.perf_counter() - began))
        return scores

    return multiply


@lru_cache
def bfloat16_is_fast():
    """Half the bits are up to twice the speed on CPUs that know them, and crawl on those that do not."""
    if not torch.backends.mkldnn.is_available():
        return False
    time.sleep(0.05)  # numpy's threads go on spinning for some hundredths of a second after their last product
    rng = np.random.default_rng(0)
    gallery = torch.from_numpy(rng.standard_normal((4096, 512), np.float32))
    halved = gallery.bfloat16()
    for rows, hopeless in ((8, 50), (256, 0.8)):  # a taste first
        query, half = gallery[:rows].to_mkldnn(), halved[:rows]
        float32 = shortest(lambda query=query: F.linear(query, gallery))
        if shortest(lambda half=half: half @ halved.T) > hopeless * float32:
            return False
    return True


def shortest(work):
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def halve(f, out, middle=None):
    """Write float32 (N, D), less a row `middle`, into a tensor of bfloat16. -> the length of the longest row of those,
    and of the most that one has lost."""
    f, longest_, lost = torch.from_numpy(f), 0.0, 0.0
    step = max(1, 2**18 // f.shape[1])  # what stays in the cache
    for start in range(0, len(f), step):
        rows, halves = f[start : start + step], out[start : start + step]
        rows = rows if middle is None else rows - middle
        halves.copy_(rows)
        longest_ = max(longest_, float(torch.linalg.vector_norm(rows, dim=1).max()))
        lost = max(lost, float(torch.linalg.vector_norm(rows - halves, dim=1).max()))
    return longest_, lost


@contextlib.contextmanager
def full_float32():
    """The bounds hold for true float32: not for TF32, nor for bfloat16 in its place, if somebody has allowed these."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def error(dim):
    """How far a quick score of two vectors of unit length may be off in float32: one rounding of 2^-24 for each of the
    dim additions and products, whatever their order, two to spare for what is compared, and what the grid rounds."""
    return (dim + 2) * 2.0**-24 + 2 * dim**0.5 * 1.6 * 2.0 ** -(BITS + 1)


def similarities(query_f, gallery_f, device='cpu'):
    """Blocks of quick scores, (start, (b, G) float32 on the device), each good until the next."""
    rows = max(1, min(BLOCK, SCORES // len(gallery_f)))
    on_gpu = is_cuda(device)
    gallery = torch.from_numpy(gallery_f).to(device).T if on_gpu else quick(gallery_f, rows)
    for start in range(0, len(query_f), rows):
        block = query_f[start : start + rows]
        yield start, torch.from_numpy(block).to(device) @ gallery if on_gpu else torch.from_numpy(gallery(block))


def pair_scores(f, starts, others, device='cpu'):
    """Quick scores of row i with each of the rows others[starts[i] : starts[i + 1]], one after the other."""
    if is_cuda(device):
        on_gpu = torch.from_numpy(f).to(device)
        rows = torch.from_numpy(np.repeat(np.arange(len(f)), np.diff(starts))).to(device)
        others = torch.from_numpy(others.astype(np.int64)).to(device)
        parts = zip(rows.split(STEP), others.split(STEP), strict=True)
        return torch.cat([(on_gpu[a] * on_gpu[b]).sum(1) for a, b in parts]).cpu().numpy()
    scores = np.empty(len(others), np.float32)
    for i, own in enumerate(map(slice, starts[:-1], starts[1:])):
        scores[own] = f[others[own]] @ f[i]
    return scores
