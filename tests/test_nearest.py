"""Nearest neighbours against a full sort: python -m pytest tests/test_nearest.py"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid import nearest, product
from reid.problem import Problem

PATHS = {'bfloat16': (nearest.OnCPU, True), 'float32': (nearest.OnCPU, False), 'torch': (nearest.OnGPU, False)}


def features(rng, n, dim, kind):
    f = rng.standard_normal((3 if kind == 'equal' else n, dim))
    if kind == 'equal':
        f = f[rng.integers(0, 3, n)]
    if kind == 'close':
        f = 1 + 1e-4 * f
    if kind == 'opposite':
        f = -np.abs(f)
    return (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)


def by_sorting(query, gallery, k):
    q, g = (np.rint(f.astype(np.float64) * 2**26) / 2**26 for f in (query, gallery))
    scores = q @ g.T
    image = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    return image, np.take_along_axis(scores, image, 1), scores.min(1)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 300),
    k=st.integers(1, 25),
    dim=st.sampled_from([3, 64]),
    kind=st.sampled_from(['any', 'equal', 'close', 'opposite']),
    block=st.sampled_from([2, 256]),
    tile=st.sampled_from([200, 3000, 2**26]),
    path=st.sampled_from(sorted(PATHS)),
)
def test_equals_a_full_sort(seed, n, k, dim, kind, block, tile, path):
    rng = np.random.default_rng(seed)
    query, gallery = np.abs(features(rng, 9, dim, 'any')), features(rng, n, dim, kind)
    if kind != 'opposite':
        query = features(rng, 9, dim, kind)
    k = min(k, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, 'BLOCK', block)
        patch.setattr(nearest, 'TILE', tile)
        patch.setattr(nearest, 'OnCPU', PATHS[path][0])
        patch.setattr(product, 'bfloat16_is_fast', lambda: PATHS[path][1])
        image, score, lowest = nearest.nearest(query, gallery, k, furthest=True)
    expected = by_sorting(query, gallery, k)
    np.testing.assert_array_equal(image, expected[0])
    np.testing.assert_array_equal(score, expected[1])
    np.testing.assert_array_equal(lowest, expected[2])


@pytest.mark.parametrize('path', PATHS)
def test_many_groups(path, monkeypatch):
    """Enough images for kth_of_groups to look at groups."""
    monkeypatch.setattr(nearest, 'OnCPU', PATHS[path][0])
    monkeypatch.setattr(product, 'bfloat16_is_fast', lambda: PATHS[path][1])
    rng = np.random.default_rng(0)
    query, gallery = features(rng, 300, 32, 'any'), features(rng, 3000, 32, 'any')
    image, score = nearest.nearest(query, gallery, 10)
    np.testing.assert_array_equal(image, by_sorting(query, gallery, 10)[0])


@pytest.mark.parametrize('dim', [3, 512, 2048])
@pytest.mark.parametrize('kind', ['any', 'close', 'opposite'])
@pytest.mark.parametrize('halved', [False, True])
def test_scores_are_within_their_bound(halved, kind, dim, monkeypatch):
    monkeypatch.setattr(product, 'bfloat16_is_fast', lambda: halved)
    rng = np.random.default_rng(0)
    query, gallery = features(rng, 20, dim, 'any'), features(rng, 3000, dim, kind)
    search = nearest.OnCPU(1, (1.0, 1.0), 3000, gallery.mean(0), 'cpu')
    search.load(gallery)
    keys, shift, worst = search.quick_keys(query)
    found = nearest.score_of(nearest.turn(keys)) if halved else keys.astype(float)
    exact = (np.rint(query.astype(float) * 2**26) / 2**26) @ (np.rint(gallery.astype(float) * 2**26) / 2**26).T
    exact -= shift[:, None]
    assert (np.abs(found - exact) <= worst(found)).all()
    assert (np.abs(found - exact) <= worst(exact)).all()


def test_a_part_in_common_costs_no_candidates(monkeypatch):
    """Features of a network that ends in a ReLU point into one quarter of space; what is left of them is told apart."""
    monkeypatch.setattr(product, 'bfloat16_is_fast', lambda: True)
    rng = np.random.default_rng(0)
    f = 3 + rng.standard_normal((3000, 128))
    f = (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)
    looked_at = []
    marked = nearest.marked
    monkeypatch.setattr(nearest, 'marked', lambda mask: looked_at.append(mask.mean()) or marked(mask))
    image, _ = nearest.nearest(f[:50], f, 10)
    np.testing.assert_array_equal(image, by_sorting(f[:50], f, 10)[0])
    assert max(looked_at) < 0.02


def test_bits_in_order():
    import torch

    scores = torch.tensor([-2.0, -1.0, -1e-3, -0.0, 0.0, 1e-3, 0.5, 1.0]).bfloat16()
    keys = nearest.turn(scores.view(torch.int16).numpy().copy())
    assert (np.diff(keys.astype(int)) > 0).all()
    np.testing.assert_array_equal(nearest.score_of(keys), scores.double().numpy())
    np.testing.assert_array_equal(nearest.key_of(scores.double().numpy()), keys)


@pytest.mark.parametrize('k', [0, 21])
def test_more_neighbours_than_images_is_a_sentence(k):
    rng = np.random.default_rng(0)
    with pytest.raises(Problem, match='there are only 20 images'):
        nearest.nearest(features(rng, 2, 8, 'any'), features(rng, 20, 8, 'any'), k)
