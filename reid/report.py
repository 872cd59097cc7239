"""More than one number: how sure the figures are, which cameras are hard, and what a threshold would cost."""

import numpy as np

from reid import processes, product, ranking
from reid.problem import Problem
from reid.thresholds import BINS, histogram, lowest, reaching, score_at

FIGURES = {'rank1': 'Rank@1', 'map_trapezoid': 'mAP (trapezoid)', 'map_standard': 'mAP (standard)', 'minp': 'mINP'}
FALSE_ALARMS = (1e-2, 1e-3, 1e-4)


def of_queries(ranks):
    """What each query adds to the figures, (Q,) arrays whose means they are; nan where it is left out."""
    each = ranking.each(ranks)
    return {
        'rank1': (each['first'] < 1).astype(float),  # nan is not below 1: a query without a good image is a miss
        'map_trapezoid': np.nan_to_num(each['trapezoid']),
        'map_standard': each['standard'],
        'minp': each['inp'],
    }


# ---------------------------------------------------------------------------------------------------------------------
# 1. how sure


def intervals(ranks, draws=2000, seed=0):
    """The bootstrap: figures of as many queries, drawn with replacement -> {name: (figure, low, high)}, 95 percent."""
    drawn = np.random.default_rng(seed).integers(0, len(ranks), (draws, len(ranks)), dtype=np.int32)
    out = {}
    for name, values in of_queries(ranks).items():
        out[name] = (np.nanmean(values), *np.percentile(means(values, drawn), (2.5, 97.5)))
    return out


def means(values, drawn):
    """The means of values[drawn], without those that are nan, a few draws at a time."""
    known, value = ~np.isnan(values), np.nan_to_num(values)
    parts = np.array_split(drawn, max(1, drawn.size // 2**22))
    count = np.concatenate([known[part].sum(1) for part in parts])
    total = np.concatenate([value[part].sum(1) for part in parts])
    return total[count > 0] / count[count > 0]


def compare(ranks, others, draws=2000, seed=0):
    """Two systems on the same queries -> {name: (difference, low, high, p)}.

    The interval is a bootstrap over the queries, each with both its results. p is that of a permutation test: how often
    a difference as large as this comes about if it is left to chance which of the two results is whose.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(ranks), (draws, len(ranks)), dtype=np.int32)
    ours, theirs = of_queries(ranks), of_queries(others)
    out = {}
    for name in FIGURES:
        gain = ours[name] - theirs[name]
        some = gain[~np.isnan(gain)]
        by_chance = []
        for part in np.array_split(np.arange(draws), max(1, draws * len(some) // 2**22)):
            signs = rng.integers(0, 2, (len(part), len(some)), dtype=np.int8) * 2 - 1
            by_chance.append(np.abs(signs @ some) / len(some))
        p = (1 + np.count_nonzero(np.concatenate(by_chance) >= np.abs(some.mean()) - 1e-12)) / (1 + draws)
        out[name] = (some.mean(), *np.percentile(means(gain, drawn), (2.5, 97.5)), p)
    return out


def same_task(query, gallery, others, other_gallery):
    """Two results can be compared query by query if they are of the same pictures."""
    for ours, theirs, what in ((query, others, 'queries'), (gallery, other_gallery, 'gallery images')):
        if len(ours.ids) != len(theirs.ids):
            raise Problem(f'the two results are of {len(ours.ids)} and of {len(theirs.ids)} {what}: not the same task')
        for name, a, b in (('identities', ours.ids, theirs.ids), ('cameras', ours.cams, theirs.cams)):
            if not np.array_equal(a, b):
                raise Problem(f'the two results differ in the {name} of their {what}: not the same task')


# ---------------------------------------------------------------------------------------------------------------------
# 2. which cameras


def by_camera(query, gallery, device):
    """-> query cameras, gallery cameras, and per pair of them Rank@1, mAP (trapezoid) and the number of queries that
    have a good image there, (rows, columns) each. The gallery is that of one camera at a time; what no known camera
    has seen is left out."""
    rows, columns = (np.unique(part.cams[part.cams != -1]) for part in (query, gallery))
    rank1, mean = (np.full((len(rows), len(columns)), np.nan) for _ in range(2))
    count = np.zeros(rank1.shape, int)
    for j, there in enumerate(columns):
        keep = np.flatnonzero(gallery.cams == there)
        part = gallery._replace(f=gallery.f[keep], ids=gallery.ids[keep], cams=gallery.cams[keep], paths=None)
        each = ranking.each(ranking.ranks(query, part, device))
        for i, here in enumerate(rows):
            some = (query.cams == here) & ~np.isnan(each['first'])
            count[i, j] = some.sum()
            if some.any():
                rank1[i, j], mean[i, j] = (each['first'][some] < 1).mean(), each['trapezoid'][some].mean()
    return rows, columns, rank1, mean, count


# ---------------------------------------------------------------------------------------------------------------------
# 3. one pair: the same person or not


def verification(query, gallery, device):
    """Histograms of the scores of all pairs that are no junk -> (same person, different people), (BINS,) each."""
    pairs = ranking.pairs_of(query, gallery)
    false = np.flatnonzero(gallery.ids == -1)
    mine = processes.share(len(query.f))
    grids = product.grid(product.longest(query.f, 'query')), product.grid(product.longest(gallery.f, 'gallery'))
    same, every = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for start, scores in product.exact_scores(query.f[mine], gallery.f, grids, device):
        own = slice(pairs.starts[mine.start + start], pairs.starts[mine.start + start + len(scores)])
        at = pairs.rows[own] - mine.start - start, pairs.columns[own]
        same += histogram(scores[at][pairs.good[own]])
        every += histogram(scores) - histogram(scores[at]) - histogram(scores[:, false])
    return processes.total(same), processes.total(every)


def thresholds(same, different, false_alarms=FALSE_ALARMS):
    """For each rate of false alarms the lowest threshold that keeps it -> [(rate, hits, threshold)].

    hits: the share of the pairs of one person with at least this score. A rate that is less than one pair is left out.
    """
    places = {rate: lowest(different, rate) for rate in false_alarms if rate * different.sum() >= 1}
    return [(rate, reaching(same)[place], score_at(place)) for rate, place in places.items()]


# ---------------------------------------------------------------------------------------------------------------------
# 4. in words


def interval_lines(ranks):
    yield f'{"":16s} {"":>7s}   95 % interval (bootstrap over the queries)'
    for name, (figure, low, high) in intervals(ranks).items():
        yield f'{FIGURES[name]:16s} {100 * figure:7.2f}   {100 * low:.2f} to {100 * high:.2f}'


def compare_lines(ranks, others, name, other):
    yield f'{name} less {other}, on the same {len(ranks)} queries'
    for key, (gain, low, high, p) in compare(ranks, others).items():
        sure = 'a real difference' if low > 0 or high < 0 else 'may be chance'
        interval = f'95 %: {100 * low:+.2f} to {100 * high:+.2f}'
        yield f'{FIGURES[key]:16s} {100 * gain:+7.2f}   {interval:24s} p {p:.4f}   {sure}'


def camera_lines(query, gallery, device):
    rows, columns, rank1, mean, count = by_camera(query, gallery, device)
    if not rank1.size:
        yield 'The cameras of these pictures are not known: there is no table of them.'
        return
    yield 'Rank@1 / mAP (trapezoid), from the camera of the query (down) to that of the gallery (across)'
    yield ' ' * 5 + ''.join(f'{camera:>15d}' for camera in columns)
    for i, camera in enumerate(rows):
        cells = [
            f'{100 * rank1[i, j]:5.1f} /{100 * mean[i, j]:5.1f}' if count[i, j] else '-' for j in range(len(columns))
        ]
        yield f'{camera:5d}' + ''.join(f'{cell:>15s}' for cell in cells)


def threshold_lines(same, different):
    yield f'the same person or not? {same.sum():,} pairs of one person, {different.sum():,} of two'
    yield f'{"false alarms":>14s} {"found":>8s} {"from score":>11s}'
    for rate, hits, threshold in thresholds(same, different):
        yield f'{f"1 in {1 / rate:,.0f}":>14s} {100 * hits:7.2f}% {threshold:11.4f}'
    yield 'These thresholds come from the test set: they say how far apart people are, and are not for use.'
    yield 'python threshold.py chooses thresholds for use, without the test set.'
