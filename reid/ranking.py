"""The protocol of the field: which gallery images count, in which order, and the figures that follow.

For one query, a gallery image is
    junk    if its identity is -1, or it is the same identity seen by the same camera: taken out before ranking;
    good    if it is the same identity seen by another camera;
    wrong   otherwise (the distractors, identity 0, among them).
Everything that is reported follows from the ranks of the good images alone, so nothing is sorted here: the rank of a
good image is the number of gallery images, junk left out, that stand above it: those with a greater score, and those
with the same score that come earlier in the gallery. Scores are compared exactly (reid.product), so that a rank is the
same on every machine, in every size of block and from any number of processes.
"""

from collections import namedtuple

import numpy as np
import torch

from reid import counting, processes, product
from reid.problem import Problem

# The pairs of one identity, query by query: pair p is query rows[p] and gallery image columns[p], ascending, and the
# pairs of query i are starts[i] to starts[i + 1]. Those that are not good are junk.
Pairs = namedtuple('Pairs', 'rows columns good starts')


def judge(query_id, query_cam, gallery_id, gallery_cam):
    """Query and gallery, element by element -> (good, junk), boolean. A camera of -1 is unknown: never the same."""
    same = gallery_id == query_id
    same_camera = (gallery_cam == query_cam) & (gallery_cam != -1)
    junk = (gallery_id == -1) | (same & same_camera)
    return same & ~junk, junk


def pairs_of(query, gallery):
    """All pairs of the same identity, found without looking at the others."""
    order = np.argsort(gallery.ids, kind='stable')
    known = gallery.ids[order]
    first = np.searchsorted(known, query.ids)
    count = np.where(query.ids == -1, 0, np.searchsorted(known, query.ids, 'right') - first)
    starts = np.concatenate([[0], np.cumsum(count)])
    rows = np.repeat(np.arange(len(count)), count)
    columns = order[np.arange(starts[-1]) - np.repeat(starts[:-1] - first, count)]
    good, _ = judge(query.ids[rows], query.cams[rows], gallery.ids[columns], gallery.cams[columns])
    return Pairs(rows, columns, good, starts)


# ---------------------------------------------------------------------------------------------------------------------
# 1. ranks


def ranks(query, gallery, device='cpu'):
    """Two `Features` (reid.results) -> for each query the ranks (0 = first) of its good images, ascending."""
    if not (len(query.f) and len(gallery.f)):
        raise Problem(f'there is nothing to rank: {len(query.f)} queries and {len(gallery.f)} gallery images')
    mine = processes.share(len(gallery.f))  # the part of the gallery that this process looks at: all, if it is alone
    sizes = product.longest(query.f, 'query'), processes.most(product.longest(gallery.f[mine], 'gallery'))
    grids = product.grid(sizes[0]), product.grid(sizes[1])
    pairs = pairs_of(query, gallery)
    scores = processes.total(pair_scores(query.f, gallery.f, pairs, grids, mine))
    bars = good_only(pairs, scores)
    above = counting.above(query, gallery, bars, mine, sizes, grids, device)
    return without_junk(processes.total(above), pairs, scores, bars)


def good_only(pairs, scores):
    starts = np.concatenate([[0], np.cumsum(pairs.good)])[pairs.starts]
    return counting.Bars(scores[pairs.good], pairs.columns[pairs.good], starts)


def pair_scores(query_f, gallery_f, pairs, grids, mine):
    """The exact scores of pairs whose gallery image lies in the slice `mine`, 0 for all others."""
    scores = np.zeros(len(pairs.columns))
    here = np.flatnonzero((pairs.columns >= mine.start) & (pairs.columns < mine.stop))
    ends = np.searchsorted(here, pairs.starts)
    for i in np.flatnonzero(np.diff(ends)):
        f = product.whole(query_f[i], grids[0])
        for start in range(ends[i], ends[i + 1], product.PIECE):
            p = here[start : min(start + product.PIECE, ends[i + 1])]
            scores[p] = product.whole(gallery_f[pairs.columns[p]], grids[1]) @ f
    return scores / (grids[0] * grids[1])


def without_junk(above, pairs, scores, bars):
    """Take off the junk of the query's own identity that stands above its good images -> a list of ranks a query."""
    found = []
    for i in range(len(pairs.starts) - 1):
        own = slice(bars.starts[i], bars.starts[i + 1])
        all_of_it = slice(pairs.starts[i], pairs.starts[i + 1])
        junk = ~pairs.good[all_of_it]
        rank = above[own]
        if junk.any() and len(rank):
            bar, column = bars.scores[own, None], bars.columns[own, None]
            score, other = scores[all_of_it][junk], pairs.columns[all_of_it][junk]
            rank = rank - ((score > bar) | ((score == bar) & (other < column))).sum(1)
        found.append(np.sort(rank))
    return found


def ranks_in(blocks, query, gallery):
    """The same from scores that were made elsewhere, as re-ranking does: blocks (start, (b, G)), taken as they are.

    They are written into: false detections get -inf.
    """
    pairs = pairs_of(query, gallery)
    scores = np.zeros(len(pairs.rows))
    above = []
    for start, block in blocks:
        block = torch.as_tensor(block)
        block[:, torch.from_numpy(gallery.ids == -1).to(block.device)] = -torch.inf
        own = slice(pairs.starts[start], pairs.starts[start + len(block)])
        rows, columns = (torch.from_numpy(a[own]).to(block.device) for a in (pairs.rows - start, pairs.columns))
        scores[own] = block[rows, columns].cpu().numpy()
        above.append(counting.above_in(block, good_only(pairs, scores), start))
    return without_junk(np.concatenate(above), pairs, scores, good_only(pairs, scores))


# ---------------------------------------------------------------------------------------------------------------------
# 2. figures


def each(ranks):
    """Ranks of good images, one array a query -> for each query, as arrays: the rank of the first, both average
    precisions and mINP's share. Where there is no good image, nan.

    Two average precisions are in use and differ by up to a point. With r_i the rank of the i-th of n good images:
        trapezoid (Market-1501's own code)   AP = sum_i ((i+1)/(r_i+1) + (i/r_i, or 1 where r_i = 0)) / 2n
        standard  (most other projects)      AP = sum_i (i+1)/(r_i+1) / n
    mINP, arXiv 2001.04193, is the mean of n / (rank of the last good image, from 1).
    """
    n = np.array([len(r) for r in ranks])
    r = np.concatenate(ranks).astype(np.int64) if len(ranks) else np.zeros(0, np.int64)
    starts = np.cumsum(n) - n
    query, i = np.repeat(np.arange(len(n)), n), np.arange(len(r)) - np.repeat(starts, n)
    precision = (i + 1) / (r + 1)
    before = np.where(r == 0, 1.0, i / np.maximum(r, 1))
    some = n > 0
    out = {name: np.full(len(n), np.nan) for name in ('first', 'trapezoid', 'standard', 'inp')}
    out['first'][some] = r[starts[some]]
    out['inp'][some] = n[some] / (r[(starts + n - 1)[some]] + 1)
    out['trapezoid'][some] = (np.bincount(query, (precision + before) / 2, len(n)) / np.maximum(n, 1))[some]
    out['standard'][some] = (np.bincount(query, precision, len(n)) / np.maximum(n, 1))[some]
    return out


def figures(ranks):
    """Ranks of good images, one array a query -> the dict that metrics.json holds (fractions, not percent).

    A query without a good image counts as a miss in Rank-k and in the trapezoid mAP, and is left out of the standard
    mAP and mINP, each as its own community does.
    """
    of = each(ranks)
    some = ~np.isnan(of['first'])
    if not some.any():
        raise Problem(
            'no query has a good image (same identity, another camera): are the identities and cameras right?'
        )
    return {
        **{f'rank{k}': float((of['first'] < k).sum() / len(some)) for k in (1, 5, 10)},
        'map_trapezoid': float(np.nansum(of['trapezoid']) / len(some)),
        'map_standard': float(of['standard'][some].mean()),
        'minp': float(of['inp'][some].mean()),
        'queries': len(some),
        'queries_without_good': int((~some).sum()),
    }


def evaluate(query, gallery, device='cpu'):
    """Two `Features` (reid.results) -> the figures."""
    return figures(ranks(query, gallery, device))
