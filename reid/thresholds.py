"""The same person or not? Scores of pairs, the thresholds that follow, and threshold.json, which keeps them.

The score of two pictures is the cosine of their features (reid.features.describe), -1 to 1. Features are of unit
length, so their distance, sqrt(2 - 2 score), says the same. A pair is genuine if its pictures show one person, seen by
two cameras (reid.ranking knows what is junk), and an impostor pair if they show two people.

    false accept rate, FAR   the share of impostor pairs that reach a threshold: two people taken for one
    found                    the share of genuine pairs that reach it
    equal error              where the share of genuine pairs that are missed is the false accept rate

model/<name>/threshold.json, written by threshold.py alone, holds

    what, format             what it is, and the number of this description
    run, which_epoch         whose features they are
    weights                  {file, size, sha256} of the weights: a threshold is good for these alone
    flip, ms, test_feature   how the pictures were described: these must not change either
    precision                float32, fp16 or bf16, in which the network computed
    part, data_dir           which pictures: held_out, train_all or test, and of which trees
    same_camera              whether two pictures of one person by one camera count as genuine
    identities, pictures, genuine_pairs, impostor_pairs
    thresholds               a list, the strictest first: {far, threshold, distance, found, accepted, far_95, found_95}:
                             the lowest score that keeps the rate, the share of genuine pairs that it finds, how many
                             impostor pairs it accepts, and 95 % intervals of both shares for other people like these
    equal_error              {rate, threshold, distance}
    bounds                   {same, not_same, far, found}: 'same' from the score `same`, which keeps the strictest rate;
                             'not the same' below `not_same`, which the share `found` of the genuine pairs reaches;
                             'unsure' between
    versions                 of python, torch, torchvision, numpy, and the commit
"""

import hashlib
import json
import math
from collections import namedtuple

import numpy as np
from scipy.sparse import csr_array

from reid import product, ranking
from reid.files import replacing
from reid.problem import Problem

FILE = 'threshold.json'
WHAT, FORMAT = 'thresholds of a person re-identification run', 1
VERDICTS = ('same', 'unsure', 'not the same')
BINS = 2**16  # of scores from -1 to 1. Their edges are exact numbers, and so are the counts of scores from an edge on

# ---------------------------------------------------------------------------------------------------------------------
# 1. pairs

# Pairs of one identity, each once: pictures rows[p] < columns[p], ascending. Those that are not genuine are junk.
Same = namedtuple('Same', 'rows columns genuine')


def same_identity(people, crowd=-1):
    """`Features` of which none is junk -> their pairs of one identity, and the number of impostor pairs.

    crowd: an identity that is no person, such as 0, under which Market-1501 has all its distractors. What two of them
    have to do with each other is not known: neither pair.
    """
    pairs = ranking.pairs_of(people, people)
    once = pairs.columns > pairs.rows
    rows, columns = pairs.rows[once], pairs.columns[once]
    genuine = pairs.good[once] & (people.ids[rows] != crowd)
    return Same(rows, columns, genuine), len(people.ids) * (len(people.ids) - 1) // 2 - len(rows)


def possible(genuine, impostors, rates):
    """Numbers of pairs that allow of no such threshold are a sentence."""
    if not genuine:
        raise Problem(
            'no identity was seen by two cameras, so there are no genuine pairs: take more identities, or count pairs '
            'of one camera as well with --same_camera'
        )
    if not impostors:
        raise Problem('all pictures are of one identity, so there are no impostor pairs: take more identities')
    if min(rates) < 1 / impostors:
        raise Problem(
            f'--far {min(rates):g}: {impostors:,} impostor pairs cannot show a rate of less than one of them. Take a '
            'higher rate, or more identities'
        )


def blocks(f, device):
    """The exact scores of all pairs of pictures, each once: (start, (b, N - start)), -inf where the pair is known."""
    grids = (product.grid(product.longest(f, 'picture')),) * 2
    step = max(1, min(product.BLOCK, product.SCORES // len(f)))
    for start in range(0, len(f), step):
        block = product.whole(f[start : start + step], grids[0])
        scores = product.dense_scores(block, f[start:], grids, device)
        scores[np.arange(scores.shape[1]) <= np.arange(len(block))[:, None]] = -np.inf
        yield start, scores


def among(people, same, device='cpu'):
    """All pairs, each once -> scores of the genuine ones (P,), and a histogram (BINS,) of those of impostors."""
    known, impostors = np.empty(len(same.rows)), np.zeros(BINS, np.int64)
    for start, scores in blocks(people.f, device):
        own = slice(*np.searchsorted(same.rows, [start, start + len(scores)]))
        known[own] = scores[same.rows[own] - start, same.columns[own] - start]
        impostors += histogram(scores[scores > -np.inf]) - histogram(known[own])
    return known[same.genuine], impostors


def confusions(f, person, bars, device='cpu'):
    """person (N,): whose picture it is, 0 to K - 1. -> for each of the scores `bars` a sparse (K, K): how many pairs of
    pictures of these two have at least that score, each pair once."""
    shape = (max(person) + 1,) * 2
    found = [csr_array(shape, dtype=np.int64) for _ in bars]
    for start, scores in blocks(f, device):
        i, j = np.nonzero(scores >= min(bars))
        score, a, b = scores[i, j], person[start + i], person[start + j]
        for k, bar in enumerate(bars):
            some = (score >= bar) & (a != b)
            found[k] += csr_array((np.ones(some.sum(), np.int64), (a[some], b[some])), shape)
    return found


def histogram(scores):
    place = (scores + 1) * (BINS / 2)
    return np.bincount(np.clip(place, 0, BINS - 1).astype(np.int32).ravel(), minlength=BINS)


# ---------------------------------------------------------------------------------------------------------------------
# 2. thresholds. All are edges of bins: place 0 is the score -1, which all pairs reach


def reaching(counts):
    """A histogram -> (BINS + 1,) the share of its pairs with at least the score of each place; the last: of none."""
    return np.append(np.cumsum(counts[::-1])[::-1], 0) / max(counts.sum(), 1)


def lowest(different, rate):
    """The place of the lowest threshold that at most this share of the pairs of two people reaches."""
    return int(np.argmax(reaching(different) <= rate))


def score_at(place):
    """BINS itself is a score that no pair has, not even one of two equal pictures."""
    return 2 * place / BINS - 1 if place < BINS else 1 + 2 / BINS


def choose(genuine, different, rates, found=0.99):
    """Scores of genuine pairs (P,) and the histogram of impostors' -> what threshold.json says of them: thresholds,
    equal_error and bounds."""
    possible(len(genuine), different.sum(), rates)
    hits, alarms = reaching(histogram(genuine)), reaching(different)
    rows = []
    for rate in sorted(set(rates)):
        place = lowest(different, rate)
        accepted = int(different[place:].sum())
        rows.append({'far': rate, **both(place), 'found': float(hits[place]), 'accepted': accepted})
    equal = int(np.argmin(np.abs(1 - hits - alarms)))
    error = {'rate': float(1 - hits[equal] + alarms[equal]) / 2, **both(equal)}
    # Where a network tells people apart better than was asked for, the bounds would cross: then nothing is unsure.
    below = min(score_at(np.flatnonzero(hits >= found)[-1]), rows[0]['threshold'])
    bounds = {'same': rows[0]['threshold'], 'not_same': float(below), 'far': rows[0]['far'], 'found': found}
    return {'thresholds': rows, 'equal_error': error, 'bounds': bounds}


def both(place):
    score = float(score_at(place))
    return {'threshold': score, 'distance': math.sqrt(max(0, 2 - 2 * score))}


def how_sure(rows, people, same, genuine, device='cpu', crowd=-1, draws=1000, seed=0):
    """Rows of `choose` -> the same with 95 percent intervals, far_95 and found_95.

    The bootstrap: as many identities are drawn, with replacement, and with them all pairs between two of them (the
    vertex bootstrap of Snijders and Borgatti, 1999). To draw pairs would make the intervals far too narrow: each
    person is in many pairs, and one who looks like another makes hundreds of wrong ones.
    """
    names, person, size = np.unique(people.ids, return_inverse=True, return_counts=True)
    bars = [row['threshold'] for row in rows]
    who = person[same.rows[same.genuine]]
    pairs = np.bincount(who, minlength=len(names))
    hits = [np.bincount(who, genuine >= bar, len(names)) for bar in bars]
    wrong = confusions(people.f, person, bars, device)
    rng, found, far = np.random.default_rng(seed), [], []
    for _ in range(draws):
        times = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))  # that each is drawn
        times[names == crowd] = 1
        impostors = ((size @ times) ** 2 - ((size * times) ** 2).sum()) / 2
        if impostors and pairs @ times:
            far.append([times @ (between @ times) / impostors for between in wrong])
            found.append([of @ times / (pairs @ times) for of in hits])
    ends = [np.percentile(shares, (2.5, 97.5), axis=0).T.tolist() for shares in (far, found)]
    return [row | {'far_95': a, 'found_95': b} for row, a, b in zip(rows, *ends, strict=True)]


def shares(counts, bounds):
    """Which shares of the pairs of a histogram are judged the same, unsure, not the same."""
    places = (min(round((bounds[name] + 1) * BINS / 2), BINS) for name in ('same', 'not_same'))
    same, not_same = reaching(counts)[[*places]]
    return same, not_same - same, 1 - not_same


# ---------------------------------------------------------------------------------------------------------------------
# 3. threshold.json


def fingerprint(path):
    """What tells the weights in a file from all others."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return {'file': path.name, 'size': path.stat().st_size, 'sha256': digest.hexdigest()}


def save(folder, content):
    with replacing(folder / FILE) as temporary:
        temporary.write_text(json.dumps({'what': WHAT, 'format': FORMAT, **content}, indent=2) + '\n', encoding='utf-8')
    return folder / FILE


def load(folder, weights=None, **used):
    """threshold.json of a run, made sure to be whole and of the weights in use (default: the file that it names).

    `used` says how the caller describes pictures, such as flip=True, ms='1', test_feature='after': if that is not how
    threshold.py did it, a sentence.
    """
    path = folder / FILE
    again = f'python threshold.py --name {folder.name}'
    try:
        saved = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise Problem(f'{path}: no threshold has been chosen yet. {again} chooses one') from None
    except (OSError, ValueError) as error:
        raise Problem(f'{path} cannot be read ({error}): {again} writes it anew') from None
    if not (isinstance(saved, dict) and (saved.get('what'), saved.get('format')) == (WHAT, FORMAT)):
        raise Problem(f'{path} is not what threshold.py of this version writes: {again} writes it anew')
    if not is_whole(saved):
        raise Problem(f'{path} is damaged, or was edited: {again} writes it anew')
    weights = weights or folder / saved['weights']['file']
    if not weights.is_file():
        raise Problem(f'{path} was made with {weights.name}, which is no longer there: {again} writes it anew')
    if fingerprint(weights)['sha256'] != saved['weights']['sha256']:
        raise Problem(f'{path} was made with other weights than those of {weights}: {again} writes it anew')
    for name, value in used.items():
        if saved[name] != value:
            raise Problem(
                f'{path} is for features with {name}: {saved[name]}, and these have {value}: {again} with the same '
                'options writes it anew'
            )
    return saved


def is_whole(saved):
    """Does it say what a judge needs, in numbers that make sense?"""
    try:
        same, not_same = (saved['bounds'][name] for name in ('same', 'not_same'))
        weights = [type(saved['weights'][name]) for name in ('file', 'size', 'sha256')]
        settings = {'flip', 'ms', 'test_feature'} <= set(saved)
        return settings and weights == [str, int, str] and -1 <= not_same <= same < 2
    except (KeyError, TypeError):
        return False


def judge(score, saved):
    """'same', 'unsure' or 'not the same'."""
    if score >= saved['bounds']['same']:
        return VERDICTS[0]
    return VERDICTS[2] if score < saved['bounds']['not_same'] else VERDICTS[1]


def least(typed, bounds):
    """The score from which on somebody is known: what was typed, else what threshold.py has chosen, else None. bounds:
    of threshold.json, or a Problem that says why there are none."""
    return bounds['same'] if typed is None and isinstance(bounds, dict) else typed


def who(hits, least):
    """[(score, entry)] -> the name of the first, or None: nobody who is known."""
    return hits[0][1].name if hits and (least is None or hits[0][0] >= least) else None


# ---------------------------------------------------------------------------------------------------------------------
# 4. in words


def lines(saved, genuine, different):
    """What was chosen, and what becomes of the pairs that it was chosen from: histograms."""
    yield f'{"FAR":>8s} {"threshold":>10s} {"genuine pairs found (95 %)":>32s} {"impostor pairs accepted (95 %)":>39s}'
    for row in saved['thresholds']:
        (low, high), (less, more) = row['found_95'], row['far_95']
        found = f'{100 * row["found"]:.2f} % ({100 * low:.2f} to {100 * high:.2f})'
        wrong = f'{row["accepted"]:,} (FAR {less:.2g} to {more:.2g})'
        yield f'{row["far"]:8g} {row["threshold"]:10.4f} {found:>32s} {wrong:>39s}'
    yield '(95 %: where these rates of all people like these may lie)'
    error = saved['equal_error']
    yield f'equal error {100 * error["rate"]:.2f} %, at a score of {error["threshold"]:.4f}'
    yield ''
    bounds = saved['bounds']
    where = f'from {bounds["same"]:.4f}', 'between', f'below {bounds["not_same"]:.4f}'
    yield f'{"":14s} {"score":14s} {"genuine pairs":>14s} {"impostor pairs":>15s}'
    columns = VERDICTS, where, shares(genuine, bounds), shares(different, bounds)
    for verdict, range_, one, two in zip(*columns, strict=True):
        yield f'{verdict:14s} {range_:14s} {100 * one:12.2f} % {100 * two:13.2f} %'
