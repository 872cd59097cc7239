"""Several pictures, or neighbours, in one query: python -m pytest tests/test_queries.py"""

import numpy as np
import pytest

from reid import queries
from reid.results import Features


def people(rng, n, ids):
    f = rng.standard_normal((n, 8))
    f = (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)
    return Features(f, rng.choice(ids, n), rng.integers(1, 4, n), None)


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    query, pool = people(rng, 30, [1, 2, 3, 7]), people(rng, 50, [1, 2, 3])
    assert (query.ids == 7).any()  # somebody who is not in the pool
    return query, pool, people(rng, 40, [0, 1, 2, 3])


def test_mean_of_the_same_person_and_camera(parts):
    query, pool, _ = parts
    found = queries.mean_of(query, pool)
    for i in range(len(query.f)):
        same = (pool.ids == query.ids[i]) & (pool.cams == query.cams[i])
        expected = pool.f[same].mean(0) if same.any() else query.f[i]
        np.testing.assert_allclose(found.f[i], expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.parametrize('step', [4, 64])
def test_best_of_the_same_person_and_camera(parts, step, monkeypatch):
    monkeypatch.setattr(queries, 'STEP', step)
    monkeypatch.setattr(queries.product, 'SCORES', 3 * 40)  # members of one query fall into several blocks
    query, pool, gallery = parts
    found = np.concatenate([block for _, block in queries.best_of(query, pool, gallery)])
    for i in range(len(query.f)):
        same = (pool.ids == query.ids[i]) & (pool.cams == query.cams[i])
        own = pool.f[same] if same.any() else query.f[i, None]
        np.testing.assert_allclose(found[i], (own @ gallery.f.T).max(0), atol=1e-6)


@pytest.mark.parametrize('alpha', [0, 3])
@pytest.mark.parametrize('augment', [False, True])
def test_expansion(parts, alpha, augment):
    query, _, gallery = parts
    f = gallery.f if augment else query.f
    found = queries.expand(f, gallery.f, 5, alpha)
    for i in range(len(f)):
        scores = gallery.f @ f[i]
        order = [j for j in np.argsort(-scores) if not (augment and j == i)][:5]
        expected = f[i] + sum(max(scores[j], 0) ** alpha * gallery.f[j] for j in order)
        np.testing.assert_allclose(found[i], expected / np.linalg.norm(expected), atol=1e-5)
