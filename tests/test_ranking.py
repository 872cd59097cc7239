"""The protocol against plain loops and hand-made cases: python -m pytest tests/test_ranking.py"""

import numpy as np
import pytest
import torch

from reid import ranking
from reid.problem import Problem
from reid.results import Features


def by_loops(query, gallery):
    """The protocol of Market-1501, written out for one query at a time with nothing but a sort and counting."""
    cmc, trapezoid, standard, inp = np.zeros(len(gallery.ids)), [], [], []
    for f, person, cam in zip(query.f, query.ids, query.cams, strict=True):
        scores = torch.from_numpy(gallery.f) @ torch.from_numpy(f)
        order = sorted(range(len(scores)), key=lambda j: (-float(scores[j]), j))
        hits = []
        for j in order:
            if gallery.ids[j] == -1:
                continue
            if gallery.ids[j] == person and gallery.cams[j] == cam and cam != -1:
                continue
            hits.append(gallery.ids[j] == person)
        n, found, area, precision_sum = sum(hits), 0, 0.0, 0.0
        if n == 0:
            trapezoid.append(0.0)
            continue
        for rank, hit in enumerate(hits):
            if hit:
                old_precision = found / rank if rank else 1.0
                found += 1
                precision = found / (rank + 1)
                area += (old_precision + precision) / 2 / n
                precision_sum += precision
                last = rank
        cmc[hits.index(True) :] += 1
        trapezoid.append(area)
        standard.append(precision_sum / n)
        inp.append(n / (last + 1))
    cmc = cmc / len(query.ids)
    return {
        'rank1': cmc[0],
        'rank5': cmc[4],
        'rank10': cmc[9],
        'map_trapezoid': np.mean(trapezoid),
        'map_standard': np.mean(standard),
        'minp': np.mean(inp),
        'queries': len(query.ids),
        'queries_without_good': len(trapezoid) - len(standard),
    }


def people(rng, n, ids, dim=8, levels=None):
    f = rng.standard_normal((n, dim)).astype(np.float32)
    if levels:  # few distinct values: many equal scores
        f = np.round(f * levels) / levels
    else:
        f /= np.linalg.norm(f, axis=1, keepdims=True)
    return Features(f.astype(np.float32), rng.choice(ids, n), rng.integers(1, 4, n), None)


@pytest.mark.parametrize('levels', [None, 1])
@pytest.mark.parametrize('block', [1, 7, 256])
def test_equals_plain_loops(levels, block, monkeypatch):
    monkeypatch.setattr(ranking, 'BLOCK', block)
    rng = np.random.default_rng(block)
    query = people(rng, 40, [1, 2, 3, 4, 5, 99], levels=levels)  # 99 is nobody in the gallery
    gallery = people(rng, 200, [-1, 0, 1, 2, 3, 4, 5], levels=levels)
    expected, found = by_loops(query, gallery), ranking.evaluate(query, gallery)
    assert expected['queries_without_good'] > 0
    assert found == pytest.approx(expected, abs=1e-12)


def test_unknown_cameras_are_never_the_same():
    rng = np.random.default_rng(0)
    query, gallery = people(rng, 10, [1, 2, 3]), people(rng, 60, [0, 1, 2, 3])
    query, gallery = (part._replace(cams=np.full(len(part.ids), -1)) for part in (query, gallery))
    found = ranking.evaluate(query, gallery)
    assert found == pytest.approx(by_loops(query, gallery))
    assert found['queries_without_good'] == 0


def ranks_of(scores, ids, cams, person=1, cam=1):
    blocks = [(0, np.array([scores], np.float32))]
    return ranking.ranks(blocks, np.array([person]), np.array([cam]), np.array(ids), np.array(cams))[0].tolist()


def test_junk_is_taken_out_before_ranking():
    assert ranks_of([0.9, 0.8, 0.7, 0.6], [-1, 1, 2, 1], [2, 1, 2, 2]) == [1]


def test_equal_scores_rank_in_gallery_order():
    assert ranks_of([0.5] * 5, [2, 1, 2, 1, 2], [2] * 5) == [1, 3]
    assert ranks_of([0.5, 0.5, 0.9], [1, 2, 2], [2] * 3) == [1]


def test_one_gallery_image():
    assert ranks_of([-0.3], [1], [2]) == [0]


def test_one_good_image_at_rank_1_of_0():
    """The published example of how far the two averages are apart."""
    found = ranking.figures([np.array([1])])
    assert (found['map_trapezoid'], found['map_standard'], found['rank1'], found['rank5']) == (0.25, 0.5, 0, 1)


def test_without_a_good_image():
    found = ranking.figures([np.array([0]), np.array([], int)])
    assert found['queries_without_good'] == 1
    assert found['rank1'] == found['map_trapezoid'] == 0.5  # of all queries
    assert found['map_standard'] == found['minp'] == 1  # of those that can be answered


def test_all_junk_is_a_sentence():
    rng = np.random.default_rng(0)
    gallery = people(rng, 20, [-1])
    with pytest.raises(Problem, match='no query has a good image'):
        ranking.evaluate(people(rng, 3, [1]), gallery)


def test_nan_features_are_a_sentence():
    rng = np.random.default_rng(0)
    query, gallery = people(rng, 3, [1]), people(rng, 20, [1])
    gallery.f[4] = np.nan
    with pytest.raises(Problem, match='nan'):
        ranking.evaluate(query, gallery)


def test_multi_query_is_the_mean_of_the_same_person_and_camera():
    rng = np.random.default_rng(0)
    query, pool = people(rng, 30, [1, 2, 3, 7]), people(rng, 50, [1, 2, 3])
    found = ranking.multi_query(query, pool)
    for i in range(len(query.f)):
        same = (pool.ids == query.ids[i]) & (pool.cams == query.cams[i])
        expected = pool.f[same].mean(0) if same.any() else query.f[i]
        np.testing.assert_allclose(found.f[i], expected, atol=1e-6)
    assert (query.ids == 7).any()
