"""Sparse re-ranking against the dense definition, written as plain loops: python -m pytest tests/test_rerank.py"""

import numpy as np
import pytest
import torch

from reid import nearest, product, ranking, rerank
from reid.problem import Problem
from reid.results import Features


def by_loops(query, gallery, k1, k2, lambda_value, squared=True):
    """arXiv 1701.08398 with full matrices and sets, in float64 but for the distances."""
    f = np.concatenate([query, gallery])
    n, Q = len(f), len(query)
    original = 2 - 2 * (f @ f.T)
    if squared:
        original = original**2
    original = original / original.max(1, keepdims=True)
    order = np.argsort(original, axis=1, kind='stable')

    def mutual(i, k):
        return {int(j) for j in order[i, : k + 1] if i in order[j, : k + 1]}

    V = np.zeros((n, n))
    for i in range(n):
        base = mutual(i, k1)
        grown = set(base)
        for j in base:
            candidate = mutual(j, int(np.around(k1 / 2)))
            if len(candidate & base) > 2 / 3 * len(candidate):
                grown |= candidate
        for j in grown:
            V[i, j] = np.exp(-original[i, j])
        V[i] /= V[i].sum()
    if k2 > 1:
        V = np.stack([V[order[i, :k2]].mean(0) for i in range(n)])
    final = np.empty((Q, n - Q))
    for i in range(Q):
        for j in range(n - Q):
            least, most = np.minimum(V[i], V[Q + j]).sum(), np.maximum(V[i], V[Q + j]).sum()
            final[i, j] = (1 - least / most) * (1 - lambda_value) + original[i, Q + j] * lambda_value
    return final


def clouds(seed, n_query=12, n_gallery=70, dim=16):
    """Clusters of unlike size, so that the expansion has something to accept and something to refuse."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((9, dim))
    who = rng.choice(9, n_query + n_gallery, p=np.arange(1, 10) / 45)
    f = centres[who] + 0.7 * rng.standard_normal((len(who), dim))
    f = (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)
    return f[:n_query], f[n_query:], who + 1, rng.integers(1, 4, len(who))


def scores(query, gallery, **settings):
    return np.concatenate([block.numpy() for _, block in rerank.rerank(query, gallery, **settings)])


@pytest.mark.parametrize(('k1', 'k2', 'lambda_value'), [(20, 6, 0.3), (7, 3, 0.0), (5, 1, 0.6), (26, 7, 0.3)])
@pytest.mark.parametrize('distance', ['squared', 'plain'])
def test_equals_plain_loops(k1, k2, lambda_value, distance, monkeypatch):
    monkeypatch.setattr(nearest, 'BLOCK', 5)
    monkeypatch.setattr(nearest, 'TILE', 16 * 40)
    monkeypatch.setattr(product, 'SCORES', 5 * 70)
    query, gallery, _, _ = clouds(k1)
    expected = by_loops(query, gallery, k1, k2, lambda_value, distance == 'squared')
    found = scores(query, gallery, k1=k1, k2=k2, lambda_value=lambda_value, distance=distance)
    np.testing.assert_allclose(-found, expected, atol=2e-6)
    assert (expected < 0.99 * (1 - lambda_value)).any()  # some pairs do share neighbours


def test_lambda_of_one_keeps_the_order_of_the_cosines():
    query, gallery, _, _ = clouds(1)
    found = scores(query, gallery, lambda_value=1.0)
    np.testing.assert_array_equal(np.argsort(-found, axis=1), np.argsort(-(query @ gallery.T), axis=1))


@pytest.mark.parametrize('settings', [{'k1': 31}, {'k1': 5, 'k2': 31}])
def test_more_neighbours_than_images_is_a_sentence(settings):
    query, gallery, _, _ = clouds(2, n_query=2, n_gallery=30)
    with pytest.raises(Problem, match='31: the gallery holds only 30 images'):
        scores(query, gallery, **settings)
    assert np.isfinite(scores(query, gallery, k1=30, k2=30)).all()


def test_an_image_that_is_near_to_everyone(monkeypatch):
    """Its entries are shared by all: they are looked at a bounded number at a time, and the numbers stay the same."""
    query, gallery, _, _ = clouds(4)
    gallery[:3] = np.mean(gallery, 0) / np.linalg.norm(np.mean(gallery, 0))
    expected = by_loops(query, gallery, 20, 6, 0.3)
    lengths = []
    minimum = torch.minimum
    monkeypatch.setattr(torch, 'minimum', lambda a, b: lengths.append(len(a)) or minimum(a, b))
    monkeypatch.setattr(rerank, 'PAIRS', 100)
    np.testing.assert_allclose(-scores(query, gallery), expected, atol=2e-6)
    assert len(lengths) > 10
    assert max(lengths) <= 100 + len(gallery)


def test_features_that_are_all_the_same():
    f = np.full((30, 4), 0.5, np.float32)
    assert np.isfinite(scores(f[:5], f[5:])).all()


def test_it_helps_where_clusters_are_stretched():
    query, gallery, who, cams = clouds(3, n_query=40, n_gallery=400)
    q, g = Features(query, who[:40], cams[:40], None), Features(gallery, who[40:], cams[40:], None)
    plain = ranking.evaluate(q, g)
    better = ranking.figures(ranking.ranks_in(rerank.rerank(q.f, g.f), q, g))
    assert better['map_trapezoid'] > plain['map_trapezoid']
