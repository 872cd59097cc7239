"""Evaluate a result by hand: two plain loops, in which every rule of the protocol is one line.

Reads:   model/<name>/pytorch_result.mat
Writes:  nothing
Run:     python tutorial/by_hand.py --name toy

evaluate_gpu.py gives the same figures without sorting anything, and in a fraction of the time.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

import utils  # noqa: E402
from reid import cli, results  # noqa: E402
from reid.problem import Problem  # noqa: E402


def options():
    parser = cli.parser(__doc__)
    utils.result_options(parser)
    return parser


def main(opts):
    (query, gallery), _ = results.load(utils.result_of(opts), 'query', 'gallery')
    rows = [one(f, who, cam, gallery) for f, who, cam in zip(query.f, query.ids, query.cams, strict=True)]
    if None in rows:
        raise Problem(f'{rows.count(None)} queries have no good image: evaluate_gpu.py knows what to do then')
    first, standard, trapezoid = np.array(rows).T
    for k in (1, 5, 10):
        print(f'Rank@{k}: {(first <= k).mean():.6f}')
    print(f'mAP: {trapezoid.mean():.6f} (trapezoid) {standard.mean():.6f} (standard)')


def one(f, who, cam, gallery):
    """One query -> the rank of its first good image, and both average precisions; None if it has no good image."""
    scores = gallery.f @ f  # (N,): cosines, for all features are of unit length
    rank, ranks = 0, []
    for i in np.argsort(-scores, kind='stable'):  # from the best on
        same_person = gallery.ids[i] == who
        same_camera = gallery.cams[i] == cam and cam != -1  # which is unknown, and never the same
        if gallery.ids[i] == -1 or (same_person and same_camera):
            continue  # junk: as if it were not there
        rank += 1
        if same_person:
            ranks.append(rank)
    if not ranks:
        return None
    standard = trapezoid = 0
    for found, rank in enumerate(ranks, 1):
        precision = found / rank
        before = (found - 1) / (rank - 1) if rank > 1 else 1
        standard += precision / len(ranks)
        trapezoid += (precision + before) / 2 / len(ranks)
    return ranks[0], standard, trapezoid


if __name__ == '__main__':
    cli.start(main, options)
